"""Any OPC UA value -> one of our values. Pure; never believes a length. Follows OPC 10000-6 1.05 section 5.2.2, in its field order.

Value table (built-in type: kind, value):

    Boolean                                    BOOL     0 or 1
    SByte Byte Int16 UInt16 Int32 UInt32 Int64 INT64    two's complement; enumerations travel as Int32
    UInt64                                     UINT64   the same 64 bits
    Float Double                               DOUBLE   Float widened exactly
    DateTime                                   INT64    microseconds since 1970 UTC (the full range of 100 ns ticks fits)
    StatusCode                                 INT64    the unsigned code
    String XmlElement                          TEXT     null: NULL
    LocalizedText                              TEXT     its text without the locale; null: NULL
    QualifiedName                              TEXT     "<namespace>:<name>", "<name>" in namespace 0
    Guid                                       TEXT     8-4-4-4-12, lower case
    NodeId ExpandedNodeId                      TEXT     OPC 10000-6 5.3.1.10: "ns=2;s=Tag", "svr=1;nsu=urn:x;i=7"
    ByteString (and reserved types 26..31)     BYTES    base64; null: NULL
    ExtensionObject DataValue DiagnosticInfo   TEXT     JSON object; a structure nobody knows: {"type": NodeId, "body": base64}
    any array, any matrix                      TEXT     JSON, nested by ArrayDimensions where they fit; null array: NULL
    no Variant, Null                           NULL

JSON: numbers as numbers, NaN and infinities as "NaN" "Infinity" "-Infinity", DateTime as ISO 8601 with 100 ns, ByteString as base64,
null as null. Text is valid UTF-8: bytes that are not become U+FFFD, the flag is TEXT_REPAIRED and a Good quality becomes Uncertain.
Text longer than limits.TEXT_BYTES_MAX is cut at a character (base64 at a quantum) and flagged CUT: JSON that was cut is JSON no more.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import struct
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from buffer import limits
from buffer.errors import CorruptError
from buffer.types import Flag, Kind
from gateway.collect.opcua.reader import DEPTH_MAX, F64, I32, I64, U16, U32, U64, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

TICKS_1970: Final = 116_444_736_000_000_000  # 100 ns ticks from 1601-01-01 to 1970-01-01
MICROSECONDS_1601: Final = -11_644_473_600_000_000

_NUMBERS: Final = {
    1: struct.Struct("<?"),
    2: struct.Struct("<b"),
    3: struct.Struct("<B"),
    4: struct.Struct("<h"),
    5: U16,
    6: I32,
    7: U32,
    8: I64,
    9: U64,
    10: struct.Struct("<f"),
    11: F64,
    19: U32,
}
BOOLEAN, UINT64, FLOAT, DOUBLE, STRING, DATETIME, BYTESTRING = 1, 9, 10, 11, 12, 13, 15
_VARIANT, _TYPE_BITS, _ARRAY, _DIMENSIONS, _TYPES = 24, 0x3F, 0x80, 0x40, 32


class Value(NamedTuple):
    """kind: Kind; value: the 64 bits, or the text for TEXT and BYTES; flags: CUT, TEXT_REPAIRED."""

    kind: int
    value: int | str
    flags: int


def read_value(reader: Reader) -> Value:
    """Read one Variant (encoding byte first) and return our value; raise CorruptError."""
    encoding = reader.byte()
    number = encoding & _TYPE_BITS
    _known(number, reader)
    if encoding & _ARRAY:
        items = _array(reader, number)
        if encoding & _DIMENSIONS:
            items = _shaped(items, _dimensions(reader))
        return null_value() if items is None else json_value(items, reader)
    if number == _VARIANT:  # the standard forbids it; the other tags of the message shall not pay for it
        reader.deeper()
        value = read_value(reader)
        reader.depth -= 1
        return value
    return _scalar(reader, number)


def read_elements(variant: bytes, most: int, structure: Callable[[str, bytes], object] | None = None) -> list[Value]:
    """Return the first `most` elements of a Variant that is an array, each as a value of its own; raise CorruptError."""
    reader = Reader(variant, 0, len(variant), structure)
    number = reader.byte() & _TYPE_BITS
    elements = []
    for _ in range(min(reader.count(), most)):
        reader.repaired = False
        elements.append(read_value(reader) if number == _VARIANT else _scalar(reader, number))
    return elements


def array_length(variant: bytes) -> int:
    """Return how many elements a Variant that is an array has."""
    return Reader(variant, 1, len(variant)).count()


def _scalar(reader: Reader, number: int) -> Value:
    """Read a value of one built-in type other than Variant."""
    if number == 0:
        return null_value()
    if number in _NUMBERS:
        return number_value(number, reader.number(_NUMBERS[number]))
    if number == DATETIME:
        return Value(Kind.INT64, ticks_to_microseconds(reader.number(I64)) & 0xFFFF_FFFF_FFFF_FFFF, 0)
    if number in (22, 23, 25):
        return json_value(_PLAIN[number](reader), reader)
    if number == BYTESTRING or number > 25:  # noqa: PLR2004 -- OPC 10000-6 5.2.2.16: decode reserved types as ByteString
        return blob_value(reader.blob())
    return text_value(_PLAIN[number](reader), reader)


def null_value() -> Value:
    """Return "no value"."""
    return Value(Kind.NULL, 0, 0)


def number_value(number: int, got: float) -> Value:
    """Return our value of a numeric built-in type."""
    if number == BOOLEAN:
        return Value(Kind.BOOL, int(got), 0)
    if number in (FLOAT, DOUBLE):
        return Value(Kind.DOUBLE, U64.unpack(F64.pack(got))[0], 0)
    return Value(Kind.UINT64 if number == UINT64 else Kind.INT64, int(got) & 0xFFFF_FFFF_FFFF_FFFF, 0)


def text_value(text: str | None, reader: Reader) -> Value:
    """Return our value of a text, cut at limits.TEXT_BYTES_MAX bytes of UTF-8."""
    if text is None:
        return null_value()
    flags = int(Flag.TEXT_REPAIRED) if reader.repaired else 0
    if len(text) * 4 > limits.TEXT_BYTES_MAX:
        blob = text.encode()
        if len(blob) > limits.TEXT_BYTES_MAX:
            text, flags = blob[: limits.TEXT_BYTES_MAX].decode(errors="ignore"), flags | int(Flag.CUT)
    return Value(Kind.TEXT, text, flags)


def blob_value(blob: bytes | None) -> Value:
    """Return our value of a ByteString, cut at a whole quantum of base64."""
    if blob is None:
        return null_value()
    fits = limits.TEXT_BYTES_MAX // 4 * 3
    return Value(Kind.BYTES, base64.b64encode(blob[:fits]).decode(), int(Flag.CUT) if len(blob) > fits else 0)


def json_value(plain: object, reader: Reader) -> Value:
    """Return our value of a plain object."""
    value = text_value(json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False), reader)
    return value._replace(flags=value.flags | int(Flag.CUT)) if reader.elements < 0 else value


def ticks_to_microseconds(ticks: int) -> int:
    """Return microseconds since 1970 of 100 ns ticks since 1601."""
    return ticks // 10 + MICROSECONDS_1601


# ---- plain (JSON-able) objects, for elements of arrays and fields of structures ----


def _array(reader: Reader, number: int) -> list[object] | None:
    """Return at most `reader.elements` elements; read and drop the rest. None for a null array."""
    if reader.end - reader.at >= 4 and I32.unpack_from(reader.data, reader.at)[0] < 0:  # noqa: PLR2004 -- the size of a count
        reader.skip(4)
        return None
    count = reader.count()
    reader.deeper()
    items: list[object] = []
    read = _PLAIN[number]
    for _ in range(count):
        item = read(reader)
        reader.elements -= 1
        if reader.elements >= 0:
            items.append(item)
    reader.depth -= 1
    return items


def _dimensions(reader: Reader) -> list[int]:
    return [int(reader.number(I32)) for _ in range(reader.count())]


def _shaped(items: list[object] | None, dimensions: list[int]) -> list[object] | None:
    """Nest a flat array (OPC 10000-6, 5.2.2.16: the last dimension varies fastest); leave it flat where the sizes do not agree."""
    if items is None or len(dimensions) < 2 or len(dimensions) > DEPTH_MAX or min(dimensions) < 1 or math.prod(dimensions) != len(items):  # noqa: PLR2004
        return items
    for size in reversed(dimensions[1:]):
        items = [items[i : i + size] for i in range(0, len(items), size)]
    return items


def read_plain(reader: Reader) -> object:
    """Read one Variant as a plain object."""
    encoding = reader.byte()
    number = encoding & _TYPE_BITS
    _known(number, reader)
    reader.deeper()
    plain: object = None
    if encoding & _ARRAY:
        items = _array(reader, number)
        plain = _shaped(items, _dimensions(reader)) if encoding & _DIMENSIONS else items
    elif number:
        plain = _PLAIN[number](reader)
    reader.depth -= 1
    return plain


def _known(number: int, reader: Reader) -> None:
    if number >= _TYPES:
        raise CorruptError(f"Variant of type {number}, which no release of OPC UA has", offset=reader.at)


def _plain_number(form: struct.Struct) -> Callable[[Reader], object]:
    def read(reader: Reader) -> object:
        got = reader.number(form)
        return plain_float(got) if isinstance(got, float) else got

    return read


def plain_float(number: float) -> float | str:
    """Return a number that JSON has, or the name of one that it has not."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _plain_time(reader: Reader) -> str:
    ticks = int(reader.number(I64))
    seconds, rest = divmod(ticks, 10**7)
    try:
        moment = datetime.datetime(1601, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)
    except OverflowError:
        return str(ticks)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:07d}Z"


