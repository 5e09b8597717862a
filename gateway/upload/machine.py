"""What to send next: pure. Two lanes over one cursor; ranges in flight are planned by nobody else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer.frame import HEADER_BYTES
from buffer.manifest import chain_next
from gateway.upload.pacing import LIVE_WAIT_NS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buffer.frame import Frame
    from buffer.layout import SegmentName
    from buffer.manifest import Manifest
    from gateway.upload.cursor import Cursor

RUN_BYTES_MAX: Final = 1024 * 1024  # of one PUT of blocks: a thin link must finish it between two cuts
RUN_BLOCKS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """One PUT: blocks first..last of a generation, as loose blocks or as the segment that holds exactly them."""

    generation: int
    first: int
    last: int
    readings: int
    chain: bytes  # h after last
    segment: SegmentName | None = None
    frames: tuple[Frame, ...] = ()


@dataclass(slots=True)
class InFlight:
    """Ranges being sent right now."""

    ranges: set[tuple[int, int, int]] = field(default_factory=set)

    def overlaps(self, generation: int, first: int, last: int) -> bool:
        """Say whether any of these blocks is being sent."""
        return any(g == generation and a <= last and first <= b for g, a, b in self.ranges)


def make_run(frames: Sequence[Frame]) -> Piece:
    """Return the PUT of consecutive blocks."""
    first, last = frames[0].manifest, frames[-1].manifest
    chain = chain_next(last.chain_before, frames[-1].cose)
    return Piece(first.generation, first.first_block, last.last_block, sum(f.manifest.count for f in frames), chain, frames=tuple(frames))


def runs(frames: Iterable[Frame]) -> Iterable[list[Frame]]:
    """Cut blocks into runs of consecutive ones within RUN_BYTES_MAX."""
    run: list[Frame] = []
    size = 0
    for frame in frames:
        bytes_ = HEADER_BYTES + len(frame.cose) + len(frame.payload)
        broken = run and run[-1].manifest.last_block + 1 != frame.manifest.first_block
        if run and (broken or size + bytes_ > RUN_BYTES_MAX or len(run) >= RUN_BLOCKS_MAX):
            yield run
            run, size = [], 0
        run.append(frame)
        size += bytes_
    if run:
        yield run


def plan_live(frames: Iterable[Frame], cursor: Cursor, flight: InFlight, wall_ns: int) -> Piece | None:
    """Return the newest un-signed blocks young enough for the live lane, as one PUT; None if there are none."""
    young = []
    for frame in frames:
        m = frame.manifest
        busy = flight.overlaps(m.generation, m.first_block, m.last_block) or cursor.covers(m.generation, m.first_block, m.last_block)
        if not busy and is_young(m, wall_ns):
            young.append(frame)
    cut = list(runs(young))
    return make_run(cut[-1]) if cut else None


def is_young(manifest: Manifest, wall_ns: int) -> bool:
    """Say whether a block still belongs to the live lane. A clock that stepped back makes everything young: live is a hint only."""
    return manifest.state is not None and wall_ns - manifest.state.wall_ns < LIVE_WAIT_NS


def plan_segment(name: SegmentName, m: Manifest, cursor: Cursor, flight: InFlight, wall_ns: int) -> Piece | None:
    """Return the PUT of a segment if any of its blocks is not signed for."""
    if cursor.covers(m.generation, m.first_block, m.last_block) or flight.overlaps(m.generation, m.first_block, m.last_block):
        return None
    if cursor.is_parked(m.generation, m.first_block, m.last_block, wall_ns):
        return None
    return Piece(m.generation, m.first_block, m.last_block, m.count, m.chain_after, segment=name)


def plan_blocks(
    frames: Iterable[Frame], sealed: Sequence[tuple[int, int]], cursor: Cursor, flight: InFlight, wall_ns: int
) -> Piece | None:
    """Return the oldest run of blocks that stand in no segment and that the live lane has given up."""
    wanted: list[Frame] = []
    for frame in frames:
        m = frame.manifest
        skip = any(a <= m.first_block <= b for a, b in sealed) or cursor.covers(m.generation, m.first_block, m.last_block)
        skip = skip or is_young(m, wall_ns) or flight.overlaps(m.generation, m.first_block, m.last_block)
        if skip or cursor.is_parked(m.generation, m.first_block, m.last_block, wall_ns):
            if wanted:
                break
            continue
        wanted.append(frame)
        if len(wanted) >= RUN_BLOCKS_MAX:
            break
    cut = list(runs(wanted))
    return make_run(cut[0]) if cut else None

