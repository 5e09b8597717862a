"""Notification bytes -> columns: against asyncua's stock decoder as oracle, in the field order of the specification, and against hostile bytes."""

from __future__ import annotations

import base64
import datetime
import json
import math
import struct
import uuid

import numpy as np
import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary, variant_from_binary, variant_to_binary
from hypothesis import example, given, settings
from hypothesis import strategies as st

from buffer import limits
from buffer.errors import CorruptError
from buffer.types import UNCERTAIN, Flag, Kind
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.answers import ServiceFault, decode_history, decode_message, decode_read, parse_publish, parse_republish
from gateway.collect.opcua.decode import Items, decode_items
from gateway.collect.opcua.reader import Reader
from gateway.collect.opcua.variant import TICKS_1970, read_value

T = ua.VariantType
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
BITS = 0xFFFF_FFFF_FFFF_FFFF


# ---- generators: Python values asyncua can encode ----


def ints(bits: int, signed: bool) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.one_of(st.sampled_from([low, high, 0]), st.integers(low, high))


TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
TIMES = st.datetimes(datetime.datetime(1602, 1, 1), datetime.datetime(9990, 1, 1)).map(lambda t: t.replace(tzinfo=datetime.UTC))
NAMESPACES = st.integers(0, 65535)
NODE_IDS = st.one_of(
    st.builds(lambda i, n: ua.NodeId(i, n, ua.NodeIdType.Numeric), st.integers(0, 2**32 - 1), NAMESPACES),
    st.builds(lambda i, n: ua.NodeId(i, n, ua.NodeIdType.FourByte), st.integers(0, 65535), st.integers(0, 255)),
    st.builds(lambda i: ua.NodeId(i, 0, ua.NodeIdType.TwoByte), st.integers(0, 255)),
    st.builds(lambda s, n: ua.NodeId(s, n, ua.NodeIdType.String), st.text('abcXYZ."-ä', max_size=12), NAMESPACES),
    st.builds(lambda g, n: ua.NodeId(g, n, ua.NodeIdType.Guid), st.uuids(), NAMESPACES),
    st.builds(lambda b, n: ua.NodeId(b, n, ua.NodeIdType.ByteString), st.binary(max_size=9), NAMESPACES),
)
STRUCTURES = st.one_of(
    st.builds(lambda b: ua.ExtensionObject(ua.NodeId(4242, 3), b), st.binary(min_size=1, max_size=12)),
    st.builds(lambda a, b: ua.Range(Low=a, High=b), st.floats(width=64), st.floats(width=64)),
)
SCALARS: dict[ua.VariantType, st.SearchStrategy[object]] = {
    T.Boolean: st.booleans(),
    T.SByte: ints(8, True),
    T.Byte: ints(8, False),
    T.Int16: ints(16, True),
    T.UInt16: ints(16, False),
    T.Int32: ints(32, True),
    T.UInt32: ints(32, False),
    T.Int64: ints(64, True),
    T.UInt64: ints(64, False),
    T.Float: st.floats(width=32),
    T.Double: st.floats(width=64),
    T.String: TEXTS,
    T.DateTime: TIMES,
    T.Guid: st.uuids(),
    T.ByteString: st.one_of(st.none(), st.binary(max_size=30)),
    T.XmlElement: st.builds(ua.XmlElement, TEXTS),
    T.NodeId: NODE_IDS,
    T.ExpandedNodeId: NODE_IDS,
    T.StatusCode: ints(32, False).map(ua.StatusCode),
    T.QualifiedName: st.builds(ua.QualifiedName, TEXTS, st.integers(0, 32767)),  # asyncua writes the namespace signed
    T.LocalizedText: st.builds(ua.LocalizedText, TEXTS, TEXTS),
    T.ExtensionObject: STRUCTURES,
    T.DataValue: st.builds(lambda v: ua.DataValue(ua.Variant(v, T.Int32), SourceTimestamp=EPOCH), ints(32, True)),
    T.DiagnosticInfo: st.builds(lambda a, b: ua.DiagnosticInfo(SymbolicId=a, AdditionalInfo=b), ints(32, True), TEXTS),
}


