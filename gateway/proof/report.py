"""What a proof found, and what it saw: the listing that two stores are compared by. Pure.

The listing has one line a fact, sorted, so that `diff` compares two stores:

    <stream> <generation> seqs <first>-<last>                  what is held: for a landing the union of `new`
    <stream> <generation> blocks <first>-<last> h <64 hex>     a run of blocks and h after it: equal h is equal content
    <stream> <generation> frame <kind> blocks <first>-<last> seqs <first>-<last> cose <64 hex>      SHA-256 of its COSE_Sign1
    <stream> object <kind> <64 hex>

Lines `frame` say how readings travelled (live as a block, sealed in a segment) and may differ where nothing else does.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.intervals import Intervals
from buffer.manifest import FrameKind, ObjectType, chain_next, format_generation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buffer.frame import Frame
    from buffer.intervals import Range

FINDINGS_MAX: Final = 10_000
CHAIN_RULE: Final = "the chain does not fit its neighbour"


@dataclass(slots=True)
class Held:
    """What one generation of one stream holds."""

    blocks: Intervals = field(default_factory=Intervals)
    seqs: Intervals = field(default_factory=Intervals)
    chains: dict[int, bytes] = field(default_factory=dict)  # h after a block
    frames: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Proof:
    """What was confirmed, and what was not. `full` keeps a line for each frame."""

    full: bool = False
    frames: int = 0
    readings: int = 0
    objects: int = 0
    findings: list[str] = field(default_factory=list)
    held: dict[tuple[str, int], Held] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)  # lines of objects

    def bad(self, text: str) -> None:
        """Note a finding."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)

    @contextlib.contextmanager
    def judging(self, store: str) -> Iterator[None]:
        """What does not hold within is a finding in `store`, and the rest of the store is looked at all the same."""
        try:
            yield
        except CorruptError as error:
            self.bad(f"{store}/{error}")

    def saw_object(self, frame: Frame) -> None:
        """Count a confirmed object."""
        self.objects += 1
        m = frame.manifest
        kind = ObjectType(m.object_type or 0).name.lower()
        self.named.add(f"{m.stream} object {kind} {m.payload_sha256.hex()}")

    def saw(self, frame: Frame, place: str, new: Iterable[Range] | None = None) -> None:
        """Count a confirmed frame; new: what it adds, all of it if None. Its links are compared with what was seen before."""
        m = frame.manifest
        held = self.held.setdefault((m.stream, m.generation), Held())
        after = m.chain_after if m.kind == FrameKind.SEGMENT else chain_next(m.chain_before, frame.cose)
        for block, chain in ((m.first_block - 1, m.chain_before), (m.last_block, after)):
            if held.chains.setdefault(block, chain) != chain:
                self.bad(f"{place}: {CHAIN_RULE} at block {block}")
        everything: list[Range] = [(m.first_seq, m.end_seq - 1)] if m.count else []
        for first, last in everything if new is None else new:
            self.readings += sum(b - a + 1 for a, b in held.seqs.holes(first, last)) if new is None else last - first + 1
            held.seqs.add(first, last)
        held.blocks.add(m.first_block, m.last_block)
        self.frames += 1
        if self.full:
            seqs = f"{m.first_seq}-{m.end_seq - 1}" if m.count else "none"
            digest = hashlib.sha256(frame.cose).hexdigest()
            held.frames.add(f"frame {m.kind.name.lower():<7} blocks {m.first_block}-{m.last_block} seqs {seqs} cose {digest}")

    def listing(self) -> list[str]:
        """Return the lines, in order."""
        lines = sorted(self.named)
        for (stream, generation), held in sorted(self.held.items()):
            name = f"{stream} {format_generation(generation)}"
            lines += [f"{name} seqs {a}-{b}" for a, b in held.seqs]
            lines += [f"{name} blocks {a}-{b} h {held.chains[b].hex()}" for a, b in held.blocks]
            lines += [f"{name} {line}" for line in sorted(held.frames, key=_order)]
        return lines


def _order(line: str) -> tuple[int, str]:
    return int(line.split("blocks ")[1].split("-")[0]), line
