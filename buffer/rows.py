"""Columns and tag table -> the columns of the Parquet files that people read. Pure; shared by segments and the lake.

    tag           text    tag id; notices: _ebbgate.<kind>
    path          text    as of the tag table of that time
    ts_us         int64   UTC, microseconds since 1970 (floor)
    ts_ns         int16   what is below, 0..999
    ts_source_us  int64   what the source said, where it differs from ts; else null
    value_double, value_int, value_bool, value_string: at most one is not null; UInt64 stands in value_int as the same 64 bits
    quality       int64   OPC UA status code
    flags         int32
    seq           int64
    generation    int64
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from buffer.notice import ID_PREFIX, PATH_PREFIX, NoticeKind
from buffer.types import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from buffer.tagtable import TagTable
    from buffer.types import Columns


@dataclass(frozen=True, slots=True)
class RowColumns:
    """n rows; a mask is True where the value is null. Dictionaries are index and names."""

    tag_index: NDArray[np.int32]
    tags: list[str]
    paths: list[str]
    ts_us: NDArray[np.int64]
    ts_ns: NDArray[np.int16]
    ts_source_us: NDArray[np.int64]
    ts_source_null: NDArray[np.bool_]
    values: NDArray[np.uint64]
    kind: NDArray[np.uint8]
    strings: list[str | None]
    quality: NDArray[np.int64]
    flags: NDArray[np.int32]
    seq: NDArray[np.int64]

    def is_kind(self, *kinds: Kind) -> NDArray[np.bool_]:
        """Return where the value is of one of these kinds."""
        return np.isin(self.kind, [int(kind) for kind in kinds])


def describe(number: int, table: TagTable) -> tuple[str, str]:
    """Return id and path of a tag number; one that stands in no table keeps its number as a name."""
    tag = table.tag(number)
    if tag is not None:
        return tag.id, tag.path
    if number in {int(kind) for kind in NoticeKind}:
        name = NoticeKind(number).name.lower()
        return ID_PREFIX + name, PATH_PREFIX + name
    return f"{ID_PREFIX}unknown_{number}", f"{PATH_PREFIX}unknown_{number}"


def make_rows(columns: Columns, seq: NDArray[np.int64], table: TagTable, *, by_tag: bool) -> RowColumns:
    """Return the rows of `columns`, whose readings have these seqs; sorted by (tag id, seq) if by_tag, else in the order given."""
    numbers, inverse = np.unique(columns.tag, return_inverse=True)
    named = [describe(int(number), table) for number in numbers]
    rank = np.argsort(np.array([name for name, _ in named], dtype=object), kind="stable") if named else np.zeros(0, np.int64)
    place = np.empty(len(named), np.int32)
    place[rank] = np.arange(len(named), dtype=np.int32)
    tag_index = place[inverse] if len(named) else np.zeros(0, np.int32)
    order: NDArray[Any] = np.lexsort((seq, tag_index)) if by_tag else np.arange(len(columns))
    ts = columns.ts_ns[order]
    source = ts if columns.ts_source_ns is None else columns.ts_source_ns[order]
    kind, values = columns.kind[order], columns.values[order]
    strings: list[str | None] = [None] * len(columns)
    for row in np.flatnonzero((kind == Kind.TEXT) | (kind == Kind.BYTES)):
        strings[int(row)] = columns.texts[int(values[row])]
    return RowColumns(
        tag_index=tag_index[order],
        tags=[named[int(i)][0] for i in rank],
        paths=[named[int(i)][1] for i in rank],
        ts_us=ts // 1000,
        ts_ns=(ts % 1000).astype(np.int16),
        ts_source_us=source // 1000,
        ts_source_null=source == ts,
        values=values,
        kind=kind,
        strings=strings,
        quality=columns.quality[order].astype(np.int64),
        flags=columns.flags[order].astype(np.int32),
        seq=seq[order],
    )