# ---- the value table, once more and independently: what stock decoding gives -> what we must store ----


def microseconds(moment: datetime.datetime) -> int:
    return (moment - EPOCH) // datetime.timedelta(microseconds=1)


def node_text(node: ua.NodeId) -> str:
    kind = node.NodeIdType
    forms = {ua.NodeIdType.String: "s", ua.NodeIdType.Guid: "g", ua.NodeIdType.ByteString: "b"}
    value = base64.b64encode(node.Identifier).decode() if kind == ua.NodeIdType.ByteString else str(node.Identifier)
    return (f"ns={node.NamespaceIndex};" if node.NamespaceIndex else "") + f"{forms.get(kind, 'i')}={value}"


def plain(vtype: ua.VariantType, value: object) -> object:  # noqa: C901, PLR0911, PLR0912
    if value is None:
        return None
    match vtype:
        case T.Float | T.Double:
            return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case T.DateTime:
            return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond:06d}0Z"
        case T.Guid:
            return str(value)
        case T.ByteString:
            return base64.b64encode(value).decode()
        case T.XmlElement:
            return value.Value
        case T.NodeId | T.ExpandedNodeId:
            return node_text(value)
        case T.StatusCode:
            return value.value
        case T.QualifiedName:
            return f"{value.NamespaceIndex}:{value.Name or ''}" if value.NamespaceIndex else value.Name
        case T.LocalizedText:
            return value.Text
        case T.ExtensionObject if isinstance(value, ua.Range):
            return {"Low": plain(T.Double, value.Low), "High": plain(T.Double, value.High)}
        case T.ExtensionObject:
            return {"type": node_text(value.TypeId), "body": base64.b64encode(value.Body).decode()}
        case T.DataValue:
            return {"value": value.Value.Value, "status": value.StatusCode.value, "source_time": "1970-01-01T00:00:00.0000000Z"}
        case T.DiagnosticInfo:
            return {k: v for k, v in (("symbolic_id", value.SymbolicId), ("info", value.AdditionalInfo)) if v is not None}
    return value


def expected(variant: ua.Variant) -> tuple[int, object]:
    vtype, value = variant.VariantType, variant.Value
    if value is None:
        return Kind.NULL, 0
    if variant.is_array:
        return Kind.TEXT, nested(vtype, list(value))
    if vtype == T.Boolean:
        return Kind.BOOL, int(value)
    if vtype in (T.Float, T.Double):
        return Kind.DOUBLE, struct.unpack("<Q", struct.pack("<d", value))[0]
    if vtype == T.UInt64:
        return Kind.UINT64, value
    if vtype == T.StatusCode:
        return Kind.INT64, value.value
    if isinstance(value, int):
        return Kind.INT64, value & BITS
    if vtype == T.DateTime:
        return Kind.INT64, microseconds(value) & BITS
    if vtype == T.ByteString:
        return Kind.BYTES, base64.b64encode(value).decode()
    text = plain(vtype, value)
    return (Kind.NULL, 0) if text is None else (Kind.TEXT, text)


def nested(vtype: ua.VariantType, items: list[object]) -> list[object]:
    return [nested(vtype, list(i)) if isinstance(i, list | tuple) else plain(vtype, i) for i in items]


def known(type_id: str, body: bytes) -> object:
    if type_id != "i=886":  # Range
        return None
    low, high = struct.unpack("<dd", body)
    return {"Low": plain(T.Double, low), "High": plain(T.Double, high)}


def same(kind: int, value: object, variant: ua.Variant) -> None:
    want_kind, want = expected(variant)
    assert kind == want_kind, (variant, value)
    if isinstance(value, str) and not isinstance(want, str):
        value = json.loads(value)
    if kind == Kind.DOUBLE and math.isnan(variant.Value):
        assert math.isnan(struct.unpack("<d", struct.pack("<Q", value))[0])
    else:
        assert value == want, variant


