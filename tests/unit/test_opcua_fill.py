"""History fill against servers of every temper, killed anywhere: nothing twice, and "filled" only where nothing is missing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from buffer.errors import CorruptError
from buffer.notice import NoticeKind
from buffer.types import Kind, empty_columns
from gateway.collect.clock import NO_TIME, GatewayClock
from gateway.collect.opcua import fill as fill_module
from gateway.collect.opcua.answers import History, ServiceFault
from gateway.collect.opcua.debt import Chunk, Debt, debts_of, harvest, pack_progress, remaining
from gateway.collect.opcua.decode import Items
from gateway.collect.opcua.facts import Facts
from gateway.collect.opcua.feed import Feed
from gateway.collect.opcua.readings import TagStates
from gateway.collect.opcua.state import Subscription
from gateway.collect.source import Batch, Gap, GapChange, GapStep
from gateway.errors import PlantError
from gateway.runtime import real
from gateway.settings import SECOND, OpcuaSource
from tests.support.sinks import MemorySink
from tests.unit.test_opcua_readings import doubles, known, tag

START = 1_700_000_000 * SECOND
NO_BOUND = 0x80D7_0000
WRONG_CLOCK = "the source's clock is wrong for 1 tags: their history cannot be placed"


def history(*times: int, more: bool = False, status: int = 0) -> History:
    return History(status, b"point" if more else b"", doubles(*((0, float(t), t) for t in times)))


def gap(last: dict[int, int], first: dict[int, int]) -> Gap:
    return Gap(1, 0, b"", {n: known(1.0, ts) for n, ts in last.items()}, first)


CONVERT = TagStates([tag(17), tag(18)], {}).history


# ---- what is owed ----


def test_debts_lie_strictly_between_and_within_the_window() -> None:
    nodes = {17: "a", 18: "b", 19: "c"}
    debts, unpaid = debts_of(gap({17: 100, 18: 100, 20: 1}, {17: 200, 18: 101, 20: 50}), nodes, 1000)
    assert (debts, unpaid) == ([Debt(17, "a", 100, 200)], ""), "nothing fits between 100 and 101; tag 20 has no node"
    debts, unpaid = debts_of(gap({17: 100, 18: 1}, {17: 200, 18: 1}), nodes, 30)
    assert (debts, unpaid) == ([Debt(17, "a", 170, 200)], "older than history_fill")
    assert debts_of(gap({18: 1}, {18: 1}), nodes, 0) == ([], ""), "what never changed is owed nothing, however long ago"
    assert debts_of(gap({17: 200, 18: 100}, {17: 150, 18: 120}), nodes, 99) == ([Debt(18, "b", 100, 120)], WRONG_CLOCK)
    assert debts_of(gap({17: 5, 18: 100}, {17: 9, 18: 120}), nodes, 99, None, (90, 120)) == ([Debt(18, "b", 100, 120)], WRONG_CLOCK)
    assert debts_of(gap({17: 9, 18: 100}, {17: 9, 18: 121}), nodes, 99, None, (90, 120)) == ([], WRONG_CLOCK), "from the future; 17 is unchanged"
    assert debts_of(gap({17: 1, 18: 1}, {17: 9, 18: 9}), nodes, 99, {18})[0] == [Debt(18, "b", 1, 9)]


def test_both_ends_bounds_and_repetitions_are_left_out() -> None:
    one = history(100, 101, 101, 199, 200)
    one.items.quality[3] = NO_BOUND
    got = harvest(CONVERT, Chunk([Debt(17, "a", 100, 200)]), [one], NO_TIME, 99)
    assert (got.columns.ts_ns.tolist(), got.cursor_ns) == ([101], None)


@pytest.mark.parametrize("times", [(100, 100, 150), (150, 200, 200)], ids=["of our last reading", "of our first"])
@pytest.mark.parametrize("values", [(7.0, 8.0), (7.0, 7.0)], ids=["several values", "one value twice"])
def test_several_values_of_the_very_time_of_our_readings_leave_the_gap_unfilled(times: tuple[int, ...], values: tuple[float, float]) -> None:
    edge = iter(values)
    one = History(0, b"", doubles(*((0, 1.0 if time == 150 else next(edge), time) for time in times)))
    chunk = Chunk([Debt(17, "a", 100, 200)])
    got = harvest(CONVERT, chunk, [one], NO_TIME, 99)
    assert got.columns.ts_ns.tolist() == [150]
    assert chunk.unserved == ({17} if len(set(values)) > 1 else set()), "which of them came live nobody can tell"


def test_a_node_with_more_to_come_holds_back_the_others_and_nothing_comes_twice() -> None:
    chunk = Chunk([Debt(17, "a", 100, 200), Debt(18, "b", 100, 200)])
    first = harvest(CONVERT, chunk, [history(100, 120, 130, more=True), history(105, 150)], 90, 99)
    assert (first.columns.ts_ns.tolist(), first.cursor_ns) == ([120, 105], 130)
    second = harvest(CONVERT, chunk, [history(130, 140), history(150)], 130, 99)
    assert (second.columns.ts_ns.tolist(), second.cursor_ns) == ([130, 140, 150], None)
    assert (chunk.reached, chunk.unserved) == ({17}, set())


def test_as_many_as_were_asked_for_means_more_whatever_the_server_says() -> None:
    got = harvest(CONVERT, Chunk([Debt(17, "a", 100, 200)]), [history(100, 110, 120)], 90, 3)
    assert (got.columns.ts_ns.tolist(), got.cursor_ns) == ([110], 120)


def test_a_server_stuck_at_one_instant_does_not_hold_us_for_ever_and_is_not_believed() -> None:
    chunk, cursor = Chunk([Debt(17, "a", 100, 200)]), 150
    got = harvest(CONVERT, chunk, [history(150, 150, 150, more=True)], cursor, 3)
    assert (got.cursor_ns, chunk.unserved) == (151, {17})


@pytest.mark.parametrize("one", [history(120, 110, more=True), history(more=True)], ids=["not in order", "more of nothing"])
def test_what_cannot_be_paged_is_not_served(one: History) -> None:
    chunk = Chunk([Debt(17, "a", 100, 200)])
    harvest(CONVERT, chunk, [one], 90, 99)
    assert chunk.unserved == {17}


def test_bad_status_is_not_served_and_no_data_is_an_answer() -> None:
    chunk = Chunk([Debt(17, "a", 100, 200), Debt(18, "b", 100, 200)])
    got = harvest(CONVERT, chunk, [history(status=0x80720000), history(status=0x809B0000)], NO_TIME, 99)
    assert (chunk.unserved, len(got.columns), got.cursor_ns) == ({17}, 0, None)


def test_a_fill_goes_on_where_it_was_killed() -> None:
    debts = [Debt(n, str(n), 0, 100) for n in range(1, 8)]
    chunks, unserved = remaining(debts, b"", 3)
    assert ([[d.number for d in chunk.debts] for chunk in chunks], unserved) == ([[1, 2, 3], [4, 5, 6], [7]], 0)
    chunks, unserved = remaining(debts, pack_progress(Chunk(debts[3:6], 50), 2), 3)
    assert [([d.number for d in chunk.debts], chunk.cursor_ns) for chunk in chunks] == [([4, 5, 6], 50), ([7], NO_TIME)]
    assert unserved == 2
    chunks, _ = remaining(debts, pack_progress(Chunk(debts[3:6], 100), 0), 3)
    assert [[d.number for d in chunk.debts] for chunk in chunks] == [[7]], "a chunk that is complete is not asked again"


def test_a_chunk_goes_on_whole_so_that_a_second_kill_asks_for_none_of_it_again() -> None:
    debts = [Debt(16, "a", 0, 100), Debt(17, "b", 0, 50), Debt(18, "c", 0, 100)]
    (chunk, _), _ = remaining(debts, pack_progress(Chunk(debts[:2], 60), 0), 2)
    chunk.cursor_ns = 100
    chunks, _ = remaining(debts, pack_progress(chunk, 0), 2)
    assert [[d.number for d in chunk.debts] for chunk in chunks] == [[18]]


# ---- servers ----


@dataclasses.dataclass
class Temper:
    """How a server answers."""

    page: int = 5
    bounds: bool = False
    twice: bool = False
    disorder: bool = False
    points: bool = True
    begins: int = 0  # history before this value is gone
    none_of: frozenset[int] = frozenset()  # tags without history
    unsaid: bool = True  # AccessLevel says nothing about history
    refuses: str = ""  # "unsupported", "too many", "silent", "lost", "noise"


class Server:
    """Stands in for a session: `values` per node, of which `temper` decides what is shown."""

    def __init__(self, values: dict[str, list[tuple[int, float]]], temper: Temper, size: int) -> None:
        self.values, self.temper = values, temper
        self.facts = Facts((), 0, 0, {"MaxNodesPerHistoryReadData": size})
        self.requests = 0
        self.kill_at = -1

    async def read(self, nodes: Sequence[str], attribute: int) -> Items:
        items = doubles(*((0, 0.0, 0) for _ in nodes))
        items.kind[:] = Kind.NULL if self.temper.unsaid else Kind.INT64
        items.values[:] = [1 if self._number(node) in self.temper.none_of else 5 for node in nodes]
        return items

    def _number(self, node: str) -> int:
        return int(node.rpartition("=")[2])

    async def history(self, nodes: Sequence[str], from_ns: int, to_ns: int, most: int) -> list[History]:
        self.requests += 1
        if self.requests == self.kill_at:
            raise asyncio.CancelledError
        temper = self.temper
        if temper.refuses == "unsupported":
            raise ServiceFault(0x800B_0000, "HistoryRead")
        if temper.refuses == "too many" and len(nodes) > 2:
            raise ServiceFault(0x8010_0000, "HistoryRead")
        if temper.refuses == "silent":
            raise PlantError("no answer") from TimeoutError()
        if temper.refuses == "lost":
            raise PlantError("connection lost") from ConnectionError()
        if temper.refuses == "noise":
            raise CorruptError("noise")
        page = temper.page if temper.points else most  # who says nothing of more gives all that was asked for
        return [self._one(node, from_ns, to_ns, min(most, page)) for node in nodes]

    def _one(self, node: str, from_ns: int, to_ns: int, most: int) -> History:
        temper = self.temper
        if self._number(node) in temper.none_of:
            return history(status=0x8071_0000)
        held = [one for one in self.values[node] if one[0] >= temper.begins]
        inside = [one for one in held if from_ns <= one[0] < to_ns + 1000]
        if temper.twice:
            inside = [one for value in inside for one in (value, value)]
        shown, more = inside[:most], len(inside) > most
        if temper.disorder:
            shown = shown[::-1]
        rows = [(0, value, ts) for ts, value in shown]
        if temper.bounds and not more:
            rows += [(0, value, ts) for ts, value in held if ts >= to_ns + 1000][:1]
        return History(0, b"more" if more and temper.points else b"", doubles(*rows))


def values_of(count: int, rng: random.Random) -> list[tuple[int, float]]:
    times = sorted(rng.sample(range(1, 4 * count), count))
    return [(START + at * SECOND // 10, float(at)) for at in times]


def make_feed(sink: MemorySink, tags: int) -> Feed:
    runtime = real()
    rows = tuple(tag(16 + n) for n in range(tags))
    feed = Feed(OpcuaSource("plc", ("opc.tcp://127.0.0.1:1",), tags=rows), runtime, GatewayClock(START, 0, 0, 0), sink)
    feed.settled = True
    return feed


def live(sink: MemorySink, rows: list[tuple[int, float, int]]) -> None:
    items = doubles(*rows)
    states = TagStates([tag(number) for number in sorted({row[0] for row in rows})], {})
    columns = states.take(items, START, 0, False, OpcuaSource("x", ("y",)).clock).columns
    sink._apply(Batch("plc", columns))


async def attempt(sink: MemorySink, server: Server, tags: int) -> None:
    """One life of a collector with an open gap; a kill forgets what was not committed."""
    feed = make_feed(sink, tags)
    gaps = sink.known("plc").gaps
    if gaps:
        with contextlib.suppress(asyncio.CancelledError):
            await fill_module._Fill(server, feed, gaps[-1]).pay()  # type: ignore[arg-type]
    sink.kill()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temper=st.builds(
        Temper,
        page=st.integers(1, 40),
        bounds=st.booleans(),
        twice=st.booleans(),
        disorder=st.sampled_from([False, False, False, True]),
        points=st.booleans(),
        begins=st.sampled_from([0, 0, START + 2 * SECOND]),
        none_of=st.sampled_from([frozenset[int](), frozenset({16}), frozenset({16, 17, 18, 19, 20})]),
        unsaid=st.booleans(),
        refuses=st.sampled_from(["", "", "", "", "unsupported", "too many", "silent", "noise"]),
    ),
    kills=st.lists(st.integers(1, 6), max_size=3),
    size=st.integers(1, 4),
)
@example(seed=0, temper=Temper(page=23, unsaid=False), kills=[2, 3], size=2)
def test_nothing_twice_and_filled_only_where_nothing_is_missing(seed: int, temper: Temper, kills: list[int], size: int) -> None:
    rng = random.Random(seed)
    tags = 5
    held = {16 + n: values_of(30, rng) for n in range(tags)}
    server = Server({f"ns=1;s={number}": values for number, values in held.items()}, temper, size)
    sink = MemorySink(interval_s=0)
    before, after = {n: rng.randrange(0, 10) for n in held}, {n: rng.randrange(15, 30) for n in held}
    live(sink, [(n, value, ts) for n, values in held.items() for ts, value in values[: before[n] + 1]])
    sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.OPEN, from_ns=START)))
    live(sink, [(n, value, ts) for n, values in held.items() for ts, value in values[after[n] :]])

    async def lives() -> None:
        for kill in [*kills, -1]:
            server.kill_at = server.requests + kill if kill > 0 else -1
            await attempt(sink, server, tags)

    asyncio.run(lives())
    assert not sink.known("plc").gaps, "a debt that is neither paid nor given up"
    closed = sink.told(NoticeKind.GAP)[-1]
    assert closed["reason"]
    found = Counter((row.tag, row.ts_source_ns) for row in sink.rows(live=False))
    wanted = {(n, ts) for n, values in held.items() for ts, _ in values}
    assert set(found) <= wanted
    assert max(found.values()) == 1, f"twice: {[one for one, times in found.items() if times > 1]}"
    if closed["event"] == "filled":
        assert set(found) == wanted, f"called filled, but missing: {wanted - set(found)}"
    honest = not (temper.disorder or temper.begins or temper.none_of or temper.refuses not in ("", "too many"))
    if honest and temper.page > 1 + temper.twice:  # a page of one instant: asked again from there it is the same page
        assert closed["event"] == "filled", closed


async def test_a_source_that_lives_in_1970_has_no_history_in_the_ring() -> None:
    """Its live readings have the gateway's time; what it remembers has none but its own."""
    sink, old = MemorySink(interval_s=0), 600 * SECOND
    live(sink, [(16, 1.0, old)])
    sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.OPEN, from_ns=START)))
    live(sink, [(16, 3.0, old + 9 * SECOND)])
    server, feed = Server({"ns=1;s=16": [(old, 1.0), (old + SECOND, 2.0), (old + 9 * SECOND, 3.0)]}, Temper(), 10), make_feed(sink, 1)
    await fill_module._Fill(server, feed, sink.known("plc").gaps[0]).pay()  # type: ignore[arg-type]
    told = sink.told(NoticeKind.GAP)[-1]
    assert (told["event"], told["reason"], told["readings"], server.requests) == ("unfillable", WRONG_CLOCK, 0, 0)


