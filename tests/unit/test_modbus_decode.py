"""Registers to values, against struct and against pymodbus."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.client.mixin import ModbusClientMixin

from buffer.types import BAD_NO_DATA, GOOD, UNCERTAIN, Flag, Kind
from gateway.collect.modbus.decode import BAD_DECODING, Decoder, Field, Type, byte_order, parse_type

FORMATS = {"int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d"}
ORDERS = ["ABCD", "CDAB", "BADC", "DCBA"]
NAMED = {  # as Telegraf writes them, A the most significant byte
    (2, "ABCD"): "AB",
    (2, "CDAB"): "AB",
    (2, "BADC"): "BA",
    (2, "DCBA"): "BA",
    (4, "ABCD"): "ABCD",
    (4, "CDAB"): "CDAB",
    (4, "BADC"): "BADC",
    (4, "DCBA"): "DCBA",
    (8, "ABCD"): "ABCDEFGH",
    (8, "CDAB"): "GHEFCDAB",
    (8, "BADC"): "BADCFEHG",
    (8, "DCBA"): "HGFEDCBA",
}


def sent(value: bytes, order: str) -> bytes:
    """Return the bytes a device with this order sends for a big-endian value."""
    return bytes(value["ABCDEFGH".index(letter)] for letter in NAMED[len(value), order])


def one(field: Field, data: bytes) -> tuple[Kind, object, int, int]:
    """Decode one value; return kind, value, quality, flags."""
    got = Decoder([field]).decode(data)
    kind, bits = Kind(int(got.kind[0])), got.values[:1]
    value: object = int(bits[0])
    if kind == Kind.DOUBLE:
        value = float(bits.view(np.float64)[0])
    elif kind == Kind.INT64:
        value = int(bits.view(np.int64)[0])
    elif kind in (Kind.TEXT, Kind.NULL):
        value = got.texts[int(bits[0])] if kind == Kind.TEXT else None
    return kind, value, int(got.quality[0]), int(got.flags[0])


def test_byte_orders_are_the_named_ones() -> None:
    for (width, order), name in NAMED.items():
        assert [name[place] for place in byte_order(order, width)] == list("HGFEDCBA"[-width:])


@given(st.sampled_from(sorted(FORMATS)), st.sampled_from(ORDERS), st.binary(min_size=8, max_size=8), st.integers(0, 6))
def test_numbers_against_struct(name: str, order: str, raw: bytes, before: int) -> None:
    width = struct.calcsize(FORMATS[name])
    value = struct.unpack(">" + FORMATS[name], raw[:width])[0]
    kind, got, quality, _ = one(Field(Type(name), order, before), bytes(before) + sent(raw[:width], order))
    assert quality == GOOD
    assert kind == (Kind.DOUBLE if name.startswith("float") else Kind.UINT64 if name == "uint64" else Kind.INT64)
    assert got == value or (math.isnan(value) and math.isnan(got))  # type: ignore[arg-type]
    if kind == Kind.DOUBLE and not math.isnan(value):
        assert math.copysign(1, value) == math.copysign(1, got)  # type: ignore[arg-type]


@given(st.sampled_from(sorted(FORMATS)), st.sampled_from(["ABCD", "CDAB"]), st.lists(st.integers(0, 65535), min_size=4, max_size=4))
def test_numbers_against_pymodbus(name: str, order: str, registers: list[int]) -> None:
    kind = ModbusClientMixin.DATATYPE[name.upper()]
    registers = registers[: kind.value[1]]
    want = ModbusClientMixin.convert_from_registers(registers, kind, word_order="big" if order == "ABCD" else "little")
    _, got, _, _ = one(Field(Type(name), order, 0), struct.pack(f">{len(registers)}H", *registers))
    assert got == want or (math.isnan(want) and math.isnan(got))  # type: ignore[arg-type]


@given(st.text(max_size=20))
def test_strings_against_pymodbus(text: str) -> None:
    registers = ModbusClientMixin.convert_to_registers(text, ModbusClientMixin.DATATYPE.STRING)
    n = max(1, 2 * len(registers))
    data = struct.pack(f">{len(registers)}H", *registers) or b"\0\0"
    kind, got, quality, _ = one(Field(Type("string", n), "ABCD", 0), data)
    assert (kind, quality) == (Kind.TEXT, GOOD)
    assert got == text.partition("\0")[0].rstrip(" ")


def test_bits_against_pymodbus() -> None:
    register = 0b1010_0000_0000_0110
    want = ModbusClientMixin.convert_from_registers([register], ModbusClientMixin.DATATYPE.BITS)
    assert isinstance(want, list)
    got = Decoder([Field(Type("bit", n), "ABCD", 0) for n in range(16)]).decode(struct.pack(">H", register))
    assert [bool(value) for value in got.values] == want[8:] + want[:8]  # pymodbus: the high byte's bits come first
    assert set(got.kind) == {Kind.BOOL}


def test_coils_are_read_from_the_lowest_bit() -> None:
    coils = [Field(Type("bool"), "ABCD", i // 8, i % 8) for i in range(12)]
    got = Decoder(coils).decode(bytes([0b0000_0101, 0b0000_1000]))
    assert got.values.tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_a_register_as_bool_is_not_zero() -> None:
    got = Decoder([Field(Type("bool"), "ABCD", i) for i in (0, 2)]).decode(b"\0\0\x01\0")
    assert got.values.tolist() == [0, 1]


fields = st.lists(
    st.tuples(st.sampled_from([*FORMATS, "bcd16", "bcd32", "bool", "bit", "string", "coil"]), st.sampled_from(ORDERS), st.integers(0, 40)),
    min_size=1,
    max_size=30,
)


@given(fields, st.binary(min_size=64, max_size=64))
def test_many_at_once_equal_each_alone(many: list[tuple[str, str, int]], data: bytes) -> None:
    built = []
    for name, order, start in many:
        type_ = Type("bool" if name == "coil" else name, {"bit": start % 16, "string": 1 + start % 20}.get(name, 0))
        scale = 0.5 if name.endswith("32") and start % 3 == 0 else 1.0
        bad = ("7",) if name.startswith(("int", "bcd")) else ()
        built.append(Field(type_, order, start, start % 8 if name == "coil" else -1, scale, 0.0, bad))
    got = Decoder(built).decode(data)
    for i, field in enumerate(built):
        alone = Decoder([field]).decode(data)
        assert (got.kind[i], got.quality[i], got.flags[i]) == (alone.kind[0], alone.quality[0], alone.flags[0])
        if got.kind[i] == Kind.TEXT:
            assert got.texts[int(got.values[i])] == alone.texts[0]
        else:
            assert got.values[i] == alone.values[0]


def test_integers_stay_exact_and_scaling_is_in_double() -> None:
    top = struct.pack(">q", 2**62 + 1)
    assert one(Field(Type("int64"), "ABCD", 0), top)[:2] == (Kind.INT64, 2**62 + 1)
    assert one(Field(Type("uint64"), "ABCD", 0), b"\xff" * 8)[:2] == (Kind.UINT64, 2**64 - 1)
    assert one(Field(Type("uint64"), "ABCD", 0, scale=2.0), b"\xff" * 8)[:2] == (Kind.DOUBLE, 2.0**65)
    assert one(Field(Type("int16"), "ABCD", 0, scale=0.1, offset=-40.0), b"\xff\xff")[:2] == (Kind.DOUBLE, -40.1)
    assert one(Field(Type("float32"), "ABCD", 0), struct.pack(">f", 0.1))[1] == struct.unpack(">f", struct.pack(">f", 0.1))[0]


@pytest.mark.parametrize(
    ("type_", "bad", "raw"),
    [
        ("int16", "-32768", b"\x80\x00"),
        ("int16", "32768", b"\x80\x00"),
        ("int16", "0x8000", b"\x80\x00"),
        ("uint16", "65535", b"\xff\xff"),
        ("uint32", "0xFFFFFFFF", b"\xff" * 4),
        ("int32", "-1", b"\xff" * 4),
        ("uint64", "18446744073709551615", b"\xff" * 8),
        ("float32", "nan", b"\x7f\xc0\x00\x00"),
        ("float32", "nan", b"\xff\xc0\x00\x01"),
        ("float32", "0xFFC00000", b"\xff\xc0\x00\x00"),
        ("float32", "-9999.9", struct.pack(">f", -9999.9)),
        ("float64", "nan", b"\x7f\xf8" + bytes(6)),
        ("bcd16", "9999", b"\x99\x99"),
    ],
)
def test_bad_raw_is_null_and_bad_no_data(type_: str, bad: str, raw: bytes) -> None:
    assert one(Field(Type(type_), "ABCD", 0, scale=0.1, bad_raw=("12", bad)), raw) == (Kind.NULL, None, BAD_NO_DATA, 0)
    other = bytes(len(raw) - 1) + b"\x05"
    assert one(Field(Type(type_), "ABCD", 0, bad_raw=(bad,)), other)[2] == GOOD


def test_nan_is_a_value_unless_said_otherwise() -> None:
    kind, value, quality, _ = one(Field(Type("float32"), "ABCD", 0), b"\x7f\xc0\x00\x00")
    assert (kind, quality) == (Kind.DOUBLE, GOOD)
    assert math.isnan(value)  # type: ignore[arg-type]


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.decimals(-1000, 1000, places=5, allow_nan=False).filter(lambda x: x != 0),
    st.decimals(-100_000, 100_000, places=3, allow_nan=False),
)
def test_scaled_integers_are_the_nearest_double_to_the_decimal_result(raw: int, scale: Decimal, offset: Decimal) -> None:
    field = Field(Type("int32"), "ABCD", 0, scale=float(scale), offset=float(offset))
    exact = raw * Fraction(scale) + Fraction(offset)
    got = Decoder([field]).decode(struct.pack(">i", raw))
    value = float(got.values.view(np.float64)[0])
    if max(abs(raw * Fraction(scale)), abs(exact)) * 100_000 <= 2**53:
        assert value == float(exact)
    else:
        assert math.isclose(value, float(exact), rel_tol=1e-15, abs_tol=1e-3)


def test_tenths_look_like_tenths() -> None:
    fields = [Field(Type("int16"), "ABCD", 2 * i, scale=0.1) for i in range(1_000)]
    got = Decoder(fields).decode( struct.pack(">1000h", *range(-500, 500)))
    assert [repr(x) for x in got.values.view(np.float64).tolist()] == [repr(i / 10) for i in range(-500, 500)]


def test_bcd() -> None:
    assert one(Field(Type("bcd16"), "ABCD", 0), b"\x12\x34")[:2] == (Kind.INT64, 1234)
    assert one(Field(Type("bcd32"), "CDAB", 0), b"\x56\x78\x12\x34")[:2] == (Kind.INT64, 12345678)
    assert one(Field(Type("bcd32"), "ABCD", 0, scale=0.01), b"\x12\x34\x56\x78")[:2] == (Kind.DOUBLE, 12345678 * 0.01)
    assert one(Field(Type("bcd16"), "ABCD", 0, scale=0.01), b"\x12\x3a") == (Kind.NULL, None, BAD_DECODING, 0)


def test_text_that_is_no_text() -> None:
    assert one(Field(Type("string", 8), "ABCD", 0), b"T \xb0C\0\0\0\0") == (Kind.TEXT, "T \ufffdC", UNCERTAIN, Flag.TEXT_REPAIRED)
    assert one(Field(Type("string", 8, "latin-1"), "ABCD", 0), b"T \xb0C\0\0\0\0") == (Kind.TEXT, "T °C", GOOD, 0)
    assert one(Field(Type("string", 4), "BADC", 0), b"BADC") == (Kind.TEXT, "ABCD", GOOD, 0)
    assert one(Field(Type("string", 6), "ABCD", 0), b"ab\0\xff\xff\xff") == (Kind.TEXT, "ab", GOOD, 0)
    assert one(Field(Type("string", 3), "ABCD", 0), b"abcX") == (Kind.TEXT, "abc", GOOD, 0)
    assert one(Field(Type("string", 6, "utf-16-be"), "ABCD", 0), b"\0a\0\xb0\xd8\0")[1:3] == ("a°\ufffd", UNCERTAIN)


@given(st.binary(min_size=20, max_size=20), st.sampled_from(["utf-8", "ascii", "shift_jis", "gb18030", "utf-16-be", "utf-16-le", "cp1251"]))
def test_any_bytes_become_text_that_utf8_can_write(data: bytes, encoding: str) -> None:
    _, text, quality, flags = one(Field(Type("string", 20, encoding), "ABCD", 0), data)
    str(text).encode()
    assert (quality == UNCERTAIN) == (flags == Flag.TEXT_REPAIRED) == (quality != GOOD)


def test_a_short_buffer_is_refused() -> None:
    with pytest.raises(IndexError):
        Decoder([Field(Type("int32"), "ABCD", 2)]).decode(bytes(4))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("REAL", Type("float32")),
        ("dint", Type("int32")),
        ("LWORD", Type("uint64")),
        ("bit(3)", Type("bit", 3)),
        ("string(16)", Type("string", 16)),
        ("String(16, Latin1)", Type("string", 16, "latin-1")),
        ("string(16,UTF8)", Type("string", 16, "utf-8")),
    ],
)
def test_types(text: str, want: Type) -> None:
    assert parse_type(text) == want