def _plain_blob(reader: Reader) -> str | None:
    blob = reader.blob()
    return None if blob is None else base64.b64encode(blob).decode()


def _plain_guid(reader: Reader) -> str:
    at = reader.skip(16)
    return str(uuid.UUID(bytes_le=reader.data[at : at + 16]))


def _identifier(reader: Reader, form: int) -> tuple[int, str]:
    if form == 0:
        return 0, f"i={reader.byte()}"
    if form == 1:
        namespace = reader.byte()
        return namespace, f"i={reader.number(U16)}"
    namespace = int(reader.number(U16))
    if form == 2:  # noqa: PLR2004 -- numeric
        return namespace, f"i={reader.u32()}"
    if form == 3:  # noqa: PLR2004 -- string
        return namespace, f"s={reader.text() or ''}"
    if form == 4:  # noqa: PLR2004 -- Guid
        return namespace, f"g={_plain_guid(reader)}"
    if form == 5:  # noqa: PLR2004 -- opaque
        return namespace, f"b={_plain_blob(reader) or ''}"
    raise CorruptError(f"NodeId of form {form}", offset=reader.at)


def read_node_id(reader: Reader) -> str:
    """Read a NodeId or ExpandedNodeId (OPC 10000-6, 5.2.2.9 and 5.2.2.10) as text."""
    encoding = reader.byte()
    namespace, identifier = _identifier(reader, encoding & 0x3F)
    prefix = f"ns={namespace};" if namespace else ""
    if encoding & 0x80:
        uri = reader.text()
        prefix = f"nsu={uri};" if uri else prefix
    if encoding & 0x40:
        server = reader.u32()
        prefix = f"svr={server};{prefix}" if server else prefix
    return prefix + identifier


