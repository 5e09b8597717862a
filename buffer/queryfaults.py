"""What an error of DuckDB's means for whoever asked a query: words to mend, a file that went, one that is damaged, or no room."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buffer import layout
from buffer.errors import CorruptError, StorageFault, StoreError
from buffer.views import READINGS_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from buffer.snapshot import Snapshot


class QueryRefused(StoreError):
    """The SQL is wrong, or asks for more than reading. The person who typed it can mend it."""


class QueryUnsafe(StoreError):
    """This machine and user cannot give the query process what it must have. Environment."""


class VanishedError(StoreError):
    """A segment was evicted between listing and reading it: an occasion to look again."""


def meaning(error: Exception, snapshots: Sequence[Snapshot], scratch: Path) -> StoreError:
    """Return what to raise for an error of DuckDB's (duckdb.Error) over these snapshots.

    DuckDB names the file it could not read, under an IOException or another: an eviction truncates it first and removes it then.
    """
    text = str(error)
    named = next((path for snapshot in snapshots for path in snapshot.segments if str(path) in text), None)
    if named is not None and not _size(named) and not named.with_suffix(".cose").exists():  # an eviction removes it first
        return VanishedError("segments are evicted faster than this query reads them")
    if type(error).__name__ == "IOException" and (named is None or _size(named)):
        room = "No space left" in text or "quota" in text
        return StorageFault("no space left for what the query writes" if room else friendly(text), path=str(named or scratch.parent))
    if named is not None:
        what = "this segment is not what was written: `ebbgate ring check` says more"
        return CorruptError(what, source=f"{named.parents[1].name}/{layout.SEGMENTS}/{named.name}")
    return QueryRefused(friendly(text))


def missing(snapshots: Sequence[Snapshot]) -> list[str]:
    """Return what these snapshots should hold and do not, a line each."""
    from buffer.manifest import format_generation

    return [f"{one.stream} {format_generation(span.generation)} {span.first}-{span.last}" for one in snapshots for span in one.missing]


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def friendly(message: str) -> str:
    """Return one line of what DuckDB said, with what to do about it."""
    text = message.strip().split("\n\nLINE")[0].replace("\n", " ")
    if "disabled by configuration" in text or "Cannot access" in text:
        return f"a query reads the ring and nothing else: {text}"
    if "read-only mode" in text:
        return "a query reads (SELECT, WITH, EXPLAIN) and does nothing else"
    if text.startswith("Out of Memory"):
        return f"{text.split(' Possible solutions')[0].strip()}: more than a query gets; ask for less, as WHERE tag = .. AND ts > .."
    if "Referenced column" in text:
        return f"{text} (columns of readings: {READINGS_COLUMNS}; `ebbgate query --help` has all views)"
    if "does not exist" in text:
        return f"{text} (views: readings, readings_good, last, gaps, tags, notices)"
    return text
