"""Arrays as tags: `expand` in tags.csv, elements of every type, lengths that change, history, what is said about them."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace

import numpy as np
import pytest
from asyncua import ua
from asyncua.ua.ua_binary import variant_to_binary
from hypothesis import given
from hypothesis import strategies as st

from buffer.types import BAD_NO_COMMUNICATION, UNCERTAIN, Flag, Kind
from gateway.collect.opcua.arrays import BAD_INDEX_RANGE_NO_DATA, Arrays, one_per_item, pick
from gateway.collect.opcua.decode import Items, decode_items, join_items
from gateway.collect.opcua.readings import TagStates
from gateway.collect.opcua.variant import read_elements
from gateway.errors import ConfigError
from gateway.settings import TagRow
from gateway.tagarrays import expand_rows
from gateway.tagfile import TagFileError, compare, parse_tags, write_tags

T = ua.VariantType
FILE = TagRow("oven.zone", "oven/zone", "plc", "ns=1;s=Zone", expand=4, scale=2.0)
TAGS = tuple(replace(tag, number=20 + i) for i, tag in enumerate(expand_rows([TagRow("a", "a", "plc", "ns=1;s=A"), FILE])))  # 20: a; 21..24: elements


def message(*values: tuple[int, ua.Variant | None, int]) -> Items:
    """Return the items of a notification: handle, value, status."""
    body = b""
    for handle, value, status in values:
        encoded = b"" if value is None else variant_to_binary(value)
        body += struct.pack("<IB", handle, (1 if value is not None else 0) | 2) + encoded + struct.pack("<I", status)
    items, at = decode_items(body, 0, len(body), len(values), 4)
    assert at == len(body)
    return items


def shown(items: Items) -> list[tuple[int, object, int]]:
    return [(int(items.handle[row]), items.value(row), int(items.quality[row])) for row in range(len(items))]


def array(*values: float) -> ua.Variant:
    return ua.Variant(list(values), T.Double, is_array=True)


# ---- the tag table ----


def test_a_row_becomes_as_many_tags_as_it_declares_and_old_files_stay_as_they_are() -> None:
    assert [(tag.id, tag.path, tag.element) for tag in expand_rows([FILE])] == [(f"oven.zone.{k}", f"oven/zone[{k}]", k) for k in range(4)]
    data = b"id,path,source,address,expand\noven.zone,oven/zone,plc,ns=1;s=Zone,4\nb,b,plc,ns=1;s=B,\n"
    rows = parse_tags(data, {"plc"})
    assert [row.expand for row in rows] == [4, 0]
    assert [replace(row, line=0) for row in parse_tags(write_tags(rows), {"plc"})] == [replace(row, line=0) for row in rows]
    old = parse_tags(b"id,path,source,address\nb,b,plc,ns=1;s=B\n", {"plc"})
    assert list(expand_rows(old)) == list(old)


@pytest.mark.parametrize("cell", ["0", "-1", "1001", "8.5", "all", "\u0668"])
def test_a_length_that_is_none_is_refused(cell: str) -> None:
    with pytest.raises(TagFileError, match=r"expand \(E2\).*is no number of elements from 1 to 1,000"):
        parse_tags(f"id,path,source,address,expand\na,a,plc,ns=1;s=A,{cell}\n".encode(), {"plc"})


def test_ids_of_elements_collide_with_nothing_and_fit() -> None:
    with pytest.raises(TagFileError, match=r"'a\.1' stands in row 2 already"):
        parse_tags(b"id,path,source,address,expand\na,a,plc,ns=1;s=A,2\na.1,b,plc,ns=1;s=B,\n", {"plc"})
    with pytest.raises(TagFileError, match="leaves no room for the numbers of 3 elements"):
        parse_tags(f"id,path,source,address,expand\n{'a' * 60},a,plc,ns=1;s=A,3\n".encode(), {"plc"})


def test_a_shorter_declaration_retires_elements_and_a_new_name_is_seen_as_one() -> None:
    shorter = list(expand_rows([replace(FILE, expand=2)]))
    found = [(one.where, one.level.name) for one in compare(expand_rows([FILE]), shorter)]
    assert found == [("oven.zone.2", "WARNING"), ("oven.zone.3", "WARNING")]
    renamed = compare(expand_rows([FILE]), expand_rows([replace(FILE, id="o.z")]))
    refused = {one.where: one.what for one in renamed if one.level.name == "REFUSED"}
    assert set(refused) == {f"oven.zone.{k}" for k in range(4)}
    assert "o.z.2 now reads" in refused["oven.zone.2"], "element by element"


def test_events_are_no_arrays() -> None:
    from gateway.config import _check_arrays
    from gateway.settings import OpcuaSource

    element = next(expand_rows([FILE]))
    with pytest.raises(ConfigError, match="events are no array"):
        _check_arrays(OpcuaSource("p", ("opc.tcp://h",), tags=(replace(element, type="event"),)))


@pytest.mark.parametrize(
    ("dimensions", "expand"),
    [("[4]", 4), ("[2,3]", 6), ("[1000]", 1000), ("[1001]", 0), ("[40,40]", 0), ("[0]", 0), ("[2,0]", 0), ("[]", 0), ("", 0), ("[true]", 0), ("{}", 0), ("[-2,-3]", 0)],
)
def test_browse_proposes_elements_where_dimensions_are_fixed(dimensions: str, expand: int) -> None:
    from gateway.collect.opcua.browse import Variable
    from gateway.collect.opcua.rows import make_rows

    rows, left_out = make_rows("plc", [Variable("ns=1;s=Wave", ("Plant", "x" * 300), "Double", dimensions=dimensions)], ("", "urn:x"), {})
    assert ([row.expand for row in rows], left_out) == ([expand], []), "also where the path is as long as it can be"


# ---- messages ----


def test_elements_become_readings_of_their_own_tags_in_order() -> None:
    arrays = Arrays(TAGS)
    items = message((21, array(1, 2, 3, 4), 0), (20, ua.Variant(7.0, T.Double), 0), (21, array(5, 6, 7, 8), 0))
    made, longer = arrays.expand(items)
    assert not longer
    assert sorted(shown(made)) == sorted([(20, 7.0, 0)] + [(21 + k, float(v + k), 0) for v in (1, 5) for k in range(4)])
    assert [value for handle, value, _ in shown(made) if handle == 23] == [3.0, 7.0], "newer behind older"
    assert arrays.spread([20, 21]) == [20, 21, 22, 23, 24]
    assert [tag.number for tag in one_per_item(TAGS)] == [20, 21]


def test_shorter_longer_empty_scalar_and_bad() -> None:
    arrays = Arrays(TAGS)
    none = BAD_INDEX_RANGE_NO_DATA

    def of(value: ua.Variant | None, status: int = 0) -> list[tuple[object, int]]:
        return [(value, quality) for _, value, quality in shown(arrays.expand(message((21, value, status)))[0])]

    assert of(array(1, 2)) == [(1.0, 0), (2.0, 0), (None, none), (None, none)]
    assert of(array()) == [(None, none)] * 4
    assert of(ua.Variant(None, T.Double, is_array=True)) == [(None, none)] * 4
    assert of(ua.Variant(9.0, T.Double)) == [(9.0, 0), (None, none), (None, none), (None, none)]
    assert of(ua.Variant("x", T.String)) == [("x", 0), (None, none), (None, none), (None, none)]
    assert of(None) == [(None, none)] * 4
    assert of(None, BAD_NO_COMMUNICATION) == [(None, BAD_NO_COMMUNICATION)] * 4
    assert of(array(1, 2), BAD_NO_COMMUNICATION)[1:3] == [(2.0, BAD_NO_COMMUNICATION), (None, BAD_NO_COMMUNICATION)]
    made, longer = arrays.expand(message((21, array(*range(9)), 0)))
    assert longer == {21: 9}
    assert [value for _, value, _ in shown(made)] == [0.0, 1.0, 2.0, 3.0]
    matrix = ua.Variant([[1.0, 2.0], [3.0, 4.0]], T.Double, Dimensions=[2, 2], is_array=True)
    assert [value for value, _ in of(matrix)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("values", "type_", "wanted"),
    [
        ([True, False], T.Boolean, [True, False]),
        ([-5, 7], T.SByte, [-5, 7]),
        ([200, 1], T.Byte, [200, 1]),
        ([-300, 1], T.Int16, [-300, 1]),
        ([2**31, 1], T.UInt32, [2**31, 1]),
        ([-(2**63), 1], T.Int64, [-(2**63), 1]),
        ([2**64 - 1, 1], T.UInt64, [2**64 - 1, 1]),
        ([0.5, float("inf")], T.Float, [0.5, float("inf")]),
        (["ä", None], T.String, ["ä", None]),
        ([b"\x00\xff", b""], T.ByteString, [base64.b64encode(b"\x00\xff").decode(), ""]),
        ([ua.LocalizedText("läuft"), ua.LocalizedText("steht")], T.LocalizedText, ["läuft", "steht"]),
        ([ua.NodeId(5, 2), ua.NodeId(6, 2)], T.NodeId, ["ns=2;i=5", "ns=2;i=6"]),
        ([ua.Variant(1, T.Int32), ua.Variant("x", T.String)], T.Variant, [1, "x"]),
    ],
)
def test_elements_of_every_type(values: list[object], type_: ua.VariantType, wanted: list[object]) -> None:
    made, _ = Arrays(TAGS).expand(message((21, ua.Variant(values, type_, is_array=True), 0)))
    assert [value for _, value, _ in shown(made)][: len(wanted)] == wanted


def test_text_that_was_repaired_says_so_and_unused_text_is_not_stored() -> None:
    good = variant_to_binary(ua.Variant(["ab", "cd"], T.String, is_array=True))
    body = struct.pack("<IB", 21, 1) + good.replace(b"cd", b"\xff\xfe")
    made, _ = Arrays(TAGS).expand(join_items([message((20, ua.Variant("scalar", T.String), 0)), decode_items(body, 0, len(body), 1, 4)[0]]))
    assert [value for _, value, _ in shown(made)] == ["scalar", "ab", "\ufffd\ufffd", None, None]
    assert made.flags[2] & Flag.TEXT_REPAIRED
    assert not made.flags[1] & Flag.TEXT_REPAIRED
    assert made.quality[2] == UNCERTAIN
    assert set(made.texts) == {"scalar", "ab", "\ufffd\ufffd"}, "the JSON of the whole array is nobody's value"


@given(st.lists(st.floats(allow_nan=False), max_size=12), st.integers(1, 8))
def test_any_length_meets_any_declaration(values: list[float], declared: int) -> None:
    tags = [replace(tag, number=30 + i) for i, tag in enumerate(expand_rows([replace(FILE, expand=declared)]))]
    made, longer = Arrays(tags).expand(message((30, array(*values), 0)))
    assert [value for _, value, _ in shown(made)] == (values + [None] * declared)[:declared]
    assert longer == ({30: len(values)} if len(values) > declared else {})


def test_a_length_that_lies_ends_in_an_error_not_in_memory() -> None:
    from buffer.errors import CorruptError

    with pytest.raises(CorruptError):
        read_elements(bytes([0x80 | 11]) + struct.pack("<i", 2**30) + b"12345678", 4)


def test_history_and_a_join_keep_arrays_with_their_rows() -> None:
    items = join_items([message((0, ua.Variant(1.0, T.Double), 0)), message((1, array(1, 2, 3), 0), (2, array(4, 5), 0))])
    assert [items.value(row) for row in range(3)] == [1.0, "[1.0,2.0,3.0]", "[4.0,5.0]"]
    third = pick(items, np.asarray([1, 2]), 2)
    assert shown(third) == [(1, 3.0, 0), (2, None, BAD_INDEX_RANGE_NO_DATA)]
    columns = TagStates(TAGS, {}).history(23, items, np.asarray([1, 2]))
    assert columns.tag.tolist() == [23, 23]
    assert columns.kind.tolist() == [Kind.DOUBLE, Kind.NULL]
    assert columns.values[:1].view(np.float64).tolist() == [6.0], "scaled like a live one"
