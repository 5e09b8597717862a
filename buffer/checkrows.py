"""The rows of a segment as DuckDB reads them: judged by its manifest and tag table, and compared with blocks bit for bit."""
# ruff: noqa: S608 -- the only name in this SQL is a path of ours, quoted

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from buffer.codec import decode
from buffer.errors import CorruptError
from buffer.rows import describe
from buffer.types import Kind
from buffer.views import sql_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import duckdb
    from numpy.typing import NDArray

    from buffer.checkwalk import Walked
    from buffer.tagtable import TagTable
    from buffer.types import Columns

_VALUES: Final = ("value_double", "value_int", "value_bool", "value_string")
_COLUMNS: Final = (
    "tag, path, ts, ts_ns, ts_source, value_double, value_int, value_bool, value_string, quality, flags, seq, generation"
)


class Duck:
    """A DuckDB for one file after another; a new one after each refusal: a file that broke it must not speak for those that follow."""

    def __init__(self) -> None:
        import duckdb

        self.errors = duckdb.Error
        self._connection: duckdb.DuckDBPyConnection | None = None

    def execute(self, sql: str) -> duckdb.DuckDBPyConnection:
        """Return the result, to be fetched before the next call; raise one of `errors`."""
        import duckdb

        if self._connection is None:
            self._connection = duckdb.connect(":memory:", config={"threads": 2, "memory_limit": "1GB"})
        try:
            return self._connection.execute(sql)
        except duckdb.Error:
            self.close()
            raise

    def close(self) -> None:
        """Give it back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class SegmentRows:
    """One Parquet file, as DuckDB reads it."""

    def __init__(self, duck: Duck, path: Path) -> None:
        self.errors = duck.errors
        self._duck = duck
        self._file = f"read_parquet({sql_text(str(path))}, file_row_number = true, hive_partitioning = false)"
        self._first = 0
        self._columns: dict[str, Any] = {}

    def problems(self, m: dict[int, Any], table: TagTable) -> Iterator[str]:
        """Yield what is not as the manifest and the specification say."""
        try:
            yield from self._problems(m, table)
        except self.errors as error:
            yield f"DuckDB cannot read it: {str(error).splitlines()[0][:200]}"

    def _problems(self, m: dict[int, Any], table: TagTable) -> Iterator[str]:
        names = [row[0] for row in self._duck.execute(f"DESCRIBE SELECT * EXCLUDE file_row_number FROM {self._file}").fetchall()]
        if ", ".join(names) != _COLUMNS:
            yield f"columns {', '.join(names)}"
            return
        first, count = m[7]
        row = self._duck.execute(f"""
            SELECT count(*), count(*) FILTER (generation <> {m[5]}),
                count(*) FILTER (ts_ns NOT BETWEEN 0 AND 999), count(*) FILTER (quality NOT BETWEEN 0 AND 4294967295),
                count(*) FILTER ({" + ".join(f"({name} IS NOT NULL)::INTEGER" for name in _VALUES)} > 1),
                count(*) FILTER (tag IS NULL OR path IS NULL OR ts IS NULL OR flags NOT BETWEEN 0 AND 65535)
            FROM {self._file}""").fetchone()
        said = ("count", "generation", "ts_ns", "quality", "more than one value", "nulls or flags")
        rows, *counts = row or (-1,)
        for name, wrong in zip(said, (rows - count, *counts), strict=True):
            if wrong:
                yield f"rows are not as specified: {name}"
        if not self._has_each(first, count):
            yield "rows are not as specified: seqs"
        if self._out_of_order("") and self._out_of_order("ORDER BY file_row_number"):
            yield "rows are not sorted by (tag, seq)"
        known = {(tag.id, tag.path) for tag in table.tags}
        for tag, path in self._duck.execute(f"SELECT DISTINCT tag, path FROM {self._file}").fetchall():
            if (tag, path) not in known and not tag.startswith("_ebbgate."):
                yield f"tag {tag!r} with path {path!r} is not in its tag table"

    def _has_each(self, first: int, count: int) -> bool:
        """Say whether every seq from `first` on stands there once."""
        seq = self._duck.execute(f"SELECT seq FROM {self._file}").fetchnumpy()["seq"]
        if np.ma.isMaskedArray(seq) or len(seq) != count or seq.min(initial=first) < first or seq.max(initial=first) >= first + count:
            return False
        seen = np.zeros(count, np.bool_)
        seen[seq - first] = True
        return bool(seen.all())

    def _out_of_order(self, window: str) -> int:
        """Count rows that do not follow the one before. Without a window in the order of the scan, four times as fast: it counts as evidence only
        where the row numbers say that this was the order of the file."""
        row = self._duck.execute(f"""
            SELECT count(*) FROM (SELECT tag, seq, file_row_number AS n, lag(tag) OVER w AS t, lag(seq) OVER w AS s, lag(file_row_number) OVER w AS m
            FROM {self._file} WINDOW w AS ({window})) WHERE t > tag OR (t = tag AND s >= seq) OR (CASE WHEN n = 0 THEN m IS NOT NULL
            ELSE m IS DISTINCT FROM n - 1 END)""").fetchone()
        return int(row[0]) if row is not None else 1

    def load(self) -> None:
        """Read the rows in order of seq."""
        result = self._duck.execute(f"""SELECT seq, tag, epoch_us(ts) AS ts, ts_ns, coalesce(epoch_us(ts_source), epoch_us(ts)) AS source,
            value_double, value_int, value_bool, value_string, quality, flags FROM {self._file} ORDER BY seq""")
        self._columns = result.fetchnumpy()
        self._first = int(self._columns["seq"][0])

    def differs(self, columns: Columns, first: int, table: TagTable) -> str:
        """Return the names of columns in which the rows from seq `first` on are not these readings; "" if all are equal."""
        cut = slice(first - self._first, first - self._first + len(columns))
        held = {name: data[cut] for name, data in self._columns.items()}
        if len(held["seq"]) != len(columns) or not np.array_equal(held["seq"], np.arange(first, first + len(columns))):
            return "seq"
        kind = columns.kind
        names = {int(number): describe(int(number), table)[0] for number in np.unique(columns.tag)}
        source = columns.ts_ns if columns.ts_source_ns is None else columns.ts_source_ns
        doubles, integers = np.isin(kind, [Kind.DOUBLE]), np.isin(kind, [Kind.INT64, Kind.UINT64])
        booleans, texts = np.isin(kind, [Kind.BOOL]), np.isin(kind, [Kind.TEXT, Kind.BYTES])
        checks = {
            "tag": [str(x) for x in held["tag"]] == [names[int(x)] for x in columns.tag],
            "ts": np.array_equal(held["ts"] * 1000 + held["ts_ns"].astype(np.int64), columns.ts_ns),
            "ts_source": np.array_equal(held["source"], source // 1000),
            "value_double": _equal(held["value_double"], doubles, columns.values, np.float64),
            "value_int": _equal(held["value_int"], integers, columns.values, np.int64),
            "value_bool": _equal(held["value_bool"], booleans, columns.values, np.bool_),
            "value_string": _texts(held["value_string"], texts, columns),
            "quality": np.array_equal(held["quality"], columns.quality),
            "flags": np.array_equal(held["flags"], columns.flags),
        }
        return ", ".join(name for name, same in checks.items() if not same)


def _present(data: Any, n: int) -> NDArray[np.bool_]:  # noqa: ANN401 -- numpy array, masked where there are nulls
    return ~np.ma.getmaskarray(data) if np.ma.isMaskedArray(data) else np.ones(n, np.bool_)


def _equal(data: Any, wanted: NDArray[np.bool_], values: NDArray[np.uint64], dtype: type[Any]) -> bool:  # noqa: ANN401
    if not np.array_equal(_present(data, len(wanted)), wanted):
        return False
    held = np.ma.getdata(data)[wanted].astype(dtype)
    bits = held.astype(np.uint64) if dtype is np.bool_ else held.view(np.uint64)
    return bool(np.array_equal(bits, values[wanted]))


def _texts(data: Any, wanted: NDArray[np.bool_], columns: Columns) -> bool:  # noqa: ANN401
    present = _present(data, len(wanted)) & np.array([x is not None for x in np.ma.getdata(data)], np.bool_)
    held = [str(x) for x in np.ma.getdata(data)[wanted]]
    return bool(np.array_equal(present, wanted)) and held == [columns.texts[int(i)] for i in columns.values[wanted]]


def compare_blocks(rows: SegmentRows, blocks: Iterable[Walked], table: TagTable) -> Iterator[tuple[str, int]]:
    """Yield (what differs or "", readings that are equal) for each block that lies in the segment."""
    loaded = False
    for found in blocks:
        first, count = found.manifest[7]
        try:
            columns = decode(found.payload, count)
            if not loaded:
                rows.load()
                loaded = True
            wrong = rows.differs(columns, first, table)
        except CorruptError:
            continue  # named where the block was read
        except rows.errors:
            return  # named where the rows were judged
        yield (f"readings {first}-{first + count - 1} differ from their block in {wrong}", 0) if wrong else ("", count)
