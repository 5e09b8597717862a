"""Readings in columns, and the words for their values. Frozen; no behaviour beyond validation.

A reading is (tag, ts, value, quality). Quality is the 32-bit OPC UA status code (OPC 10000-4, 7.39).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Kind(IntEnum):
    """How the 64 bits in `Columns.values` are read."""

    DOUBLE = 0  # IEEE 754 bits; also Float, widened exactly
    INT64 = 1  # two's complement; every integer type but UInt64; DateTime as microseconds since 1970, UTC
    BOOL = 2  # 0 or 1
    TEXT = 3  # index into `texts`
    UINT64 = 4  # the same 64 bits, unsigned
    BYTES = 5  # index into `texts`, which holds base64 (RFC 4648 section 4)
    NULL = 6  # no value; the bits are 0


class Flag(IntFlag):
    """What a person should know about one reading beside its quality."""

    TIME_SUBSTITUTED = 1  # ts is the gateway's: the source's clock was off by more than max_skew
    CLOCK_UNTRUSTED = 2  # the gateway's clock was not trusted when ts was taken from it
    REPEATED = 4  # heartbeat: the last value again, while the subscription is proven alive
    CUT = 8  # the value was longer than limits.TEXT_BYTES_MAX
    OVERFLOW = 16  # the server's queue overflowed before this value (status bit 0x480)
    MARKER = 32  # written by Ebbgate, not by the source: down, paused, stopped
    INITIAL = 64  # first value after a subscription was made; the source may have changed earlier
    TEXT_REPAIRED = 128  # bytes that are not UTF-8 were replaced by U+FFFD


GOOD: Final = 0x0000_0000
UNCERTAIN: Final = 0x4000_0000
BAD_NO_COMMUNICATION: Final = 0x8031_0000
BAD_OUT_OF_SERVICE: Final = 0x808D_0000
BAD_NO_DATA: Final = 0x809B_0000
BAD_DEVICE_FAILURE: Final = 0x808B_0000

_DTYPES: Final = {"tag": np.uint32, "ts_ns": np.int64, "kind": np.uint8, "values": np.uint64, "quality": np.uint32, "flags": np.uint16}


@dataclass(frozen=True, slots=True)
class Columns:
    """Readings in arrival order; all arrays have the same length n and are C-contiguous.

    values holds 64 raw bits per reading, read by kind; for TEXT and BYTES it is an index into texts.
    ts_source_ns is what the source said, or None where it nowhere differs from ts_ns.
    """

    tag: NDArray[np.uint32]  # number of the tag in the tag table; 0..15 are notices
    ts_ns: NDArray[np.int64]  # UTC, ns since 1970: the time to plot by
    kind: NDArray[np.uint8]  # Kind
    values: NDArray[np.uint64]
    quality: NDArray[np.uint32]  # OPC UA StatusCode, all 32 bits
    flags: NDArray[np.uint16]  # Flag
    ts_source_ns: NDArray[np.int64] | None
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.tag)
        for name, dtype in _DTYPES.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != (n,):
                message = f"column {name}: {column.dtype} {column.shape}, wanted {np.dtype(dtype)} ({n},)"
                raise MisuseError(message)
        source = self.ts_source_ns
        if source is not None and (source.dtype != np.int64 or source.shape != (n,)):
            message = "column ts_source_ns: wanted int64 of the same length"
            raise MisuseError(message)

    def __len__(self) -> int:
        return len(self.tag)


def empty_columns() -> Columns:
    """Return no readings."""
    return make_columns([], [], [], [], [])


def make_columns(
    tag: Sequence[int],
    ts_ns: Sequence[int],
    kind: Sequence[int],
    values: Sequence[int],
    quality: Sequence[int],
    flags: Sequence[int] | None = None,
    texts: tuple[str, ...] = (),
) -> Columns:
    """Build columns from plain sequences of length n. For few readings; sources fill arrays themselves."""
    return Columns(
        np.asarray(tag, np.uint32),
        np.asarray(ts_ns, np.int64),
        np.asarray(kind, np.uint8),
        np.asarray(values, np.uint64),
        np.asarray(quality, np.uint32),
        np.asarray(flags if flags is not None else [0] * len(tag), np.uint16),
        None,
        texts,
    )


def concat(parts: Sequence[Columns]) -> Columns:
    """Join in order; text indexes are moved, the texts kept as they are."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return empty_columns()
    values: list[NDArray[np.uint64]] = []
    texts: list[str] = []
    for part in parts:
        if texts:  # else nothing moves
            is_text = (part.kind == Kind.TEXT) | (part.kind == Kind.BYTES)
            values.append(part.values + np.uint64(len(texts)) * is_text.astype(np.uint64))
        else:
            values.append(part.values)
        texts.extend(part.texts)
    source = None
    if any(part.ts_source_ns is not None for part in parts):
        source = np.concatenate([part.ts_ns if part.ts_source_ns is None else part.ts_source_ns for part in parts])
    return Columns(
        np.concatenate([part.tag for part in parts]),
        np.concatenate([part.ts_ns for part in parts]),
        np.concatenate([part.kind for part in parts]),
        np.concatenate(values),
        np.concatenate([part.quality for part in parts]),
        np.concatenate([part.flags for part in parts]),
        source,
        tuple(texts),
    )


def take(columns: Columns, first: int, last: int) -> Columns:
    """Return rows first..last-1 (half open, in place indexes, not seqs). The texts are kept whole."""
    source = columns.ts_source_ns
    cut = slice(first, last)
    return Columns(
        columns.tag[cut],
        columns.ts_ns[cut],
        columns.kind[cut],
        columns.values[cut],
        columns.quality[cut],
        columns.flags[cut],
        None if source is None else source[cut],
        columns.texts,
    )
