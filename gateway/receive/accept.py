"""The verdict on frames: pure. Same content is judged by chain, never by the digest of an encoding.

`new` is what a frame holds minus what the stream holds: the one place where the overlap of live blocks and later segments is
found. Acceptance never waits for a neighbour; links are compared where both sides are there.

    held of it   chain against what is known   verdict
    nothing      fits, or nothing is known     stored
    nothing      contradicts a neighbour       stored, and a fork is alarmed: two histories, no reading in common
    a part       fits, or nothing is known     stored, `new` is the rest
    all          fits, or nothing is known     duplicate
    any          contradicts                   conflict: kept apart, alarmed, never delivered

A generation that names an end of its predecessor below what is held of that predecessor is a branch (a restored snapshot, a
cloned box): both are stored, and it is alarmed, whichever of the two comes first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.intervals import Intervals
from buffer.manifest import FrameKind, StateRecord, chain_next, chain_start
from gateway.wire.receipt import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.frame import Frame
    from buffer.intervals import Range
    from gateway.landing.index import LandingState

BLOCK_NUMBER_MAX: Final = 2**38  # 8,000 years at one block a second; also bounds the file of chain points
GENERATIONS_MAX: Final = 100_000  # openings of one ring that a stream may bring: one a minute for two months


@dataclass(frozen=True, slots=True)
class Unit:
    """What one frame claims, as the verdict needs it."""

    stream: str
    kind: FrameKind
    generation: int
    first_block: int
    last_block: int
    first_seq: int
    count: int
    chain_before: bytes
    chain_after: bytes
    digest: bytes  # SHA-256 of the COSE_Sign1
    tag_table: bytes
    state: StateRecord


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one frame."""

    verdict: Verdict
    new: tuple[Range, ...] = ()
    fork: bool = False
    branch: bool = False


def unit_of(frame: Frame) -> Unit:
    """Return the claims of a block or segment; raise CorruptError for an object."""
    m = frame.manifest
    if m.state is None:
        raise CorruptError("an object where blocks or a segment belong")
    after = chain_next(m.chain_before, frame.cose) if m.kind == FrameKind.BLOCK else m.chain_after
    digest = hashlib.sha256(frame.cose).digest()
    return Unit(
        m.stream, m.kind, m.generation, m.first_block, m.last_block, m.first_seq, m.count, m.chain_before, after, digest,
        m.tag_table_sha256, m.state,
    )  # fmt: skip


def linked(units: Sequence[Unit]) -> bool:
    """Say whether the frames of one request continue each other: blocks in order, or one segment alone."""
    if len(units) > 1 and any(u.kind != FrameKind.BLOCK for u in units):
        return False
    return all(
        (a.stream, a.generation, a.last_block + 1, a.first_seq + a.count, a.chain_after)
        == (b.stream, b.generation, b.first_block, b.first_seq, b.chain_before)
        for a, b in pairwise(units)
    )


def within_limits(state: LandingState, unit: Unit) -> bool:
    """Say whether the receiver can keep account of this frame at all."""
    return unit.last_block <= BLOCK_NUMBER_MAX and (unit.generation in state.blocks or len(state.blocks) < GENERATIONS_MAX)


def offered(state: LandingState, chain_at: Callable[[int, int], bytes | None], wanted: tuple[int, int, int], chain: bytes) -> bool:
    """Answer an offer of (generation, first block, last block): all held, and h after the last known and equal."""
    generation, first, last = wanted
    blocks = state.blocks.get(generation)
    return blocks is not None and blocks.covers(first, last) and chain_at(generation, last) == chain


def decide(state: LandingState, unit: Unit, chain_at: Callable[[int, int], bytes | None]) -> Decision:
    """Return the verdict; changes nothing."""
    blocks = state.blocks.get(unit.generation) or Intervals()
    seqs = state.seqs.get(unit.generation) or Intervals()
    last_seq = unit.first_seq + unit.count - 1
    new = tuple(seqs.holes(unit.first_seq, last_seq)) if unit.count else ()
    some_seqs = bool(unit.count and seqs.within(unit.first_seq, last_seq))
    some_blocks = bool(blocks.within(unit.first_block, unit.last_block))
    all_blocks = blocks.covers(unit.first_block, unit.last_block)
    after = chain_at(unit.generation, unit.last_block) if unit.last_block < blocks.top else None  # nothing is known above what is held
    if _contradicts(unit, after, chain_at):
        if some_blocks or some_seqs:
            return Decision(Verdict.CONFLICT)
        return Decision(Verdict.STORED, new, fork=True, branch=_branches(state, unit))
    impossible = (all_blocks and new) or (some_seqs and not some_blocks)  # blocks part the seqs: one without the other is another history
    if impossible and after is None:  # or index records rotted, and the chain proves the content
        return Decision(Verdict.CONFLICT)
    if all_blocks and not new:
        return Decision(Verdict.DUPLICATE)
    return Decision(Verdict.STORED, new, branch=_branches(state, unit))


def _contradicts(unit: Unit, after: bytes | None, chain_at: Callable[[int, int], bytes | None]) -> bool:
    """Say whether h before or after the frame is known to be another. The start of a generation is always known."""
    before = chain_start(unit.stream, unit.generation) if unit.first_block == 0 else chain_at(unit.generation, unit.first_block - 1)
    return (before is not None and before != unit.chain_before) or (after is not None and after != unit.chain_after)


def _branches(state: LandingState, unit: Unit) -> bool:
    if unit.state.predecessor is not None:
        generation, end = unit.state.predecessor
        held = state.seqs.get(generation)
        if held is not None and held.top > end:
            return True
    stated = state.stated_end(unit.generation)
    return stated is not None and unit.first_seq + unit.count > stated
