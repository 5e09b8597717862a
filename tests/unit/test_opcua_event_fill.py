"""Events from history: outages, kills and servers of every temper, with many events of one time: nothing twice, "filled" only where nothing is missing."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import random
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
from asyncua import ua
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from buffer.notice import NoticeKind
from buffer.types import Columns, Flag, Kind
from gateway.collect.clock import NO_TIME, GatewayClock
from gateway.collect.opcua import eventdebt
from gateway.collect.opcua import fill as fill_module
from gateway.collect.opcua.active import Condition
from gateway.collect.opcua.answers import History, ServiceFault, parse_publish
from gateway.collect.opcua.decode import Items
from gateway.collect.opcua.eventdebt import EDGE_NS, LATE_NS, Head, Owed, Seen, Times, event_debts, first_progress, split_progress
from gateway.collect.opcua.facts import Facts
from gateway.collect.opcua.feed import Feed
from gateway.collect.opcua.items import EVENT_NOTIFIER, Wish
from gateway.collect.opcua.state import Subscription
from gateway.collect.source import Gap
from gateway.runtime import real
from gateway.settings import SECOND, OpcuaSource, TagRow
from tests.support.sinks import MemorySink
from tests.unit.test_opcua_decode import publish
from tests.unit.test_opcua_events import T, body, event
from tests.unit.test_opcua_readings import doubles, known, texts

START = 1_700_000_000 * SECOND
DAY = 86_400 * SECOND
SKEW = -3 * SECOND  # the server's clock minus ours
TAGS = (
    TagRow("all", "p/all", "plc", "i=2253", type="event", number=40),
    TagRow("alarms", "p/alarms", "plc", "i=2253", type="alarm", number=41),
    TagRow("line", "p/line", "plc", "ns=1;s=line", type="event", number=42),
)
WISH = Wish(40, "i=2253", 0, 1, 0, ())


def text(one: str, **more: object) -> str:
    return json.dumps({"id": one, "type": "i=2041", **more}, separators=(",", ":"))


def gap(last: dict[int, tuple[str, int]], first: dict[int, int], from_ns: int = 0) -> Gap:
    return Gap(1, from_ns, b"", {number: known(text(one), ts) for number, (one, ts) in last.items()}, first)


def span(debts: list[eventdebt.Debt]) -> list[tuple[int, int, int]]:
    return [(debt.number, debt.after_ns, debt.before_ns) for debt in debts]


# ---- the edges ----


def test_both_edges_are_included_and_what_is_settled_is_not() -> None:
    wishes = {40: WISH}
    times = Times(level_ns=0, until_ns=900, window_ns=DAY)
    debts, clipped = event_debts(gap({40: ("a", 100)}, {40: 200}), Head(NO_TIME), wishes, times)
    assert (span(debts), clipped) == ([(40, 99, 201)], False)
    assert span(event_debts(gap({40: ("a", 100)}, {}), Head(NO_TIME), wishes, times)[0]) == [(40, 99, 901)], "a quiet notifier ends where we lived"
    assert span(event_debts(gap({40: ("a", 100)}, {}), Head(500), wishes, times)[0]) == [(40, 500, 901)], "a fill before this gap came so far"
    assert span(event_debts(gap({40: ("a", 100)}, {40: 100}), Head(NO_TIME), wishes, times)[0]) == [(40, 99, 101)], "others of that time"
    assert event_debts(gap({40: ("a", 100)}, {40: 100}), Head(100), wishes, times)[0] == []
    assert event_debts(gap({}, {}), Head(NO_TIME), wishes, times)[0] == [], "nothing is owed from before the first subscription"
    assert span(event_debts(gap({}, {}), Head(500), wishes, times)[0]) == [(40, 500, 901)]
    assert span(event_debts(gap({}, {40: 600}), Head(500), wishes, times)[0]) == [(40, 500, 601)]
    assert event_debts(gap({}, {40: 0}), Head(500), wishes, times)[0] == [], "a newer gap owes it all"


def test_the_window_leaves_out_only_what_may_be_missing() -> None:
    times = Times(0, 900 * SECOND, 100 * SECOND)
    old = {40: ("a", 10 * SECOND)}
    assert event_debts(gap(old, {}), Head(NO_TIME), {40: WISH}, times)[1], "away for longer than history_fill"
    debts, clipped = event_debts(gap(old, {}), Head(NO_TIME), {40: WISH}, times._replace(level_ns=850 * SECOND))
    assert not clipped, "a notifier that was quiet for long, and away for a short time"
    assert (debts[0].after_ns, debts[0].shown_ns) == (800 * SECOND, 10 * SECOND)


def test_an_event_at_an_edge_is_told_apart_by_its_id_where_it_is_known() -> None:
    items = texts((0, text("before"), 100), (0, text("last"), 100), (0, text("new"), 150), (0, text("first"), 200), (0, text("other"), 200))
    one = gap({40: ("last", 100)}, {40: 200})
    debts, _ = event_debts(one, Head(NO_TIME), {40: WISH}, Times(0, 900, DAY))
    seen = Seen({})
    feed_columns(seen, texts((40, text("before"), 100), (40, text("last"), 100), (40, text("first"), 200)))
    owed = Owed(one, seen)
    assert (owed.choose(debts[0], items, rows(items)).tolist(), owed.doubtful) == ([2, 4], 0)
    after_a_kill = Owed(one, Seen({40: known(text("first"), 200)}))
    assert after_a_kill.choose(debts[0], items, rows(items)).tolist() == [2]
    assert after_a_kill.doubtful == 2, "one beside the last event, whose id the gap keeps, and one of the two beside the first"


def test_servers_that_ignore_the_where_clause_are_told_apart() -> None:
    items = texts((0, text("a"), 1), (0, text("b", condition="High", retain=True), 2), (0, text("c")[:-3], 3))
    wish = dataclasses.replace(WISH, conditions=True)
    one = gap({}, {})
    (debt,), _ = event_debts(one, Head(0), {40: wish}, Times(0, 900, DAY))
    assert Owed(one, Seen({})).choose(debt, items, rows(items)).tolist() == [1, 2]


def test_ids_are_forgotten_from_the_oldest_on_and_it_is_known_from_when() -> None:
    seen = Seen({})
    for begin in range(0, eventdebt.SEEN_MAX + 10, 1000):
        feed_columns(seen, texts(*((40, text(str(n)), n) for n in range(begin, begin + 1000))))
    assert not seen.has(40, "5")
    assert not seen.all_of(40, 5)
    assert seen.has(40, str(begin))
    assert seen.all_of(40, begin)
    assert seen.all_of(41, 5), "of another tag nothing came"


def test_what_a_gap_keeps_reads_back() -> None:
    assert split_progress(first_progress(7)) == (Head(7), b"")
    assert split_progress(Head(7, 3).pack(b"\1" * 20)) == (Head(7, 3), b"\1" * 20)
    for other in (b"", b"\1" * 20, b"\1" * 28, b"\1" * 33):
        assert split_progress(other) == (None, other)


def rows(items: Items) -> NDArray[np.int64]:
    return np.arange(len(items))


def feed_columns(seen: Seen, items: Items) -> None:
    seen.took(Columns(items.handle, items.source_ns, items.kind, items.values, items.quality, items.flags, None, items.texts), rows(items))


# ---- a plant with outages and kills ----


@dataclasses.dataclass
class Temper:
    """How a server answers for its events."""

    page: int = 7
    points: bool = True
    where: bool = True  # history keeps to the where clause
    begins: int = 0  # of its events the history never had so many
    refuses: str = ""  # "unsupported", "node", "filter", "bit"


@dataclasses.dataclass(frozen=True)
class Raised:
    id: str
    ts: int
    node: str
    condition: bool


class Plant:
    """The server: what it raised, and its history. Time is ours; the server's is SKEW beside it, in whole seconds."""

    def __init__(self, temper: Temper, rng: random.Random) -> None:
        self.temper, self.rng = temper, rng
        self.now_ns = START
        self.raised: list[Raised] = []
        self.facts = Facts((), 0, SKEW, {"MaxNodesPerHistoryReadData": 2})
        self.requests = 0
        self.kill_at = -1
        self.meanwhile = None

    def event(self, quiet: bool) -> Raised:
        self.now_ns += self.rng.choice((0, 0, SECOND // 4, SECOND))
        ts = (self.now_ns + SKEW) // SECOND * SECOND
        node = "ns=1;s=line" if not quiet and self.rng.random() < 0.2 else "i=2253"
        one = Raised(base64.b64encode(str(len(self.raised)).encode()).decode(), ts, node, self.rng.random() < 0.4)
        self.raised.append(one)
        return one

    async def read(self, nodes: list[str], attribute: int) -> Items:
        assert attribute == EVENT_NOTIFIER
        items = doubles(*((0, 0.0, 0) for _ in nodes))
        items.kind[:] = Kind.INT64
        items.values[:] = 1 if self.temper.refuses == "bit" else 5
        return items

    async def event_history(self, wish: Wish, from_ns: int, to_ns: int, most: int) -> History:
        self.requests += 1
        if self.requests == self.kill_at:
            raise asyncio.CancelledError
        if self.meanwhile is not None and self.rng.random() < 0.3:
            act, self.meanwhile = self.meanwhile, None
            await act()
        temper = self.temper
        if temper.refuses == "unsupported":
            raise ServiceFault(0x8071_0000, "HistoryRead")
        if temper.refuses == "node":
            return History(0x8072_0000, b"", texts())
        if temper.refuses == "filter" and wish.conditions:
            return History(0x8047_0000, b"", texts())
        held = [one for one in self.raised[temper.begins :] if one.node == wish.node and from_ns // 1000 * 1000 <= one.ts < to_ns + 1000]
        if temper.where and wish.conditions:
            held = [one for one in held if one.condition]
        page = min(most, temper.page) if temper.points else most
        shown = texts(*((0, as_text(one), one.ts) for one in held[:page]))
        return History(0, b"more" if len(held) > page and temper.points else b"", shown)


def as_text(one: Raised) -> str:
    more = {"condition": "High", "retain": True} if one.condition else {}
    return text(one.id, **more)


def as_event(handle: int, one: Raised) -> ua.EventFieldList:
    more = {"id": ua.Variant(base64.b64decode(one.id), T.ByteString), "time": ua.Variant(datetime.fromtimestamp(one.ts // SECOND, UTC), T.DateTime)}
    if one.condition:
        more |= {"condition": ua.Variant("High", T.String), "retain": ua.Variant(True, T.Boolean)}
    return event(handle, **more)


def make_sink() -> MemorySink:
    """Return a sink that knows the tags before their first event, as a ring does by its tag table."""
    sink = MemorySink(interval_s=0)
    sink._sources, sink._tags = {"plc": 1}, {tag.number: 1 for tag in TAGS}
    return sink


class Life:
    """One process of a collector."""

    def __init__(self, plant: Plant, sink: MemorySink, number: int) -> None:
        runtime = dataclasses.replace(real(), wall_ns=lambda: plant.now_ns, monotonic_ns=lambda: plant.now_ns - START)
        self.plant, self.sink, self.number = plant, sink, number
        self.feed = Feed(OpcuaSource("plc", ("opc.tcp://127.0.0.1:1",), tags=TAGS), runtime, GatewayClock(START, 0, 0, 0), sink)
        self.feed.begin(Subscription(1, "plc", "", 10.0), 0)
        self.sequence = 0

    def tell(self, *events: Raised) -> None:
        """Deliver events live, in one message."""
        items = [(tag.number, one) for one in events for tag in TAGS if tag.address == one.node and (tag.type == "event" or one.condition)]
        if items:
            self.sequence += 1
            made = publish([(916, body(*(as_event(number, one) for number, one in items)))], sequence=self.sequence)
            assert self.feed.take_message(parse_publish(made).message)

    async def lives(self, events: int, quiet: bool) -> None:
        """The subscription is there: events come, some of the time around which it lived again, until the server has no more for us."""
        self.feed.lived(SKEW)
        for _ in range(events):
            self.tell(self.plant.event(quiet))
        self.plant.now_ns += EDGE_NS + LATE_NS
        if not quiet or not self.plant.raised:
            self.tell(self.plant.event(quiet))
        self.feed.level()
        self.feed.settled = True
        await self.feed.committer.drain(5)

    async def fills(self) -> None:
        """One round of `fill`, until nothing is owed or it is killed."""
        for _ in range(20):
            await self.feed.committer.drain(5)
            gaps = self.sink.known("plc").gaps
            if not gaps:
                await self.feed.begin_events()
                return
            if not self.feed.events_level:
                return
            await fill_module._Fill(self.plant, self.feed, max(gaps, key=lambda gap: gap.from_ns)).pay()  # type: ignore[arg-type]


async def story(plant: Plant, sink: MemorySink, rng: random.Random, quiet: bool) -> int:
    """Return how many kills there were."""
    life, kills = Life(plant, sink, 0), 0
    await life.lives(rng.randrange(6), quiet)
    await life.fills()
    for _ in range(rng.randrange(1, 5)):
        for _ in range(rng.randrange(12)):
            plant.event(quiet)
        if rng.random() < 0.5:
            sink.kill()
            kills += 1
            life = Life(plant, sink, kills)
        await life.feed.open_gap("away")
        plant.kill_at = plant.requests + rng.randrange(1, 5) if rng.random() < 0.6 else -1
        plant.meanwhile = (lambda life=life: lose_a_message(life, quiet)) if rng.random() < 0.3 else None
        await life.lives(0 if quiet else rng.randrange(6), quiet)
        try:
            await life.fills()
        except asyncio.CancelledError:
            sink.kill()
            kills += 1
            life = Life(plant, sink, kills)
            plant.kill_at, plant.meanwhile = -1, None
            if rng.random() < 0.5:  # the subscription outlived it: what happened meanwhile comes
                await life.lives(rng.randrange(3), quiet)
                await life.fills()
    plant.meanwhile, plant.kill_at = None, -1
    await life.lives(0, quiet)
    await life.fills()
    return kills


async def lose_a_message(life: Life, quiet: bool) -> None:
    """While history is asked for a message is lost, and with it an event; the subscription lives on."""
    life.plant.event(quiet)
    await life.feed.open_gap("message lost")
    await life.lives(1, quiet)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    quiet=st.booleans(),
    temper=st.builds(
        Temper,
        page=st.integers(1, 30),
        points=st.booleans(),
        where=st.booleans(),
        begins=st.sampled_from([0, 0, 0, 9]),
        refuses=st.sampled_from(["", "", "", "", "", "unsupported", "node", "bit", "filter"]),
    ),
)
def test_no_event_twice_and_filled_only_where_none_is_missing(seed: int, quiet: bool, temper: Temper) -> None:
    rng = random.Random(seed)
    plant, sink = Plant(temper, rng), make_sink()
    kills = asyncio.run(story(plant, sink, rng, quiet))
    assert not sink.known("plc").gaps, "a debt that is neither paid nor given up"
    found = Counter((row.tag, json.loads(str(row.value))["id"]) for row in sink.rows(live=False) if not row.flags & Flag.MARKER)
    wanted = {(tag.number, one.id) for tag in TAGS for one in plant.raised if tag.address == one.node and (tag.type == "event" or one.condition)}
    assert max(found.values(), default=0) <= 1, [one for one, times in found.items() if times > 1]
    assert set(found) <= wanted
    closed = [told for told in sink.told(NoticeKind.GAP) if told["event"] in ("filled", "unfillable")]
    if all(told["event"] == "filled" for told in closed):
        assert set(found) == wanted, wanted - set(found)
    if temper.refuses in ("unsupported", "node", "bit") and closed:
        assert "no history of events" in str(closed[-1]["reason"]), closed[-1]
    crowded = max(Counter((one.node, one.ts) for one in plant.raised).values(), default=0) >= temper.page
    if not (kills or quiet or crowded or temper.begins or temper.refuses):
        reasons = {str(told["reason"]) for told in closed if told["event"] == "unfillable"}
        assert all("over the whole gap" in reason for reason in reasons), reasons  # a notifier that never spoke shows not how far history reaches


@pytest.mark.parametrize("refuses", ["unsupported", "node", "bit"])
async def test_a_server_that_refuses_is_named(refuses: str) -> None:
    plant, sink = Plant(Temper(refuses=refuses), random.Random(1)), make_sink()
    life = Life(plant, sink, 0)
    await life.lives(3, quiet=True)
    await life.fills()
    await life.feed.open_gap("away")
    await life.lives(1, quiet=True)
    await life.fills()
    told = sink.told(NoticeKind.GAP)[-1]
    assert (told["event"], told["reason"]) == ("unfillable", "the server keeps no history of events, 3 tags; all values are filled")


async def test_what_a_kill_leaves_in_doubt_stays_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill_module, "VALUES_MAX", 4)
    monkeypatch.setattr(fill_module, "VALUES_MIN", 4)
    rng = random.Random(1)
    plant, sink = Plant(Temper(points=False), rng), make_sink()
    monkeypatch.setattr(plant.rng, "choice", lambda _steps: 0)
    life = Life(plant, sink, 0)
    await life.lives(0, quiet=True)
    plant.event(quiet=True)  # at the time of the last that came, and lost
    for _ in range(6):
        plant.now_ns += SECOND
        plant.event(quiet=True)
    life = Life(plant, sink, 1)
    await life.feed.open_gap("away")
    await life.lives(0, quiet=True)
    plant.kill_at = 3
    with pytest.raises(asyncio.CancelledError):
        await life.fills()
    head, _ = split_progress(sink.known("plc").gaps[0].progress)
    assert head is not None
    assert head.doubtful > 0, "said with what was taken until then"


async def test_nothing_is_settled_of_a_time_whose_live_events_may_be_on_their_way() -> None:
    plant, sink = Plant(Temper(), random.Random(1)), make_sink()
    life = Life(plant, sink, 0)
    life.feed.lived(SKEW)
    until_ns = START + EDGE_NS + SKEW
    life.feed.settle(until_ns + SECOND)
    assert life.feed.settled_ns == until_ns
    life.feed.settle(until_ns - SECOND)
    assert life.feed.settled_ns == until_ns


@pytest.mark.parametrize("skew_ns", [910_692_730_085_477_580_000 - START, DAY], ids=["the last time that OPC UA has", "a day off"])
async def test_a_server_whose_clock_is_wrong_settles_nothing(skew_ns: int) -> None:
    plant, sink = Plant(Temper(), random.Random(1)), make_sink()
    life = Life(plant, sink, 0)
    life.feed.lived(skew_ns)
    plant.now_ns += EDGE_NS + LATE_NS
    life.feed.level()
    await life.feed.begin_events()
    assert life.feed.settled_ns == NO_TIME, "what came later under a right clock would count as settled"
    life.tell(plant.event(quiet=True))
    life.feed.level()
    await life.feed.committer.drain(5)
    await life.feed.open_gap("away")
    life.tell(plant.event(quiet=True))
    await life.fills()
    (closed,) = [detail for detail in sink.told(NoticeKind.GAP) if detail["event"] == "unfillable"]
    assert closed["reason"] == "the server's clock is wrong: its history cannot be placed"


async def test_an_alarm_that_was_read_is_neither_the_newest_event_nor_the_first_after_a_gap() -> None:
    plant, sink = Plant(Temper(), random.Random(1)), make_sink()
    life = Life(plant, sink, 0)
    await life.lives(0, quiet=True)
    before = sink.known("plc").last[40]
    await life.feed.open_gap("away")
    life.feed.tell_alarms([40], [Condition("ns=1;s=high", {"retain": True}, START - DAY)], plant.now_ns)
    await life.feed.committer.drain(5)
    known_now = sink.known("plc")
    assert (known_now.last[40].value, known_now.last[40].ts_source_ns) == (before.value, before.ts_source_ns)
    assert known_now.gaps[0].first_live_ns == {}
    await life.lives(1, quiet=True)
    assert sink.known("plc").gaps[0].first_live_ns[40] > START