# ---- bytes as a server writes them, in the order of OPC 10000-6 5.2.2.17 (asyncua 2.1 writes picoseconds elsewhere) ----


def data_value(
    variant: bytes | None,
    status: int | None = None,
    source: int | None = None,
    pico: int | None = None,
    server: int | None = None,
    pico2: int | None = None,
) -> bytes:
    mask, body = 0, b""
    for bit, form, got in ((1, "", variant), (2, "<I", status), (4, "<q", source), (16, "<H", pico), (8, "<q", server), (32, "<H", pico2)):
        if got is not None:
            mask |= bit
            body += got if form == "" else struct.pack(form, got)
    return bytes([mask]) + body


def header(kind: int, result: int = 0) -> bytes:
    return struct.pack("<BBHqIIBi", 1, 0, kind, 0, 7, result, 0, 0) + b"\0\0\0"


def notification(items: list[bytes]) -> bytes:
    return struct.pack("<i", len(items)) + b"".join(struct.pack("<I", 100 + i) + item for i, item in enumerate(items)) + struct.pack("<i", 0)


def message(parts: list[tuple[int, bytes]], sequence: int = 5) -> bytes:
    data = b"".join(struct.pack("<BBHBi", 1, 0, kind, 1, len(body)) + body for kind, body in parts)
    return struct.pack("<Iqi", sequence, TICKS_1970 + 10**7, len(parts)) + data


def publish(parts: list[tuple[int, bytes]], more: bool = False, sequence: int = 5) -> bytes:
    return header(829) + struct.pack("<IiIII?", 77, 3, 3, 4, 5, more) + message(parts, sequence) + struct.pack("<iIi", 1, 0, 0)


def decode(items: list[bytes]) -> Items:
    return decode_message(parse_publish(publish([(811, notification(items))])).message, known)


# ---- against the oracle ----

VARIANTS = st.sampled_from(list(SCALARS)).flatmap(
    lambda t: st.one_of(
        st.builds(lambda v: ua.Variant(v, t), SCALARS[t]),
        st.builds(lambda v: ua.Variant(v, t, is_array=True), st.lists(SCALARS[t], max_size=5)),
        st.just(ua.Variant(None, t, is_array=True)),
    )
)


@settings(max_examples=1500, deadline=None)
@given(VARIANTS)
@example(ua.Variant(None, T.Null))
@example(ua.Variant([[1, 2, 3], [4, 5, 6]], T.Int16))
@example(ua.Variant([[["a"], ["b"]], [["c"], [None]]], T.String))
@example(ua.Variant([ua.Variant(1, T.Byte), ua.Variant("x", T.String)], T.Variant, is_array=True))
def test_every_built_in_type_scalar_array_and_null_equals_the_stock_decoder(variant: ua.Variant) -> None:
    data = variant_to_binary(variant)
    stock = variant_from_binary(Buffer(data))
    if stock.VariantType == T.Variant:
        stock.Value = [v.Value for v in stock.Value]
    reader = Reader(data, 0, len(data), known)
    got = read_value(reader)
    assert reader.at == len(data)
    same(got.kind, got.value, stock)


ITEMS = st.tuples(
    st.one_of(st.none(), VARIANTS),
    st.one_of(st.none(), ints(32, False)),
    st.one_of(st.none(), TIMES),
    st.one_of(st.none(), st.integers(0, 65535)),
    st.one_of(st.none(), TIMES),
    st.one_of(st.none(), st.integers(0, 65535)),
)


def ticks(moment: datetime.datetime | None) -> int | None:
    return None if moment is None else microseconds(moment) * 10 + TICKS_1970


