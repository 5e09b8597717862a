"""The seam between plant and ring: what a source hands over, and what it is told in return. Simulation replaces it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from buffer.last import Gap, Known, Reading

if TYPE_CHECKING:
    from buffer.types import Columns

__all__ = ["Batch", "Gap", "GapChange", "GapStep", "Known", "Reading", "Sink", "Source"]


class GapStep(StrEnum):
    """What a batch does to a gap of its source."""

    OPEN = "open"  # commit before the first live reading after the gap
    PROGRESS = "progress"  # this batch is history; `progress` says how far the fill has come
    FILLED = "filled"
    UNFILLABLE = "unfillable"


@dataclass(frozen=True, slots=True)
class GapChange:
    """One step in the life of a gap. On OPEN the writer gives the id (0 here); the source reads it from `Known`.

    progress: on PROGRESS, and on the OPEN of a fill by hand: it is committed with the gap.
    """

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
