"""The SQL that `ebbgate query` offers: text and rows, made from a snapshot. Pure; buffer.query runs it.

Views, over all streams of the ring:

    readings       stream, generation, seq, tag, path, ts (TIMESTAMPTZ), ts_ns (below the microsecond), ts_source, value (DOUBLE: whatever
                   is a number; booleans as 0 and 1), value_double, value_int (BIGINT), value_uint (UBIGINT: tags of type UInt64),
                   value_bool, value_string, quality (OPC UA status code), flags
    readings_good  those with quality Good, without notices
    last           per tag the newest reading by (ts, generation, seq), whatever its quality
    gaps           kind (open: history may still fill it; lost: it never comes; missing: the ring is damaged there, `ring check` says how),
                   stream, source, since, generation, first_seq, last_seq, reason
    tags           stream, tag, path, source, type, unit, low, high, scale, "offset", description, states (JSON), is_unsigned, retired
    notices        stream, ts, kind, source, detail (JSON), generation, seq
"""
# ruff: noqa: S608 -- every name and path in this SQL is ours, quoted by sql_text

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.snapshot import Snapshot

_NOTICE: Final = "_ebbgate."
_COLUMNS: Final = (
    "tag, path, ts, ts_ns, ts_source, value_double, value_int, value_bool, value_string, quality::BIGINT AS quality, flags, seq, generation"
)
READINGS_COLUMNS: Final = (
    "stream, generation, seq, tag, path, ts, ts_ns, ts_source, value, value_double, value_int, value_uint, value_bool, value_string, quality, flags"
)
_EMPTY: Final = (
    "SELECT ''::VARCHAR AS tag, ''::VARCHAR AS path, now()::TIMESTAMPTZ AS ts, 0::SMALLINT AS ts_ns, now()::TIMESTAMPTZ AS ts_source, "
    "0::DOUBLE AS value_double, 0::BIGINT AS value_int, true AS value_bool, ''::VARCHAR AS value_string, 0::BIGINT AS quality, "
    "0::INTEGER AS flags, 0::BIGINT AS seq, 0::BIGINT AS generation WHERE false"
)
VIEWS: Final = {
    "readings_good": f"SELECT * FROM readings WHERE quality < 1073741824 AND NOT starts_with(tag, '{_NOTICE}')",
    "last": f"""SELECT readings.* FROM readings JOIN (
        SELECT stream, tag, unnest(arg_max((generation, seq), (ts, ts_ns, generation, seq))) FROM readings
        WHERE NOT starts_with(tag, '{_NOTICE}') GROUP BY stream, tag) AS newest (stream, tag, generation, seq)
        USING (stream, generation, seq)""",
    "notices": f"""SELECT stream, ts, tag[{len(_NOTICE) + 1}:] AS kind,
        CASE WHEN json_valid(value_string) THEN value_string->>'source' END AS source, value_string AS detail, generation, seq
        FROM readings WHERE starts_with(tag, '{_NOTICE}')""",
}


TAGS: Final = {
    "stream": "VARCHAR", "tag": "VARCHAR", "path": "VARCHAR", "source": "VARCHAR", "type": "VARCHAR", "unit": "VARCHAR", "low": "DOUBLE",
    "high": "DOUBLE", "scale": "DOUBLE", "offset": "DOUBLE", "description": "VARCHAR", "states": "JSON", "is_unsigned": "BOOLEAN",
    "retired": "BOOLEAN",
}  # fmt: skip
GAPS: Final = {
    "kind": "VARCHAR", "stream": "VARCHAR", "source": "VARCHAR", "since": "TIMESTAMPTZ", "generation": "BIGINT", "first_seq": "BIGINT",
    "last_seq": "BIGINT", "reason": "VARCHAR",
}  # fmt: skip


def sql_text(value: str) -> str:
    """Return a string literal."""
    return "'" + value.replace("'", "''") + "'"


def create_table(name: str, columns: dict[str, str]) -> str:
    """Return the statement that makes an empty table."""
    return f"CREATE TABLE {name} (" + ", ".join(f'"{column}" {kind}' for column, kind in columns.items()) + ")"


def fill_table(name: str, columns: dict[str, str]) -> str:
    """Return the statement that takes one list per column: a million tags row by row would take minutes."""
    return f"INSERT INTO {name} SELECT " + ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())


def readings_view(snapshots: Sequence[Snapshot]) -> str:
    """Return the view `readings` over every stream."""
    return "CREATE VIEW readings AS " + " UNION ALL ".join(map(_readings, snapshots))


def _readings(snapshot: Snapshot) -> str:
    files = [*snapshot.segments, *snapshot.tail]
    source = _EMPTY
    if files:
        source = f"SELECT {_COLUMNS} FROM read_parquet([{', '.join(sql_text(str(path)) for path in files)}], hive_partitioning = false)"
    unsigned = "false"
    if snapshot.table is not None and any(tag.unsigned for tag in snapshot.table.tags):
        unsigned = f"tag IN (SELECT tag FROM tags WHERE is_unsigned AND stream = {sql_text(snapshot.stream)})"
    whole = f"CASE WHEN {unsigned} THEN (value_int::HUGEINT + CASE WHEN value_int < 0 THEN 18446744073709551616 ELSE 0 END)::UBIGINT END"
    return f"""SELECT {sql_text(snapshot.stream)} AS stream, generation, seq, tag, path, ts, ts_ns, ts_source,
        coalesce(value_double, ({whole})::DOUBLE, value_int::DOUBLE, value_bool::INTEGER::DOUBLE) AS value, value_double,
        CASE WHEN {unsigned} THEN NULL ELSE value_int END AS value_int, {whole} AS value_uint, value_bool, value_string, quality, flags
        FROM ({source})"""


def tag_rows(snapshot: Snapshot) -> list[list[Any]]:
    """Return the rows of `tags` for one stream."""
    if snapshot.table is None:
        return []
    return [
        [snapshot.stream, t.id, t.path, t.source, t.type, t.unit, t.low, t.high, t.scale, t.offset, t.description, json.dumps(dict(t.states)),
         t.unsigned, not t.source]
        for t in snapshot.table.tags
    ]  # fmt: skip


def gap_rows(snapshot: Snapshot) -> list[list[Any]]:
    """Return the rows of `gaps`: what the newest state record says is open or lost, and what is not there though it should be."""
    state, table = snapshot.state, snapshot.table
    if state is None or table is None:
        return []
    epoch = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 -- naive is UTC here: the session's zone
    rows: list[list[Any]] = []
    for gap in state.open_gaps:
        source = table.sources[gap.source] if gap.source < len(table.sources) else str(gap.source)
        since = epoch + datetime.timedelta(microseconds=gap.from_ns // 1000)
        rows.append(["open", snapshot.stream, source, since, None, None, None, "history may still fill it"])
    for loss in state.lost:
        rows.append(["lost", snapshot.stream, None, None, loss.generation, loss.first, loss.last, loss.reason.name.lower()])
    for span in snapshot.missing:
        rows.append(["missing", snapshot.stream, None, None, span.generation, span.first, span.last, "no file that can be read holds it"])
    return rows