def to_ns(moment: datetime.datetime | None) -> int:
    ns = NO_TIME if moment is None else microseconds(moment) * 1000
    return ns if abs(ns) < 2**63 - 10**3 else NO_TIME


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ITEMS, st.integers(1, 40)), max_size=6))
def test_whole_messages_in_runs_and_mixed(groups: list[tuple[tuple, int]]) -> None:
    """Each item stands 1 to 40 times in a row: single items, runs and everything between."""
    rows = [item for item, times in groups for _ in range(times)]
    wire = [data_value(None if v is None else variant_to_binary(v), s, ticks(t), p, ticks(t2), p2) for v, s, t, p, t2, p2 in rows]
    got = decode(wire)
    assert len(got) == len(rows)
    assert got.handle.tolist() == list(range(100, 100 + len(rows)))
    for i, (variant, status, source, pico, server, pico2) in enumerate(rows):
        kind, bits = int(got.kind[i]), int(got.values[i])
        value = got.texts[bits] if kind in (Kind.TEXT, Kind.BYTES) else bits
        same(kind, value, ua.Variant(None, T.Null) if variant is None else variant)
        assert got.quality[i] == (status or 0)
        overflow = ((status or 0) & 0x0C80) == 0x0480
        assert bool(got.flags[i] & Flag.OVERFLOW) == overflow
        first, tens = (source, pico) if to_ns(source) != NO_TIME else (server, pico2)
        want = to_ns(first)
        assert got.source_ns[i] == (want if want == NO_TIME else want + min(tens or 0, 9999) // 100)


def test_equals_the_stock_decoder_on_a_whole_response_without_picoseconds() -> None:
    moment = datetime.datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=datetime.UTC)
    response = ua.PublishResponse()
    response.Parameters.SubscriptionId = 9
    response.Parameters.NotificationMessage.SequenceNumber = 3
    kinds = [T.Double, T.Int32, T.Boolean, T.Float, T.UInt16, T.String]
    items = []
    for i in range(600):
        vtype = kinds[i // 30 % 6] if i < 300 else kinds[i % 6]
        value = {T.Boolean: bool(i % 2), T.String: f"t{i}"}.get(vtype, i)
        status = ua.StatusCode(0x40000000 if i % 7 == 0 else 0)
        one = ua.DataValue(ua.Variant(value, vtype), status, SourceTimestamp=moment, ServerTimestamp=moment)
        items.append(ua.MonitoredItemNotification(ClientHandle=i * 3, Value=one))
    response.Parameters.NotificationMessage.NotificationData = [ua.DataChangeNotification(MonitoredItems=items)]
    data = struct_to_binary(response)
    stock = struct_from_binary(ua.PublishResponse, Buffer(data)).Parameters
    ours = parse_publish(data)
    got = decode_message(ours.message)
    assert (ours.subscription, ours.message.sequence, ours.message.keep_alive) == (9, 3, False)
    oracle = stock.NotificationMessage.NotificationData[0].MonitoredItems
    assert len(got) == len(oracle) == 600
    for i, want in enumerate(oracle):
        kind, bits = int(got.kind[i]), int(got.values[i])
        same(kind, got.texts[bits] if kind == Kind.TEXT else bits, want.Value.Value)
        assert (got.handle[i], got.quality[i]) == (want.ClientHandle, want.Value.StatusCode.value)
        assert got.source_ns[i] == microseconds(want.Value.SourceTimestamp) * 1000


def test_picoseconds_stand_behind_their_own_time_as_the_specification_says() -> None:
    """asyncua 2.1 reads ServerTimestamp before SourcePicoseconds: these bytes give it the year 9999."""
    wire = data_value(b"\x0b" + struct.pack("<d", 1.5), None, TICKS_1970 + 10**7, 4321, TICKS_1970 + 2 * 10**7, 17)
    for count in (1, 40):
        got = decode([wire] * count)
        assert set(got.source_ns.tolist()) == {10**9 + 43}
        assert got.values.view(np.float64).tolist() == [1.5] * count


def test_hundred_nanosecond_ticks_survive() -> None:
    wire = data_value(b"\x01\x01", None, TICKS_1970 + 1_234_567)
    assert decode([wire]).source_ns.tolist() == [123_456_700]


def test_server_time_stands_in_where_the_source_gave_none_or_zero() -> None:
    number = b"\x06" + struct.pack("<i", 7)
    for count in (1, 40):
        got = decode([data_value(number, None, 0, None, TICKS_1970 + 10**7)] * count + [data_value(number)] * count)
        assert got.source_ns.tolist() == [10**9] * count + [NO_TIME] * count


def test_text_that_is_not_utf8_is_repaired_flagged_and_uncertain() -> None:
    latin = b"\x0c" + struct.pack("<i", 8) + b"Temp \xb0C!"
    got = decode([data_value(latin), data_value(latin, 0x80310000), data_value(b"\x8c" + struct.pack("<ii", 1, 8) + b"Temp \xb0C!")])
    assert got.texts == ("Temp \ufffdC!", "Temp \ufffdC!", '["Temp \ufffdC!"]')
    assert got.flags.tolist() == [Flag.TEXT_REPAIRED] * 3
    assert got.quality.tolist() == [UNCERTAIN, 0x80310000, UNCERTAIN]


@pytest.mark.parametrize("form", ["string", "bytes", "array", "nested"])
def test_long_values_are_cut_to_the_limit_and_flagged(form: str) -> None:
    if form == "string":
        body = b"\x0c" + struct.pack("<i", 300_000) + "é".encode() * 150_000
    elif form == "bytes":
        body = b"\x0f" + struct.pack("<i", 300_000) + b"\xff" * 300_000
    elif form == "array":
        body = b"\x83" + struct.pack("<i", 300_000) + b"\x07" * 300_000
    else:
        body = b"\x98" + struct.pack("<i", 60_000) + b"\x86\x02\0\0\0\x01\0\0\0\x02\0\0\0" * 60_000
    got = decode([data_value(body), data_value(b"\x01\x01")])
    assert got.flags.tolist() == [Flag.CUT, 0]
    assert limits.TEXT_BYTES_MAX - 4 < len(got.texts[0].encode()) <= limits.TEXT_BYTES_MAX
    assert got.values[1] == 1
    if form == "bytes":
        assert base64.b64decode(got.texts[0]) == b"\xff" * (limits.TEXT_BYTES_MAX // 4 * 3)


# ---- envelopes ----


def test_keep_alive_status_change_and_events() -> None:
    quiet = parse_publish(publish([]))
    assert (quiet.message.keep_alive, quiet.message.sequence, quiet.available, quiet.more) == (True, 5, (3, 4, 5), False)
    gone = parse_publish(publish([(820, struct.pack("<I", 0x800A0000) + b"\0")], more=True))
    assert (gone.message.status, gone.message.keep_alive, gone.more) == (0x800A0000, False, True)
    assert len(decode_message(gone.message)) == 0
    event = parse_publish(publish([(916, b"whatever")]))
    assert (event.message.changes, event.message.keep_alive) == ((), False)


def test_two_data_changes_in_one_message_are_one_table() -> None:
    one = notification([data_value(b"\x0c" + struct.pack("<i", 1) + b"a"), data_value(b"\x01\x01")])
    two = notification([data_value(b"\x0c" + struct.pack("<i", 1) + b"b")])
    got = decode_message(parse_publish(publish([(811, one), (811, two)])).message)
    assert [got.texts[int(got.values[i])] for i in (0, 2)] == ["a", "b"]


def test_republish_read_and_history() -> None:
    body = notification([data_value(b"\x01\x01")])
    assert len(decode_message(parse_republish(header(835) + message([(811, body)])))) == 1
    read = decode_read(header(634) + struct.pack("<i", 2) + data_value(b"\x01\x01") + data_value(None, 0x80340000) + struct.pack("<i", 0))
    assert (read.handle.tolist(), read.kind.tolist(), read.quality.tolist()) == ([0, 1], [Kind.BOOL, Kind.NULL], [0, 0x80340000])
    values = struct.pack("<i", 1) + data_value(b"\x01\x01", None, TICKS_1970)
    result = struct.pack("<Ii", 0, 2) + b"cp" + struct.pack("<BBHBi", 1, 0, 658, 1, len(values)) + values
    refused = struct.pack("<Ii", 0x80720000, -1) + b"\0\0\0"
    history = decode_history(header(667) + struct.pack("<i", 2) + result + refused + struct.pack("<i", 0))
    assert [(h.status, h.point, len(h.items)) for h in history] == [(0, b"cp", 1), (0x80720000, b"", 0)]


def test_bad_answers_are_faults_of_the_plant() -> None:
    with pytest.raises(ServiceFault) as fault:
        parse_publish(header(397, 0x80790000))
    assert fault.value.status == 0x80790000
    with pytest.raises(CorruptError):
        parse_publish(header(634) + struct.pack("<ii", 0, 0))


# ---- hostile bytes ----

GOOD = publish(
    [
        (
            811,
            notification(
                [data_value(b"\x0b" + struct.pack("<d", i), 0, 1, 2, 3, 4) for i in range(40)]
                + [data_value(b"\x8c" + struct.pack("<ii", 1, 1) + b"x")]
            ),
        )
    ]
)


def survive(data: bytes) -> None:
    try:
        decode_message(parse_publish(data).message, known)
    except (CorruptError, ServiceFault):
        pass


def test_every_truncation_is_a_typed_error() -> None:
    for cut in range(len(GOOD) - 4):  # the last field, diagnostics, is of no interest
        with pytest.raises((CorruptError, ServiceFault)):
            decode_message(parse_publish(GOOD[:cut]).message)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_raise_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, byte in changes:
        data[at] = byte
    survive(bytes(data))


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=60))
def test_noise_raises_nothing_else(noise: bytes) -> None:
    survive(publish([(811, noise)]))
    survive(header(829) + noise)
    try:
        decode_items(noise, 0, len(noise), 3, 4)
    except CorruptError:
        pass


