"""Registers and bits -> values of Columns, all fields of a poll at once. Pure; numpy.

A poll is one byte buffer: the data of all answers, one behind the other, as they came (registers big-endian, coils from the lowest
bit; MODBUS Application Protocol 1.1b3, 4.2 and 6.1). A field says where its bytes lie. Byte orders are named as Telegraf, libmodbus and
mbpoll name them, with A the most significant byte of the value:

    ABCD big-endian   CDAB words swapped   BADC bytes swapped in each word   DCBA little-endian
    of 16 bits: AB, AB, BA, BA             of 64 bits: ABCDEFGH, GHEFCDAB, BADCFEHG, HGFEDCBA

Types: int16 uint16 int32 uint32 int64 uint64 float32 float64 (IEC names too: int uint word dint udint dword lint ulint lword real lreal),
bcd16 bcd32, bool (a register: not 0), bit(n) (n = 0 is the lowest bit), string(n) and string(n,encoding) (n bytes, two in a register, the
high byte first with ABCD and CDAB; cut at the first NUL, blanks at the end taken off). float32[10] is an array of ten, one value: its JSON text
(gateway.collect.modbus.arrays).

Stored value = raw * scale + offset. With scale 1 and offset 0 integers stay integers, exactly; else a raw integer gives the double nearest to
the decimal result (3 * 0.1 is 0.3, not 0.30000000000000004), a raw float is calculated in double. What cannot be a value is null
and Bad: a raw value listed in bad_raw (Bad_NoData), a BCD digit above 9 (Bad_DecodingError). Bytes that are no text become U+FFFD, Uncertain.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer import limits
from buffer.types import BAD_NO_DATA, UNCERTAIN, Flag, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BAD_DECODING: Final = 0x8007_0000  # Bad_DecodingError (OPC 10000-6, A.2)
_EXACT: Final = 2**53  # whole numbers up to here are doubles
STRING_BYTES_MAX: Final = 250  # 125 registers: one answer
TYPES_KEPT_MAX: Final = 256  # one object for each type there is, not for each tag

_WIDTH: Final = {
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float32": 4,
    "float64": 8,
    "bcd16": 2,
    "bcd32": 4,
    "bool": 2,
    "bit": 2,
}
_IEC: Final = {"int": "int16", "uint": "uint16", "word": "uint16", "dint": "int32", "udint": "uint32", "dword": "uint32"}
_IEC64: Final = {"lint": "int64", "ulint": "uint64", "lword": "uint64", "real": "float32", "lreal": "float64", "float": "float32"}
_ALIASES: Final = _IEC | _IEC64 | {"double": "float64"}
_ENCODINGS: Final = ("utf-8", "ascii", "latin-1", "cp1252", "cp1251", "cp1250", "shift_jis", "gb18030", "utf-16-be", "utf-16-le")
_TYPE: Final = re.compile(r"([a-z]+\d*)(?:\((\d{1,3})(?:\s*,\s*([a-z0-9_-]+))?\))?")
_ARRAY: Final = re.compile(r"(.*[^\s\]])\s*\[\s*(\d{1,4})\s*\]")
ARRAY_MAX: Final = 2_000  # elements: as many bits as one answer holds


@dataclass(frozen=True, slots=True)
class Type:
    """What a tag's raw bytes mean. name is one of _WIDTH or "string"; of bit, n is the bit; of string, n is the bytes.

    length: of an array; 0: it is none.
    """

    name: str
    n: int = 0
    encoding: str = "utf-8"
    length: int = 0

    @property
    def element(self) -> Type:
        """The type of one element; of what is no array, itself."""
        return replace(self, length=0)

    @property
    def width(self) -> int:
        """Bytes in the answer."""
        return (self.n + self.n % 2 if self.name == "string" else _WIDTH[self.name]) * max(self.length, 1)

    @property
    def registers(self) -> int:
        """Registers of 16 bits."""
        return self.width // 2


@lru_cache(TYPES_KEPT_MAX)
def parse_type(text: str) -> Type:
    """Return the type; raise ValueError that says what to write."""
    if array := _ARRAY.fullmatch(text.strip()):
        if not 1 <= int(array[2]) <= ARRAY_MAX:
            raise ValueError(f"is an array of {array[2]} elements; from 1 to {ARRAY_MAX} can be")
        return replace(parse_type(array[1]), length=int(array[2]))
    match = _TYPE.fullmatch(text.strip().lower())
    name = _ALIASES.get(match[1], match[1]) if match else ""
    if match and name == "string" and match[2] and 1 <= int(match[2]) <= STRING_BYTES_MAX:
        return Type("string", int(match[2]), _encoding(match[3] or "utf-8"))
    if match and name == "bit" and match[2] and int(match[2]) <= 15 and not match[3]:  # noqa: PLR2004 -- bits of a register
        return Type("bit", int(match[2]))
    if match and name in _WIDTH and name != "bit" and not match[2]:
        return Type(name)
    known = "int16 uint16 int32 uint32 int64 uint64 float32 float64 bool bit(3) bcd16 bcd32 string(16) string(16,latin-1) float32[10]"
    raise ValueError(f"is no type; write one of {known}")


def _encoding(text: str) -> str:
    for known in _ENCODINGS:
        try:
            if codecs.lookup(text).name == codecs.lookup(known).name:
                return known
        except LookupError:
            break
    raise ValueError(f"{text!r} is no known text encoding; write one of {' '.join(_ENCODINGS)}")


def byte_order(order: str, width: int) -> list[int]:
    """Return which answer byte is byte 0, 1, ... of the value in little-endian order, width 2, 4 or 8.

    ABCD: the first byte of the answer is the most significant one.
    """
    sent = list(range(width))  # place in the answer of the value's bytes, most significant first
    words = [sent[i : i + 2] for i in range(0, width, 2)]
    if order in ("CDAB", "DCBA"):
        words.reverse()
    if order in ("BADC", "DCBA"):
        words = [word[::-1] for word in words]
    return [place for word in words for place in word][::-1]


@dataclass(frozen=True, slots=True)
class Field:
    """One value in a poll. start: first byte in the buffer; coil: the bit in that byte, -1 for a register's value."""

    type: Type
    order: str
    start: int
    coil: int = -1
    scale: float = 1.0
    offset: float = 0.0
    bad_raw: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Values:
    """n values in the order of the decoder's fields; as in Columns."""

    kind: NDArray[np.uint8]
    values: NDArray[np.uint64]
    quality: NDArray[np.uint32]
    flags: NDArray[np.uint16]
    texts: tuple[str, ...]


