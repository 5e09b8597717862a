"""From a window of time to an order: which holes the ring has in it. Reads the ring, as `ebbgate query` does; writes nothing.

A hole is a time between two neighbouring readings of a tag that is longer than `longer` (at least twice its sampling), and reaches into the
window. It is taken whole: from the reading before it to the reading after it, looked for as far as `history_fill` outside of the
window; where the ring holds none, the window ends it. Times are the source's own; markers and repeated values are no readings here.

Where the ring has evicted, nobody can say any more what it held: a window must lie within what it reaches back to.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

from buffer.manifest import format_generation
from buffer.query import QueryOptions, run_query
from buffer.reader import RingReader
from buffer.storage import PosixReadStorage
from buffer.types import Flag
from buffer.views import sql_text
from gateway.errors import ConfigError, EbbgateError
from gateway.fillorder import HOLES_MAX
from gateway.settings import ModbusSource, OpcuaSource
from gateway.units import format_duration

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.settings import GatewaySettings

SAMPLINGS: Final = 2  # a tag that skips one of its samplings has no hole yet
MICROSECOND_NS: Final = 1_000
_REPEATED: Final = int(Flag.MARKER | Flag.REPEATED)


def fillable(settings: GatewaySettings, name: str) -> OpcuaSource:
    """Return the source; raise ConfigError where it is none, or has no history."""
    source = next((one for one in settings.sources if one.name == name), None)
    if source is None:
        raise ConfigError(f"no source {name!r}", f"Sources here: {', '.join(one.name for one in settings.sources) or 'none'}.")
    if isinstance(source, ModbusSource):
        raise ConfigError(f"{name} is a Modbus device: it keeps no history", "What was not read then cannot be had any more.")
    if source.history_fill_ns <= 0:
        raise ConfigError(f"{name} has history_fill = 0: its history is not asked for", f"Set history_fill in [source.{name}] and reload collect.")
    return source


def check_window(source: OpcuaSource, begin_ns: int, end_ns: int, now_ns: int) -> None:
    """Raise ConfigError unless the window is one."""
    if begin_ns >= end_ns:
        raise ConfigError("--from is not before --to")
    if end_ns > now_ns:
        raise ConfigError(f"--to {_utc(end_ns)} is in the future", f"Now is {_utc(now_ns)}.")
    if end_ns - begin_ns > source.history_fill_ns:
        limit = format_duration(source.history_fill_ns)
        what = f"{format_duration((end_ns - begin_ns) // 10**9 * 10**9)} are longer than history_fill = {limit} of {source.name}"
        raise ConfigError(what, "Fill one part after the other, or raise history_fill.")


def moment_of(root: Path, source: OpcuaSource, begin_ns: int) -> tuple[str, int]:
    """Return of what moment the ring is now (generation, monotonic ns); raise ConfigError where it no longer reaches back to begin_ns."""
    reader = RingReader(PosixReadStorage(root))
    inventory = reader.inventory()
    newest = reader.newest(inventory)
    state = newest.state if newest is not None else None
    if state is None:
        raise EbbgateError(f"{root}: nothing was committed here yet", "Start `ebbgate collect` first.")
    if state.low[0] >> 32 > 1 or state.low[1] > 0:
        first = reader.segment_manifest(inventory.segments[0]) if inventory.segments else None
        if first is None:
            first = next((frame.manifest for frame in reader.blocks(inventory, state.low[0], 0)), None)
        since_ns = (first.arrival_ns if first is not None else state.wall_ns) + source.clock.max_skew_ns
        if begin_ns < since_ns:
            what = f"the ring reaches back to {_utc(since_ns)} only: what it held before cannot be compared any more"
            raise ConfigError(what, "Choose a later --from.")
    return format_generation(state.generation), state.monotonic_ns


def find_holes(ring: Path, source: OpcuaSource, begin_ns: int, end_ns: int, longer_ns: int) -> dict[str, list[tuple[int, int]]]:
    """Return tag id -> the holes in a window; raise ConfigError where there are too many."""
    least = {tag.id: max(longer_ns, SAMPLINGS * tag.every_ns) for tag in source.tags if tag.type not in ("event", "alarm")}
    if not least:
        return {}
    options = QueryOptions(rows_max=HOLES_MAX, since_ns=begin_ns - source.history_fill_ns)
    found = run_query(ring, _sql(least, begin_ns, end_ns, source.history_fill_ns), options)
    if found.truncated:
        raise ConfigError(f"more than {HOLES_MAX:,} holes", "Choose a shorter window, or a longer --longer-than.")
    holes: dict[str, list[tuple[int, int]]] = {}
    for tag, after_ns, before_ns in found.rows:
        holes.setdefault(tag, []).append((max(0, int(after_ns)), int(before_ns)))
    return holes


def _sql(least: dict[str, int], begin_ns: int, end_ns: int, look_ns: int) -> str:
    """Return the SELECT of (tag, after ns, before ns). A source time is kept to the microsecond: the hole after it begins a microsecond later."""
    tags = ", ".join(f"({sql_text(tag)}, {longer_ns})" for tag, longer_ns in least.items())
    spread = f"ts >= {_stamp(begin_ns - look_ns)} AND ts <= {_stamp(end_ns + look_ns)}"
    return f"""
    WITH wanted(tag, longer) AS (VALUES {tags}),
    held AS (
        SELECT readings.tag, CASE WHEN ts_source IS NULL THEN epoch_us(ts) * 1000 + ts_ns ELSE epoch_us(ts_source) * 1000 END AS moment,
               moment + CASE WHEN ts_source IS NULL THEN 0 ELSE {MICROSECOND_NS} END AS until
        FROM readings JOIN wanted USING (tag) WHERE flags & {_REPEATED} = 0 AND {spread}),
    near AS (
        SELECT tag, moment, until FROM held WHERE moment BETWEEN {begin_ns} AND {end_ns}
        UNION ALL SELECT tag, max(moment), max(until) FROM held WHERE moment < {begin_ns} GROUP BY tag
        UNION ALL SELECT tag, min(moment), min(until) FROM held WHERE moment > {end_ns} GROUP BY tag),
    pairs AS (
        SELECT tag, until AS a, lead(moment) OVER (PARTITION BY tag ORDER BY moment, until) AS b FROM near
        UNION ALL SELECT tag, NULL, min(moment) FROM near GROUP BY tag
        UNION ALL SELECT tag, NULL, NULL FROM wanted WHERE tag NOT IN (SELECT tag FROM near)),
    holes AS (SELECT tag, coalesce(a, {begin_ns - 1}) AS a, coalesce(b, {end_ns}) AS b FROM pairs)
    SELECT tag, a, b FROM holes JOIN wanted USING (tag) WHERE b - a > longer AND a < {end_ns} AND b > {begin_ns} ORDER BY a, tag
    """  # noqa: S608 -- numbers, and texts quoted by sql_text


def _stamp(ns: int) -> str:
    return f"TIMESTAMPTZ {sql_text(datetime.datetime.fromtimestamp(max(0, ns) // 10**9, datetime.UTC).isoformat())}"


def _utc(ns: int) -> str:
    return datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
