"""From what was appended to signed blocks: grouping, cutting, numbering, chaining. Pure but for the signature.

One commit is one or more blocks. A new block begins where the kind of readings changes (live, or the history of one gap), before a gap
is opened (what came before it is older than the gap), where positions would crowd the manifest, and where a payload would pass
the limits of a block. A batch's position travels with its last block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from buffer import limits
from buffer.codec import encode_blocks
from buffer.errors import invariant
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, Frame, payload_digest, seal_frame
from buffer.journal import padded
from buffer.manifest import FrameKind, Manifest, OpenGap, chain_next, chain_start
from buffer.types import concat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.cose import Signer
    from buffer.manifest import StateRecord
    from buffer.types import Columns

POSITIONS_PER_BLOCK_MAX: Final = 32  # 32 of 64 bytes, a full state record and the rest stay below MANIFEST_BYTES_MAX
PROGRESS_BYTES_MAX: Final = 4_096  # of a fill: half a manifest


class GapChange(Protocol):
    """What a batch does to a gap of its source: step is open, progress, filled or unfillable."""

    @property
    def step(self) -> str:
        """As above."""
        ...

    @property
    def id(self) -> int:
        """Of the gap; 0 on open: the ring gives it."""
        ...

    @property
    def from_ns(self) -> int:
        """On open: since when live readings do not cover the source."""
        ...

    @property
    def progress(self) -> bytes:
        """How far the fill has come with this batch; on open what a fill by hand is about, else empty."""
        ...


@dataclass(frozen=True, slots=True)
class Pending:
    """What was appended and not committed. source: its number in the tag table, None for notices."""

    columns: Columns
    source: int | None = None
    position: bytes | None = None
    gap: GapChange | None = None
    arrived_ns: int = 0  # wall clock of its oldest reading; 0: that of the commit


@dataclass(slots=True)
class Group:
    """Batches that may share a block."""

    parts: list[Columns]
    gaps: tuple[OpenGap, ...]  # open as of this block
    fill: tuple[int, bytes] | None = None
    positions: dict[int, bytes] = field(default_factory=dict)
    arrived_ns: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """One block to be, encoded but not numbered. columns is None where it has no readings."""

    columns: Columns | None
    payload: bytes
    gaps: tuple[OpenGap, ...]
    fill: tuple[int, bytes] | None
    positions: tuple[tuple[int, bytes], ...]
    arrived_ns: int

    @property
    def journal_bytes(self) -> int:
        """The most it can take in a journal."""
        return padded(HEADER_BYTES + COSE_BYTES_MAX + len(self.payload))


@dataclass(slots=True)
class Gaps:
    """Which gaps are open, ahead of what is committed. ids rise by one from `next_id`."""

    open: tuple[OpenGap, ...]
    next_id: int
    dropped: list[OpenGap] = field(default_factory=list)  # closed as unfillable: too many were open

    def change(self, change: GapChange, source: int) -> None:
        """Take one step in the life of a gap; what names a gap that is not open any more changes nothing."""
        if change.step == "open":
            self.open = (*self.open, OpenGap(self.next_id, source, change.from_ns))
            self.next_id += 1
            if len(self.open) > limits.OPEN_GAPS_MAX:
                self._drop(source)
        elif change.step != "progress":
            self.open = tuple(gap for gap in self.open if gap.id != change.id)

    def _drop(self, source: int) -> None:
        """Close the oldest of this source, of any source where this one has no other."""
        mine = [gap for gap in self.open[:-1] if gap.source == source]
        victim = (mine or list(self.open))[0]
        self.open = tuple(gap for gap in self.open if gap != victim)
        self.dropped.append(victim)


def group(pending: Sequence[Pending], gaps: Gaps) -> list[Group]:
    """Return the groups in order, at least one; `gaps` is carried forward."""
    out: list[Group] = []
    for one in pending:
        change = one.gap
        if change is not None:
            invariant(one.source is not None and len(change.progress) <= PROGRESS_BYTES_MAX, "gap without source, or progress too long")
            gaps.change(change, one.source or 0)
        history = change is not None and change.step != "open"
        last = out[-1] if out else None
        if last is None or change is not None or last.fill is not None or len(last.positions) >= POSITIONS_PER_BLOCK_MAX:
            fill = (change.id, change.progress) if change is not None and history else None
            if change is not None and not history and change.progress:
                fill = (gaps.next_id - 1, change.progress)  # committed with the gap itself: a kill leaves both or neither
            last = Group([], gaps.open, fill)
            out.append(last)
        last.parts.append(one.columns)
        last.arrived_ns = min(filter(None, (last.arrived_ns, one.arrived_ns)), default=0)
        if one.position is not None:
            invariant(one.source is not None and len(one.position) <= limits.POSITION_BYTES_MAX, "position without source, or too long")
            last.positions[one.source or 0] = one.position
    return out or [Group([], gaps.open)]


def cut(groups: Sequence[Group]) -> list[Cut]:
    """Encode the groups; positions stand in the last block of each."""
    out: list[Cut] = []
    for one in groups:
        columns = concat(one.parts)
        blocks = list(encode_blocks(columns)) if len(columns) else [(None, b"")]
        for i, (part, payload) in enumerate(blocks, 1):
            positions = tuple(sorted(one.positions.items())) if i == len(blocks) else ()
            out.append(Cut(part, payload, one.gaps, one.fill, positions, one.arrived_ns))
    return out


@dataclass(frozen=True, slots=True)
class Built:
    """A signed block and its readings. Never built again."""

    frame: Frame
    columns: Columns | None


class Chain:
    """The numbers of one generation: next block, next seq, h of the block before."""

    def __init__(self, stream: str, generation: int, signer: Signer) -> None:
        self.stream = stream
        self.generation = generation
        self.block = 0
        self.seq = 0
        self._signer = signer
        self._h = chain_start(stream, generation)

    def build(self, cuts: Sequence[Cut], table: bytes, wall_ns: int, record: Callable[[int, int, Cut], StateRecord]) -> list[Built]:
        """Number, chain and sign one commit. record(block, end seq, cut) gives the state record of a block."""
        out: list[Built] = []
        for i, one in enumerate(cuts, 1):
            count = len(one.columns) if one.columns is not None else 0
            manifest = Manifest(
                FrameKind.BLOCK,
                self.stream,
                payload_digest(one.payload),
                len(one.payload),
                generation=self.generation,
                first_block=self.block,
                last_block=self.block,
                first_seq=self.seq,
                count=count,
                tag_table_sha256=table,
                chain_before=self._h,
                arrival_ns=one.arrived_ns or wall_ns,
                positions=one.positions,
                fill=one.fill,
                state=record(self.block, self.seq + count, one),
                more=i < len(cuts),
            )
            frame = seal_frame(self._signer, manifest, one.payload)
            self._h = chain_next(self._h, frame.cose)
            self.block += 1
            self.seq += count
            out.append(Built(frame, one.columns))
        return out