def bad_patterns(type_: Type, texts: Sequence[str]) -> tuple[list[int], bool]:
    """Return raw bit patterns that mean "not available", and whether NaN does; raise ValueError that says what to write."""
    patterns: list[int] = []
    bits = 8 * type_.width
    if texts and type_.name in ("bool", "bit", "string"):
        raise ValueError(f"{type_.name} has no such values; leave the cell empty")
    for text in texts:
        if text.lower() == "nan" and type_.name.startswith("float"):
            continue
        if text.lower().startswith("0x"):
            value = int(text, 16)
        elif type_.name.startswith("float"):
            value = _float_bits(text, type_)
        elif re.fullmatch(r"[+-]?\d+", text):
            value = _bcd(int(text), bits) if type_.name.startswith("bcd") else int(text)
        else:
            raise ValueError(f"{text!r} is no raw value of {type_.name}; write a whole number or 0x....")
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise ValueError(f"{text!r} does not fit into {type_.name}")
        patterns.append(value % (1 << bits))
    return patterns, any(text.lower() == "nan" for text in texts)


def _float_bits(text: str, type_: Type) -> int:
    with np.errstate(over="ignore"):
        number = np.array(float(text), f"<f{type_.width}")
    if not np.isfinite(number):
        raise ValueError(f"{text!r} does not fit into {type_.name}")
    return int(number.view(f"<u{type_.width}"))


