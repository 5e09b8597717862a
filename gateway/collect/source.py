"""The seam between plant and ring: what a source hands over, and what it is told in return. Simulation replaces it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buffer.types import Columns


class GapStep(StrEnum):
    """What a batch does to a gap of its source."""

    OPEN = "open"  # commit before the first live reading after the gap
    PROGRESS = "progress"  # this batch is history; `progress` says how far the fill has come
    FILLED = "filled"
    UNFILLABLE = "unfillable"


@dataclass(frozen=True, slots=True)
class GapChange:
    """One step in the life of a gap. On OPEN the writer gives the id (0 here); the source reads it from `Known`."""

    step: GapStep
    id: int = 0
    from_ns: int = 0
    progress: bytes = b""


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole notifications or whole polls of one source: committed together or not at all.

    position is the source's place after these readings (at most limits.POSITION_BYTES_MAX bytes; None: unchanged).
    """

    source: str
    columns: Columns
    position: bytes | None = None
    gap: GapChange | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest committed reading of a tag: what `last` remembers, for deduplication, heartbeats and fills."""

    ts_ns: int
    ts_source_ns: int
    kind: int
    value: int | str  # the 64 bits, or the text for TEXT and BYTES
    quality: int
    flags: int


@dataclass(frozen=True, slots=True)
class Gap:
    """An open gap as the ring remembers it over restarts."""

    id: int
    from_ns: int
    progress: bytes
    last: Mapping[int, Reading]  # tag number -> newest live reading before the gap
    first_live_ns: Mapping[int, int]  # tag number -> ts of the first live reading after it


@dataclass(frozen=True, slots=True)
class Known:
    """What the ring knows of one source at the time of asking."""

    position: bytes | None
    last: Mapping[int, Reading]  # tag number -> newest live reading
    gaps: tuple[Gap, ...]


class Sink(Protocol):
    """Where a source puts what it read. Implemented by collect.writer; bounded: `commit` waits when the ring is slow."""

    async def commit(self, batch: Batch) -> None:
        """Return after the batch is durable (G1): only then may the source be acknowledged.

        Raise StorageFault if it can never become durable here; the source stops and nothing is acknowledged.
        """
        ...

    def known(self, source: str) -> Known:
        """Return the committed state of a source."""
        ...

    def notice(self, kind: int, source: str, **detail: object) -> None:
        """Queue a notice (buffer.notice.NoticeKind) for the next commit. Never waits; repeated ones are counted."""
        ...


class Source(Protocol):
    """One OPC UA server or one Modbus device, behind its own task. asyncua and pymodbus exist only behind this."""

    name: str

    async def run(self, sink: Sink) -> None:
        """Read until cancelled; never return by itself; reconnect by itself; bear every fault of the plant."""
        ...
