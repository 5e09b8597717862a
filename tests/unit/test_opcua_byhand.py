"""Fills by hand: orders that are none, and orders paid over kills, other gaps and servers of every temper: nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buffer.cut import Gaps, Pending, group
from buffer.notice import NoticeKind
from buffer.types import empty_columns
from gateway.collect.control import Control
from gateway.collect.opcua import fill as fill_module
from gateway.collect.opcua.byhand import NOT_BEGUN, Hand, by_hand, debts_by_hand, first_progress, split_progress
from gateway.collect.opcua.debt import Chunk, Debt, alike, pack_progress
from gateway.collect.opcua.feed import Feed
from gateway.collect.source import Batch, Gap, GapChange, GapStep
from gateway.errors import ConfigError
from gateway.fillorder import HOLES_MAX, FillOrder, encode_order, parse_order
from gateway.settings import SECOND
from tests.support.sinks import MemorySink
from tests.unit.test_opcua_fill import START, Server, Temper, gap, live, make_feed, values_of

GENERATION = "1-00000001"


def order_of(holes: dict[str, list[tuple[int, int]]], as_of_ns: int = 1) -> bytes:
    return encode_order("plc", "anna", (START, START + 60 * SECOND), (GENERATION, as_of_ns), holes)


def fresh(holes: dict[str, list[tuple[int, int]]], as_of_ns: int = 1) -> FillOrder:
    return dataclasses.replace(parse_order(order_of(holes, as_of_ns)), fresh=True)


# ---- the file ----


def test_an_order_reads_back_in_order_of_time() -> None:
    order = parse_order(order_of({"b": [(5, 9), (1, 4)], "a": [(3, 8)]}))
    assert [(hole.tag, hole.after_ns, hole.before_ns) for hole in order.holes] == [("b", 1, 4), ("a", 3, 8), ("b", 5, 9)]
    assert (order.tags, order.source, order.by, order.generation, order.as_of_ns, order.fresh) == (2, "plc", "anna", GENERATION, 1, False)
    assert order.id != parse_order(order_of({"b": [(5, 9)]})).id


GOOD = json.loads(order_of({"a": [(1, 2)]}))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an order"),
        (b"[]", "not an order"),
        (b"{" * 100_000, "not an order"),
        (json.dumps(GOOD | {"version": 2}).encode(), "another release"),
        (json.dumps(GOOD | {"holes": {"a": [[2, 1]]}}).encode(), "overlap"),
        (json.dumps(GOOD | {"holes": {"a": [[1, 5], [4, 9]]}}).encode(), "overlap"),
        (json.dumps(GOOD | {"holes": {"a": [[1, 2.5]]}}).encode(), "not a time"),
        (json.dumps(GOOD | {"holes": {"a": [[-1, 2]]}}).encode(), "not a time"),
        (json.dumps(GOOD | {"holes": {"a" * 65: [[1, 2]]}}).encode(), "too long"),
        (json.dumps(GOOD | {"holes": {"a": [[n, n + 1] for n in range(HOLES_MAX + 1)]}}).encode(), "50,001 holes"),
        (b" " * (8 << 20) + b"{}", "8 MiB"),
    ],
)
def test_what_is_no_order_is_refused_with_its_reason(data: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_order(data)


def test_control_reads_an_order_when_its_file_changes(tmp_path) -> None:
    control = Control(tmp_path, None, GENERATION)
    assert control.asked("plc") is None
    path = tmp_path / "fill" / "plc"
    path.parent.mkdir()
    path.write_bytes(order_of({"a": [(1, 2)]}))
    first = control.asked("plc")
    assert isinstance(first, FillOrder) and first.fresh
    assert control.asked("plc") is first, "an order of many holes is not parsed once a second"
    old = Control(tmp_path, None, "2-00000001").asked("plc")
    assert isinstance(old, FillOrder) and not old.fresh
    (tmp_path / "fill" / "other").write_bytes(path.read_bytes())
    assert control.asked("other") == "an order for 'plc', not for 'other'"
    path.unlink()
    assert control.asked("plc") is None


# ---- what is owed ----


def test_a_hole_ends_at_the_newest_live_reading_of_the_gap_s_opening_and_within_history_fill() -> None:
    order = fresh({"t1": [(10, 50), (60, 90)], "t2": [(10, 50)], "gone": [(1, 2)]})
    opened = dataclasses.replace(gap({1: 70, 2: 11}, {}), progress=first_progress(order))
    debts, unpaid = debts_by_hand(order, opened, {"t1": 1, "t2": 2}, {1: "a", 2: "b"}, 1000)
    assert (debts, unpaid) == ([Debt(1, "a", 10, 50, 1 + 1), Debt(1, "a", 60, 70, 4)], "")
    debts, unpaid = debts_by_hand(order, opened, {"t1": 1}, {1: "a"}, 20)
    assert (debts[0], unpaid) == (Debt(1, "a", 30, 50, 2), "older than history_fill")


def test_what_is_asked_together_is_of_much_the_same_time() -> None:
    hour, short = 3600 * SECOND, SECOND
    debts = [Debt(1, "a", 0, hour, 1), *(Debt(n, "b", 10 * hour, 10 * hour + short, n) for n in range(2, 7))]
    assert [[debt.place for debt in part] for part in alike(debts, 3)] == [[1], [2, 3, 4], [5, 6]]


def test_progress_tells_a_fill_by_hand_from_others() -> None:
    order = fresh({"a": [(1, 2)]})
    begun = Gap(1, 0, first_progress(order), {}, {})
    assert by_hand(begun) and split_progress(begun.progress) == (bytes.fromhex(order.id), b"")
    packed = pack_progress(Chunk([Debt(17, "a", 1, 9, 3)], 5), 2)
    assert not by_hand(Gap(1, 0, packed, {}, {}))
    assert split_progress(bytes.fromhex(order.id) + packed) == (bytes.fromhex(order.id), packed)


def test_a_gap_and_what_it_is_about_are_one_block() -> None:
    gaps = Gaps((), 7)
    change = GapChange(GapStep.OPEN, 0, 5, b"about")
    groups = group([Pending(empty_columns(), 1, None, change), Pending(empty_columns(), 1)], gaps)
    assert [(one.fill, [open_.id for open_ in one.gaps]) for one in groups] == [((7, b"about"), [7]), (None, [7])]


# ---- lives ----


def holes_of(sink: MemorySink, feed: Feed, longer_ns: int) -> dict[str, list[tuple[int, int]]]:
    """As gateway.fillplan: between neighbours that are held."""
    times: dict[int, list[int]] = {}
    for row in sink.rows(live=False):
        times.setdefault(row.tag, []).append(row.ts_source_ns)
    ids = {tag.number: tag.id for tag in feed.settings.tags}
    found = {}
    for number, held in times.items():
        held.sort()
        edges = [*held, START + 60 * SECOND]
        pairs = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b - a > longer_ns]
        if pairs:
            found[ids[number]] = pairs
    return found


async def life(sink: MemorySink, server: Server, order: FillOrder | None, tags: int) -> Feed:
    """One life of a collector beside an order; a kill forgets what was not committed."""
    feed = make_feed(sink, tags)
    feed.hand = Hand(lambda: order)
    with contextlib.suppress(asyncio.CancelledError):
        if not sink.known("plc").gaps:
            await feed.hand.begin(feed)
        for one in sorted(sink.known("plc").gaps, key=by_hand):
            made = fill_module._ByHand if by_hand(one) else fill_module._Fill
            await made(server, feed, one).pay()  # type: ignore[arg-type]
    sink.kill()
    return feed


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temper=st.builds(
        Temper, page=st.integers(1, 40), bounds=st.booleans(), twice=st.booleans(), points=st.booleans(),
        none_of=st.sampled_from([frozenset[int](), frozenset({16})]), refuses=st.sampled_from(["", "", "", "too many", "noise"]),
    ),
    kills=st.lists(st.integers(1, 6), max_size=4),
    size=st.integers(1, 4),
    another=st.booleans(),
)  # fmt: skip
def test_nothing_twice_and_filled_only_where_nothing_is_missing(seed: int, temper: Temper, kills: list[int], size: int, another: bool) -> None:
    rng = random.Random(seed)
    tags = 5
    held = {16 + n: values_of(30, rng) for n in range(tags)}
    server = Server({f"ns=1;s={number}": values for number, values in held.items()}, temper, size)
    sink = MemorySink(interval_s=0)
    cuts = {n: sorted(rng.sample(range(1, 27), 2)) for n in held}
    kept = {n: [one for at, one in enumerate(values) if at < cuts[n][0] or at >= cuts[n][1]] for n, values in held.items()}
    newest = {n: rng.randrange(27, 29) for n in held}
    live(sink, [(n, value, ts) for n, values in kept.items() for ts, value in values if ts <= held[n][newest[n]][0]])
    order = fresh(holes_of(sink, make_feed(sink, tags), SECOND // 20))

    async def lives() -> None:
        stale = dataclasses.replace(order, fresh=False)  # every start is another generation
        for at, kill in enumerate([*kills, -1]):
            server.kill_at = server.requests + kill if kill > 0 else -1
            await life(sink, server, stale if at else order, tags)
            if another and at == 0:  # a cut, in which readings are lost, and the live ones after it: as the fill by hand goes on
                sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.OPEN, from_ns=START)))
                live(sink, [(n, value, ts) for n, values in held.items() for ts, value in values[-1:]])
        server.kill_at = -1
        await life(sink, server, stale, tags)

    asyncio.run(lives())
    assert not sink.known("plc").gaps
    found = Counter((row.tag, row.ts_source_ns) for row in sink.rows(live=False))
    assert max(found.values()) == 1, f"twice: {[one for one, times in found.items() if times > 1]}"
    closed = [one for one in sink.told(NoticeKind.GAP) if one["event"] in ("filled", "unfillable")]
    wanted = {(n, ts) for n, values in held.items() for ts, _ in values[: newest[n] + 1]}
    if all(one["event"] == "filled" for one in closed):
        assert set(found) >= wanted, f"called filled, but missing: {wanted - set(found)}"
    if not temper.none_of and temper.refuses != "noise" and temper.page > 1 + temper.twice:
        assert {one["event"] for one in closed} == {"filled"}, closed


async def test_an_order_is_begun_once_and_only_while_it_is_true() -> None:
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START), (16, 2.0, START + 9 * SECOND)])
    server = Server({"ns=1;s=16": [(START, 1.0), (START + SECOND, 1.5), (START + 9 * SECOND, 2.0)]}, Temper(), 10)
    holes = {"t16": [(START, START + 9 * SECOND)]}
    feed = await life(sink, server, parse_order(order_of(holes)), 1)
    assert (feed.hand.result["state"], feed.hand.result["reason"], server.requests) == ("refused", NOT_BEGUN, 0), "of another generation"
    feed = await life(sink, server, fresh(holes, feed.runtime.monotonic_ns()), 1)
    assert (feed.hand.result["state"], feed.hand.result["readings"]) == ("filled", 1)
    asked = server.requests
    again = Hand(lambda: fresh(holes, feed.hand.history_ns))
    again.history_ns, again.result = feed.hand.history_ns, {}
    await again.begin(feed)
    assert (again.result["reason"], sink.known("plc").gaps) == (NOT_BEGUN, ()), "history was committed since"
    await feed.hand.begin(feed)
    assert not sink.known("plc").gaps, "an order that is done is not begun again"
    assert server.requests == asked


async def test_an_order_that_is_taken_back_ends_the_fill_and_a_bad_one_is_told_once() -> None:
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START), (16, 2.0, START + 9 * SECOND)])
    server = Server({"ns=1;s=16": []}, Temper(), 10)
    feed = make_feed(sink, 1)
    feed.hand = Hand(lambda: fresh({"t16": [(START, START + 9 * SECOND)]}))
    await feed.hand.begin(feed)
    assert by_hand(sink.known("plc").gaps[0])
    feed = await life(sink, server, None, 1)
    told = sink.told(NoticeKind.GAP)[-1]
    assert (told["event"], "taken back" in str(told["reason"]), server.requests, sink.known("plc").gaps) == ("unfillable", True, 0, ())
    feed.hand = Hand(lambda: "nonsense")
    await feed.hand.begin(feed)
    await feed.hand.begin(feed)
    assert [one["reason"] for one in sink.told(NoticeKind.OPERATOR) if one["event"] == "fill refused"] == ["nonsense"]


async def test_a_gap_that_the_ring_gave_up_is_not_shown_as_being_filled_for_ever() -> None:
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START), (16, 2.0, START + 9 * SECOND)])
    feed = make_feed(sink, 1)
    feed.hand = Hand(lambda: fresh({"t16": [(START, START + 9 * SECOND)]}))
    await feed.hand.begin(feed)
    sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.UNFILLABLE, sink.known("plc").gaps[0].id)))
    await feed.hand.begin(feed)
    assert (feed.hand.result["state"], "too many" in feed.hand.result["reason"]) == ("unfillable", True)
    assert not sink.known("plc").gaps


async def test_a_restart_opens_a_gap_of_its_own_beside_a_fill_by_hand() -> None:
    """The gap of a person's asking has no live reading after it and is no excuse: what was missed since must be owed."""
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START), (16, 2.0, START + 9 * SECOND)])
    feed = make_feed(sink, 1)
    feed.hand = Hand(lambda: fresh({"t16": [(START, START + 9 * SECOND)]}))
    await feed.hand.begin(feed)
    await make_feed(sink, 1).open_gap("a start")
    assert [by_hand(one) for one in sink.known("plc").gaps] == [True, False]