def _bcd(value: int, bits: int) -> int:
    if not 0 <= value < 10 ** (bits // 4):
        raise ValueError(f"{value} does not fit into bcd{bits}")
    return int(str(value), 16)


class Decoder:
    """Decodes one poll after another with the same fields. What does not depend on the bytes is done here, once; absent types cost nothing."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._count = len(fields)  # the fields themselves are let go: 10,000 of them hold a megabyte
        self._gathers = [gather for width in (1, 2, 4, 8) if len((gather := _gather(fields, width))[0])]
        self._by_type = {name: rows for name in _WIDTH if len(rows := _rows(fields, name))}
        self._bits = np.array([i for i, f in enumerate(fields) if f.coil >= 0 or f.type.name == "bit"], np.intp)
        self._shift = np.array([fields[i].coil if fields[i].coil >= 0 else fields[i].type.n for i in self._bits], np.uint64)
        self._strings = {i: f for i, f in enumerate(fields) if f.type.name == "string"}
        self._scaled = np.array([i for i, f in enumerate(fields) if f.scale != 1.0 or f.offset != 0.0], np.intp)
        self._factors = np.array([_factors(fields[i]) for i in self._scaled], np.float64).reshape(-1, 3).T
        self._raw_kind = np.array([_kind(f) for f in fields], np.uint8)
        self._kind = self._raw_kind.copy()
        self._kind[self._scaled] = Kind.DOUBLE
        self._sentinels = _bad_rows(fields)

    def __len__(self) -> int:
        return self._count

    def decode(self, buffer: bytes | bytearray | memoryview) -> Values:
        """Return all values; raise IndexError if the buffer is shorter than the fields."""
        data = np.frombuffer(buffer, np.uint8)
        n = self._count
        raw, flags = np.zeros(n, np.uint64), np.zeros(n, np.uint16)
        for rows, places, dtype in self._gathers:
            raw[rows] = data[places].view(dtype)[:, 0]
        values, kind, quality = raw.copy(), self._kind.copy(), np.zeros(n, np.uint32)
        rows, patterns, nan = self._sentinels
        if len(rows):
            quality[rows[raw[rows] == patterns]] = BAD_NO_DATA
        self._convert(raw, values)
        if len(nan):
            quality[nan[np.isnan(values[nan].view(np.float64))]] = BAD_NO_DATA
        if "bcd16" in self._by_type or "bcd32" in self._by_type:
            quality[self._bcd(raw, values)] = BAD_DECODING
        if len(self._scaled):
            self._scale_rows(values)
        bad = np.flatnonzero(quality)
        values[bad], kind[bad] = 0, Kind.NULL
        texts = self._texts(buffer, values, quality, flags) if self._strings else ()
        return Values(kind, values, quality, flags, texts)

    def _convert(self, raw: NDArray[np.uint64], values: NDArray[np.uint64]) -> None:
        """Widen raw bits to the 64 bits of Columns, in place. 64-bit types are right as they are."""
        for name, rows in self._by_type.items():
            if name == "int16":
                values[rows] = raw[rows].astype(np.int16).astype(np.int64).view(np.uint64)
            elif name == "int32":
                values[rows] = raw[rows].astype(np.int32).astype(np.int64).view(np.uint64)
            elif name == "float32":
                with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                    values[rows] = raw[rows].astype(np.uint32).view(np.float32).astype(np.float64).view(np.uint64)
            elif name == "bool":
                values[rows] = raw[rows] != 0
        if len(self._bits):
            values[self._bits] = (raw[self._bits] >> self._shift) & np.uint64(1)

    def _bcd(self, raw: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Convert, in place; return the rows that hold a digit above 9."""
        rows = np.concatenate([self._by_type.get(name, np.array([], np.intp)) for name in ("bcd16", "bcd32")])
        total, wrong = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.bool_)
        for place in range(8):
            digit = (raw[rows] >> np.uint64(4 * place)) & np.uint64(15)
            total += digit * np.uint64(10**place)
            wrong |= digit > np.uint64(9)
        values[rows] = total
        return rows[wrong]

    def _scale_rows(self, values: NDArray[np.uint64]) -> None:
        """Apply scale and offset, in place: whole numbers first, one division last, so that nothing is rounded twice."""
        raw, kind = values[self._scaled], self._raw_kind[self._scaled]
        number = np.where(kind == Kind.DOUBLE, raw.view(np.float64), raw.view(np.int64).astype(np.float64))
        number = np.where(kind == Kind.UINT64, raw.astype(np.float64), number)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is a double like any other
            multiply, add, divide = self._factors
            values[self._scaled] = ((number * multiply + add) / divide).view(np.uint64)

    def _texts(
        self, buffer: bytes | bytearray | memoryview, values: NDArray[np.uint64], quality: NDArray[np.uint32], flags: NDArray[np.uint16]
    ) -> tuple[str, ...]:
        texts: list[str] = []
        for row, field in self._strings.items():
            data = bytes(buffer[field.start : field.start + field.type.width])
            text, repaired = decode_text(data, field.type, field.order)
            if repaired:
                quality[row] = UNCERTAIN
                flags[row] = Flag.TEXT_REPAIRED
            values[row] = len(texts)
            texts.append(text)
        return tuple(texts)


