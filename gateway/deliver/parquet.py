"""The lake, and the rows of landed frames: the only file of deliver that knows pyarrow.

Layout: <lake>/site=<site>/date=<YYYY-MM-DD, UTC>/<stream>-<lane>-<landing>-<first>-<last>.parquet, the columns of buffer.rows with
`stream` in front, timestamps in microseconds, so that DuckDB, pandas and Spark read it. `...-again<n>.parquet` where the same numbers are
gone through again: a record that was passed by and read later (gateway.deliver.cursor), a cursor that was lost.

Once: a file's name says which landing numbers it holds. Before files are written the cut is made durable in the sink's state file
(`begun`); after a crash the same cut is written again under the same names; then the cursor moves. Where the landing was restored in
between, the same cut is no more: the files begun are taken away first. Readings the lake holds already (a receiver that was
restored) are left out by the ranges in the cursor. Where the cursor itself went back (deliver/ restored from a backup, or lost) or
the landing began anew, files that the cursor does not know are found by name and what they hold is taken into it.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from buffer.codec import decode
from buffer.errors import CorruptError, StorageFault
from buffer.intervals import Intervals
from buffer.manifest import FrameKind, format_generation
from buffer.rows import make_rows
from buffer.segment import arrow_table
from buffer.storage import make_directory, publish_file, remove_file
from gateway.deliver.cursor import Cursor, decode_cursor, encode_cursor
from gateway.deliver.sink import Row, SinkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buffer.frame import Frame
    from buffer.intervals import Range
    from buffer.tagtable import TagTable
    from gateway.deliver.sink import Work

STAMP: Final = pa.timestamp("us", "UTC")
ROWS_AT_A_TIME: Final = 10_000  # as Python objects: 1 kB each
COLUMNS: Final = (
    "tag", "path", "ts", "ts_ns", "ts_source", "value_double", "value_int", "value_bool", "value_string", "quality", "flags", "seq",
    "generation",
)  # fmt: skip
_EPOCH: Final = dt.date(1970, 1, 1)
_DAY_US: Final = 86_400_000_000
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # years 1 and 9999: what a date in a path can say


class FrameRows:
    """Readings of landed frames as an Arrow table; iterates as gateway.deliver.sink.Row, in order of seq."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.sort_by("seq")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Row]:
        return (row for at in range(0, len(self), ROWS_AT_A_TIME) for row in _rows(self.table.slice(at, ROWS_AT_A_TIME)))


def _rows(t: pa.Table) -> Iterator[Row]:
    columns = [t["generation"], t["seq"], t["tag"], t["path"], t["ts"].cast(pa.int64()), t["ts_ns"], t["ts_source"].cast(pa.int64())]
    columns += [t[name] for name in ("value_double", "value_int", "value_bool", "value_string", "quality", "flags")]
    return (Row(*values) for values in zip(*(column.to_pylist() for column in columns), strict=True))


def frame_rows(frames: Sequence[Frame], table: TagTable, ranges: Sequence[Range]) -> FrameRows:
    """Return the readings of these frames whose seq lies in `ranges`; raise CorruptError."""
    parts = [_segment(f) if f.manifest.kind == FrameKind.SEGMENT else _block(f, table) for f in frames if f.manifest.count]
    whole = pa.concat_tables(parts) if parts else _empty()
    return FrameRows(_within(whole, ranges))


def _segment(frame: Frame) -> pa.Table:
    try:
        return _plain(pq.read_table(io.BytesIO(bytes(frame.payload))).select(list(COLUMNS)))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        message = f"segment of blocks {frame.manifest.first_block}.. is not Parquet of our columns: {error}"
        raise CorruptError(message) from error


