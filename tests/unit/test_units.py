"""Times, sizes and rates as people write them."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.units import DURATION_NS_MAX, format_duration, parse_duration_ns, parse_moment, parse_rate_bps, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("500ms", 500 * 10**6),
        ("1 s", 10**9),
        ("0.5 s", 5 * 10**8),
        ("10min", 600 * 10**9),
        ("1h", 3600 * 10**9),
        ("30 d", 30 * 86400 * 10**9),
        ("0", 0),
        (" 2 S ", 2 * 10**9),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration_ns(text) == ns


REFUSED = ["", "5", "5 m", "-1 s", "1,5 s", "1e3 s", "s", "1 s 2", "0.3 ns", "99999 d", "x s", "1 month", "\u0661 s", "9" * 40 + " s"]


@pytest.mark.parametrize("text", REFUSED)
def test_refused_durations(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        parse_duration_ns(text)


@given(st.integers(0, DURATION_NS_MAX))
def test_format_round_trip(ns: int) -> None:
    assert parse_duration_ns(format_duration(ns)) == ns


def test_sizes() -> None:
    assert parse_size_bytes("25 GB") == 25 * 10**9
    assert parse_size_bytes("64KiB") == 65536
    assert parse_size_bytes("1000000") == 10**6
    assert parse_size_bytes("1000000.0") == 10**6
    assert parse_size_bytes("7 B") == 7
    for bad in ("25 Gbit", "GB", "25 G", "1.5 B", "-1", "9999999 TB", "25 GB GB"):
        with pytest.raises(ValueError, match="'"):
            parse_size_bytes(bad)


def test_rates() -> None:
    assert parse_rate_bps("5 Mbit/s") == 5_000_000
    assert parse_rate_bps("64 kbit/s") == 64_000
    assert parse_rate_bps("1 MB/s") == 8_000_000
    assert parse_rate_bps("5 Mbps") == 5_000_000
    for bad in ("5", "5 M", "5 MB", "5 Mb/s", "5 Mbit", "2 Tbit/s", "x Mbit/s"):
        with pytest.raises(ValueError, match="'"):
            parse_rate_bps(bad)


@pytest.mark.parametrize("text", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00", "yesterday", "2026-13-01", ""])
def test_a_moment_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="is not a time"):
        parse_moment(text)


def test_moments_are_utc_unless_an_offset_says_otherwise():
    assert parse_moment("2026-03-29T02:30+02:00") == parse_moment("2026-03-29T00:30") == dt.datetime(2026, 3, 29, 0, 30, tzinfo=dt.UTC)
