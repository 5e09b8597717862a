"""What `ebbgate ring info` says of a ring, from its files and collect's status; and the SQL of `ebbgate ring export`. Reads, never writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from buffer import layout
from buffer.errors import CorruptError
from buffer.manifest import Manifest, format_generation
from buffer.reader import RingReader
from buffer.storage import PosixReadStorage
from buffer.views import sql_text
from gateway.errors import ConfigError
from gateway.units import parse_moment

if TYPE_CHECKING:
    import datetime
    from collections.abc import Sequence
    from pathlib import Path

DAY_NS: Final = 86_400 * 10**9
DAYS_PER_YEAR: Final = 365.25
_FORMULA: Final = "left(value_string, 1) IN ('=', '+', '-', '@', chr(9), chr(13))"  # spreadsheets skip a tab or return before a formula
_STATUS_BYTES_MAX: Final = 1024 * 1024


def gather(root: Path, max_bytes: int, status_file: Path, endurance_bytes: int = 0) -> dict[str, Any]:
    """Return the facts of one stream's ring; 0 or None where nothing is known yet. Raise StorageFault."""
    storage = PosixReadStorage(root)
    reader = RingReader(storage)
    inventory = reader.inventory()
    newest = reader.newest(inventory)
    state = newest.state if newest else None
    by_directory = {d: sum(storage.size(f"{d}/{name}") or 0 for name in storage.list(d)) for d in layout.DIRECTORIES}
    used = sum(by_directory.values())
    first, last = _manifest(reader, inventory.segments[:4]), _manifest(reader, inventory.segments[:-5:-1])
    span = last.state.wall_ns - first.state.wall_ns if first and last and first.state and last.state else 0
    readings = sum(s.last - s.first + 1 for s in inventory.segments)
    per_day = by_directory[layout.SEGMENTS] * DAY_NS // span if span > 0 else 0
    status = _status(status_file, root.name)
    written = int(status.get("written_bytes_per_day") or 0)
    room = max(0, max_bytes - used)
    return {
        "stream": root.name,
        "begun": newest is not None or inventory.durable is not None or reader.begun(inventory),
        "generation": format_generation(state.generation) if state else None,
        "end": state.end if state else 0,
        "low": [format_generation(state.low[0]), state.low[1]] if state else None,
        "lost": [[format_generation(x.generation), x.first, x.last, x.reason.name.lower()] for x in state.lost] if state else [],
        "open_gaps": len(state.open_gaps) if state else 0,
        "newest_commit_ns": state.wall_ns if state else None,
        "oldest_sealed_ns": first.state.wall_ns if first and first.state else None,
        "segments": len(inventory.segments),
        "journals": len(inventory.journals),
        "sealed_readings": readings,
        "bytes_per_reading": round(by_directory[layout.SEGMENTS] / readings, 2) if readings else None,
        "bytes": used,
        "bytes_max": max_bytes,
        "bytes_by_directory": by_directory,
        "growth_bytes_per_day": per_day,
        "horizon_days": round(max_bytes / per_day, 1) if per_day else None,
        "days_until_full": round(room / per_day, 1) if per_day else None,
        "written_bytes_per_day": written,
        "flash_years": round(endurance_bytes / written / DAYS_PER_YEAR, 1) if endurance_bytes and written else None,
    }


def _manifest(reader: RingReader, names: Sequence[layout.SegmentName]) -> Manifest | None:
    """Return the manifest of the first segment that can be read and was sealed at a trusted time: a boot in 1970 is no beginning."""
    for name in names:
        try:
            manifest = reader.segment_manifest(name)
        except CorruptError:
            continue
        if manifest is not None and manifest.state is not None and manifest.state.clock_trusted:
            return manifest
    return None


def _status(path: Path, stream: str) -> dict[str, Any]:
    """Return what collect last said of itself; {} where that is not there or of another stream."""
    try:
        with path.open("rb") as file:
            body = json.loads(file.read(_STATUS_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) and body.get("stream") == stream else {}


def describe(f: dict[str, Any]) -> list[str]:
    """Return the facts as lines for people."""
    from gateway.console.pages import clock

    lines = [
        f"{f['stream']}: {f['bytes'] / 1e6:,.1f} MB of {f['bytes_max'] / 1e9:,.1f} GB, {f['segments']} segments, {f['journals']} journals"
        + (f", {f['bytes_per_reading']} bytes per sealed reading" if f["bytes_per_reading"] else "")
    ]
    if f["generation"] is None:
        damaged = "the newest block cannot be read, or `durable` is torn or gone: `ebbgate ring check` says more; collect mends it when it starts"
        return [*lines, damaged if f["begun"] else "nothing was committed here yet"]
    newest = f"newest reading {f['end'] - 1:,}" if f["end"] else "no reading yet"
    lines.append(f"generation {f['generation']}, {newest}, committed {clock(f['newest_commit_ns'])} UTC")
    lines.append(f"reaches back to reading {f['low'][1]:,} of generation {f['low'][0]}; open gaps {f['open_gaps']}")
    if f["horizon_days"] is None:
        lines.append("horizon: not known before two segments are sealed at a time that can be trusted")
    else:
        full = f"full in {f['days_until_full']} days" if f["days_until_full"] else "full: the oldest is evicted as new readings come"
        lines.append(f"horizon: {f['horizon_days']} days at the present rate ({f['growth_bytes_per_day'] / 1e6:,.1f} MB a day); {full}")
    if f["written_bytes_per_day"]:
        life = f"; the disk lasts {f['flash_years']} years of that" if f["flash_years"] is not None else " (--endurance forecasts the disk's years)"
        lines.append(f"written to the disk: {f['written_bytes_per_day'] / 1e6:,.1f} MB a day{life}")
    else:
        lines.append("written to the disk: not known, collect does not run or just started")
    return [*lines, *(f"lost {a} {b}-{c}: {reason}" for a, b, c, reason in f["lost"])]


def export_sql(begin: str, end: str, tags: Sequence[str], *, csv: bool) -> str:
    """Return the SELECT of an export; raise ConfigError for times that hold nothing. csv: texts that a spreadsheet would run are quoted."""
    where = []
    if begin and end and _moment(begin) >= _moment(end):
        raise ConfigError("no time lies between --from and --to", "--from is the first moment, --to the first that is not wanted any more.")
    for text, sign in ((begin, ">="), (end, "<")):
        if text:
            where.append(f"ts {sign} TIMESTAMPTZ {sql_text(_moment(text).isoformat())}")
    if tags:
        where.append("(" + " OR ".join(f"tag GLOB {sql_text(tag)}" for tag in tags) + ")")
    columns = "*" if not csv else f"* REPLACE (CASE WHEN {_FORMULA} THEN '''' || value_string ELSE value_string END AS value_string)"
    condition = f"WHERE {' AND '.join(where)} " if where else ""
    return f"SELECT {columns} FROM readings {condition}ORDER BY stream, tag, ts, ts_ns, generation, seq"  # noqa: S608 -- quoted by sql_text


def unknown_sql(tags: Sequence[str]) -> str:
    """Return the SELECT of those patterns that no tag of the ring fits; none where the ring has no tag table."""
    patterns = ", ".join(f"({sql_text(tag)})" for tag in tags)
    return f"""SELECT pattern FROM (VALUES {patterns}) AS asked(pattern)
        WHERE EXISTS (FROM tags) AND NOT EXISTS (SELECT 1 FROM tags WHERE tag GLOB pattern)"""  # noqa: S608 -- quoted by sql_text


def _moment(text: str) -> datetime.datetime:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None