def _plain_name(reader: Reader) -> str | None:
    namespace = reader.number(U16)
    name = reader.text()
    return f"{namespace}:{name or ''}" if namespace else name


def read_localized(reader: Reader) -> str | None:
    """Read a LocalizedText (OPC 10000-6, 5.2.2.14); return its text."""
    mask = reader.byte()
    if mask & 1:
        reader.text()
    return reader.text() if mask & 2 else None


def _plain_structure(reader: Reader) -> object:
    """Read an ExtensionObject (OPC 10000-6, 5.2.2.15)."""
    type_id = read_node_id(reader)
    form = reader.byte()
    body = reader.blob() if form else None
    if form > 2:  # noqa: PLR2004 -- none, ByteString, XmlElement
        raise CorruptError(f"ExtensionObject of form {form}", offset=reader.at)
    if body is None:
        return None if type_id == "i=0" else {"type": type_id}
    known = reader.structure(type_id, body) if reader.structure and form == 1 else None
    return {"type": type_id, "body": base64.b64encode(body).decode()} if known is None else known


def _plain_data_value(reader: Reader) -> dict[str, object]:
    reader.deeper()
    mask = reader.byte()
    plain: dict[str, object] = {"value": read_plain(reader) if mask & 1 else None}
    if mask & 2:
        plain["status"] = reader.u32()
    for bit, name in ((4, "source_time"), (16, ""), (8, "server_time"), (32, "")):  # picoseconds follow their time
        if mask & bit and name:
            plain[name] = _plain_time(reader)
        elif mask & bit:
            reader.skip(2)
    reader.depth -= 1
    return plain


def read_diagnostics(reader: Reader) -> dict[str, object]:
    """Read a DiagnosticInfo (OPC 10000-6, 5.2.2.12) as a plain object."""
    reader.deeper()
    mask = reader.byte()
    plain: dict[str, object] = {}
    for bit, name in ((1, "symbolic_id"), (2, "namespace"), (8, "locale"), (4, "localized_text")):
        if mask & bit:
            plain[name] = reader.number(I32)
    if mask & 16:
        plain["info"] = reader.text()
    if mask & 32:
        plain["inner_status"] = reader.u32()
    if mask & 64:
        plain["inner"] = read_diagnostics(reader)
    reader.depth -= 1
    return plain


_PLAIN: Final[dict[int, Callable[[Reader], Any]]] = {
    **{number: _plain_number(form) for number, form in _NUMBERS.items()},
    **dict.fromkeys(range(26, _TYPES), _plain_blob),
    0: lambda _reader: None,
    STRING: Reader.text,
    DATETIME: _plain_time,
    14: _plain_guid,
    BYTESTRING: _plain_blob,
    16: Reader.text,
    17: read_node_id,
    18: read_node_id,
    20: _plain_name,
    21: read_localized,
    22: _plain_structure,
    23: _plain_data_value,
    _VARIANT: read_plain,
    25: read_diagnostics,
}
