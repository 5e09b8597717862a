"""How far a sink has come in one stream, and which readings it holds. Pure; sinks keep it where their rows are.

A sink works through the landing index lane by lane, by number. What it writes is the record's `new` minus what it holds
already: after a receiver was restored from a backup, numbers come again with other content, and readings come again under
other numbers; the ranges held are what makes each reading arrive once all the same.

A record whose frame rotted in the landing is passed by and kept in `unread`: everything behind it goes on, and each start of deliver
tries it again (the file may have been restored).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError
from buffer.intervals import Intervals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buffer.intervals import Range

VERSION: Final = 1
UNREAD_MAX: Final = 10_000  # records passed by; more means that the landing's disk is gone: the sink stops and says so


@dataclass(slots=True)
class Cursor:
    """One (sink, stream). `following[lane]` is the next landing number; `held[generation]` the seqs in the target."""

    landing: int = 0  # generation of the landing that `following` counts in; 0: none yet
    following: dict[str, int] = field(default_factory=dict)
    held: dict[int, Intervals] = field(default_factory=dict)
    rows: int = 0
    unread: dict[str, list[int]] = field(default_factory=dict)  # per lane: numbers of records whose frame did not read

    def pass_by(self, lane: str, numbers: Iterable[int]) -> None:
        """Note records that do not read; raise CorruptError where there are too many to be single faults."""
        unread = sorted({*self.unread.get(lane, ()), *numbers})
        if len(unread) > UNREAD_MAX:
            raise CorruptError("too many records of the landing do not read; restore it from backup")
        if unread:
            self.unread[lane] = unread

    def was_read(self, lane: str, number: int) -> None:
        """Note that a record passed by has been read after all."""
        self.unread[lane] = [n for n in self.unread.get(lane, ()) if n != number]
        if not self.unread[lane]:
            del self.unread[lane]

    def fresh(self, generation: int, new: Iterable[Range]) -> list[Range]:
        """Return the part of `new` that is not in the target yet, in order."""
        held = self.held.get(generation) or Intervals()
        return [hole for first, last in new for hole in held.holes(first, last)]

    def take(self, generation: int, ranges: Iterable[Range]) -> None:
        """Note that these readings are in the target now."""
        held = self.held.setdefault(generation, Intervals())
        for first, last in ranges:
            held.add(first, last)
            self.rows += last - first + 1

    def follow(self, landing: int, since: Mapping[str, int]) -> bool:
        """Go back to where a newer landing generation began, per lane; say whether the generation is new."""
        if landing == self.landing:
            return False
        if self.landing:
            for lane in self.following:
                self.following[lane] = min(self.following[lane], since.get(lane, 0))
            self.unread = {lane: kept for lane, numbers in self.unread.items() if (kept := [n for n in numbers if n < since.get(lane, 0)])}
        self.landing = landing
        return True

    def copy(self) -> Cursor:
        """Return an independent copy: a write that fails must leave no trace."""
        held = {g: x.copy() for g, x in self.held.items()}
        return Cursor(self.landing, dict(self.following), held, self.rows, {lane: list(x) for lane, x in self.unread.items()})


def encode_cursor(cursor: Cursor) -> dict[str, Any]:
    """Return the cursor as JSON can write it."""
    return {
        "version": VERSION,
        "landing": cursor.landing,
        "following": cursor.following,
        "held": {str(generation): [list(x) for x in ranges] for generation, ranges in sorted(cursor.held.items())},
        "rows": cursor.rows,
        "unread": cursor.unread,
    }


def decode_cursor(body: Any) -> Cursor:  # noqa: ANN401 -- parsed JSON
    """Return the cursor; raise CorruptError."""
    try:
        if body["version"] != VERSION:
            raise CorruptError("cursor was written by another release")
        held = {int(g): Intervals((int(a), int(b)) for a, b in ranges) for g, ranges in body["held"].items()}
        following = {str(lane): int(n) for lane, n in body["following"].items()}
        unread = {str(lane): [int(n) for n in numbers] for lane, numbers in body.get("unread", {}).items()}
        return Cursor(int(body["landing"]), following, held, int(body["rows"]), unread)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"not a cursor: {error}"
        raise CorruptError(message) from error
