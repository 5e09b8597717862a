"""What is news, what a device refuses, and the life bit: the pure parts of a Modbus source."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.types import BAD_NO_COMMUNICATION, BAD_NO_DATA, BAD_OUT_OF_SERVICE, GOOD, Columns, Flag, Kind
from gateway.collect.modbus.change import Reported
from gateway.collect.modbus.decode import Values
from gateway.collect.modbus.group import Group, quality_of
from gateway.collect.modbus.holes import HOPELESS_NS, REST_NS, Holes, Verdict
from gateway.collect.modbus.life import LifeBit
from gateway.collect.modbus.plan import Block, Cuts, Rules, Span, Table, compile_tags
from gateway.collect.modbus.source import next_due
from gateway.collect.source import Reading
from gateway.settings import Alive, ModbusSource, TagRow

S = 10**9


def row(number: int = 16, **more: object) -> TagRow:
    return replace(TagRow(f"t{number}", "p", "m", "hr:0", "float64", number=number), **more)  # type: ignore[arg-type]


def bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def doubles(*values: float | None) -> Values:
    n = len(values)
    kind = [Kind.NULL if v is None else Kind.DOUBLE for v in values]
    raw = [0 if v is None else bits(v) for v in values]
    quality = [BAD_NO_DATA if v is None else GOOD for v in values]
    return Values(np.array(kind, np.uint8), np.array(raw, np.uint64), np.array(quality, np.uint32), np.zeros(n, np.uint16), ())


def text(value: str) -> Values:
    return Values(np.array([Kind.TEXT], np.uint8), np.zeros(1, np.uint64), np.zeros(1, np.uint32), np.zeros(1, np.uint16), (value,))


def take(reported: Reported, got: Values, ts: int = 0) -> Columns | None:
    n = len(got.kind)
    return reported.take(got, np.full(n, ts, np.int64), np.ones(n, np.bool_))


def test_first_then_only_changes() -> None:
    reported = Reported([row()], {})
    first = take(reported, doubles(1.0), 5)
    assert first is not None
    assert (first.tag[0], first.ts_ns[0], first.flags[0]) == (16, 5, Flag.INITIAL)
    assert take(reported, doubles(1.0), 6) is None
    changed = take(reported, doubles(math.nextafter(1.0, 2)), 7)
    assert changed is not None
    assert changed.flags[0] == 0
    assert take(reported, doubles(None), 8) is not None
    assert take(reported, doubles(None), 9) is None
    assert take(reported, doubles(math.nan), 10) is not None
    assert take(reported, doubles(math.nan), 11) is None


def test_first_value_equal_to_the_ring_bit_for_bit_is_dropped() -> None:
    known = {16: Reading(1, 1, Kind.DOUBLE, bits(-0.0), GOOD, Flag.INITIAL)}
    assert take(Reported([row()], known), doubles(-0.0)) is None
    assert take(Reported([row()], known), doubles(0.0)) is not None
    assert take(Reported([row(deadband=5.0)], known), doubles(1.0)) is not None  # no deadband against the ring
    after_marker = {16: replace(known[16], flags=int(Flag.MARKER))}
    assert take(Reported([row()], after_marker), doubles(-0.0)) is not None


def test_deadband_is_against_what_was_reported() -> None:
    reported = Reported([row(deadband=1.0)], {})
    kept = [value for value in (0.0, 0.6, 1.0, 1.4, 2.4, 2.3, math.inf, math.nan, 2.3) if take(reported, doubles(value)) is not None]
    assert str(kept) == "[0.0, 1.4, inf, nan, 2.3]"


def test_heartbeat_repeats_and_flags_it() -> None:
    reported = Reported([row(heartbeat_ns=10 * S, deadband=5.0)], {})
    take(reported, doubles(1.0), 0)
    assert take(reported, doubles(1.0), 9 * S) is None
    again = take(reported, doubles(1.0), 10 * S)
    assert again is not None
    assert (again.flags[0], again.ts_ns[0]) == (Flag.REPEATED, 10 * S)
    moved = take(reported, doubles(2.0), 20 * S)  # within the deadband, but what stands there now
    assert moved is not None
    assert (moved.flags[0], moved.values[0]) == (0, bits(2.0))
    assert take(reported, doubles(2.0), 29 * S) is None


def test_heartbeats_come_as_often_as_asked_though_polls_jitter_and_clocks_are_set_back() -> None:
    reported = Reported([row(heartbeat_ns=3 * S)], {})
    jitter = [0, 4, -3, 2, -1, 3, -4, 1, 0, -2]  # ms
    polls = [n * S + jitter[n % 10] * 1_000_000 for n in range(31)]
    assert sum(take(reported, doubles(1.0), ts) is not None for ts in polls) == 11
    assert take(reported, doubles(1.0), polls[-1] - 3_600 * S) is not None
    assert take(reported, doubles(1.0), polls[-1] - 3_599 * S) is None


def test_texts() -> None:
    reported = Reported([row(type="string(8)")], {16: Reading(1, 1, Kind.TEXT, "abc", GOOD, 0)})
    assert take(reported, text("abc")) is None
    got = take(reported, text("abd"))
    assert got is not None
    assert got.texts == ("abd",)
    assert take(reported, text("abd")) is None


def test_markers_once_per_outage_and_the_next_value_always() -> None:
    reported = Reported([row(16), row(17)], {})
    take(reported, doubles(1.0, 2.0))
    down = reported.mark(7, BAD_NO_COMMUNICATION)
    assert down is not None
    assert down.kind.tolist() == [Kind.NULL] * 2
    assert down.quality.tolist() == [BAD_NO_COMMUNICATION] * 2
    assert down.flags.tolist() == [Flag.MARKER] * 2
    assert reported.mark(8, BAD_NO_COMMUNICATION) is None
    paused = reported.mark(9, BAD_OUT_OF_SERVICE)
    assert paused is not None
    assert len(paused) == 2
    up = reported.take(doubles(1.0, 2.0), np.zeros(2, np.int64), np.array([True, False]))
    assert up is not None
    assert (up.tag.tolist(), up.flags.tolist()) == ([16], [Flag.INITIAL])
    again = reported.mark(10, BAD_OUT_OF_SERVICE)
    assert again is not None
    assert again.tag.tolist() == [16]  # 17 was marked so already, and no value came since


values = st.sampled_from([0.0, -0.0, 1.0, 1.5, 3.0, math.nan, math.inf, None])


@given(st.lists(values, max_size=30), st.sampled_from([0.0, 1.0]), st.sampled_from([0, 3]))
def test_against_a_plain_model(stream: list[float | None], deadband: float, heartbeat: int) -> None:
    """What is kept is what a person would write down, one tag at a time."""
    reported = Reported([row(deadband=deadband, heartbeat_ns=heartbeat, every_ns=1)], {})
    last: tuple[float | None, int] | None = None
    for ts, value in enumerate(stream):
        if last is None or (value is None) != (last[0] is None):
            news = True
        elif value is None or last[0] is None or bits(value) == bits(last[0]):
            news = False
        else:
            news = not (deadband > 0 and ts > 0 and abs(value - last[0]) <= deadband)
        news = news or (last is not None and heartbeat > 0 and ts - last[1] >= heartbeat)
        assert (take(reported, doubles(value), ts) is not None) == news
        if news:
            last = (value, ts)


# ---- holes ----


def block(*spans: tuple[int, int]) -> Block:
    values = tuple(Span(Table.HOLDING, a, b) for a, b in spans)
    return Block(Span(Table.HOLDING, values[0].first, max(v.end for v in values)), values)


def test_a_single_value_rests_ever_longer_and_comes_back() -> None:
    holes, one = Holes(Cuts()), block((5, 6))
    now = 0
    for step in (0, 1, 2, 2):
        assert holes.order([one], now) == [0]
        assert holes.refused(one, now) is (Verdict.RESTS if now == 0 else Verdict.STILL_RESTS)
        assert holes.order([one], now + REST_NS[step] - 1) == []
        now += REST_NS[step]
    assert holes.accepted(one)
    assert not holes.accepted(one)
    assert holes.order([one], 0) == [0]


def test_a_silent_block_is_tolerated_once_asked_last_and_then_split() -> None:
    holes, two, other = Holes(Cuts()), block((5, 6), (6, 7)), block((9, 10))
    assert holes.silent(two, 0) is Verdict.BAD
    assert not holes.proven(two)
    assert holes.order([two, other], 0) == [1, 0]
    assert holes.silent(two, 0) is Verdict.SPLIT
    assert holes.again
    assert len(holes.cuts) == 1
    holes.order([], 0)
    assert not holes.again


def test_a_device_that_refuses_everything_teaches_nothing() -> None:
    holes, whole = Holes(Cuts()), block((5, 6), (6, 7), (7, 8), (8, 9))
    for part in (whole, block((5, 6), (6, 7)), block((7, 8), (8, 9))):
        assert holes.refused(part, 0) is Verdict.SPLIT
    assert len(holes.cuts) == 3
    for half in (block((5, 6)), block((6, 7)), block((7, 8)), block((8, 9))):
        assert holes.refused(half, 0) is Verdict.RESTS
    assert not holes.finish(good_blocks=0, refused_all=False)  # some were silent: the search goes on
    assert holes.finish(good_blocks=0, refused_all=True)
    assert len(holes.cuts) == 0
    holes.rest_all([whole], 0)
    assert holes.order([whole], REST_NS[0] - 1) == []
    assert holes.refused(whole, REST_NS[0]) is Verdict.STILL_RESTS  # as it is: no search every minute
    assert holes.refused(whole, HOPELESS_NS) is Verdict.SPLIT
    assert not holes.finish(good_blocks=1, refused_all=False)
    assert len(holes.cuts) == 1


def test_after_an_outage_what_rested_is_tried() -> None:
    holes, one = Holes(Cuts()), block((5, 6))
    holes.refused(one, 0)
    assert holes.order([one], 1) == []
    holes.wake(1)
    assert holes.order([one], 1) == [0]


# ---- group, life, schedule ----


def group(*tags: TagRow) -> Group:
    points, findings = compile_tags(ModbusSource("m", "modbus-tcp", "127.0.0.1:1", tags=tags))
    assert not findings
    one = Group(S, points, {})
    one.replan(Rules(), Cuts())
    return one


def test_a_failed_block_is_bad_for_its_own_tags_only() -> None:
    two = group(row(16, address="hr:0", type="uint16"), row(17, address="hr:9", type="uint16"), row(18, address="co:3", type=""))
    assert [str(b.span) for b in two.blocks] == ["co:3", "hr:0", "hr:9"]
    poll = two.begin()
    poll.put(0, bytes([1, 1, 1]), 5)
    poll.fail(1, BAD_OUT_OF_SERVICE, 6)
    poll.put(2, bytes([3, 2, 0, 77]), 7)
    got = two.finish(poll, two.decode(poll), 0)
    assert got is not None
    assert got.tag.tolist() == [18, 16, 17]
    assert got.ts_ns.tolist() == [5, 6, 7]
    assert got.kind.tolist() == [Kind.BOOL, Kind.NULL, Kind.INT64]
    assert got.quality.tolist() == [GOOD, BAD_OUT_OF_SERVICE, GOOD]
    assert got.values.tolist() == [1, 0, 77]
    with pytest.raises(ValueError, match="2"):
        poll.put(2, bytes([3, 4, 0, 1, 0, 2]), 8)


def test_status_codes_are_those_of_the_standard() -> None:
    from asyncua import ua

    from gateway.collect.modbus import group as names
    from gateway.collect.modbus.decode import BAD_DECODING
    from gateway.collect.modbus.frame import BadAnswer, NoAnswer, Refused

    want = {
        1: ua.StatusCodes.BadNotSupported,
        2: ua.StatusCodes.BadConfigurationError,
        3: ua.StatusCodes.BadOutOfRange,
        4: ua.StatusCodes.BadDeviceFailure,
        5: ua.StatusCodes.BadResourceUnavailable,
        6: ua.StatusCodes.BadResourceUnavailable,
        8: ua.StatusCodes.BadDeviceFailure,
        10: ua.StatusCodes.BadNotConnected,
        11: ua.StatusCodes.BadNoCommunication,
        99: ua.StatusCodes.BadDeviceFailure,
    }
    assert {code: quality_of(Refused(code)) for code in want} == want
    assert quality_of(NoAnswer("")) == ua.StatusCodes.BadTimeout
    assert quality_of(BadAnswer("")) == ua.StatusCodes.BadCommunicationError == names.BAD_COMMUNICATION_ERROR
    assert ua.StatusCodes.BadDecodingError == BAD_DECODING
    assert ua.StatusCodes.BadNoData == BAD_NO_DATA
    assert ua.StatusCodes.BadOutOfService == BAD_OUT_OF_SERVICE
    assert ua.StatusCodes.BadNoCommunication == BAD_NO_COMMUNICATION


def test_a_life_bit_that_stands_still_is_noticed_once_and_cleared_when_it_moves() -> None:
    one = group(row(16, address="hr:0", type="uint16"))
    life = LifeBit(Alive("t16", 10))
    life.restart(0)

    def look(value: int | None, now: int) -> bool:
        poll = one.begin()
        if value is None:
            poll.fail(0, BAD_OUT_OF_SERVICE, now)
        else:
            poll.put(0, bytes([3, 2, 0, value]), now)
        return life.look(one, poll, one.decode(poll), now)

    seen = [(look(value, now), life.frozen) for now, value in ((1, 5), (8, 6), (18, 6), (19, 6), (25, 6), (26, None), (30, 7), (31, 7))]
    assert seen == [(False, False)] * 3 + [(True, True), (False, True), (False, True), (True, False), (False, False)]


def test_schedule_keeps_its_grid_and_counts_what_it_passed_over() -> None:
    assert next_due(100, 10, 95) == (110, 0)
    assert next_due(100, 10, 103) == (110, 0)
    assert next_due(100, 10, 109) == (110, 0)
    assert next_due(100, 10, 110) == (120, 1)
    assert next_due(100, 10, 137) == (140, 3)
