"""What a start may believe of the index: the newest part with a good summary, and everything readable behind it.

The newest part is synced and then read past the page cache: after a failed sync the cache shows entries that the disk never took.
What does not verify at the very end is the torn tail of a crash: it was promised to nobody. What does not verify before that, or
below `durable`, was promised: the landing generation about to be opened then begins at the first number that is missing, so
that uploaders and sinks go back there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buffer import layout
from buffer.errors import CorruptError
from gateway.landing.index import (
    INDEX,
    PART_HEADER_BYTES,
    Conflict,
    LandingState,
    PartName,
    Record,
    Rot,
    parse_entries,
    parse_part_name,
)
from gateway.wire.receipt import Ends

if TYPE_CHECKING:
    from buffer.storage import Storage


@dataclass(slots=True)
class Found:
    """The index as the disk holds it."""

    state: LandingState = field(default_factory=LandingState)
    part: PartName | None = None  # the newest; None in a new landing
    records: list[Record] = field(default_factory=list)  # those behind the summary: their chain points may not be durable yet
    start: Ends = field(default_factory=Ends)  # of the opening that must follow
    events: list[str] = field(default_factory=list)
    idle: bool = False  # the newest part says nothing beyond its summary: the next one says it all again


def rebuild(storage: Storage) -> Found:
    """Return what the index of one stream says; raise StorageFault, never CorruptError: a start always starts."""
    found = Found()
    parts = sorted(name for text in storage.list(INDEX) if (name := parse_part_name(text)) is not None)
    if parts:
        found.part = parts[-1]
    behind: list[tuple[PartName, bytes]] = []
    for name in reversed(parts):
        storage.sync_file(name.path)
        data = storage.read_direct(name.path, 0, storage.size(name.path) or 0) or b""
        behind.insert(0, (name, data))
        if _has_summary(data):
            break
        found.events.append(f"{name.path}: its summary does not verify; the part before is read too")
    gaps: list[Ends] = []
    for place, (name, data) in enumerate(behind):
        _take(found, name, data, gaps, newest=place == len(behind) - 1)
    found.idle = len(behind) == 1 and not gaps and _only_summary(behind[0][1])
    _finish(storage, found, gaps)
    return found


def _has_summary(data: bytes) -> bool:
    first = next(iter(parse_entries(data)), None)
    return first is not None and isinstance(first[0], LandingState)


def _only_summary(data: bytes) -> bool:
    entries = list(itertools.islice(parse_entries(data), 2))
    return len(entries) == 1 and isinstance(entries[0][0], LandingState) and entries[0][1] == len(data)


def _take(found: Found, name: PartName, data: bytes, gaps: list[Ends], *, newest: bool) -> None:
    end = PART_HEADER_BYTES
    for entry, behind in parse_entries(data):
        end = behind
        if isinstance(entry, LandingState):
            found.state = entry
        elif isinstance(entry, Rot):
            found.events.append(f"{name.path}: bytes {entry.offset}..{entry.end} rotted; what they named is asked for again")
            gaps.append(found.state.ends)
        else:
            _entry(found, entry, gaps)
    if end < len(data):
        text = "the torn tail of a crash" if newest else "rotted at its end"
        found.events.append(f"{name.path}: {len(data) - end} bytes from byte {end} do not verify: {text}")


def _entry(found: Found, entry: Record | Conflict, gaps: list[Ends]) -> None:
    if isinstance(entry, Record):
        if entry.number > found.state.ends.of(entry.lane):
            gaps.append(found.state.ends)
        found.records.append(entry)
    found.state.take(entry)


def _finish(storage: Storage, found: Found, gaps: list[Ends]) -> None:
    """Numbers that `durable` says were in use are never used again; the opening begins at the first that is missing."""
    ends = found.state.ends
    gaps.append(ends)
    try:
        mark = layout.decode_durable(storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES) or b"")
        found.state.live_end, found.state.backfill_end = max(ends.live, mark.end_seq), max(ends.backfill, mark.end_block)
        if found.state.ends != ends:
            found.events.append("index entries that were durable are gone; the landing was restored, or its disk lost them")
    except CorruptError:
        pass  # no mark yet, or torn: it is a lower bound and nothing else
    found.start = Ends(min(x.live for x in gaps), min(x.backfill for x in gaps))
