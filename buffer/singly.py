"""Readings that are handed over one at a time: packed rows until the commit, columns then. A tenth of what columns of one row cost.

For whoever has no columns to hand over. `Ring.singly.add` takes part in the next commit; what is added between two `Ring.append`
stands between them. Bounded by whoever adds, as `append` is.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer import limits
from buffer.errors import MisuseError, invariant
from buffer.types import GOOD, Columns, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROW: Final = np.dtype([("tag", "<u4"), ("ts", "<i8"), ("value", "<u8"), ("quality", "<u4"), ("flags", "<u2"), ("kind", "u1")])
_pack_double: Final = struct.Struct("<IqdIHB").pack
_pack_signed: Final = struct.Struct("<IqqIHB").pack
_pack_unsigned: Final = struct.Struct("<IqQIHB").pack
_DOUBLE, _INT64, _BOOL, _TEXT, _UINT64, _BYTES, _NULL = (int(kind) for kind in Kind)
_INT64_END: Final = 2**63

Value = float | int | bool | str | bytes | None  # DOUBLE, INT64 or UINT64, BOOL, TEXT, BYTES, NULL


class Singly:
    """Rows in the order of their arrival."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []
        self._texts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, tag: int, ts_ns: int, value: Value, quality: int = GOOD, flags: int = 0) -> None:
        """Take one reading. Raise MisuseError: it is not taken, and says what no column can hold."""
        try:
            if type(value) is float:  # most readings: first
                self._rows.append(_pack_double(tag, ts_ns, value, quality, flags, _DOUBLE))
            else:
                self._rows.append(self._pack(tag, ts_ns, value, quality, flags))
        except struct.error as error:
            message = f"tag {tag!r} at {ts_ns!r}, quality {quality!r}, flags {flags!r}: {error}"
            raise MisuseError(message) from None

    def _pack(self, tag: int, ts_ns: int, value: Value, quality: int, flags: int) -> bytes:
        match value:
            case bool():
                return _pack_unsigned(tag, ts_ns, value, quality, flags, _BOOL)
            case int() if value < _INT64_END:
                return _pack_signed(tag, ts_ns, value, quality, flags, _INT64)
            case int():
                return _pack_unsigned(tag, ts_ns, value, quality, flags, _UINT64)
            case float():
                return _pack_double(tag, ts_ns, value, quality, flags, _DOUBLE)
            case str():
                return _pack_unsigned(tag, ts_ns, self._index(value, len(value.encode(errors="replace"))), quality, flags, _TEXT)
            case bytes():
                text = base64.b64encode(value).decode()
                return _pack_unsigned(tag, ts_ns, self._index(text, len(text)), quality, flags, _BYTES)
            case None:
                return _pack_unsigned(tag, ts_ns, 0, quality, flags, _NULL)
        message = f"tag {tag!r}: a reading cannot be {type(value).__name__}"
        raise MisuseError(message)

    def _index(self, text: str, size_bytes: int) -> int:
        invariant(size_bytes <= limits.TEXT_BYTES_MAX, "a text longer than limits.TEXT_BYTES_MAX: cut it and set Flag.CUT")
        return self._texts.setdefault(text, len(self._texts))

    def take(self) -> Columns:
        """Return all of them as columns, and begin again."""
        rows: NDArray[np.void] = np.frombuffer(b"".join(self._rows), _ROW)
        texts = tuple(self._texts)
        self._rows, self._texts = [], {}
        tag, ts, kind, value, quality, flags = (rows[name].copy() for name in ("tag", "ts", "kind", "value", "quality", "flags"))
        return Columns(tag, ts, kind, value, quality, flags, None, texts)