@pytest.mark.parametrize("bomb", [b"\x98\x01\0\0\0", b"\x97\x01\0\0\0\x01"])
def test_deep_nesting_is_refused_without_recursion_errors(bomb: bytes) -> None:
    with pytest.raises(CorruptError, match="too deep"):
        decode([data_value(bomb * 100_000)])


@pytest.mark.parametrize("claim", [2**31 - 1, 10**6, -2])
def test_claimed_lengths_allocate_nothing(claim: int) -> None:
    for encoding in (0x0C, 0x0F, 0x8C, 0x8B, 0x86, 0x98, 0x96):
        survive(publish([(811, notification([data_value(bytes([encoding]) + struct.pack("<i", claim))]))]))
    for count in (claim, 4):
        survive(header(829) + struct.pack("<Ii", 1, count))
        survive(publish([(811, struct.pack("<i", claim))]))


def test_a_matrix_with_lying_dimensions_stays_flat() -> None:
    body = b"\xc6" + struct.pack("<iiii", 3, 1, 2, 3) + struct.pack("<iii", 2, 2**31 - 1, 2**31 - 1)
    got = decode([data_value(body)])
    assert got.texts == ("[1,2,3]",)


def test_a_variant_in_a_variant_is_its_value_and_others_of_the_message_do_not_pay_for_it() -> None:
    """The standard forbids it (OPC 10000-6, 5.2.2.16); asyncua's decoder takes it too."""
    inner = struct.pack("<Bi", 6, -5)
    got = decode([data_value(b"\x18\x18" + inner), data_value(b"\x18\x86" + struct.pack("<iii", 2, 1, 2)), data_value(inner)])
    assert [got.value(row) for row in range(3)] == [-5, "[1,2]", -5]
    with pytest.raises(CorruptError, match="too deep"):
        decode([data_value(b"\x18" * 100_000)])


def test_guid_text() -> None:
    unique = uuid.UUID("72962b91-fa75-4ae6-8d28-b404dc7daf63")
    data = variant_to_binary(ua.Variant(unique, T.Guid))
    assert read_value(Reader(data, 0, len(data))).value == str(unique)
