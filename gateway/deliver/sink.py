"""The seam between the landing and a target: one piece of work, and what a sink must do with it.

Exactly once, by construction: a sink keeps its cursor where its rows are, in one transaction (PostgreSQL) or by writing files
whose names say which landing numbers they hold (the lake); whatever is killed, the work is done again with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from buffer.errors import CorruptError
from gateway.errors import EbbgateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buffer.intervals import Range
    from buffer.tagtable import TagTable
    from gateway.deliver.cursor import Cursor


class SinkError(EbbgateError):
    """A target refused or is not there. This sink waits and tries again; no other sink is touched."""


class Row(NamedTuple):
    """One reading as targets take it."""

    generation: int
    seq: int
    tag: str
    path: str
    ts_us: int  # UTC, microseconds since 1970
    ts_ns: int  # what is below the microsecond, 0..999
    ts_source_us: int | None  # where it differs
    value_double: float | None
    value_int: int | None
    value_bool: bool | None
    value_string: str | None
    quality: int
    flags: int


class Rows(Protocol):
    """Readings of one frame, restricted to what is wanted of it; rows in order of seq."""

    def __len__(self) -> int:
        """Return how many rows."""
        ...

    def __iter__(self) -> Iterator[Row]:
        """Yield them."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """One landing record: `new` is what the landing did not hold before it; `load` opens it, restricted to ranges of seqs."""

    number: int
    generation: int
    new: tuple[Range, ...]
    table: TagTable
    load: Callable[[Sequence[Range]], Rows]


@dataclass(frozen=True, slots=True)
class Work:
    """A run of landing records of one stream and lane, in order, numbers first..last without a hole."""

    stream: str
    site: str
    lane: str
    landing: int  # generation of the landing
    since: Mapping[str, int]  # per lane: the least start of the landing's openings after the cursor's
    first: int
    last: int
    parts: tuple[Part, ...]
    passed_by: tuple[int, ...] = ()  # of first..last: records whose frames do not read
    again: bool = False  # one record that was passed by before; it moves nothing but `unread`

    def wanted(self, cursor: Cursor) -> bool:
        """Say whether this is what the cursor waits for; else somebody else came first, and the service looks again."""
        if self.again:
            return self.first in cursor.unread.get(self.lane, ())
        return cursor.following.get(self.lane, 0) == self.first

    def done(self, cursor: Cursor) -> None:
        """Move the cursor behind this work."""
        if self.again:
            cursor.was_read(self.lane, self.first)
            return
        cursor.following[self.lane] = self.last + 1
        cursor.pass_by(self.lane, self.passed_by)


class UnreadableError(CorruptError):
    """The frame of one landing record rotted. `number` is set where a Part is loaded."""

    number: int = -1


class Sink(Protocol):
    """One target. Blocking: the service calls it in a thread of its own."""

    name: str

    def cursor(self, stream: str) -> Cursor:
        """Return how far this sink is; raise SinkError."""
        ...

    def limit(self, cursor: Cursor, lane: str) -> int | None:
        """Return the last number the next piece of work must end with, where one was begun before a crash."""
        ...

    def write(self, work: Work) -> Cursor:
        """Write all of it or nothing, and return the new cursor; raise SinkError."""
        ...