async def test_a_tag_whose_source_lives_in_1970_has_no_other_asked_from_there_on() -> None:
    """Never more than history_fill is asked for, of no tag: what one chunk asks is asked of all its tags."""
    old, window = 600 * SECOND, 3600 * SECOND
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START), (17, 1.0, old), (18, 1.0, START)])
    sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.OPEN, from_ns=START)))
    live(sink, [(16, 2.0, START + 9 * SECOND), (17, 2.0, old + 9 * SECOND), (18, 2.0, START + 9 * SECOND)])
    server, feed = Server({f"ns=1;s={n}": [] for n in (16, 17, 18)}, Temper(), 10), make_feed(sink, 3)
    feed.settings = dataclasses.replace(feed.settings, history_fill_ns=window)
    feed.span = lambda gap: None  # type: ignore[method-assign]  # as where the gateway's clock is not trusted
    asked: list[int] = []
    ask = server.history

    async def history(nodes: Sequence[str], from_ns: int, to_ns: int, most: int) -> list[History]:
        asked.append(to_ns - from_ns)
        return await ask(nodes, from_ns, to_ns, most)

    server.history = history  # type: ignore[method-assign]
    await fill_module._Fill(server, feed, sink.known("plc").gaps[0]).pay()  # type: ignore[arg-type]
    assert asked
    assert max(asked) <= 2 * window, asked
    assert not sink.known("plc").gaps


