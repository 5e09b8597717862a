"""Arrays over Modbus: each element as a value of its own would be, whole in one request, and errors that say what to write."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.types import BAD_NO_DATA, UNCERTAIN, Flag, Kind
from gateway.collect.modbus.arrays import ArrayDecoder, decoder_of
from gateway.collect.modbus.decode import BAD_DECODING, Decoder, Field, Type, parse_type
from gateway.collect.modbus.plan import Cuts, Rules, Table, compile_tags, plan
from gateway.settings import ModbusSource, TagRow
from gateway.tagarrays import expand_rows


def tag(address: str, type_: str, **more: object) -> TagRow:
    return replace(TagRow("a", "p/a", "m", address, type_, number=16), **more)  # type: ignore[arg-type]


def source(*tags: TagRow, **more: object) -> ModbusSource:
    return replace(ModbusSource("m", "modbus-tcp", "127.0.0.1:502"), tags=tags, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "type_", "registers"),
    [
        ("float32[10]", Type("float32", length=10), 20),
        ("REAL [2]", Type("float32", length=2), 4),
        ("string(3)[4]", Type("string", 3, length=4), 8),
        ("bit(3)[2]", Type("bit", 3, length=2), 2),
        ("bool[1]", Type("bool", length=1), 1),
    ],
)
def test_types_of_arrays(text: str, type_: Type, registers: int) -> None:
    got = parse_type(text)
    assert (got, got.registers, got.element.length) == (type_, registers, 0)


@pytest.mark.parametrize(("text", "why"), [("int16[0]", "from 1"), ("int16[2001]", "from 1"), ("[3]", "is no type"), ("int16[2][2]", "is no type"), ("x[2]", "no type")])
def test_what_is_no_array_type(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_type(text)


TYPES = ["int16", "uint16", "int32", "uint64", "float32", "float64", "bcd16", "bool", "string(3)"]


@given(
    st.lists(st.tuples(st.sampled_from(TYPES), st.integers(0, 5), st.sampled_from(["ABCD", "CDAB", "BADC", "DCBA"]), st.sampled_from([1.0, 0.1])), max_size=6),
    st.randoms(use_true_random=False),
)
def test_elements_are_what_values_of_their_own_would_be(wanted: list[tuple[str, int, str, float]], rng) -> None:
    fields, flat, at = [], [], 0
    for name, length, order, scale in wanted:
        type_ = replace(parse_type(name), length=length)
        one = Field(type_, order, at, -1, scale if name not in ("bool", "string(3)") else 1.0)
        fields.append(one)
        flat += [replace(one, type=type_.element, start=at + k * type_.element.width) for k in range(max(length, 1))]
        at += type_.width
    data = rng.randbytes(at)
    got, oracle = decoder_of(fields).decode(data), Decoder(flat).decode(data)
    assert isinstance(decoder_of(fields), ArrayDecoder) == any(one.type.length for one in fields)
    row = 0
    for i, one in enumerate(fields):
        span = range(row, row + max(one.type.length, 1))
        row = span.stop
        values = [plain(oracle, k) for k in span]
        if not one.type.length:
            assert (plain(got, i), got.quality[i], got.flags[i]) == (values[0], oracle.quality[span[0]], oracle.flags[span[0]])
        elif all(value is None for value in values):
            assert (got.kind[i], got.quality[i]) == (Kind.NULL, oracle.quality[span[0]])
        else:
            assert json.loads(got.texts[int(got.values[i])]) == values
            assert (got.kind[i], bool(got.quality[i])) == (Kind.TEXT, any(oracle.quality[k] for k in span))


def plain(got, row: int) -> object:
    kind, bits = Kind(int(got.kind[row])), got.values[row : row + 1]
    if kind is Kind.NULL:
        return None
    if kind is Kind.TEXT:
        return got.texts[int(bits[0])]
    if kind is Kind.BOOL:
        return bool(bits[0])
    if kind is not Kind.DOUBLE:
        return int(bits.view(np.int64)[0] if kind is Kind.INT64 else bits[0])
    number = float(bits.view(np.float64)[0])
    return number if math.isfinite(number) else "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"


def test_some_elements_that_are_no_values_and_none_that_is() -> None:
    field = Field(parse_type("uint16[3]"), "ABCD", 0, -1, bad_raw=("65535",))
    got = decoder_of([field, replace(field, start=6), replace(field, type=parse_type("bcd16[2]"), start=0, bad_raw=())]).decode(
        struct.pack(">6H", 0xFFFF, 7, 8, 0xFFFF, 0xFFFF, 0xFFFF)
    )
    assert got.kind.tolist() == [Kind.TEXT, Kind.NULL, Kind.TEXT]
    assert got.quality.tolist() == [UNCERTAIN, BAD_NO_DATA, UNCERTAIN]
    assert [got.texts[int(got.values[k])] for k in (0, 2)] == ["[null,7,8]", "[null,7]"]
    assert decoder_of([replace(field, type=parse_type("bcd16[1]"), bad_raw=())]).decode(b"\xff\xff").quality[0] == BAD_DECODING


def test_coils_and_texts_in_arrays() -> None:
    coils = Field(parse_type("bool[10]"), "ABCD", 0, 6)
    texts = Field(parse_type("string(2)[2]"), "ABCD", 2)
    got = decoder_of([texts, coils]).decode(bytes([0b1100_0000, 0b1010_0101]) + b"Gr\xfc\0")
    assert got.texts[int(got.values[1])] == "[true,true,true,false,true,false,false,true,false,true]"
    assert got.texts[int(got.values[0])] == '["Gr","\ufffd"]'
    assert (got.quality[0], got.flags[0]) == (UNCERTAIN, Flag.TEXT_REPAIRED)


# ---- the plan ----


def test_elements_lie_behind_each_other() -> None:
    rows = [*expand_rows([tag("hr:5", "float32", expand=3)]), *expand_rows([tag("co:9", "", id="c", expand=2)])]
    rows += expand_rows([tag("hr:8.15", "", id="b", expand=3)])
    points, findings = compile_tags(source(*rows))
    assert not findings
    assert [(str(point.span), point.type.n) for point in points] == [
        *(("hr:5-6", 0), ("hr:7-8", 0), ("hr:9-10", 0), ("co:9", 0), ("co:10", 0)),
        *(("hr:8", 15), ("hr:9", 0), ("hr:9", 1)),
    ]


@given(st.integers(1, 60), st.sampled_from([("int16", 1), ("float32", 2), ("float64", 4), ("string(5)", 3)]), st.integers(4, 125), st.integers(0, 9))
def test_no_element_and_no_array_is_ever_straddled(length: int, kind: tuple[str, int], most: int, start: int) -> None:
    name, registers = kind
    rows = list(expand_rows([tag(f"hr:{start}", name, expand=length)]))
    one = source(*rows, max_registers=most)
    points, findings = compile_tags(one)
    assert not findings
    blocks = plan((point.span for point in points), Rules(max_registers=most), Cuts())
    assert sum(block.span.count for block in blocks) == length * registers, "nothing twice, nothing that no tag names"
    assert all((block.span.first - start) % registers == 0 and block.span.count % registers == 0 for block in blocks)
    whole, findings = compile_tags(source(tag(f"hr:{start}", f"{name}[{length}]"), max_registers=most))
    if length * registers <= most:
        assert [(point.span.table, point.count) for point in whole] == [(Table.HOLDING, length * registers)]
    else:
        assert "make its elements tags with expand" in findings[0].what


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (tag("hr:0", "int16[4]", deadband=1.0), "deadband means nothing there"),
        (next(expand_rows([tag("hr:0", "int16[4]", expand=4)])), "has expand, too"),
        (tag("hr:0.3", "bool[4]"), "write bool, and 4 into expand"),
        (tag("co:0", "bool[2001]"), "write bool, and 2001 into expand"),
        (tag("co:0", "int16[4]"), "is one bit"),
        (tag("hr:65530", "int32[4]"), "beyond the last register"),
        (tag("hr:0", "string(4)[2]", scale=2.0), "mean nothing there"),
        (list(expand_rows([tag("hr:65534", "int16", expand=3)]))[2], "beyond the last register"),
    ],
)
def test_arrays_that_cannot_be_meant(row: TagRow, why: str) -> None:
    points, findings = compile_tags(source(row))
    assert not points
    assert why in findings[0].what
