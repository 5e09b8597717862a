"""Decoded items -> readings, and readings -> batches. Pure parts of the OPC UA source."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from buffer.types import BAD_NO_COMMUNICATION, BAD_NO_DATA, Flag, Kind
from gateway.collect.opcua.committer import WAITING_MESSAGES_MAX, Committer
from gateway.collect.opcua.decode import Items
from gateway.collect.opcua.readings import TagStates
from gateway.collect.source import Batch, Reading
from gateway.settings import SECOND, Clock, TagRow
from tests.support.sinks import MemorySink, rows_of

NOW = 1_700_000_000 * SECOND
CLOCK = Clock()


def bits(value: float) -> int:
    return int(np.float64(value).view(np.uint64))


def tag(number: int, **more: object) -> TagRow:
    return TagRow(f"t{number}", f"p/t{number}", "plc", f"ns=1;s={number}", number=number, **more)  # type: ignore[arg-type]


def doubles(*rows: tuple[int, float, int]) -> Items:
    """handle, value, source time."""
    n = len(rows)
    return Items(
        np.array([r[0] for r in rows], np.uint32),
        np.full(n, Kind.DOUBLE, np.uint8),
        np.array([bits(r[1]) for r in rows], np.uint64),
        np.zeros(n, np.uint32),
        np.zeros(n, np.uint16),
        np.array([r[2] for r in rows], np.int64),
        (),
    )


def texts(*rows: tuple[int, str, int]) -> Items:
    n = len(rows)
    return Items(
        np.array([r[0] for r in rows], np.uint32),
        np.full(n, Kind.TEXT, np.uint8),
        np.arange(n, dtype=np.uint64),
        np.zeros(n, np.uint32),
        np.zeros(n, np.uint16),
        np.array([r[2] for r in rows], np.int64),
        tuple(r[1] for r in rows),
    )


def known(value: float | str, ts: int, flags: int = 0) -> Reading:
    return Reading(ts, ts, Kind.TEXT, value, 0, flags) if isinstance(value, str) else Reading(ts, ts, Kind.DOUBLE, bits(value), 0, flags)


def take(states: TagStates, items: Items) -> list[tuple[int, object, int]]:
    columns = states.take(items, NOW, NOW - SECOND, True, CLOCK).columns
    return [(row.tag, row.value, row.flags) for row in rows_of(columns)]


def test_handles_are_tag_numbers_and_strangers_are_left_out() -> None:
    states = TagStates([tag(20), tag(17)], {})
    assert take(states, doubles((17, 1.0, NOW), (99, 2.0, NOW), (20, 3.0, NOW), (16, 4.0, NOW))) == [(17, 1.0, 0), (20, 3.0, 0)]


def test_a_first_value_equal_bit_for_bit_is_dropped_once() -> None:
    states = TagStates([tag(17), tag(18), tag(19)], {17: known(1.0, NOW), 18: known(1.0, NOW), 19: known("a", NOW)})
    assert take(states, doubles((17, 1.0, NOW), (18, 1.0, NOW + 1))) == [(18, 1.0, 0)], "another source time is another reading"
    assert take(states, texts((19, "a", NOW))) == []
    assert take(states, doubles((17, 1.0, NOW))) == [(17, 1.0, 0)], "only the first may be one we have"


def test_64_bits_that_would_mean_another_number_become_doubles() -> None:
    """What stores keep of an integer is its 64 bits; whether they have a sign stands in the tag table alone."""
    states = TagStates([tag(17), tag(18, type="UInt64"), tag(19, type="ULINT")], {})
    items = doubles(*((number, 0.0, NOW) for number in (17, 17, 17, 18, 18, 18, 19)))
    items.kind[:] = [Kind.UINT64, Kind.UINT64, Kind.INT64, Kind.UINT64, Kind.INT64, Kind.INT64, Kind.UINT64]
    items.values[:] = [2**64 - 3, 2**63 - 1, 2**64 - 3, 2**64 - 3, 2**64 - 3, 7, 2**63]
    columns = states.take(items, NOW, NOW - SECOND, True, CLOCK).columns
    assert [(Kind(int(kind)), int(value)) for kind, value in zip(columns.kind, columns.values, strict=True)] == [
        (Kind.DOUBLE, bits(2.0**64)),  # nobody said that this tag is UInt64
        (Kind.UINT64, 2**63 - 1),
        (Kind.INT64, 2**64 - 3),
        (Kind.UINT64, 2**64 - 3),
        (Kind.DOUBLE, bits(-3.0)),  # the table says UInt64, the server sends integers with a sign
        (Kind.INT64, 7),
        (Kind.UINT64, 2**63),
    ]


@pytest.mark.parametrize("change", ["value", "sign of zero", "quality"])
def test_anything_else_than_bit_for_bit_is_kept(change: str) -> None:
    states = TagStates([tag(17)], {17: known(0.0, NOW)})
    items = doubles((17, {"value": 2.0, "sign of zero": -0.0}.get(change, 0.0), NOW))
    if change == "quality":
        items.quality[0] = 0x40000000
    assert len(take(states, items)) == 1


def test_several_values_in_one_message_only_the_first_may_repeat() -> None:
    states = TagStates([tag(17)], {17: known(1.0, NOW)})
    assert [value for _, value, _ in take(states, doubles((17, 1.0, NOW), (17, 1.0, NOW), (17, 2.0, NOW)))] == [1.0, 2.0]


def test_after_a_cut_the_newest_reading_may_come_twice_behind_what_was_on_its_way() -> None:
    """node-opcua repeats each item's newest value when a session is activated; the message before it may still be on its way."""
    states = TagStates([tag(17)], {17: known(1.0, NOW)})
    states.resent = True
    take(states, doubles((17, 2.0, NOW + 1), (17, 3.0, NOW + 2)))
    assert take(states, doubles((17, 3.0, NOW + 2), (17, 4.0, NOW + 3))) == take(TagStates([tag(17)], {}), doubles((17, 4.0, NOW + 3)))
    assert len(take(states, doubles((17, 4.0, NOW + 4)))) == 1, "another time is another reading"
    states.resent = False
    assert len(take(states, doubles((17, 4.0, NOW + 4)))) == 1, "without a cut nothing is left out"


