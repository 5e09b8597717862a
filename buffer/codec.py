"""Columns <-> block payload, bit for bit. Transposed: readings of one tag stand together, which is what makes them small.

Specification. A block of no readings has an empty payload. Else payload = head | directory | bodies, little-endian:

    head       0  magic "EC"   2  version u8   3  number of columns u8   4  number of readings n, u32
    directory  per column, 8 bytes: id u8, codec u8 (buffer.packing), parameter u8, zero u8, length of the body u32
    bodies     in the order of the directory, nothing between or after

Tag and ts are in arrival order; everything else is in tag order: the stable argsort of the tag column is the permutation, so
order itself costs nothing. seq is implicit. A column that no reading needs is absent; other columns have parameter 0.

    id  column       numbers                                          parameter
     1  tag          n u32
     2  ts           n i64, ts_ns / 10**parameter                     0, 2, 3, 6 or 9
     3  kind         n u8 (buffer.types.Kind)
     4  quality      n u32; absent: all 0
     5  flags        n u16; absent: all 0
     6  double       f64 of the readings of kind DOUBLE, of those that are not decimal if 13 is present
     7  decimal      i64 m of those that are; value = m / 10**p as f64 p = parameter, 0..6
     8  integer      i64 bits of the readings of kind INT64, UINT64
     9  boolean      bits, most significant first, of kind BOOL; bytes
    10  text index   u32 of the readings of kind TEXT, BYTES
    11  texts        number t u32, t lengths u32, UTF-8 of all, each text once; bytes
    12  ts source    n i64, ts_source_ns - ts_ns modulo 2**64; absent: nowhere different
    13  is decimal   u8 of the readings of kind DOUBLE: 1 decimal, 0 not; absent: either 6 or 7 holds them all

Decimal is used only where m / 10**p gives the same 64 bits, so NaN payloads and -0.0 stand in column 6.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from buffer import limits
from buffer.errors import CorruptError, invariant
from buffer.packing import Packed, pack_bytes, unpack_bytes, unpack_numbers
from buffer.shape import Packer, shape_of, tag_order
from buffer.types import Columns, Kind, empty_columns, take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TEXT_TABLE_BYTES_MAX: Final = 4 * 1024 * 1024  # decoded; what the texts of a block of 1 MiB may unpack to
TAG, TS, KIND, QUALITY, FLAGS, DOUBLE, DECIMAL, INTEGER, BOOLEAN, TEXT, TEXTS, SOURCE, IS_DECIMAL = range(1, 14)
_HEAD: Final = struct.Struct("<2sBBI")
_ENTRY: Final = struct.Struct("<BBBxI")
_MAGIC: Final = b"EC"
_VERSION: Final = 1
_UNITS: Final = (9, 6, 3, 2, 0)
_DECIMALS: Final = (2, 1, 0, 3, 4, 5, 6)
_MANTISSA_MAX: Final = float(2**53)
_PROBE: Final = 256  # values looked at to choose the exponent
_STAMPS_PROBED: Final = 16  # stamps looked at to choose the unit
_SMALL: Final = 4_096  # doubles
_TABLE_SMALL_BYTES: Final = 4_096  # of texts, kept with what they were packed to
_DECIMAL_SHARE_MIN: Final = 0.2  # below, splitting does not pay for the column that says which
_U32: Final = 4
_KINDS: Final = len(Kind)
_OF_DOUBLE, _OF_INT, _OF_BOOL, _OF_TEXT, _OF_UINT, _OF_BYTES, _OF_NULL = (int(kind) for kind in Kind)  # numpy compares enums slowly

Entry = tuple[int, int, Packed]  # column, parameter, packed

# ---- encode ----


def encode(columns: Columns, *, fast: bool = False) -> bytes:
    """Return the payload. Equal columns give equal bytes. `fast` packs with zstandard 1: less CPU, more bytes, same grammar.

    Raise MisuseError for more than limits.BLOCK_READINGS_MAX, and for values no source may hand over: an unknown kind, a boolean
    beyond 1, a null with bits, a text index beyond texts.
    """
    n = len(columns)
    if n == 0:
        return b""
    invariant(n <= limits.BLOCK_READINGS_MAX, "more readings than a block holds: use encode_blocks")
    shape = shape_of(columns, fast)
    pack, order, kind = shape.pack, shape.order, shape.kind
    entries: list[Entry] = [(TAG, 0, shape.tags), _timestamps(pack, columns.ts_ns), (KIND, 0, shape.kinds)]
    if np.count_nonzero(columns.quality):  # half of what any() takes
        entries.append((QUALITY, 0, pack.runs(columns.quality.take(order))))
    if np.count_nonzero(columns.flags):
        entries.append((FLAGS, 0, pack.runs(columns.flags.take(order))))
    entries += _values(pack, kind, columns.values.take(order), columns.texts)
    if columns.ts_source_ns is not None:
        difference = columns.ts_source_ns - columns.ts_ns
        if difference.any():
            entries.append((SOURCE, 0, pack.numbers(difference[order], None)))
    head = _HEAD.pack(_MAGIC, _VERSION, len(entries), n)
    directory = b"".join(_ENTRY.pack(column, codec, parameter, len(body)) for column, parameter, (codec, body) in entries)
    return b"".join((head, directory, *(body for _, _, (_, body) in entries)))


def encode_blocks(columns: Columns) -> Iterator[tuple[Columns, bytes]]:
    """Yield `columns` cut so that each payload is within the limits of a block, with the payload, in order."""
    n = len(columns)
    if n <= limits.BLOCK_READINGS_MAX and _texts_fit(columns):
        payload = encode(columns)
        if len(payload) <= limits.BLOCK_PAYLOAD_BYTES_MAX:
            yield columns, payload
            return
    invariant(n > 1, "one reading does not fit a block: its text was not cut at limits.TEXT_BYTES_MAX")
    yield from encode_blocks(take(columns, 0, n // 2))
    yield from encode_blocks(take(columns, n // 2, n))


def _texts_fit(columns: Columns) -> bool:
    if not columns.texts or _U32 * sum(map(len, columns.texts)) + _U32 * len(columns.texts) <= TEXT_TABLE_BYTES_MAX:
        return True  # at most 4 bytes a character
    used = np.unique(columns.values[(columns.kind == _OF_TEXT) | (columns.kind == _OF_BYTES)])
    return sum(_U32 + len(_utf8(columns.texts[int(i)])) for i in used) <= TEXT_TABLE_BYTES_MAX


def _timestamps(pack: Packer, ts: NDArray[np.int64]) -> Entry:
    probe = ts[:: max(1, len(ts) // _STAMPS_PROBED)].tolist()
    for exponent in _UNITS[:-1]:
        unit = 10**exponent
        if not any(stamp % unit for stamp in probe):  # most units fall here, at the first stamp
            whole = ts // unit
            if (whole * unit == ts).all():
                return (TS, exponent, pack.numbers(whole, 1))
    return (TS, 0, pack.numbers(ts, 1))


def _values(pack: Packer, kind: NDArray[np.uint8], values: NDArray[np.uint64], texts: tuple[str, ...]) -> list[Entry]:
    entries: list[Entry] = []
    invariant(int(kind.max()) < _KINDS, "a reading has an unknown kind")
    raw = kind.tobytes()  # a search for a byte is a tenth of a count

    def of(*kinds: int) -> NDArray[np.uint64] | None:
        there = [kind == one for one in kinds if one in raw]
        return values[there[0] if len(there) == 1 else there[0] | there[1]] if there else None

    if (doubles := of(_OF_DOUBLE)) is not None:
        entries += _doubles(pack, doubles)
    if (integers := of(_OF_INT, _OF_UINT)) is not None:
        entries.append((INTEGER, 0, pack.numbers(integers.view(np.int64), pack.order)))
    if (booleans := of(_OF_BOOL)) is not None:
        invariant(int(booleans.max()) <= 1, "a boolean is neither 0 nor 1")
        entries.append((BOOLEAN, 0, pack_bytes(np.packbits(booleans.astype(np.uint8)).tobytes())))
    if (indexes := of(_OF_TEXT, _OF_BYTES)) is not None:
        invariant(int(indexes.max()) < len(texts), "a text index points beyond texts")
        entries += _texts(pack, indexes, texts)
    if (nulls := of(_OF_NULL)) is not None:
        invariant(not nulls.any(), "a reading without a value has bits")
    return entries


def _doubles(pack: Packer, bits: NDArray[np.uint64]) -> list[Entry]:
    floats = bits.view(np.float64)
    if len(bits) <= _SMALL:  # the sample would be half of them: what most plants send is tried on all at once
        mantissas, fits = _mantissas(bits, _DECIMALS[0])
        if fits.all():
            return [(DECIMAL, _DECIMALS[0], pack.numbers(mantissas, pack.order))]
    exponent, share = _best_exponent(bits)
    whole: list[Entry] = []
    if share < 1:
        alone = share < _DECIMAL_SHARE_MIN or pack.fast
        whole = [(DOUBLE, 0, pack.floats(floats, search=alone))]
        if alone:
            return whole
    mantissas, fits = _mantissas(bits, exponent)
    if fits.all():
        return [(DECIMAL, exponent, pack.numbers(mantissas, pack.order))]
    split: list[Entry] = [(DECIMAL, exponent, pack.numbers(mantissas[fits], pack.order))] if fits.any() else []
    split.append((DOUBLE, 0, pack.floats(floats[~fits])))
    if fits.any():
        split.append((IS_DECIMAL, 0, pack.runs(fits.astype(np.uint8))))
    return min((x for x in (whole, split) if x), key=lambda entries: sum(_ENTRY.size + len(body) for *_, (_, body) in entries))


def _best_exponent(bits: NDArray[np.uint64]) -> tuple[int, float]:
    """Return the number of decimals that most of a sample have, and their share."""
    sample = bits[:: max(1, len(bits) // _PROBE)]
    best, most = 0, -1
    for exponent in _DECIMALS:
        count = int(np.count_nonzero(_mantissas(sample, exponent)[1]))
        if count > most:
            best, most = exponent, count
        if count == len(sample):
            break
    return best, most / len(sample)


def _mantissas(bits: NDArray[np.uint64], exponent: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return integers m, and where m / 10**exponent is the value bit for bit."""
    scale = 10.0**exponent
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.rint(bits.view(np.float64) * scale)
        if scaled.min() > -_MANTISSA_MAX and scaled.max() < _MANTISSA_MAX:  # NaN and infinity fail here
            mantissas = scaled.astype(np.int64)
            return mantissas, np.divide(mantissas, scale, out=scaled).view(np.uint64) == bits  # of the integers: -0.0 is none
        within = np.abs(scaled) < _MANTISSA_MAX
    scaled[~within] = 0
    mantissas = scaled.astype(np.int64)
    return mantissas, ((mantissas / scale).view(np.uint64) == bits) & within


