"""One array of numbers <-> one body of a block payload. Bounded: a hostile body raises CorruptError and nothing else.

Specification. n and the type of the numbers come from the column (buffer.codec); numbers are little-endian.

    codec  body
    0      raw: n numbers
    1      zstandard frame (content size stated) of 0
    2      pcodec, standalone format, of n numbers; u8 widened to u16
    3      runs: r u32, r lengths u32 (each at least 1, together n), r numbers
    4      zstandard frame (content size stated) of 3

An encoder may choose any of them for any column. Bytes (booleans, texts) are packed with 0 or 1.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zstandard
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from buffer.errors import CorruptError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RAW, ZSTD, PCODEC, RUNS, RUNS_ZSTD = range(5)
ZSTD_SMALL_BYTES: Final = 96  # below, a zstandard frame costs more than it saves
FEW_RUNS: Final = 16  # below, runs are smaller than anything else
MANY_RUNS: Final = 4  # readings a run; below, pcodec is smaller
SMALL_ENOUGH: Final = 8  # readings a byte: what pcodec could still save is not worth its time
PLAIN_MIN: Final = 2_048  # bytes; from there on zstandard makes of them what it makes of their runs, which take twice the time
SEARCH_SUFFICES: Final = 512  # numbers; below, pcodec looks at enough of them
SEQUENCES_MIN: Final = 16_384  # numbers; below, each sequence was seen too seldom
SEQUENCES_SHORT: Final = 16  # numbers a byte: pcodec is no smaller, and takes fifteen times as long
_LENGTH_BYTES: Final = 4
_LEVEL: Final = 6
_CLASSIC: Final = ModeSpec.classic()
_ORDERS: Final = {  # naming the delta costs half of what pcodec's own search does
    0: ChunkConfig(compression_level=_LEVEL, mode_spec=_CLASSIC, delta_spec=DeltaSpec.no_op()),
    1: ChunkConfig(compression_level=_LEVEL, mode_spec=_CLASSIC, delta_spec=DeltaSpec.try_consecutive(1)),
}
_SEARCH: Final = ChunkConfig(compression_level=_LEVEL)
_DIFFERENCES: Final = ChunkConfig(compression_level=_LEVEL, delta_spec=DeltaSpec.try_consecutive(1))
Packed = tuple[int, bytes]  # codec, body
_kept: Final = threading.local()


def pack_numbers(data: NDArray[Any], order: int | None) -> Packed:
    """Return `data` through pcodec, differences of `order` (0 or 1) taken first; None: pcodec looks for patterns itself."""
    config = _SEARCH if order is None else _ORDERS[order]
    return PCODEC, standalone.simple_compress(np.ascontiguousarray(data), config)


def pack_floats(data: NDArray[Any], order: int, *, search: bool = True) -> Packed:
    """Return `data` through pcodec. `order` 1: by differences too, which its own search misses in a block of three, for up to twice the bytes."""
    if not order or len(data) < SEARCH_SUFFICES:
        return PCODEC, standalone.simple_compress(data, _SEARCH)
    found = standalone.simple_compress(data, _DIFFERENCES)
    return PCODEC, min(standalone.simple_compress(data, _SEARCH), found, key=len) if search else found


def pack_plain(data: NDArray[Any]) -> Packed:
    """Return `data` through zstandard 1: five times less work than pcodec, four times the bytes."""
    return pack_bytes(data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes(), level=1)


def pack_bytes(raw: bytes, level: int = 3) -> Packed:
    """Return bytes, compressed where that is smaller."""
    small = _compressed(raw, level)
    return (RAW, raw) if small is None else (ZSTD, small)


def pack_places(data: NDArray[Any]) -> Packed:
    """Return a long column in which the same sequences come again and again, as zstandard sees them; else as `pack_numbers` does."""
    if len(data) >= SEQUENCES_MIN:
        plain = pack_plain(data)
        if len(plain[1]) * SEQUENCES_SHORT <= len(data):
            return plain
    return pack_numbers(data, 1)


def pack_runs(data: NDArray[Any], order: int) -> Packed:
    """Return a column that seldom changes."""
    changes = np.flatnonzero(data[1:] != data[:-1])
    number = len(changes) + 1
    if number > FEW_RUNS and len(data) >= PLAIN_MIN and data.dtype == np.uint8:
        plain = pack_bytes(data.tobytes())
        if len(plain[1]) * SMALL_ENOUGH <= len(data):
            return plain
    if number > FEW_RUNS and number * MANY_RUNS > len(data):
        return pack_numbers(_widened(data), order)
    bounds = np.empty(number + 1, np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, changes + 1, len(data)
    lengths = (bounds[1:] - bounds[:-1]).astype("<u4")
    numbers = data[bounds[:-1]].astype(data.dtype.newbyteorder("<"), copy=False)
    raw = number.to_bytes(_LENGTH_BYTES, "little") + lengths.tobytes() + numbers.tobytes()
    small = _compressed(raw, 3)
    runs = (RUNS, raw) if small is None else (RUNS_ZSTD, small)
    if number <= FEW_RUNS or len(runs[1]) * SMALL_ENOUGH <= len(data):
        return runs
    return min(runs, pack_numbers(_widened(data), order), key=lambda packed: len(packed[1]))


def _widened(data: NDArray[Any]) -> NDArray[Any]:
    return data.astype(np.uint16) if data.dtype == np.uint8 else data


def _compressed(raw: bytes, level: int) -> bytes | None:
    if len(raw) < ZSTD_SMALL_BYTES:
        return None
    small = _compressor(level).compress(raw)
    return small if len(small) < len(raw) else None


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """Return this thread's (they are not thread-safe): making one costs as much as it then does for a small block."""
    mine: dict[int, zstandard.ZstdCompressor] | None = getattr(_kept, "compressors", None)
    if mine is None:
        mine = _kept.compressors = {}
    if level not in mine:
        mine[level] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return mine[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    mine: zstandard.ZstdDecompressor | None = getattr(_kept, "decompressor", None)
    if mine is None:
        mine = _kept.decompressor = zstandard.ZstdDecompressor()
    return mine


# ---- reading: nothing is allocated by a number that was not checked ----


def unpack_numbers(packed: Packed, dtype: type[Any], n: int) -> NDArray[Any]:
    """Return exactly n > 0 numbers; raise CorruptError."""
    codec, body = packed
    width = np.dtype(dtype).itemsize
    if codec == PCODEC:
        return _unpcodec(body, np.dtype(dtype), n)
    if codec in (RUNS, RUNS_ZSTD):
        least, most = _LENGTH_BYTES + _LENGTH_BYTES + width, _LENGTH_BYTES + n * (_LENGTH_BYTES + width)
        return _unrun(unpack_bytes((RAW if codec == RUNS else ZSTD, body), least, most), dtype, n)
    return np.frombuffer(unpack_bytes(packed, n * width, n * width), np.dtype(dtype).newbyteorder("<")).astype(dtype)


def unpack_bytes(packed: Packed, least: int, most: int) -> bytes:
    """Return between `least` and `most` bytes; raise CorruptError. The stated size is checked before anything is allocated."""
    codec, body = packed
    try:
        size = zstandard.get_frame_parameters(body).content_size if codec == ZSTD else len(body)
        if codec not in (RAW, ZSTD) or not least <= size <= most:
            message = f"codec {codec} and {size} bytes, wanted {least} to {most}"
            raise CorruptError(message)
        if codec == RAW:
            return body
        return _decompressor().decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(str(error)) from error


def _unpcodec(body: bytes, dtype: np.dtype[Any], n: int) -> NDArray[Any]:
    narrow = dtype == np.uint8
    out = np.zeros(n + 1, np.uint16 if narrow else dtype)  # one more than allowed: a longer body shows itself
    try:
        progress = standalone.simple_decompress_into(body, out)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # RuntimeError and TypeError; a panic of the Rust library derives from BaseException
        message = f"pcodec: {str(error)[:100]}"
        raise CorruptError(message) from None
    if progress.n_processed != n or not progress.finished or (narrow and (out > np.iinfo(np.uint8).max).any()):
        raise CorruptError("another number of values than the block has, or wider ones")
    return out[:n].astype(dtype, copy=False)


def _unrun(raw: bytes, dtype: type[Any], n: int) -> NDArray[Any]:
    width = np.dtype(dtype).itemsize
    runs = int.from_bytes(raw[:_LENGTH_BYTES], "little")
    if not 0 < runs <= n or len(raw) != _LENGTH_BYTES + runs * (_LENGTH_BYTES + width):
        raise CorruptError("runs of the wrong length")
    lengths = np.frombuffer(raw, "<u4", runs, _LENGTH_BYTES).astype(np.int64)
    if lengths.sum() != n or (lengths == 0).any():
        raise CorruptError("runs do not add up")
    numbers = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"), runs, _LENGTH_BYTES * (1 + runs))
    return np.repeat(numbers, lengths).astype(dtype)
