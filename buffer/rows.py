"""Columns and tag table -> the columns of the Parquet files that people read. Pure; shared by segments, queries and the lake.

    tag           text    tag id; notices: _ebbgate.<kind>
    path          text    as of the tag table of that time
    ts            int64   UTC, microseconds since 1970 (floor)
    ts_ns         int16   what is below, 0..999
    ts_source     int64   what the source said, microseconds (floor), where it differs from ts; else null
    value_double, value_int, value_bool, value_string: at most one is not null; UInt64 stands in value_int as the same 64 bits
    quality       int64   OPC UA status code
    flags         int32   buffer.types.Flag
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
    """n rows. tag_index points into tags and paths, text_index into texts (-1: null); has_* say where a value is not null."""

    tag_index: NDArray[np.int32]
    tags: list[str]
    paths: list[str]
    ts_us: NDArray[np.int64]
    ts_ns: NDArray[np.int16]
    ts_source_us: NDArray[np.int64]
    has_source: NDArray[np.bool_]
    values: NDArray[np.uint64]  # the 64 bits of double, int or bool
    has_double: NDArray[np.bool_]
    has_int: NDArray[np.bool_]
    has_bool: NDArray[np.bool_]
    text_index: NDArray[np.int32]
    texts: list[str]
    quality: NDArray[np.int64]
    flags: NDArray[np.int32]
    seq: NDArray[np.int64]


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
    """Return the rows of `columns`, whose readings have these ascending seqs; sorted by (tag id, seq) if by_tag, else by seq."""
    tag_index, tags, paths = _tags(columns.tag, table)
    text_index, texts = _texts(columns)
    order: NDArray[Any] | slice = slice(None)
    if by_tag:
        order = np.argsort(tag_index.astype(np.uint16) if len(tags) <= np.iinfo(np.uint16).max else tag_index, kind="stable")
    ts = columns.ts_ns[order]
    source = ts if columns.ts_source_ns is None else columns.ts_source_ns[order]
    kind = columns.kind[order]
    ts_us = ts // 1000
    return RowColumns(
        tag_index=tag_index[order],
        tags=tags,
        paths=paths,
        ts_us=ts_us,
        ts_ns=(ts - ts_us * 1000).astype(np.int16),
        ts_source_us=source // 1000,
        has_source=source != ts,
        values=columns.values[order],
        has_double=kind == int(Kind.DOUBLE),
        has_int=(kind == int(Kind.INT64)) | (kind == int(Kind.UINT64)),
        has_bool=kind == int(Kind.BOOL),
        text_index=text_index[order],
        texts=texts,
        quality=columns.quality[order].astype(np.int64),
        flags=columns.flags[order].astype(np.int32),
        seq=seq[order],
    )


def _tags(tag: NDArray[np.uint32], table: TagTable) -> tuple[NDArray[np.int32], list[str], list[str]]:
    """Return per reading the place of its tag among the ids in use, sorted as text, and those ids and paths."""
    numbers, inverse = np.unique(tag, return_inverse=True)
    named = sorted((*describe(int(number), table), place) for place, number in enumerate(numbers))
    rank = np.empty(len(named), np.int32)
    rank[[place for _, _, place in named]] = np.arange(len(named), dtype=np.int32)
    return rank[inverse], [name for name, _, _ in named], [path for _, path, _ in named]


def _texts(columns: Columns) -> tuple[NDArray[np.int32], list[str]]:
    """Return per reading the place of its text among the different ones, -1 where it has none, and those texts."""
    index = np.full(len(columns), -1, np.int32)
    is_text = (columns.kind == int(Kind.TEXT)) | (columns.kind == int(Kind.BYTES))
    if not is_text.any():
        return index, []
    used, inverse = np.unique(columns.values[is_text], return_inverse=True)
    table: dict[str, int] = {}
    place = np.array([table.setdefault(columns.texts[int(i)], len(table)) for i in used], np.int32)
    index[is_text] = place[inverse]
    return index, list(table)
