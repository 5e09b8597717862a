"""Readings as other tools send them, for sizes on the wire: InfluxDB line protocol, and a protobuf in the manner of Sparkplug B.

The second is ours, after the field numbers of the Sparkplug B payload (timestamp 1, metrics 2, seq 3; metric: alias 2, timestamp 3,
datatype 4, value 10..15): one NDATA payload per batch, aliases instead of names. Its bytes are what counts here, not its fidelity.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from benchmarks.peers import python_values
from buffer.types import Kind

if TYPE_CHECKING:
    from buffer.types import Columns

_MS: Final = 1_000_000
_INT64, _DOUBLE, _BOOLEAN, _STRING = 4, 10, 11, 12  # Sparkplug B datatypes


def line_protocol(columns: Columns, unit_ns: int = _MS) -> bytes:
    """Return one line a reading: the tag id as measurement, value and quality (where not Good) as fields, stamps in ms or as they are (1)."""
    out: list[str] = []
    rows = zip(columns.tag.tolist(), columns.kind.tolist(), python_values(columns), columns.quality.tolist(), columns.ts_ns.tolist(), strict=True)
    for tag, kind, value, quality, ts in rows:
        text = (
            repr(value) if kind == Kind.DOUBLE else f"{value}i" if kind == Kind.INT64 else ("f", "t")[value] if kind == Kind.BOOL else f'"{value}"'
        )
        status = f",q={quality}i" if quality else ""
        out.append(f"d{(tag - 16) // 50:02d}.t{tag - 16:04d} v={text}{status} {ts // unit_ns}")
    return "\n".join(out).encode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def sparkplug(columns: Columns) -> bytes:
    """Return one payload with a metric a reading."""
    out = bytearray(b"\x08" + _varint(int(columns.ts_ns[0]) // _MS) + b"\x18\x07")
    rows = zip(columns.tag.tolist(), columns.kind.tolist(), python_values(columns), columns.quality.tolist(), columns.ts_ns.tolist(), strict=True)
    for tag, kind, value, quality, ts in rows:
        metric = b"\x10" + _varint(tag) + b"\x18" + _varint(ts // _MS)
        if kind == Kind.DOUBLE:
            metric += b"\x20" + _varint(_DOUBLE) + b"\x69" + struct.pack("<d", value)
        elif kind == Kind.BOOL:
            metric += b"\x20" + _varint(_BOOLEAN) + b"\x70" + _varint(value)
        elif kind == Kind.TEXT:
            metric += b"\x20" + _varint(_STRING) + b"\x7a" + _varint(len(value.encode())) + value.encode()
        else:
            metric += b"\x20" + _varint(_INT64) + b"\x58" + _varint(value & (2**64 - 1))
        if quality:
            prop = b"\x0a\x07Quality\x12\x07\x08\x07\x18" + _varint(quality)
            metric += b"\x4a" + _varint(len(prop)) + prop
        out += b"\x12" + _varint(len(metric)) + metric
    return bytes(out)