def _utf8(text: str) -> bytes:
    """Return UTF-8; a lone surrogate, which no decoder of ours lets through, becomes U+FFFD rather than stop a commit."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _texts(pack: Packer, indexes: NDArray[np.uint64], texts: tuple[str, ...]) -> list[Entry]:
    index = indexes.view(np.int64)  # below len(texts)
    used = np.flatnonzero(np.bincount(index))
    table: dict[bytes, int] = {}
    place = np.zeros(int(used[-1]) + 1, np.uint32)
    place[used] = [table.setdefault(_utf8(texts[i]), len(table)) for i in used.tolist()]
    whole = struct.pack(f"<{1 + len(table)}I", len(table), *map(len, table)) + b"".join(table)
    packed = _pack_again(whole) if len(whole) <= _TABLE_SMALL_BYTES else pack_bytes(whole)
    return [(TEXT, 0, pack.numbers(place[index], pack.order)), (TEXTS, 0, packed)]


@lru_cache(maxsize=16)
def _pack_again(table: bytes) -> Packed:
    """States of machines: the same few texts in nearly every block."""
    return pack_bytes(table)


# ---- decode ----


def decode(payload: bytes | memoryview, count: int) -> Columns:
    """Return the columns; raise CorruptError unless the payload is well formed and holds exactly `count` readings.

    Memory is bounded by `count`, which must be within limits.BLOCK_READINGS_MAX, and by TEXT_TABLE_BYTES_MAX.
    """
    if count == 0 and not payload:
        return empty_columns()
    body = _Bodies(bytes(payload), count)
    tag = body.numbers(TAG, np.uint32, count)
    exponent = body.parameter(TS, _UNITS)
    ts = body.numbers(TS, np.int64, count) * np.int64(10**exponent)
    order = tag_order(tag)
    kind = body.numbers(KIND, np.uint8, count)
    if int(kind.max()) > _OF_NULL:
        raise CorruptError("payload: unknown kind of value")
    quality = body.numbers(QUALITY, np.uint32, count) if body.has(QUALITY) else np.zeros(count, np.uint32)
    flags = body.numbers(FLAGS, np.uint16, count) if body.has(FLAGS) else np.zeros(count, np.uint16)
    values, texts = _unvalues(body, kind)
    source = None
    if body.has(SOURCE):
        source = _arrival(body.numbers(SOURCE, np.int64, count), order) + ts
    body.done()
    return Columns(
        tag, ts, _arrival(kind, order), _arrival(values, order), _arrival(quality, order), _arrival(flags, order), source, texts
    )


def _arrival(data: NDArray[Any], order: NDArray[np.intp]) -> NDArray[Any]:
    out = np.empty_like(data)
    out[order] = data
    return out


class _Bodies:
    """The directory of one payload, its lengths checked; bodies are taken once and checked as they are taken."""

    def __init__(self, data: bytes, count: int) -> None:
        if len(data) < _HEAD.size:
            raise CorruptError("payload is cut off")
        magic, version, columns, readings = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != _VERSION or readings != count or not 0 < count <= limits.BLOCK_READINGS_MAX:
            raise CorruptError("payload has another magic, version or number of readings than its manifest says")
        self._bodies: dict[int, tuple[int, Packed]] = {}
        at = _HEAD.size + columns * _ENTRY.size
        if len(data) < at:
            raise CorruptError("payload directory is cut off")
        for i in range(columns):
            column, codec, parameter, length = _ENTRY.unpack_from(data, _HEAD.size + i * _ENTRY.size)
            if column in self._bodies or length > len(data) - at or (parameter and column not in (TS, DECIMAL)):
                raise CorruptError("payload directory names a column twice, bytes that are not there, or a parameter of nothing")
            self._bodies[column] = (parameter, (codec, data[at : at + length]))
            at += length
        if at != len(data):
            raise CorruptError("payload has bytes that no column owns")

    def has(self, column: int) -> bool:
        return column in self._bodies

    def parameter(self, column: int, allowed: tuple[int, ...]) -> int:
        if column not in self._bodies or self._bodies[column][0] not in allowed:
            message = f"payload column {column} is missing, or its parameter is unknown"
            raise CorruptError(message)
        return self._bodies[column][0]

    def numbers(self, column: int, dtype: type[Any], n: int) -> NDArray[Any]:
        try:
            return unpack_numbers(self._take(column), dtype, n)
        except CorruptError as error:
            message = f"payload column {column}: {error.message}"
            raise CorruptError(message) from error

    def bytes(self, column: int, least: int, most: int) -> bytes:
        try:
            return unpack_bytes(self._take(column), least, most)
        except CorruptError as error:
            message = f"payload column {column}: {error.message}"
            raise CorruptError(message) from error

    def _take(self, column: int) -> Packed:
        if column not in self._bodies:
            raise CorruptError("missing")
        return self._bodies.pop(column)[1]

    def done(self) -> None:
        if self._bodies:
            message = f"payload has columns {sorted(self._bodies)} that no reading needs"
            raise CorruptError(message)


def _unvalues(body: _Bodies, kind: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], tuple[str, ...]]:
    values = np.zeros(len(kind), np.uint64)
    where = kind == _OF_DOUBLE
    if n := int(np.count_nonzero(where)):
        values[where] = _undoubles(body, n)
    where = (kind == _OF_INT) | (kind == _OF_UINT)
    if n := int(np.count_nonzero(where)):
        values[where] = body.numbers(INTEGER, np.int64, n).view(np.uint64)
    where = kind == _OF_BOOL
    if n := int(np.count_nonzero(where)):
        size = -(-n // 8)
        values[where] = np.unpackbits(np.frombuffer(body.bytes(BOOLEAN, size, size), np.uint8), count=n)
    where = (kind == _OF_TEXT) | (kind == _OF_BYTES)
    if not (n := int(np.count_nonzero(where))):
        return values, ()
    indexes = body.numbers(TEXT, np.uint32, n)
    texts = _untexts(body.bytes(TEXTS, 2 * _U32, _U32 + TEXT_TABLE_BYTES_MAX))
    if int(indexes.max()) >= len(texts):
        raise CorruptError("payload: text index beyond the texts")
    values[where] = indexes
    return values, texts


def _undoubles(body: _Bodies, n: int) -> NDArray[np.uint64]:
    if not body.has(IS_DECIMAL):
        if body.has(DECIMAL):
            return _undecimals(body, n)
        return body.numbers(DOUBLE, np.float64, n).view(np.uint64)
    mask = body.numbers(IS_DECIMAL, np.uint8, n)
    decimals = int(np.count_nonzero(mask == 1))
    if int(mask.max()) > 1 or not 0 < decimals < n:
        raise CorruptError("payload: `is decimal` says nothing, or neither 0 nor 1")
    values = np.empty(n, np.uint64)
    values[mask == 1] = _undecimals(body, decimals)
    values[mask == 0] = body.numbers(DOUBLE, np.float64, n - decimals).view(np.uint64)
    return values


def _undecimals(body: _Bodies, n: int) -> NDArray[np.uint64]:
    exponent = body.parameter(DECIMAL, _DECIMALS)
    result: NDArray[np.uint64] = (body.numbers(DECIMAL, np.int64, n) / 10.0**exponent).view(np.uint64)
    return result


def _untexts(raw: bytes) -> tuple[str, ...]:
    number = int.from_bytes(raw[:_U32], "little")
    at = _U32 + _U32 * number
    if not 0 < number <= limits.BLOCK_READINGS_MAX or len(raw) < at:
        raise CorruptError("payload: texts of the wrong length")
    lengths = struct.unpack_from(f"<{number}I", raw, _U32)
    if at + sum(lengths) != len(raw):
        raise CorruptError("payload: texts do not add up")
    texts = []
    try:
        for length in lengths:
            texts.append(raw[at : at + length].decode())
            at += length
    except UnicodeDecodeError as error:
        raise CorruptError("payload: a text is not UTF-8") from error
    return tuple(texts)
