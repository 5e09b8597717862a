"""Events as readings: the stock encoder's bytes read right, hostile ones refused with one typed error."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary
from hypothesis import given, settings
from hypothesis import strategies as st

from buffer.errors import CorruptError
from buffer.types import Flag, Kind
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.answers import decode_message, parse_publish
from gateway.collect.opcua.events import BASE_FIELDS, FIELDS, OVERFLOW_EVENT, is_event
from gateway.collect.opcua.readings import TagStates
from gateway.settings import Clock
from tests.unit.test_opcua_decode import publish
from tests.unit.test_opcua_readings import doubles, tag

WHEN = datetime(2026, 11, 26, 12, 0, 0, 123000, UTC)
WHEN_NS = int(WHEN.timestamp()) * 10**9 + 123_000_000
T = ua.VariantType


def event(handle: int, **more: object) -> ua.EventFieldList:
    said = {
        "type": ua.Variant(ua.NodeId(2782, 0), T.NodeId),
        "source": ua.Variant("Press7", T.String),
        "time": ua.Variant(WHEN, T.DateTime),
        "message": ua.Variant(ua.LocalizedText("Übertemperatur"), T.LocalizedText),
        "severity": ua.Variant(700, T.UInt16),
        **more,
    }
    return ua.EventFieldList(handle, [said.get(one.name, ua.Variant()) for one in FIELDS])


def body(*events: ua.EventFieldList) -> bytes:
    return struct_to_binary(ua.EventNotificationList(list(events)))


GOOD = publish([(916, body(event(40, active=ua.Variant(True, T.Boolean)), event(41, type=ua.Variant(ua.NodeId(3035, 0), T.NodeId))))])


def test_events_are_json_at_the_time_of_the_event() -> None:
    got = decode_message(parse_publish(GOOD).message)
    assert got.handle.tolist() == [40, 41]
    assert got.kind.tolist() == [Kind.TEXT, Kind.TEXT]
    assert got.source_ns.tolist() == [WHEN_NS, WHEN_NS]
    first = json.loads(got.texts[0])
    assert first == {"type": "i=2782", "source": "Press7", "message": "Übertemperatur", "severity": 700, "active": True}
    assert json.loads(got.texts[1])["type"] == OVERFLOW_EVENT
    assert got.flags.tolist() == [0, Flag.OVERFLOW]


def test_fewer_fields_more_fields_and_no_time() -> None:
    short = ua.EventFieldList(40, event(40).EventFields[: len(BASE_FIELDS)])
    long = ua.EventFieldList(40, [*event(40).EventFields, ua.Variant("more", T.String)])
    no_time = event(40, time=ua.Variant("noon", T.String))
    got = decode_message(parse_publish(publish([(916, body(short, long, no_time))])).message)
    assert len({got.texts[0], got.texts[1], got.texts[2]}) == 1
    assert got.source_ns.tolist() == [WHEN_NS, WHEN_NS, NO_TIME]


def test_each_event_stands_for_itself() -> None:
    states = TagStates([tag(40, type="alarm", heartbeat_ns=1), tag(41)], {})
    assert [is_event(one) for one in states.tags] == [True, False]
    items = decode_message(parse_publish(publish([(916, body(event(40), event(40)))])).message)
    states.await_first([40])
    taken = states.take(items, WHEN_NS, WHEN_NS - 10**9, True, Clock()).columns
    assert len(taken) == 2, "equal events are two events"
    assert not states.awaiting
    assert not states.due(WHEN_NS + 10**12).any()
    assert len(states.repeat(states.has.copy(), WHEN_NS, True)) == 0, "an alarm that is told again would be another alarm"
    assert len(states.take(doubles((40, 1.0, WHEN_NS)), WHEN_NS, WHEN_NS, True, Clock()).columns) == 0, "EventNotifier itself is no event"


def survive(data: bytes) -> None:
    try:
        decode_message(parse_publish(data).message)
    except CorruptError:
        pass


def test_every_truncation_is_a_typed_error() -> None:
    whole = body(event(40), event(41))
    for cut in range(len(whole)):
        with pytest.raises(CorruptError):
            decode_message(parse_publish(publish([(916, whole[:cut])])).message)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(body(event(40))) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_raise_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(body(event(40)))
    for at, byte in changes:
        data[at] = byte
    survive(publish([(916, bytes(data))]))


@pytest.mark.parametrize("claim", [2**31 - 1, 10**6, -2, 300])
def test_claimed_lengths_allocate_nothing(claim: int) -> None:
    survive(publish([(916, struct.pack("<i", claim))]))
    survive(publish([(916, struct.pack("<iIi", 1, 40, claim) + bytes(64))]))