def _rows(fields: Sequence[Field], name: str) -> NDArray[np.intp]:
    return np.array([i for i, f in enumerate(fields) if f.type.name == name and f.coil < 0], np.intp)


def _gather(fields: Sequence[Field], width: int) -> tuple[NDArray[np.intp], NDArray[np.intp], str]:
    """Return rows, an (n, width) matrix of buffer places in little-endian order, and the dtype of the result."""
    rows = [i for i, f in enumerate(fields) if f.type.name != "string" and (1 if f.coil >= 0 else f.type.width) == width]
    places = [[fields[i].start + place for place in (byte_order(fields[i].order, width) if width > 1 else [0])] for i in rows]
    return np.array(rows, np.intp), np.array(places, np.intp).reshape(len(rows), width), f"<u{width}"


def _bad_rows(fields: Sequence[Field]) -> tuple[NDArray[np.intp], NDArray[np.uint64], NDArray[np.intp]]:
    """Return rows and raw patterns that mean "not available", and the rows where NaN means it."""
    rows: list[int] = []
    raw: list[int] = []
    nan: list[int] = []
    for i, field in enumerate(fields):
        patterns, has_nan = bad_patterns(field.type, field.bad_raw)
        rows += [i] * len(patterns)
        raw += patterns
        nan += [i] * has_nan
    return np.array(rows, np.intp), np.array(raw, np.uint64), np.array(nan, np.intp)


def _factors(field: Field) -> tuple[float, float, float]:
    """Return (multiply, add, divide): value = (raw * multiply + add) / divide.

    Scale and offset are decimals a person wrote: over their common denominator they are whole numbers, and with whole raw values everything
    before the division is exact as long as it stays below 2^53.
    """
    if not field.type.name.startswith("float"):
        scale, offset = (Fraction(Decimal(repr(x))) for x in (field.scale, field.offset))
        divide = math.lcm(scale.denominator, offset.denominator)
        whole = (int(scale * divide), int(offset * divide), divide)
        if max(map(abs, whole)) <= _EXACT:
            return float(whole[0]), float(whole[1]), float(whole[2])
    return field.scale, field.offset, 1.0


def _kind(field: Field) -> Kind:
    name = field.type.name
    if field.coil >= 0 or name in ("bool", "bit"):
        return Kind.BOOL
    if name == "string":
        return Kind.TEXT
    if name.startswith("float"):
        return Kind.DOUBLE
    return Kind.UINT64 if name == "uint64" else Kind.INT64


def decode_text(data: bytes, type_: Type, order: str) -> tuple[str, bool]:
    """Return the text in these registers, and whether bytes had to be replaced by U+FFFD. Never longer than limits.TEXT_BYTES_MAX."""
    if order in ("BADC", "DCBA"):
        data = bytes(data[i ^ 1] for i in range(len(data)))
    data = _until_nul(data[: type_.n], type_.encoding)
    try:
        text, repaired = data.decode(type_.encoding), False
    except UnicodeDecodeError:
        text, repaired = data.decode(type_.encoding, "replace"), True
    return text.rstrip(" ")[: limits.TEXT_BYTES_MAX], repaired


def _until_nul(data: bytes, encoding: str) -> bytes:
    """What follows the first NUL is the rest of an older text, and may be cut in a character: it is no fault."""
    if encoding.startswith("utf-16"):
        whole = len(data) // 2 * 2
        return data[: next((i for i in range(0, whole, 2) if data[i : i + 2] == b"\0\0"), whole)]
    return data.partition(b"\0")[0]
