"""Lanes: what is live, how fast backfill may go, and when."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lanes import BURST_NS, LIVE_AGE_MAX_NS, LIVE_LATE_NS, LiveEdge, TokenBucket, backfill_slots, parse_window, window_open

SECOND = 10**9
GHENT = ZoneInfo("Europe/Brussels")


def at(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).timestamp()) * SECOND


def test_at_a_start_only_the_newest_block_is_live():
    edge = LiveEdge()
    assert edge.grew(7, 100, 0)
    assert (edge.first(0), edge.end) == (99, 100)


def test_blocks_seen_while_running_are_live_for_ten_seconds_and_then_backlog():
    edge = LiveEdge()
    edge.grew(7, 100, 0)
    for second in range(1, 30):
        assert edge.grew(7, 100 + second, second * SECOND)
    now = 29 * SECOND
    assert edge.first(now) == 129 - (LIVE_AGE_MAX_NS // SECOND) - 1
    assert edge.first(now + LIVE_AGE_MAX_NS + 1) == edge.end == 129


def test_a_generation_that_begins_while_running_is_live_from_its_first_block():
    edge = LiveEdge()
    edge.grew(7, 100, 0)
    edge.grew(9, 3, SECOND)
    assert (edge.generation, edge.first(SECOND), edge.end) == (9, 0, 3)
    assert not edge.grew(7, 200, SECOND), "an older generation grows no more"
    assert not edge.grew(9, 3, 2 * SECOND)


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=60), st.integers(10_000, 10**9))
def test_the_cap_holds_over_any_sequence_of_takes(sizes, rate):
    bucket, now, sent = TokenBucket(rate), 10**12, 0
    began = now
    for size in sizes:
        now += bucket.take(size, now)
        sent += size
        assert sent * 8 * SECOND <= rate * (now - began + BURST_NS) + 8 * SECOND


def test_no_cap_never_waits():
    assert TokenBucket(0).take(10**9, 0) == 0


def test_a_night_window_is_counted_in_the_time_zone_of_the_gateway():
    window = parse_window("22:00-05:30")
    assert window_open(window, GHENT, at("2026-01-10T22:30:00+01:00"))
    assert window_open(window, GHENT, at("2026-01-10T05:29:00+01:00"))
    assert not window_open(window, GHENT, at("2026-01-10T05:30:00+01:00"))
    assert not window_open(window, GHENT, at("2026-07-10T22:30:00+01:00") + 7 * 3600 * SECOND)
    assert window_open(window, GHENT, at("2026-07-10T20:00:00+00:00")), "summer time: 22:00 in Ghent"
    assert window_open(parse_window("always"), GHENT, 0)


@pytest.mark.parametrize("text", ["", "22-5", "25:00-01:00", "10:00-10:00", "10:00-11:60", "whenever"])
def test_what_is_not_a_window_says_what_to_write(text):
    with pytest.raises(ValueError, match="22:00-05:30"):
        parse_window(text)


def test_backfill_yields_to_a_late_live_request_but_lives():
    assert backfill_slots(4, None, 0) == 4
    assert backfill_slots(4, 0, LIVE_LATE_NS) == 4
    assert backfill_slots(4, 0, LIVE_LATE_NS + 1) == 1


def test_what_the_log_leaves_out_is_counted_in_the_next_line():
    import logging

    from gateway.runtime import Budget

    def said(message: str, at: float) -> logging.LogRecord:
        record = logging.LogRecord("a", logging.WARNING, "f", 1, message, (), None)
        record.created = at
        return record

    budget = Budget(per_minute=3)
    assert sum(budget.filter(said("x", 60.0)) for _ in range(10)) == 3
    assert budget.filter(said("y", 60.0))
    after = said("x", 120.0)
    assert budget.filter(after)
    assert after.data == {"left_out": 7}
    again = said("x", 121.0)
    assert budget.filter(again)
    assert not hasattr(again, "data")
