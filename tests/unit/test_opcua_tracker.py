"""Message numbers, the state file and addresses: pure rules of the OPC UA source."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer import limits
from gateway.collect.opcua.address import Address, parse_address
from gateway.collect.opcua.state import LOGIN_PAUSES_NS, SourceState, Subscription, parse_state
from gateway.collect.opcua.tracker import NUMBER_MAX, REPUBLISH_MAX, Tracker, distance, make_position, next_number, position_number
from gateway.errors import ConfigError

SECOND = 10**9


def test_numbers_wrap_to_one_and_never_are_zero() -> None:
    assert (next_number(1), next_number(NUMBER_MAX)) == (2, 1)
    assert (distance(NUMBER_MAX, 1), distance(1, NUMBER_MAX), distance(5, 9), distance(9, 5)) == (1, -1, 4, -4)


def test_in_order_nothing_is_missing() -> None:
    tracker = Tracker(0)
    for number in range(1, 5):
        verdict = tracker.arrived(number, (number,))
        assert (verdict.missing, verdict.duplicate) == ((), False)
        tracker.took(number)
    assert tracker.take_acknowledgements() == []


def test_a_gap_is_named_by_a_message_and_by_a_keep_alive() -> None:
    tracker = Tracker(7)
    assert tracker.arrived(11, (8, 9, 10, 11)).missing == (8, 9, 10)
    for number in (8, 9, 10, 11):
        tracker.took(number)
    assert tracker.arrived(14, ()).missing == (12, 13), "a keep-alive carries the next number"


def test_across_the_wrap() -> None:
    tracker = Tracker(NUMBER_MAX - 1)
    assert tracker.arrived(2, ()).missing == (NUMBER_MAX, 1)


def test_a_hole_larger_than_any_queue_is_not_asked_for_one_by_one() -> None:
    verdict = Tracker(0).arrived(5 * REPUBLISH_MAX, ())
    assert (len(verdict.missing), verdict.missing[-1], verdict.skipped) == (REPUBLISH_MAX, 5 * REPUBLISH_MAX - 1, 4 * REPUBLISH_MAX - 1)


def test_acknowledged_after_commit_only_and_once() -> None:
    tracker = Tracker(0)
    tracker.arrived(1, (1,))
    tracker.took(1)
    assert tracker.take_acknowledgements() == []
    tracker.committed(1)
    assert tracker.take_acknowledgements() == [1]
    assert tracker.take_acknowledgements() == []


def test_at_a_start_what_was_committed_is_acknowledged_and_dropped() -> None:
    tracker = Tracker(5)
    verdict = tracker.arrived(5, (3, 4, 5, 6))
    assert verdict.duplicate
    assert tracker.take_acknowledgements() == [3, 4, 5]
    tracker.arrived(6, (3, 4, 5, 6))
    assert tracker.take_acknowledgements() == [], "the server's list is believed once per connection"
    tracker.reconnected()
    tracker.arrived(6, (5, 6))
    assert tracker.take_acknowledgements() == [5]


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(0, 10))
def test_whatever_arrives_each_message_is_taken_once_and_in_order(numbers: list[int], last: int) -> None:
    tracker, taken = Tracker(last), []
    for number in numbers:
        verdict = tracker.arrived(number, ())
        for one in () if verdict.duplicate else (*verdict.missing, number):
            taken.append(one)
            tracker.took(one)
    assert taken == list(range(last + 1, last + 1 + len(taken)))


def test_positions() -> None:
    position = make_position("opc.tcp://10.0.0.1 17", 9, 12)
    assert len(position) <= limits.POSITION_BYTES_MAX
    assert position_number(position, "opc.tcp://10.0.0.1 17", 9) == 12
    for other in (None, b"", position + b"x", make_position("opc.tcp://10.0.0.1 18", 9, 12), make_position("opc.tcp://10.0.0.1 17", 8, 12)):
        assert position_number(other, "opc.tcp://10.0.0.1 17", 9) == 0


# ---- state file ----


def test_state_survives_its_file() -> None:
    state = SourceState({"token": "aa"}, {"opc.tcp://h:1": 5}, 2, 7, "s", Subscription(3, "id", "d", 10.0, (17, 19)), {"wall_ns": 1})
    assert parse_state(state.encode()) == state
    assert parse_state(SourceState().encode()) == SourceState()


@pytest.mark.parametrize("data", [None, b"", b"[]", b"{}", b"null", b'{"version": 2}', b"\xff", b'{"version": 1, "subscription": 3}', b"[" * 100_000])
def test_a_damaged_state_file_is_a_fresh_state(data: bytes | None) -> None:
    assert parse_state(data) == SourceState()


@pytest.mark.parametrize("change", [{"refused": "x"}, {"refused": -1}, {"load": []}, {"extra": 1}, {"subscription": {"id": -1}}, {"secret": 5}])
def test_a_state_file_of_wrong_types_is_a_fresh_state(change: dict[str, object]) -> None:
    body = json.loads(SourceState().encode()) | change
    assert parse_state(json.dumps(body).encode()) == SourceState()


def test_one_new_session_per_timeout_unless_the_last_is_known_to_be_gone() -> None:
    state, timeout, url = SourceState(), 60 * SECOND, "opc.tcp://h:1"
    assert state.wait_for_session_ns(1000 * SECOND, timeout, url) == 0
    state.session_asked(1000 * SECOND, url)
    restarted = parse_state(state.encode())
    assert restarted.wait_for_session_ns(1010 * SECOND, timeout, url) == 50 * SECOND
    assert restarted.wait_for_session_ns(1010 * SECOND, timeout, "opc.tcp://redundant:1") == 0
    assert restarted.wait_for_session_ns(1060 * SECOND, timeout, url) == 0
    restarted.gone(url)
    assert restarted.wait_for_session_ns(1010 * SECOND, timeout, url) == 0


def test_refused_logins_wait_longer_and_a_new_secret_is_tried_at_once() -> None:
    state, now = SourceState(), 10**15
    waits = []
    for _ in range(5):
        state.login_refused(now, "old")
        waits.append(parse_state(state.encode()).wait_for_login_ns(now, "old"))
    assert waits == [*LOGIN_PAUSES_NS, LOGIN_PAUSES_NS[-1], LOGIN_PAUSES_NS[-1]]
    assert [pause // (60 * SECOND) for pause in LOGIN_PAUSES_NS] == [15, 60, 360]
    assert state.wait_for_login_ns(now, "new") == 0
    assert state.wait_for_login_ns(now + LOGIN_PAUSES_NS[-1], "old") == 0
    state.login_refused(now, "new")
    assert state.refused == 1
    state.login_accepted()
    assert state.wait_for_login_ns(now, "new") == 0


# ---- addresses ----

ALIASES = {"s7": "http://www.siemens.com/simatic-s7-opcua"}
SPACES = ("http://opcfoundation.org/UA/", "urn:other", "http://www.siemens.com/simatic-s7-opcua")


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("ns=2;s=Press7.Temp", "ns=2;s=Press7.Temp"),
        ("i=2258", "i=2258"),
        ("ns=0;i=2258", "i=2258"),
        ("nsu=urn:other;s=a;b=c", "ns=1;s=a;b=c"),
        ('s7:"Press7"."State"', 'ns=2;s="Press7"."State"'),
        ("s7:i=42", "ns=2;i=42"),
        ("s7:s=plain", "ns=2;s=plain"),
        ("s7:i=4x", "ns=2;s=i=4x"),
        ("nsu=urn:nowhere;s=x", None),
    ],
)
def test_addresses(text: str, node: str | None) -> None:
    assert parse_address(text, ALIASES).node_id(SPACES) == node


@pytest.mark.parametrize(
    "text", ["", "Temp", "x:Temp", "ns=2;Temp", "ns=2;i=abc", "i=4294967296", "ns=2;g=12", "ns=2;b=$$", "ns=2;b=YQ", "ns=999999;s=x", "ns=65536;s=x", "ns=2;s="]
)
def test_wrong_addresses_say_what_is_wrong(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text, ALIASES)


def test_an_index_that_no_node_id_can_hold_is_no_index() -> None:
    spaces = tuple(f"urn:{k}" for k in range(65_537))
    assert parse_address("nsu=urn:65535;s=x", {}).node_id(spaces) == "ns=65535;s=x"
    assert parse_address("nsu=urn:65536;s=x", {}).node_id(spaces) is None


def test_address_without_namespace_is_namespace_zero() -> None:
    assert parse_address("s=Boot", {}) == Address(0, "s=Boot")
