"""The verdict on a run of frames: pure. Same content is judged by chain, never by the digest of an encoding.

`new` is what the frames hold minus what the stream holds: the one place where the overlap of live blocks and later segments is
found. Acceptance never waits for a neighbour; a chain is compared where both sides are there.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.intervals import Intervals
from buffer.manifest import FrameKind, Manifest, StateRecord, chain_next, chain_start
from gateway.wire.receipt import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.frame import Frame
    from buffer.intervals import Range

CHAIN_POINTS_MAX: Final = 100_000  # 15 MB a stream; a forgotten point costs a re-send, nothing else


@dataclass(frozen=True, slots=True)
class Run:
    """Frames of one request, linked: what the verdict is about."""

    stream: str
    generation: int
    first_block: int
    last_block: int
    first_seq: int
    end_seq: int
    chain_before: bytes
    chain_after: bytes
    kind: FrameKind
    tag_tables: frozenset[bytes]
    state: StateRecord
    committed_ns: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do: store if verdict is STORED, keep apart if CONFLICT."""

    verdict: Verdict
    new: tuple[Range, ...] = ()
    branch: bool = False


def link(frames: Sequence[Frame]) -> Run:
    """Return the run these frames form; raise CorruptError if they do not continue each other."""
    manifests = [frame.manifest for frame in frames]
    first, last = manifests[0], manifests[-1]
    if any(m.kind == FrameKind.OBJECT or m.state is None for m in manifests):
        raise CorruptError("an object among blocks")
    after = first.chain_before
    for i, (manifest, frame) in enumerate(zip(manifests, frames, strict=True)):
        if i and not _continues(manifests[i - 1], manifest, after):
            raise CorruptError(f"block {manifest.first_block} does not continue the one before")
        after = chain_next(manifest.chain_before, frame.cose) if manifest.kind == FrameKind.BLOCK else manifest.chain_after
    if last.state is None:
        raise CorruptError("no state record")
    return Run(
        first.stream, first.generation, first.first_block, last.last_block, first.first_seq, last.end_seq, first.chain_before, after,
        last.kind, frozenset(m.tag_table_sha256 for m in manifests), last.state, last.arrival_ns or last.state.wall_ns,
    )  # fmt: skip


def _continues(before: Manifest, manifest: Manifest, chain: bytes) -> bool:
    same = (before.stream, before.generation, before.last_block + 1, before.end_seq)
    return same == (manifest.stream, manifest.generation, manifest.first_block, manifest.first_seq) and manifest.chain_before == chain


@dataclass(slots=True)
class Held:
    """What one stream holds: seqs and blocks per generation, chain points, the newest state record of each generation."""

    seqs: dict[int, Intervals] = field(default_factory=dict)
    blocks: dict[int, Intervals] = field(default_factory=dict)
    states: dict[int, StateRecord] = field(default_factory=dict)
    _chain: OrderedDict[tuple[int, int], bytes] = field(default_factory=OrderedDict)

    def chain_at(self, stream: str, generation: int, block: int) -> bytes | None:
        """Return h after `block`, None where it is not known."""
        return chain_start(stream, generation) if block < 0 else self._chain.get((generation, block))

    def offered(self, stream: str, generation: int, first: int, last: int, chain: bytes) -> bool:
        """Say whether all blocks are held and h after the last is known and equal."""
        blocks = self.blocks.get(generation)
        return blocks is not None and blocks.covers(first, last) and self.chain_at(stream, generation, last) == chain

    def decide(self, run: Run) -> Decision:
        """Return the verdict; changes nothing."""
        for block, chain in ((run.first_block - 1, run.chain_before), (run.last_block, run.chain_after)):
            known = self.chain_at(run.stream, run.generation, block)
            if known is not None and known != chain:
                return Decision(Verdict.CONFLICT)
        seqs = self.seqs.get(run.generation, Intervals())
        new = tuple(seqs.holes(run.first_seq, run.end_seq - 1)) if run.end_seq > run.first_seq else ()
        fresh = self.blocks.get(run.generation, Intervals()).holes(run.first_block, run.last_block)
        if not new and not fresh:
            return Decision(Verdict.DUPLICATE)
        return Decision(Verdict.STORED, new, self._branches(run.state))

    def _branches(self, state: StateRecord) -> bool:
        """A generation that names an end of its predecessor below what is held of it: a restored snapshot, or a clone."""
        if state.predecessor is None:
            return False
        generation, end = state.predecessor
        held = self.seqs.get(generation)
        return held is not None and held.top > end

    def take(self, run: Run, new: Sequence[Range]) -> None:
        """Note that a run is durable here."""
        for first, last in new:
            self.seqs.setdefault(run.generation, Intervals()).add(first, last)
        self.blocks.setdefault(run.generation, Intervals()).add(run.first_block, run.last_block)
        for block, chain in ((run.first_block - 1, run.chain_before), (run.last_block, run.chain_after)):
            self._chain[(run.generation, block)] = chain
        while len(self._chain) > CHAIN_POINTS_MAX:
            self._chain.popitem(last=False)
        newest = self.states.get(run.state.generation)
        if newest is None or run.state.block > newest.block:
            self.states[run.state.generation] = run.state
