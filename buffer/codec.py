"""Columns <-> block payload, bit for bit. Transposed: readings of one tag stand together, which is what makes them small.

Specification. payload = head | directory | bodies, little-endian.

    head       0  magic "EC"   2  version u8   3  number of columns u8   4  number of readings u32
    directory  per column, 8 bytes: id u8, codec u8, parameter u8, zero u8, length of the body u32
    bodies     in the order of the directory, nothing between or after

Codecs: 0 raw, 1 zstandard (content size stated), 2 pcodec standalone. Tag and ts are in arrival order; everything else is in tag
order: the stable argsort of the tag column is the permutation, so order itself costs nothing. seq is implicit. Columns that
would be all zero, or that no reading needs, are absent. n = number of readings.

    id  column       body decodes to                                  parameter
     1  tag          n u32
     2  ts           n i64, ts_ns / 10**parameter                     0, 2, 3, 6 or 9
     3  kind         runs                                             width 1
     4  quality      runs; absent: all 0                              width 4
     5  flags        runs; absent: all 0                              width 2
     6  double       f64 of the readings of kind DOUBLE               0
     7  decimal      i64 mantissa of the same; value = m / 10**p      p = parameter, 0..6 (either 6 or 7 is present)
     8  integer      i64 bits of the readings of kind INT64, UINT64
     9  boolean      bits, most significant first, of kind BOOL
    10  text index   u32 of the readings of kind TEXT, BYTES
    11  texts        u32 number, u32 length of each in bytes, UTF-8 of all
    12  ts source    n i64, ts_source_ns - ts_ns; absent: nowhere different, and columns.ts_source_ns is None

runs: u32 number r, r u32 lengths, r values of the stated width; or, where that is smaller, codec 2 over n u16 (width 1, 2) or
u32 (width 4). Decimal is used only where every double comes back with the
same 64 bits, -0.0 and NaN payloads included.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zstandard
from pcodec import ChunkConfig, standalone

from buffer import limits
from buffer.errors import CorruptError, MisuseError
from buffer.types import Columns, Kind, take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TEXT_TABLE_BYTES_MAX: Final = 4 * 1024 * 1024  # decoded; what a block of 1 MiB may unpack to
_HEAD: Final = struct.Struct("<2sBBI")
_ENTRY: Final = struct.Struct("<BBBxI")
_MAGIC: Final = b"EC"
_RAW, _ZSTD, _PCO = 0, 1, 2
_TAG, _TS, _KIND, _QUALITY, _FLAGS, _DOUBLE, _DECIMAL, _INTEGER, _BOOLEAN, _TEXT, _TEXTS, _SOURCE = range(1, 13)
_UNITS: Final = (9, 6, 3, 2, 0)
_DECIMALS: Final = (2, 1, 0, 3, 4, 5, 6)
_MANTISSA_MAX: Final = float(2**53)
_PROBE: Final = 256  # values looked at before a whole column is tried
_PCO_CONFIG: Final = ChunkConfig(compression_level=6)
_FEW_RUNS: Final = 16  # below, runs are always smaller
_WIDE: Final[dict[int, type[Any]]] = {1: np.uint16, 2: np.uint16, 4: np.uint32}  # pcodec takes no bytes
_SMALL: Final = 48  # bytes; below, zstandard's frame costs more than it saves

# ---- encode ----


def encode(columns: Columns) -> bytes:
    """Return the payload of at least one reading. Equal columns give equal bytes. Raise MisuseError for impossible values."""
    order = np.argsort(columns.tag, kind="stable")
    kind = columns.kind[order]
    values = columns.values[order]
    _refuse_impossible(kind, values, len(columns.texts))
    entries = [_packed(_TAG, columns.tag)]
    entries.append(_timestamps(columns.ts_ns))
    entries.append(_runs(_KIND, kind))
    if columns.quality.any():
        entries.append(_runs(_QUALITY, columns.quality[order]))
    if columns.flags.any():
        entries.append(_runs(_FLAGS, columns.flags[order]))
    entries += _values(kind, values, columns.texts)
    if columns.ts_source_ns is not None:
        entries.append(_packed(_SOURCE, (columns.ts_source_ns - columns.ts_ns)[order]))
    head = _HEAD.pack(_MAGIC, 1, len(entries), len(columns))
    directory = b"".join(_ENTRY.pack(column, codec, parameter, len(body)) for column, codec, parameter, body in entries)
    return b"".join((head, directory, *(body for *_, body in entries)))


def encode_blocks(columns: Columns) -> Iterator[tuple[Columns, bytes]]:
    """Yield columns cut so that each payload is within the limits of a block, with the payload, in order."""
    n = len(columns)
    if n <= limits.BLOCK_READINGS_MAX and _text_bytes(columns) <= TEXT_TABLE_BYTES_MAX:
        payload = encode(columns)
        if len(payload) <= limits.BLOCK_PAYLOAD_BYTES_MAX:
            yield columns, payload
            return
    if n == 1:
        raise MisuseError("one reading does not fit a block: its text was not cut at limits.TEXT_BYTES_MAX")
    yield from encode_blocks(take(columns, 0, n // 2))
    yield from encode_blocks(take(columns, n // 2, n))


Entry = tuple[int, int, int, bytes]


def _text_bytes(columns: Columns) -> int:
    is_text = (columns.kind == Kind.TEXT) | (columns.kind == Kind.BYTES)
    if not is_text.any():
        return 0
    used = np.unique(columns.values[is_text])
    return sum(4 + len(columns.texts[int(i)].encode()) for i in used)


def _refuse_impossible(kind: NDArray[np.uint8], values: NDArray[np.uint64], texts: int) -> None:
    is_text = (kind == Kind.TEXT) | (kind == Kind.BYTES)
    bad = (kind > Kind.NULL) | ((kind == Kind.NULL) & (values != 0)) | ((kind == Kind.BOOL) & (values > 1)) | (is_text & (values >= texts))
    if bad.any():
        raise MisuseError("a reading has an unknown kind, a null with bits, a boolean beyond 1 or a text index beyond texts")


def _packed(column: int, data: NDArray[Any], parameter: int = 0) -> Entry:
    body = standalone.simple_compress(np.ascontiguousarray(data), _PCO_CONFIG)
    return (column, _PCO, parameter, body)


def _bytes(column: int, raw: bytes, parameter: int = 0) -> Entry:
    if len(raw) > _SMALL:
        small = zstandard.ZstdCompressor(level=3, write_content_size=True, write_checksum=False).compress(raw)
        if len(small) < len(raw):
            return (column, _ZSTD, parameter, small)
    return (column, _RAW, parameter, raw)


def _timestamps(ts: NDArray[np.int64]) -> Entry:
    for exponent in _UNITS:
        unit = 10**exponent
        if exponent == 0 or not (ts % unit).any():
            return _packed(_TS, ts // unit, exponent)
    raise AssertionError


def _runs(column: int, data: NDArray[Any]) -> Entry:
    starts = np.flatnonzero(np.concatenate(([True], data[1:] != data[:-1])))
    lengths = np.diff(np.append(starts, len(data))).astype("<u4")
    width = data.dtype.itemsize
    raw = struct.pack("<I", len(starts)) + lengths.tobytes() + data[starts].astype(f"<u{width}").tobytes()
    entry = _bytes(column, raw, width)
    if len(starts) <= _FEW_RUNS:
        return entry
    wide = _packed(column, data.astype(_WIDE[width]), width)
    return min(entry, wide, key=lambda e: len(e[3]))


def _values(kind: NDArray[np.uint8], values: NDArray[np.uint64], texts: tuple[str, ...]) -> list[Entry]:
    entries: list[Entry] = []
    doubles = values[kind == Kind.DOUBLE]
    if len(doubles):
        entries.append(_doubles(doubles))
    integers = values[(kind == Kind.INT64) | (kind == Kind.UINT64)]
    if len(integers):
        entries.append(_packed(_INTEGER, integers.view(np.int64)))
    booleans = values[kind == Kind.BOOL]
    if len(booleans):
        entries.append(_bytes(_BOOLEAN, np.packbits(booleans.astype(np.uint8)).tobytes()))
    indexes = values[(kind == Kind.TEXT) | (kind == Kind.BYTES)]
    if len(indexes):
        entries += _texts(indexes, texts)
    return entries


def _doubles(bits: NDArray[np.uint64]) -> Entry:
    for exponent in _DECIMALS:
        if _mantissas(bits[:_PROBE], exponent) is not None:
            mantissas = _mantissas(bits, exponent)
            if mantissas is not None:
                return _packed(_DECIMAL, mantissas, exponent)
    return _packed(_DOUBLE, bits.view(np.float64))


def _mantissas(bits: NDArray[np.uint64], exponent: int) -> NDArray[np.int64] | None:
    """Return integers m with m / 10**exponent equal to every value bit for bit, or None."""
    scale = 10.0**exponent
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.rint(bits.view(np.float64) * scale)
        if not (np.abs(scaled) < _MANTISSA_MAX).all():  # NaN and infinity fail here
            return None
    mantissas = scaled.astype(np.int64)
    back = (mantissas / scale).view(np.uint64)
    return mantissas if np.array_equal(back, bits) else None


def _texts(indexes: NDArray[np.uint64], texts: tuple[str, ...]) -> list[Entry]:
    used, inverse = np.unique(indexes, return_inverse=True)
    table: dict[str, int] = {}
    place = np.array([table.setdefault(texts[int(i)], len(table)) for i in used], dtype=np.uint32)
    encoded = [text.encode() for text in table]
    raw = struct.pack("<I", len(encoded)) + struct.pack(f"<{len(encoded)}I", *map(len, encoded)) + b"".join(encoded)
    return [_packed(_TEXT, place[inverse]), _bytes(_TEXTS, raw)]


# ---- decode: nothing is allocated by a number that was not checked ----


def decode(payload: bytes | memoryview, count: int) -> Columns:
    """Return the columns; raise CorruptError unless the payload is well formed and holds exactly `count` readings (> 0)."""
    bodies = _directory(payload, count)
    tag = _unpack(bodies, _TAG, np.uint32, count)
    exponent = bodies[_TS][1] if _TS in bodies else 0
    if exponent not in _UNITS:
        raise CorruptError("payload: unknown unit of time")
    ts = _unpack(bodies, _TS, np.int64, count) * np.int64(10**exponent)
    order = np.argsort(tag, kind="stable")
    kind = _unrun(bodies, _KIND, np.uint8, count)
    if (kind > Kind.NULL).any():
        raise CorruptError("payload: unknown kind of value")
    quality = _unrun(bodies, _QUALITY, np.uint32, count) if _QUALITY in bodies else np.zeros(count, np.uint32)
    flags = _unrun(bodies, _FLAGS, np.uint16, count) if _FLAGS in bodies else np.zeros(count, np.uint16)
    values, texts = _unvalues(bodies, kind)
    source = None
    if _SOURCE in bodies:
        source = _scatter(_unpack(bodies, _SOURCE, np.int64, count), order) + ts
    return Columns(
        tag, ts, _scatter(kind, order), _scatter(values, order), _scatter(quality, order), _scatter(flags, order), source, texts
    )


def _scatter(data: NDArray[Any], order: NDArray[Any]) -> NDArray[Any]:
    out = np.empty_like(data)
    out[order] = data
    return out


Bodies = dict[int, tuple[int, int, bytes]]  # column -> codec, parameter, body


def _directory(payload: bytes | memoryview, count: int) -> Bodies:
    data = bytes(payload)
    if len(data) < _HEAD.size:
        raise CorruptError("payload is cut off")
    magic, version, columns, readings = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != 1 or readings != count or not 0 < count <= limits.BLOCK_READINGS_MAX:
        raise CorruptError("payload has another magic, version or number of readings than its manifest says")
    at = _HEAD.size + columns * _ENTRY.size
    if len(data) < at:
        raise CorruptError("payload directory is cut off")
    bodies: Bodies = {}
    for i in range(columns):
        column, codec, parameter, length = _ENTRY.unpack_from(data, _HEAD.size + i * _ENTRY.size)
        if column in bodies or not _TAG <= column <= _SOURCE or length > len(data) - at:
            raise CorruptError("payload directory names a column twice, an unknown one, or bytes that are not there")
        bodies[column] = (codec, parameter, data[at : at + length])
        at += length
    if at != len(data) or not {_TAG, _TS, _KIND} <= bodies.keys():
        raise CorruptError("payload has bytes nobody owns, or lacks a column")
    return bodies


def _unpack(bodies: Bodies, column: int, dtype: type[Any], count: int) -> NDArray[Any]:
    codec, _, body = bodies.get(column, (-1, 0, b""))
    if codec != _PCO:
        message = f"payload column {column} is missing or not pcodec"
        raise CorruptError(message)
    out = np.zeros(count + 1, dtype)  # one more than allowed: a longer body shows itself
    try:
        progress = standalone.simple_decompress_into(body, out)
    except Exception as error:  # pcodec raises RuntimeError, TypeError and, on hostile bytes, PanicException
        message = f"payload column {column}: {str(error)[:100]}"
        raise CorruptError(message) from error
    if progress.n_processed != count or not progress.finished:
        message = f"payload column {column} holds another number of values than its block"
        raise CorruptError(message)
    return out[:count]


def _unbytes(bodies: Bodies, column: int, most: int) -> bytes:
    codec, _, body = bodies.get(column, (-1, 0, b""))
    if codec == _RAW and len(body) <= most:
        return body
    if codec != _ZSTD:
        message = f"payload column {column} is missing, too long or in an unknown codec"
        raise CorruptError(message)
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if not 0 < size <= most:
            message = f"payload column {column} states {size} bytes, allowed are {most}"
            raise CorruptError(message)
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        message = f"payload column {column}: {error}"
        raise CorruptError(message) from error


def _unrun(bodies: Bodies, column: int, dtype: type[Any], count: int) -> NDArray[Any]:
    width = np.dtype(dtype).itemsize
    if bodies[column][0] == _PCO:
        wide = _unpack(bodies, column, _WIDE[width], count)
        if bodies[column][1] != width or (width == 1 and (wide > 255).any()):  # noqa: PLR2004 -- a byte
            raise CorruptError("payload: a narrow column holds a wide value")
        return wide.astype(dtype)
    raw = _unbytes(bodies, column, 4 + count * (4 + width))
    runs = int.from_bytes(raw[:4], "little") if len(raw) >= 4 else -1  # noqa: PLR2004 -- width of u32
    if bodies[column][1] != width or not 0 < runs <= count or len(raw) != 4 + runs * (4 + width):
        raise CorruptError("payload: runs of the wrong length")
    lengths = np.frombuffer(raw, "<u4", runs, 4).astype(np.int64)
    if lengths.sum() != count:
        raise CorruptError("payload: runs do not add up")
    return np.repeat(np.frombuffer(raw, f"<u{width}", runs, 4 + 4 * runs), lengths).astype(dtype)


def _unvalues(bodies: Bodies, kind: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], tuple[str, ...]]:
    values = np.zeros(len(kind), np.uint64)
    texts: tuple[str, ...] = ()
    for where, decoder in (
        (kind == Kind.DOUBLE, _undoubles),
        ((kind == Kind.INT64) | (kind == Kind.UINT64), _unintegers),
        (kind == Kind.BOOL, _unbooleans),
    ):
        n = int(where.sum())
        if n:
            values[where] = decoder(bodies, n)
    where = (kind == Kind.TEXT) | (kind == Kind.BYTES)
    n = int(where.sum())
    if n:
        texts = _untexts(bodies)
        indexes = _unpack(bodies, _TEXT, np.uint32, n)
        if (indexes >= len(texts)).any():
            raise CorruptError("payload: text index beyond the texts")
        values[where] = indexes
    return values, texts


def _undoubles(bodies: Bodies, n: int) -> NDArray[np.uint64]:
    if _DECIMAL not in bodies:
        return _unpack(bodies, _DOUBLE, np.float64, n).view(np.uint64)
    exponent = bodies[_DECIMAL][1]
    if exponent not in _DECIMALS:
        raise CorruptError("payload: unknown decimal exponent")
    result: NDArray[np.uint64] = (_unpack(bodies, _DECIMAL, np.int64, n) / 10.0**exponent).view(np.uint64)
    return result


def _unintegers(bodies: Bodies, n: int) -> NDArray[np.uint64]:
    return _unpack(bodies, _INTEGER, np.int64, n).view(np.uint64)


def _unbooleans(bodies: Bodies, n: int) -> NDArray[np.uint64]:
    raw = _unbytes(bodies, _BOOLEAN, -(-n // 8))
    if len(raw) != -(-n // 8):
        raise CorruptError("payload: booleans of the wrong length")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=n).astype(np.uint64)


def _untexts(bodies: Bodies) -> tuple[str, ...]:
    raw = _unbytes(bodies, _TEXTS, TEXT_TABLE_BYTES_MAX + 8)
    number = int.from_bytes(raw[:4], "little") if len(raw) >= 4 else -1  # noqa: PLR2004
    if not 0 < number <= limits.BLOCK_READINGS_MAX or len(raw) < 4 + 4 * number:
        raise CorruptError("payload: texts of the wrong length")
    lengths = struct.unpack_from(f"<{number}I", raw, 4)
    at = 4 + 4 * number
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
