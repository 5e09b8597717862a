"""Clock policy: which time a reading gets, and when a person is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.types import Flag
from gateway.collect.clock import EPISODE_QUIET_NS, NO_TIME, GatewayClock, SkewWatch, stamp
from gateway.settings import SECOND, Clock

NOW = 1_700_000_000 * SECOND
SOURCE = Clock("source", 5 * SECOND)


def times(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_a_fitting_source_time_stands_to_the_nanosecond() -> None:
    got = stamp(times(NOW - 300, NOW + 4 * SECOND), False, NOW, NOW - SECOND, True, SOURCE)
    assert got.ts_ns.tolist() == [NOW - 300, NOW + 4 * SECOND]
    assert got.ts_source_ns is None
    assert got.flags.tolist() == [0, 0]


def test_a_wrong_source_clock_is_replaced_flagged_and_kept() -> None:
    hour = 3600 * SECOND
    got = stamp(times(NOW + 2 * hour, NOW - hour, NOW), False, NOW, NOW, True, SOURCE)
    assert got.ts_ns.tolist() == [NOW, NOW, NOW]
    assert got.ts_source_ns is not None
    assert got.ts_source_ns.tolist() == [NOW + 2 * hour, NOW - hour, NOW]
    assert got.flags.tolist() == [Flag.TIME_SUBSTITUTED, Flag.TIME_SUBSTITUTED, 0]
    assert got.substituted == 2


@pytest.mark.parametrize("source", [-(2**63) + 1, 2**63 - 1])
def test_an_offset_of_centuries_has_the_right_sign(source: int) -> None:
    got = stamp(times(source), False, NOW, NOW, True, SOURCE)
    assert got.offset_ns == pytest.approx(source - NOW)


def test_what_waited_in_the_servers_queue_during_an_outage_is_old_and_right() -> None:
    outage = times(*(NOW - k * SECOND for k in range(600, 0, -60)))
    got = stamp(outage, False, NOW, NOW - 600 * SECOND, True, SOURCE)
    assert got.ts_ns.tolist() == outage.tolist()
    assert not got.substituted


def test_first_value_of_a_setpoint_three_weeks_old_gets_the_time_of_subscription() -> None:
    weeks = 21 * 86_400 * SECOND
    got = stamp(times(NOW - weeks, NOW - SECOND, NOW + weeks), True, NOW, NOW, True, SOURCE)
    assert got.ts_ns.tolist() == [NOW, NOW - SECOND, NOW]
    assert got.ts_source_ns is not None
    assert got.ts_source_ns.tolist() == [NOW - weeks, NOW - SECOND, NOW + weeks]
    assert got.flags.tolist() == [Flag.INITIAL, Flag.INITIAL, Flag.INITIAL | Flag.TIME_SUBSTITUTED]


def test_a_source_without_a_clock_gets_the_gateways_time() -> None:
    got = stamp(times(NO_TIME, NO_TIME), False, NOW, NOW, True, SOURCE)
    assert got.ts_ns.tolist() == [NOW, NOW]
    assert got.ts_source_ns is None
    assert got.flags.tolist() == [0, 0]


def test_use_gateway_keeps_what_the_source_said_unflagged() -> None:
    got = stamp(times(NOW - 9 * SECOND), False, NOW, NOW, True, Clock("gateway", 5 * SECOND))
    assert got.ts_ns.tolist() == [NOW]
    assert got.ts_source_ns is not None
    assert got.ts_source_ns.tolist() == [NOW - 9 * SECOND]
    assert got.flags.tolist() == [0]


def test_an_untrusted_gateway_clock_judges_nobody_and_says_so_where_it_was_used() -> None:
    got = stamp(times(NOW + 10**17, NO_TIME), False, NOW, NOW, False, SOURCE)
    assert got.ts_ns.tolist() == [NOW + 10**17, NOW]
    assert got.flags.tolist() == [0, Flag.CLOCK_UNTRUSTED]


@given(
    st.lists(st.one_of(st.just(NO_TIME), st.integers(-(2**62), 2**62)), max_size=20),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["source", "gateway"]),
)
def test_vectorised_equals_one_by_one(values: list[int], initial: bool, trusted: bool, use: str) -> None:
    policy = Clock(use, 5 * SECOND)
    whole = stamp(times(*values), initial, NOW, NOW - SECOND, trusted, policy)
    for i, value in enumerate(values):
        one = stamp(times(value), initial, NOW, NOW - SECOND, trusted, policy)
        assert (whole.ts_ns[i], whole.flags[i]) == (one.ts_ns[0], one.flags[0])
        said = whole.ts_ns if whole.ts_source_ns is None else whole.ts_source_ns
        assert said[i] == (one.ts_ns if one.ts_source_ns is None else one.ts_source_ns)[0]
        inside = NOW - 6 * SECOND <= value <= NOW + 5 * SECOND
        if use == "source" and value != NO_TIME and (inside or not trusted):
            assert whole.ts_ns[i] == value


def test_one_notice_when_an_episode_begins_and_one_when_it_ends() -> None:
    watch = SkewWatch()
    wrong = stamp(times(NOW + 7200 * SECOND), False, NOW, NOW, True, SOURCE)
    right = stamp(times(NOW), False, NOW, NOW, True, SOURCE)
    assert watch.update(right, NOW) is None
    began = watch.update(wrong, NOW)
    assert began is not None
    assert (began.began, began.offset_ns) == (True, 7200 * SECOND)
    assert watch.update(wrong, NOW + SECOND) is None
    assert watch.update(right, NOW + 2 * SECOND) is None
    ended = watch.update(right, NOW + SECOND + EPISODE_QUIET_NS)
    assert ended is not None
    assert (ended.began, ended.readings) == (False, 2)


def test_a_box_that_boots_in_1970_counts_on_from_the_newest_reading() -> None:
    clock = GatewayClock(wall_ns=50 * SECOND, monotonic_ns=7 * SECOND, release_ns=NOW - 10**16, newest_ns=NOW)
    assert not clock.trusted
    assert clock.now(55 * SECOND, 12 * SECOND) == NOW + 5 * SECOND
    assert clock.observe(60 * SECOND, 17 * SECOND, synchronised=False) is None
    event = clock.observe(NOW + 100 * SECOND, 20 * SECOND, synchronised=True)
    assert event is not None
    assert (event.event, event.offset_ns) == ("trusted", 87 * SECOND)
    assert clock.now(NOW + 101 * SECOND, 21 * SECOND) == NOW + 101 * SECOND


def test_steps_of_a_trusted_clock_are_reported_once() -> None:
    clock = GatewayClock(NOW, 0, NOW - 10**17, 0)
    assert clock.trusted
    assert clock.observe(NOW + SECOND, SECOND, False) is None
    event = clock.observe(NOW + 3602 * SECOND, 2 * SECOND, False)
    assert event is not None
    assert (event.event, event.offset_ns) == ("step", 3600 * SECOND)
    assert clock.observe(NOW + 3603 * SECOND, 3 * SECOND, False) is None
    back = clock.observe(SECOND, 4 * SECOND, False)
    assert back is not None
    assert back.event == "untrusted"
    assert clock.now(2 * SECOND, 5 * SECOND) == NOW + 3605 * SECOND


@pytest.mark.parametrize(
    ("what", "offset_s"),
    [
        ("factory date 2012", -(NOW // SECOND - 1_325_376_000)),
        ("1970", -(NOW // SECOND)),
        ("local time, ahead", 2 * 3600),
        ("local time, behind", -5 * 3600),
        ("far future", 50 * 365 * 86_400),
    ],
)
def test_a_source_whose_clock_is_set_wrong_shows_now_and_keeps_what_it_said(what: str, offset_s: int) -> None:
    said = np.array([NOW + offset_s * SECOND, NOW + offset_s * SECOND + 1000])
    got = stamp(said, False, NOW, NOW - SECOND, True, Clock())
    assert got.ts_ns.tolist() == [NOW, NOW], what
    assert got.ts_source_ns is not None
    assert got.ts_source_ns.tolist() == said.tolist()
    assert set(got.flags.tolist()) == {Flag.TIME_SUBSTITUTED}
    assert got.substituted == 2
    assert abs(got.offset_ns - offset_s * SECOND) < SECOND


def test_a_source_clock_that_steps_back_is_one_episode_and_right_again_afterwards() -> None:
    watch, seen = SkewWatch(), []
    for second in range(200):
        offset = -3600 * SECOND if 50 <= second < 100 else 0
        now = NOW + second * SECOND
        seen.append(watch.update(stamp(np.array([now + offset]), False, now, now - SECOND, True, Clock()), now))
    episodes = [one for one in seen if one]
    assert [one.began for one in episodes] == [True, False]
    assert episodes[1].readings == 50


def test_a_gateway_clock_that_steps_back_behind_the_release_is_not_believed_until_it_is_right() -> None:
    clock = GatewayClock(NOW, 0, NOW - SECOND, 0)
    assert clock.trusted
    event = clock.observe(1_325_376_000 * SECOND, 10 * SECOND, synchronised=False)
    assert event is not None
    assert (event.event, clock.trusted) == ("untrusted", False)
    assert clock.now(1_325_376_000 * SECOND, 20 * SECOND) == NOW + 20 * SECOND, "time goes on from what was known"
    event = clock.observe(NOW + 30 * SECOND, 30 * SECOND, synchronised=False)
    assert event is not None
    assert (event.event, clock.trusted) == ("trusted", True)