async def test_a_server_that_dies_of_history_is_left_alone_after_a_few_times() -> None:
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START)])
    sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.OPEN, from_ns=START)))
    live(sink, [(16, 2.0, START + SECOND)])
    server, feed = Server({"ns=1;s=16": []}, Temper(refuses="lost"), 10), make_feed(sink, 1)
    for _ in range(fill_module.LOST_MAX):
        with pytest.raises(PlantError):
            await fill_module._Fill(server, feed, sink.known("plc").gaps[0]).pay()  # type: ignore[arg-type]
    await fill_module._Fill(server, feed, sink.known("plc").gaps[0]).pay()  # type: ignore[arg-type]
    assert not sink.known("plc").gaps
    assert (server.requests, sink.told(NoticeKind.GAP)[-1]["event"]) == (fill_module.LOST_MAX, "unfillable")


@pytest.mark.parametrize(
    ("facts", "window", "reason"),
    [
        ({"skew_ns": None}, 24 * 3600 * SECOND, "clock is wrong"),
        ({"skew_ns": 60 * SECOND}, 24 * 3600 * SECOND, "clock is wrong"),
        ({}, 0, "history_fill is 0"),
    ],
)
async def test_reasons_that_need_no_request(facts: dict[str, object], window: int, reason: str) -> None:
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START)])
    sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.OPEN, from_ns=START)))
    live(sink, [(16, 2.0, START + SECOND)])
    server, feed = Server({}, Temper(), 10), make_feed(sink, 1)
    server.facts = dataclasses.replace(server.facts, **facts)
    feed.settings = dataclasses.replace(feed.settings, history_fill_ns=window)
    await fill_module._Fill(server, feed, sink.known("plc").gaps[0]).pay()  # type: ignore[arg-type]
    told = sink.told(NoticeKind.GAP)[-1]
    assert (told["event"], reason in str(told["reason"]), server.requests) == ("unfillable", True, 0)
    assert not sink.known("plc").gaps


