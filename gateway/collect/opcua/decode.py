"""DataValues of an OPC UA server -> columns. Pure; never believes a length (OPC 10000-6 1.05, section 5.2.2.17).

A notification holds many (client handle, DataValue), an answer to Read many DataValues. Four shapes, fastest first:

* a run of items with equal mask and type of fixed size: verified and copied by numpy in one step (servers report in the order of
  creation, so items created sorted by type make long runs),
* single items of fixed size: one step of Python each to find them, then gathered per shape by numpy,
* a String, ByteString or XmlElement: by hand,
* everything else: gateway.collect.opcua.variant.

Times are ns since 1970 UTC, NO_TIME where absent or beyond what 64 bits hold; the source's time, else the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from buffer.errors import CorruptError
from buffer.types import UNCERTAIN, Flag, Kind
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.reader import F64, I64, U16, U64, Reader
from gateway.collect.opcua.variant import MICROSECONDS_1601, TICKS_1970, Value, blob_value, read_value, text_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Structure = Callable[[str, bytes], object] | None
    Place = slice | NDArray[np.int64]

_VALUE, _STATUS, _SOURCE, _SERVER, _SOURCE_PICO, _SERVER_PICO, _RESERVED = 1, 2, 4, 8, 16, 32, 0xC0
_RUN_MIN: Final = 16  # items ahead that must look alike before numpy is asked: below that a step of Python is cheaper
_RUN_CHUNK: Final = 1024  # items verified at once: bounds the work a hostile order of types can cause
_GATHER_CHUNK: Final = 4096  # single items gathered at once: bounds the index array to about a megabyte
_OVERFLOW_MASK, _OVERFLOW = np.uint32(0x0C80), np.uint32(0x0480)  # InfoType DataValue and bit Overflow
_SEVERITY_SHIFT: Final = 30

# built-in type -> numpy type on the wire, kind
_FIXED: Final[dict[int, tuple[str, Kind]]] = {
    0: ("", Kind.NULL),
    1: ("u1", Kind.BOOL),
    2: ("i1", Kind.INT64),
    3: ("u1", Kind.INT64),
    4: ("<i2", Kind.INT64),
    5: ("<u2", Kind.INT64),
    6: ("<i4", Kind.INT64),
    7: ("<u4", Kind.INT64),
    8: ("<i8", Kind.INT64),
    9: ("<u8", Kind.UINT64),
    10: ("<f4", Kind.DOUBLE),
    11: ("<f8", Kind.DOUBLE),
    13: ("<i8", Kind.INT64),
    19: ("<u4", Kind.INT64),
}
_BEHIND_VALUE: Final = (  # mask bit, field, numpy type: the order on the wire
    (_STATUS, "status", "<u4"),
    (_SOURCE, "source", "<i8"),
    (_SOURCE_PICO, "source_pico", "<u2"),
    (_SERVER, "server", "<i8"),
    (_SERVER_PICO, "server_pico", "<u2"),
)
_BOTH: Final = _SOURCE | _SERVER
_ARRAY: Final = 0x80  # bit of a Variant's encoding byte
_BOOLEAN, _DATETIME, _STRINGS, _BYTESTRING = 1, 13, (12, 15, 16), 15
_TICKS_MIN, _TICKS_MAX = TICKS_1970 + -(2**63) // 100 + 1, TICKS_1970 + 2**63 // 100 - 1  # what int64 nanoseconds hold


class RawArray(NamedTuple):
    """A Variant that is an array, as it came, and who knows its structures."""

    variant: bytes
    structure: Structure


@dataclass(frozen=True, slots=True)
class Items:
    """n values in the order of the message. For TEXT and BYTES `values` holds the index into texts."""

    handle: NDArray[np.uint32]  # client handle; the row itself where the message has none
    kind: NDArray[np.uint8]
    values: NDArray[np.uint64]
    quality: NDArray[np.uint32]
    flags: NDArray[np.uint16]  # OVERFLOW, CUT, TEXT_REPAIRED
    source_ns: NDArray[np.int64]
    texts: tuple[str, ...]
    arrays: Mapping[int, RawArray] = field(default_factory=dict)  # row -> what `values` holds as JSON text

    def __len__(self) -> int:
        return len(self.handle)

    def value(self, row: int) -> float | bool | str | None:
        """Return one value as a Python object; integers as int, base64 for ByteStrings."""
        kind, bits = Kind(int(self.kind[row])), int(self.values[row])
        if kind in (Kind.TEXT, Kind.BYTES):
            return self.texts[bits]
        if kind == Kind.DOUBLE:
            return float(F64.unpack(U64.pack(bits))[0])
        if kind == Kind.INT64:
            return int(I64.unpack(U64.pack(bits))[0])
        return None if kind == Kind.NULL else bool(bits) if kind == Kind.BOOL else bits


class _Shape(NamedTuple):
    """All items with one mask, one variant encoding and one width of handle, where their size is fixed."""

    dtype: np.dtype[Any]
    size: int
    kind: Kind
    number: int
    value: str  # how the value is written into 64 bits: a numpy type of 8 bytes; "": there is none; "bool", "time"
    status: bool
    time: str  # the field that holds the time, the source's first; "": none
    both: bool  # the source's time and the server's
    pico: str  # the field that holds what is below the time's ticks


# width of handle -> mask << 8 | encoding -> shape; at most 65,536 each, as many as two bytes can say
_SHAPES: Final[dict[int, dict[int, _Shape | None]]] = {0: {}, 4: {}}


def _make_shape(width: int, mask: int, encoding: int) -> _Shape | None:
    if mask & _RESERVED or (mask & _VALUE and encoding not in _FIXED):
        return None
    number = encoding if mask & _VALUE else 0
    wire, kind = _FIXED[number]
    fields = [("handle", "<u4")] if width else []
    fields += [("head", "<u2" if mask & _VALUE else "u1")]  # mask, then encoding
    fields += [("value", wire)] if wire else []
    fields += [(name, form) for bit, name, form in _BEHIND_VALUE if mask & bit]
    dtype = np.dtype(fields)
    time = "source" if mask & _SOURCE else "server" if mask & _SERVER else ""
    pico = f"{time}_pico" if mask & (_SOURCE_PICO if time == "source" else _SERVER_PICO) else ""
    return _Shape(dtype, dtype.itemsize, kind, number, _form(number, wire), bool(mask & _STATUS), time, mask & _BOTH == _BOTH, pico if time else "")


def _form(number: int, wire: str) -> str:
    if not wire or number in (_BOOLEAN, _DATETIME):
        return "time" if number == _DATETIME else "bool" if wire else ""
    return "<u8" if wire[-1] == "8" else {"f": "<f8", "i": "<i8", "u": "<u8"}[wire[-2]]


class _Odd(NamedTuple):
    """One item that has no fixed size."""

    row: int
    handle: int
    value: Value
    quality: int
    source_ns: int
    array: RawArray | None


class _Found(NamedTuple):
    """Where the items of one message lie."""

    runs: list[tuple[_Shape, int, NDArray[Any]]]  # shape, first row, items as they lie
    singles: dict[int, tuple[_Shape, list[int], list[int]]]  # mask << 8 | encoding -> shape, rows, offsets
    odd: list[_Odd]


def decode_items(data: bytes, at: int, end: int, count: int, width: int, structure: Structure = None) -> tuple[Items, int]:
    """Return `count` DataValues from data[at:end] and the offset behind them; raise CorruptError.

    width: 4 where a client handle stands before each DataValue, 0 where none does.
    """
    if not 0 <= at <= end <= len(data) or count * (width + 1) > end - at:
        raise CorruptError("more items than bytes", offset=at)
    found = _Found([], {}, [])
    shapes = _SHAPES[width]
    row = 0
    while row < count:
        if at + width >= end:
            raise CorruptError("the message ends inside an item", offset=at)
        mask = data[at + width]
        encoding = data[at + width + 1] if mask & _VALUE and at + width + 1 < end else 0
        key = mask << 8 | encoding
        if key not in shapes:
            shapes[key] = _make_shape(width, mask, encoding)
        shape = shapes[key]
        if shape is None:
            item, at = _odd_item(data, at, end, row, width, structure)
            found.odd.append(item)
            row += 1
            continue
        size = shape.size
        if size > end - at:
            raise CorruptError("the message ends inside an item", offset=at)
        ahead = at + _RUN_MIN * size + width
        if row + _RUN_MIN < count and ahead + 1 < end and data[ahead] == mask and (not mask & _VALUE or data[ahead + 1] == encoding):
            run = _run(data, at, min(count - row, (end - at) // size, _RUN_CHUNK), shape, key)
            length = len(run)
            found.runs.append((shape, row, run))
        else:
            length = 1
            if key not in found.singles:
                found.singles[key] = (shape, [], [])
            found.singles[key][1].append(row)
            found.singles[key][2].append(at)
        row += length
        at += length * size
    return _assemble(data, count, width, found), at


def _run(data: bytes, at: int, most: int, shape: _Shape, key: int) -> NDArray[Any]:
    """Return the items from `at` on that are of this shape, at most so many."""
    rows = np.frombuffer(data, shape.dtype, most, at)
    mask, encoding = key >> 8, key & 0xFF
    other = rows["head"] != (mask | encoding << 8 if mask & _VALUE else mask)
    first = int(other.argmax())
    return rows[:first] if other[first] else rows


def _odd_item(data: bytes, at: int, end: int, row: int, width: int, structure: Structure) -> tuple[_Odd, int]:
    """Read one item of any shape."""
    reader = Reader(data, at, end, structure)
    handle = reader.u32() if width else row
    mask = reader.byte()
    if mask & _RESERVED:
        raise CorruptError("a DataValue uses bits that no release of OPC UA defines", offset=at)
    value, array = Value(Kind.NULL, 0, 0), None
    if mask & _VALUE:
        encoding = data[reader.at] if reader.at < end else 0
        if encoding in _STRINGS:
            reader.skip(1)
            value = blob_value(reader.blob()) if encoding == _BYTESTRING else text_value(reader.text(), reader)
        else:
            start = reader.at
            value = read_value(reader)
            array = RawArray(data[start : reader.at], structure) if encoding & _ARRAY else None
    quality = reader.u32() if mask & _STATUS else 0
    source_ns = NO_TIME
    for time, pico in ((_SOURCE, _SOURCE_PICO), (_SERVER, _SERVER_PICO)):
        stamp = ticks_to_ns(int(reader.number(I64))) if mask & time else NO_TIME
        tens = reader.number(U16) if mask & pico else 0
        if source_ns == NO_TIME and stamp != NO_TIME:
            source_ns = stamp + min(tens, 9999) // 100
    return _Odd(row, handle, value, quality, source_ns, array), reader.at


def _assemble(data: bytes, count: int, width: int, found: _Found) -> Items:
    items = blank_items(count)
    parts: list[tuple[_Shape, Place, NDArray[Any]]] = [(shape, slice(row, row + len(run)), run) for shape, row, run in found.runs]
    whole = np.frombuffer(data, np.uint8)
    for shape, rows, offsets in found.singles.values():
        for first in range(0, len(rows), _GATHER_CHUNK):
            index = np.asarray(offsets[first : first + _GATHER_CHUNK])[:, None] + np.arange(shape.size)
            parts.append((shape, np.asarray(rows[first : first + _GATHER_CHUNK]), whole[index].view(shape.dtype)[:, 0]))
    for shape, at, rows_ in parts:
        _store(items, at, rows_, shape, width)
    _set_times(items, parts)
    texts: list[str] = []
    for one in found.odd:
        items.handle[one.row], items.source_ns[one.row] = one.handle, one.source_ns
        put_value(items, one.row, one.value, one.quality, texts)
    overflow = (items.quality & _OVERFLOW_MASK) == _OVERFLOW
    if overflow.any():
        items.flags[overflow] |= np.uint16(Flag.OVERFLOW)
    arrays = {one.row: one.array for one in found.odd if one.array is not None}
    return Items(items.handle, items.kind, items.values, items.quality, items.flags, items.source_ns, tuple(texts), arrays)


def put_value(items: Items, row: int, value: Value, quality: int, texts: list[str]) -> None:
    """Write one value into a row; a text goes to `texts`."""
    kind, bits, flags = value
    if flags & Flag.TEXT_REPAIRED and not quality >> _SEVERITY_SHIFT:
        quality |= UNCERTAIN
    items.kind[row], items.quality[row] = kind, quality
    items.flags[row] = flags | int(items.flags[row]) & Flag.OVERFLOW
    items.values[row] = len(texts) if isinstance(bits, str) else bits
    if isinstance(bits, str):
        texts.append(bits)


def blank_items(count: int) -> Items:
    """Return items to be written into: no value, Good, no time."""
    return Items(
        np.arange(count, dtype=np.uint32),
        np.empty(count, np.uint8),
        np.zeros(count, np.uint64),
        np.zeros(count, np.uint32),
        np.zeros(count, np.uint16),
        np.full(count, NO_TIME, np.int64),
        (),
    )


def _store(items: Items, at: Place, rows: NDArray[Any], shape: _Shape, width: int) -> None:
    """Copy structured rows of one shape into the columns, the time as ticks."""
    if width:
        items.handle[at] = rows["handle"]
    items.kind[at] = shape.kind
    if shape.value[:1] == "<":
        value = rows["value"]
        target = items.values.view(shape.value)
        target[at] = value.view(shape.value) if value.dtype.itemsize == 8 else value  # noqa: PLR2004 -- bytes: the bits as they are
    elif shape.value == "bool":
        items.values[at] = rows["value"] != 0
    elif shape.value == "time":
        items.values.view(np.int64)[at] = rows["value"] // 10 + np.int64(MICROSECONDS_1601)
    if shape.status:
        items.quality[at] = rows["status"]
    if shape.time:
        items.source_ns[at] = rows[shape.time]


def _set_times(items: Items, parts: list[tuple[_Shape, Place, NDArray[Any]]]) -> None:
    """Turn ticks into ns: the source's time of each item, else the server's."""
    ticks = items.source_ns
    bad = (ticks <= _TICKS_MIN) | (ticks >= _TICKS_MAX)
    ticks -= TICKS_1970
    ticks *= 100
    for shape, at, rows in parts:
        if shape.pico:
            ticks[at] += np.minimum(rows[shape.pico], 9999).astype(np.int64) // 100
    if not bad.any():
        return
    server = np.zeros(len(items), np.int64)  # 100 ns ticks
    below = np.zeros(len(items), np.int64)  # ns
    for shape, at, rows in parts:
        if shape.both:
            server[at] = rows["server"]
            if "server_pico" in (shape.dtype.names or ()):
                below[at] = np.minimum(rows["server_pico"], 9999).astype(np.int64) // 100
    none = (server <= _TICKS_MIN) | (server >= _TICKS_MAX)
    ticks[bad] = np.where(none, NO_TIME, (server - TICKS_1970) * 100 + below)[bad]


def ticks_to_ns(ticks: int) -> int:
    """Return ns since 1970 of 100 ns ticks since 1601; NO_TIME where 64 bits cannot hold it (0 and "max" mean "no time" anyway)."""
    return NO_TIME if ticks <= _TICKS_MIN or ticks >= _TICKS_MAX else (ticks - TICKS_1970) * 100


def join_items(parts: list[Items]) -> Items:
    if not parts:
        return blank_items(0)
    values: list[NDArray[np.uint64]] = []
    texts: list[str] = []
    arrays: dict[int, RawArray] = {}
    rows = 0
    for part in parts:
        arrays |= {rows + row: array for row, array in part.arrays.items()}
        rows += len(part)
        is_text = (part.kind == Kind.TEXT) | (part.kind == Kind.BYTES)
        values.append(part.values + np.uint64(len(texts)) * is_text.astype(np.uint64))
        texts.extend(part.texts)
    names = ("handle", "kind", "quality", "flags", "source_ns")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Items(values=np.concatenate(values), texts=tuple(texts), arrays=arrays, **joined)
