"""The newest reading of each tag out of a landed frame, as text: the only file of the console that knows the formats of data.

Text from a plant stays text here; gateway.console.pages encodes it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from buffer.codec import decode
from buffer.errors import CorruptError
from buffer.manifest import FrameKind
from buffer.notice import ID_PREFIX, NoticeKind
from buffer.rows import describe
from buffer.types import Flag, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buffer.frame import Frame
    from buffer.tagtable import TagTable
    from buffer.types import Columns

VALUE_CHARS_MAX = 200
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest reading of one tag. number: as a trend can draw it, NaN where it cannot."""

    tag: str
    path: str
    unit: str
    ts_ns: int
    value: str
    quality: int
    flags: int
    source: str = ""
    number: float = _NAN


@dataclass(frozen=True, slots=True)
class Notice:
    """One notice: its kind, its time, its JSON."""

    kind: int
    ts_ns: int
    text: str


def read(frame: Frame, table: TagTable) -> Iterator[Newest | Notice]:
    """Yield the newest reading of each tag in a frame, and every notice in it; raise CorruptError."""
    m = frame.manifest
    if not m.count:
        return
    if m.kind == FrameKind.SEGMENT:
        yield from _segment(frame, table)
    else:
        yield from _block(decode(frame.payload, m.count), table)


def _block(columns: Columns, table: TagTable) -> Iterator[Newest | Notice]:
    for row in np.flatnonzero(columns.tag < len(NoticeKind)):
        if columns.kind[row] == Kind.TEXT:
            yield Notice(int(columns.tag[row]), int(columns.ts_ns[row]), columns.texts[int(columns.values[row])])
    for number, last in {number: at for at, number in enumerate(columns.tag.tolist())}.items():
        tag, path = describe(number, table)
        known = table.tag(number)
        text, drawn = _value(columns, last, dict(known.states) if known else {})
        yield Newest(
            tag, path, known.unit if known else "", int(columns.ts_ns[last]), text, int(columns.quality[last]), int(columns.flags[last]),
            known.source if known else "", drawn,
        )  # fmt: skip


def _value(columns: Columns, row: int, states: dict[int, str]) -> tuple[str, float]:
    kind, bits = columns.kind[row], columns.values[row : row + 1]
    if kind == Kind.DOUBLE:
        number = float(bits.view(np.float64)[0])
        return f"{number:.6g}", number
    if kind in (Kind.TEXT, Kind.BYTES):
        return columns.texts[int(bits[0])][:VALUE_CHARS_MAX], _NAN
    if kind == Kind.NULL:
        return "", _NAN
    if kind == Kind.BOOL:
        return ("yes" if bits[0] else "no"), float(bits[0])
    whole = int(bits.view(np.int64)[0]) if kind == Kind.INT64 else int(bits[0])
    return _whole(whole, states), float(whole)


def _whole(number: int, states: dict[int, str]) -> str:
    return f"{number} {states[number]}" if number in states else str(number)


_COLUMNS = ["tag", "path", "ts", "ts_ns", "value_double", "value_int", "value_bool", "value_string", "quality", "flags"]


def _segment(frame: Frame, table: TagTable) -> Iterator[Newest | Notice]:
    """Rows are sorted by tag, then seq: the last of each tag, and all of the notices."""
    try:
        rows = pq.read_table(io.BytesIO(bytes(frame.payload)), columns=_COLUMNS)
        tags = rows["tag"].combine_chunks().dictionary_encode() if not pa.types.is_dictionary(rows["tag"].type) else rows["tag"].combine_chunks()
        tags = tags.chunk(0) if isinstance(tags, pa.ChunkedArray) else tags
        codes = tags.indices.to_numpy()
        names = tags.dictionary.to_pylist()
        last = np.append(np.flatnonzero(np.diff(codes)), len(codes) - 1)
        told = [code for code, name in enumerate(names) if str(name).startswith(ID_PREFIX)]
        wanted = np.union1d(last, np.flatnonzero(np.isin(codes, told)))
        found = rows.take(pa.array(wanted)).to_pydict()
        stamps = rows["ts"].cast(pa.int64()).take(pa.array(wanted)).to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        message = f"segment is not Parquet of our columns: {error}"
        raise CorruptError(message) from error
    by_id = {tag.id: tag for tag in table.tags}
    kinds = {ID_PREFIX + kind.name.lower(): int(kind) for kind in NoticeKind}
    ends = set(last.tolist())
    for place, row in enumerate(wanted.tolist()):
        r = {name: column[place] for name, column in found.items()}
        ts_ns = stamps[place] * 1000 + r["ts_ns"]
        if r["tag"] in kinds and r["value_string"] is not None:
            yield Notice(kinds[r["tag"]], ts_ns, r["value_string"])
        if row not in ends:
            continue
        tag = by_id.get(r["tag"])
        text, drawn = _plain(r, dict(tag.states) if tag else {})
        unit, source = (tag.unit, tag.source) if tag else ("", "")
        yield Newest(r["tag"], r["path"], unit, ts_ns, text, r["quality"], r["flags"], source, drawn)


def _plain(r: dict[str, object], states: dict[int, str]) -> tuple[str, float]:
    double, whole, flag, text = r["value_double"], r["value_int"], r["value_bool"], r["value_string"]
    if isinstance(double, float):
        return f"{double:.6g}", double
    if isinstance(flag, bool):
        return ("yes" if flag else "no"), float(flag)
    if isinstance(whole, int):
        return _whole(whole, states), float(whole)
    return (str(text)[:VALUE_CHARS_MAX], _NAN) if text is not None else ("", _NAN)


def is_hole(newest: Newest) -> bool:
    """Say whether Ebbgate wrote this to say that reading stopped."""
    return bool(newest.flags & Flag.MARKER)
