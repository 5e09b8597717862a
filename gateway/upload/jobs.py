"""One piece of work of the uploader, from the decision to the request on the wire. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from buffer.manifest import FrameKind
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.upload.plan import SegmentUnit


class Now(NamedTuple):
    """The time of one call, read by the shell."""

    mono: int
    wall: int


@dataclass(frozen=True, slots=True)
class Options:
    """What the machine needs of the settings."""

    stream: str
    live_ns: int
    in_flight: int
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """Read this from the ring. BLOCK: blocks first..last, fewer if they exceed max_bytes (one at least)."""

    id: int
    lane: Lane
    kind: FrameKind
    generation: int = 0
    first: int = 0
    last: int = 0
    offer: bool = False
    max_bytes: int = 0
    segment: SegmentUnit | None = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read: whole frames on the wire. chains: h after each block first..last; for a segment, one."""

    parts: tuple[bytes | memoryview, ...]
    first: int
    last: int
    chains: tuple[bytes, ...]
    objects: frozenset[bytes] = frozenset()

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Request:
    """Send this. parts is empty in an offer."""

    job: Job
    target: str
    parts: tuple[bytes | memoryview, ...]
    size: int
    last: int
    chains: tuple[bytes, ...]
    asked: int
    began_ns: int
    offset: int | None = None
    again: bool = False  # these bytes were sent before, and nobody answered


@dataclass(slots=True)
class Counters:
    """Since the start of the process, for status and metrics."""

    requests: int = 0
    bodies: int = 0  # of them, those that brought blocks: at most so many numbers of the landing are ours
    receipts: int = 0
    offers: int = 0
    stale: int = 0
    failures: int = 0
    bytes_live: int = 0
    bytes_backfill: int = 0

    def sent(self, job: Job, size_bytes: int) -> None:
        """Count a request with a body of this size."""
        self.requests += 1
        self.bodies += size_bytes > 0 and job.kind != FrameKind.OBJECT
        if job.lane == Lane.BACKFILL:
            self.bytes_backfill += size_bytes
        else:
            self.bytes_live += size_bytes


def chain_after(request: Request, last: int) -> bytes:
    """Return h after block `last` of a request; for an object its SHA-256."""
    job = request.job
    if job.kind == FrameKind.OBJECT:
        return job.digest
    index = last - job.first if job.kind == FrameKind.BLOCK else 0
    fits = 0 <= index < len(request.chains) and (job.kind == FrameKind.BLOCK or last == request.last)
    return request.chains[index] if fits else b""


def cut(parts: Iterable[bytes | memoryview], offset: int, size: int) -> tuple[bytes | memoryview, ...]:
    """Return bytes offset..offset+size-1 of the concatenation, without copying."""
    out: list[bytes | memoryview] = []
    for part in parts:
        piece = memoryview(part)[min(offset, len(part)) : min(offset + size, len(part))]
        if piece:
            out.append(piece)
        size -= len(piece)
        offset = max(0, offset - len(part))
    return tuple(out)