def test_where_a_marker_stands_the_same_value_comes_back() -> None:
    states = TagStates([tag(17)], {17: known(1.0, NOW, int(Flag.MARKER))})
    states.await_first([17])
    columns = states.take(doubles((17, 1.0, NOW)), NOW + 5, NOW - SECOND, True, CLOCK).columns
    (row,) = rows_of(columns)
    assert (row.value, row.ts_ns, row.ts_source_ns, row.flags) == (1.0, NOW + 5, NOW, Flag.INITIAL | Flag.REPEATED), "never twice at its own time"
    assert not states.marked.any()


def test_markers_once_per_tag_that_shows_a_value_and_repeat_brings_it_back() -> None:
    states = TagStates([tag(17), tag(18), tag(19)], {17: known(1.5, NOW), 19: known("run", NOW)})
    marks = list(rows_of(states.mark(BAD_NO_COMMUNICATION, NOW + 5)))
    assert [(row.tag, row.value, row.quality, row.flags, row.ts_ns) for row in marks] == [
        (17, None, BAD_NO_COMMUNICATION, Flag.MARKER, NOW + 5),
        (19, None, BAD_NO_COMMUNICATION, Flag.MARKER, NOW + 5),
    ]
    assert len(states.mark(BAD_NO_COMMUNICATION, NOW + 6)) == 0
    back = list(rows_of(states.repeat(states.marked.copy(), NOW + 9, True)))
    assert [(row.tag, row.value, row.flags, row.ts_ns, row.ts_source_ns) for row in back] == [
        (17, 1.5, Flag.REPEATED, NOW + 9, NOW),
        (19, "run", Flag.REPEATED, NOW + 9, NOW),
    ]
    assert not states.marked.any()


def test_heartbeat_is_due_for_tags_that_want_one_and_have_a_value() -> None:
    states = TagStates([tag(17, heartbeat_ns=SECOND), tag(18), tag(19, heartbeat_ns=SECOND)], {17: known(1.0, NOW), 18: known(1.0, NOW)})
    assert states.due(NOW + SECOND).tolist() == [True, False, False]
    assert states.due(NOW + SECOND - 1).tolist() == [False, False, False]


def test_scale_offset_and_bad_raw() -> None:
    states = TagStates([tag(17, scale=0.1, offset=-5.0), tag(18, bad_raw=("32768", "nan")), tag(19, bad_raw=("0x8000",))], {})
    got = states.take(doubles((17, 100.0, NOW), (18, 32768.0, NOW), (19, 32768.0, NOW), (18, 7.0, NOW)), NOW, NOW, True, CLOCK).columns
    assert [(row.value, row.quality) for row in rows_of(got)] == [(5.0, 0), (None, BAD_NO_DATA), (None, BAD_NO_DATA), (7.0, 0)]
    got = states.take(doubles((18, float("nan"), NOW)), NOW, NOW, True, CLOCK).columns
    assert [row.value for row in rows_of(got)] == [None]


def test_a_type_change_is_named() -> None:
    states = TagStates([tag(17)], {17: known("a", NOW)})
    taken = states.take(doubles((17, 1.0, NOW)), NOW, NOW, True, CLOCK)
    assert taken.retyped == {17: (Kind.TEXT, Kind.DOUBLE)}


def test_no_tags_no_values_nothing_breaks() -> None:
    states = TagStates([], {})
    assert take(states, doubles((17, 1.0, NOW))) == []
    assert len(states.mark(0, NOW)) == len(states.repeat(states.due(NOW), NOW, True)) == states.newest_ns == 0


# ---- back-pressure ----


async def test_fewer_requests_as_commits_pile_up_and_done_only_when_durable() -> None:
    sink = MemorySink(0.01, stalled=True)
    committer, done, ahead = Committer(sink), [], []
    columns = TagStates([tag(17)], {17: known(1.0, NOW)}).mark(0, NOW)
    for i in range(WAITING_MESSAGES_MAX):
        ahead.append(committer.publish_ahead())
        committer.submit(Batch("plc", columns, bytes([i])), lambda i=i: done.append(i))
    await asyncio.sleep(0.1)
    assert (ahead[0], committer.publish_ahead(), done) == (3, 0, [])
    assert ahead == sorted(ahead, reverse=True)
    sink.stalled = False
    await committer.drain(5)
    assert done == list(range(WAITING_MESSAGES_MAX))
    assert [batch.position for batch in sink.batches] == [bytes([i]) for i in range(WAITING_MESSAGES_MAX)]
    assert committer.publish_ahead() == 3


# ---- what history owes ----