def _plain(table: pa.Table) -> pa.Table:
    """Decode dictionaries: parts of different files have different ones."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(field.type.value_type))
    return table.cast(_SCHEMA)


def _block(frame: Frame, tags: TagTable) -> pa.Table:
    m = frame.manifest
    columns = decode(frame.payload, m.count)
    seq = np.arange(m.first_seq, m.end_seq, dtype=np.int64)
    return _plain(arrow_table(make_rows(columns, seq, tags, by_tag=False), m.generation).select(list(COLUMNS)))


_SCHEMA: Final = pa.schema(
    [
        ("tag", pa.string()), ("path", pa.string()), ("ts", STAMP), ("ts_ns", pa.int16()), ("ts_source", STAMP), ("value_double", pa.float64()),
        ("value_int", pa.int64()), ("value_bool", pa.bool_()), ("value_string", pa.string()), ("quality", pa.int64()), ("flags", pa.int32()),
        ("seq", pa.int64()), ("generation", pa.int64()),
    ]
)  # fmt: skip


def _empty() -> pa.Table:
    return _SCHEMA.empty_table()


def _within(table: pa.Table, ranges: Sequence[Range]) -> pa.Table:
    seq = table["seq"].to_numpy()
    keep = np.zeros(len(seq), np.bool_)
    for first, last in ranges:
        keep |= (seq >= first) & (seq <= last)
    return table.filter(pa.array(keep))


class LakeSink:
    """Implements gateway.deliver.sink.Sink over a directory tree."""

    def __init__(self, root: Path, state: Path, name: str = "lake") -> None:
        self.name = name
        self._root = root
        self._state = state
        self._begun: dict[str, str] = {}  # lane -> stem of the files of a cut
        self._adopted: dict[str, int] = {}  # stream -> landing generation for which files unknown to the cursor were looked for

    # ---- Sink ----

    def cursor(self, stream: str) -> Cursor:
        """Return the cursor in the state file."""
        return self._read(stream)[0]

    def limit(self, cursor: Cursor, lane: str) -> int | None:
        """Return the last number of a cut that was begun before a crash."""
        found = _NAME.fullmatch(self._begun.get(lane, ""))
        return int(found[6]) if found and int(found[6]) >= cursor.following.get(lane, 0) else None

    def write(self, work: Work) -> Cursor:
        """Make the cut durable, write its files, move the cursor."""
        try:
            cursor, begun = self._read(work.stream)
            if self._adopted.get(work.stream) != work.landing:
                self._adopt(work.stream, cursor, set(begun.values()))
                self._adopted[work.stream] = work.landing
            cursor.follow(work.landing, work.since)
            if not work.wanted(cursor):
                return cursor
            stem = self._stem(work, begun.get(work.lane, ""))
            if begun.get(work.lane) != stem:
                self._remove(begun.get(work.lane), set())
                self._write_state(work.stream, cursor, begun | {work.lane: stem})
            tables = []
            for part in work.parts:
                ranges = cursor.fresh(part.generation, part.new)
                if ranges:
                    tables.append(part.load(ranges).table)  # type: ignore[attr-defined]  # deliver hands out FrameRows
                    cursor.take(part.generation, ranges)
            self._files(work, stem, pa.concat_tables(tables) if tables else _empty())
            work.done(cursor)
            self._write_state(work.stream, cursor, {k: v for k, v in begun.items() if k != work.lane})
        except StorageFault as fault:
            raise SinkError(f"lake: {fault}", "Check the disk of the lake; this sink goes on by itself.") from fault
        return cursor

    # ---- inside ----

    def _adopt(self, stream: str, cursor: Cursor, begun: set[str]) -> None:
        """Take what stands in files that the cursor does not know into it."""
        for path in sorted(self._root.glob(f"site=*/date=*/{stream}-*.parquet")):
            found = _NAME.fullmatch(path.name)
            if found is None or found[1] != stream or path.name in begun:
                continue
            landing = int(found[3]) << 32 | int(found[4], 16)
            if landing < cursor.landing or (landing == cursor.landing and int(found[6]) < cursor.following.get(found[2], 0)):
                continue
            held: dict[int, Intervals] = {}
            for generation, seq in _identities(path):
                held.setdefault(generation, Intervals()).add(seq, seq)
            for generation, ranges in held.items():
                cursor.take(generation, cursor.fresh(generation, ranges))

    def _path(self, stream: str) -> Path:
        return self._state / f"{self.name}-{stream}.json"

    def _read(self, stream: str) -> tuple[Cursor, dict[str, str]]:
        try:
            body: Any = json.loads(self._path(stream).read_bytes())
        except FileNotFoundError:
            body = {"cursor": encode_cursor(Cursor()), "begun": {}}
        except (OSError, ValueError) as error:
            raise SinkError(f"{self._path(stream)}: {error}", "Move it away: deliver then finds out from the lake what is there.") from error
        self._begun = {str(k): str(v) for k, v in body["begun"].items()}
        return decode_cursor(body["cursor"]), self._begun

    def _write_state(self, stream: str, cursor: Cursor, begun: dict[str, str]) -> None:
        publish_file(self._path(stream), json.dumps({"cursor": encode_cursor(cursor), "begun": begun}).encode())
        self._begun = begun

    def _files(self, work: Work, stem: str, table: pa.Table) -> None:
        """Write one file per date; files of this cut that an earlier, crashed try made for no date any more are taken away."""
        site = re.sub(r"[^A-Za-z0-9_.-]", "_", work.site) or "unknown"
        days = np.clip(np.floor_divide(table["ts"].cast(pa.int64()).to_numpy(), _DAY_US), _FIRST_DAY, _LAST_DAY)
        made = set()
        for day in np.unique(days):
            date = _EPOCH + dt.timedelta(days=int(day))
            directory = self._root / f"site={site}" / f"date={date.isoformat()}"
            make_directory(directory)
            part = table.filter(pa.array(days == day))
            part = part.sort_by([("tag", "ascending"), ("generation", "ascending"), ("seq", "ascending")])
            part = part.add_column(0, "stream", pa.array([work.stream] * part.num_rows, pa.string()))
            sink = io.BytesIO()
            pq.write_table(part, sink, compression="zstd", compression_level=3, use_dictionary=["stream", "tag", "path", "generation"])
            publish_file(directory / stem, sink.getvalue())
            made.add(directory / stem)
        self._remove(stem, made)

    def _stem(self, work: Work, begun: str) -> str:
        """Return the name for the files of a cut: the one begun, else one that no file has. Files that stand are never written over."""
        plain = f"{work.stream}-{work.lane}-{format_generation(work.landing)}-{work.first:012d}-{work.last:012d}"
        if begun.startswith(plain):
            return begun
        stem, again = f"{plain}.parquet", 0
        while any(self._root.glob(f"site=*/date=*/{stem}")):
            again += 1
            stem = f"{plain}-again{again}.parquet"
        return stem

    def _remove(self, stem: str | None, kept: set[Path]) -> None:
        for stale in set(self._root.glob(f"site=*/date=*/{stem}") if stem else ()) - kept:
            remove_file(stale)


_NAME: Final = re.compile(r"(.+)-(live|backfill)-(\d+)-([0-9a-f]{8})-(\d{12})-(\d{12})(?:-again\d+)?\.parquet")


def count_rows(root: Path) -> int:
    """Return how many readings the lake holds, by the files' own footers."""
    return sum(pq.read_metadata(path).num_rows for path in root.glob("site=*/date=*/*.parquet"))


def _identities(path: Path) -> Iterator[tuple[int, int]]:
    try:
        t = pq.read_table(path, columns=["generation", "seq"], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise SinkError(f"{path}: {error}", "Restore this file of the lake from backup, or move it out of the lake.") from error
    return zip(t["generation"].to_pylist(), t["seq"].to_pylist(), strict=True)


def identities(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (stream, generation, seq) of every reading in the lake: what an audit counts."""
    for path in sorted(root.glob("site=*/date=*/*.parquet")):
        t = pq.read_table(path, columns=["stream", "generation", "seq"], partitioning=None)
        yield from zip(t["stream"].to_pylist(), t["generation"].to_pylist(), t["seq"].to_pylist(), strict=True)