@pytest.mark.parametrize(("late", "refused", "before"), [(True, False, False), (False, True, False), (False, True, True)])
async def test_a_tag_without_a_value_after_the_gap_leaves_it_unfillable(late: bool, refused: bool, before: bool) -> None:
    """What it missed can be asked of nobody: not even where it ends is known. One that was refused before has missed nothing."""
    sink = MemorySink(interval_s=0)
    live(sink, [(16, 1.0, START), (17, 1.0, START)])
    server, feed = Server({"ns=1;s=16": [(START, 1.0), (START + SECOND, 2.0)]}, Temper(), 10), make_feed(sink, 2)
    sink._apply(Batch("plc", empty_columns(), None, GapChange(GapStep.OPEN, from_ns=START)))
    feed.refused_before = frozenset({17} if before else ())
    feed.begin(Subscription(1, "", "", 10.0, (17,) if refused else ()), 0)
    feed.states.await_first([17] if late else [])
    live(sink, [(16, 2.0, START + SECOND)])
    await fill_module._Fill(server, feed, sink.known("plc").gaps[0]).pay()  # type: ignore[arg-type]
    told = sink.told(NoticeKind.GAP)[-1]
    assert (told["event"], "no value after it" in str(told["reason"])) == (("filled", False) if before else ("unfillable", True))
