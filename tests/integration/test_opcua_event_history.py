"""Events over absences, from the history of a server that keeps it: every event once, by its EventId, against the server's own ledger."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from buffer.notice import NoticeKind
from buffer.types import Flag
from gateway.collect.opcua import guarded, link, source, subscribe
from gateway.settings import Load, TagRow
from tests.integration.test_opcua import make_source, running, ups
from tests.integration.test_opcua import until as until_here
from tests.support.collector import Collector
from tests.support.event_server import EventServer, event_server
from tests.support.opcua_child import settings_for
from tests.support.proxy import Proxy
from tests.support.sinks import MemorySink

EVENTS = TagRow("events", "p/events", "plc", "i=2253", type="event", number=40)
LIMITS = ("SESSION_TIMEOUT_S=3", "LIFETIME_S=3", "KEEP_ALIVE_S=1", "BACKOFF_CAP_S=1", "VALUES_MAX=20", "VALUES_MIN=20")
KILLS = 3
AWAY_S = 6  # longer than the subscription lives


async def until(what: str, collector: Collector, condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while collector.follow() or not condition():
        assert not collector.died, f"collect ended by itself while waiting for {what}: {collector.log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s; {collector.told}"
        await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an outage of seconds outlast session and subscription."""
    for name, value in (("SESSION_TIMEOUT_S", 3.0), ("LIFETIME_S", 3.0), ("KEEP_ALIVE_S", 1.0), ("BACKOFF_CAP_S", 1.0)):
        for module in (guarded, link, source, subscribe):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def events_in(collector: Collector) -> list[str]:
    """Return the EventIds in the ring, of events, not of alarms that were read from nodes."""
    rows = collector.rows("SELECT value_string FROM readings WHERE tag = 'events' AND flags & 96 = 0")
    return [json.loads(str(text))["id"] for (text,) in rows]


def judge(collector: Collector, server: EventServer, first: str) -> dict[str, int]:
    """Compare ring and ledger from the first event that came on."""
    found = collections.Counter(events_in(collector))
    wanted = list(server.raised)[list(server.raised).index(first) :]
    return {
        "raised": len(wanted),
        "missing": len(set(wanted) - set(found)),
        "doubled": sum(times - 1 for times in found.values()),
        "unknown": len(set(found) - set(server.raised)),
    }


async def test_kills_and_cuts_in_the_middle_of_fills_lose_and_double_no_event(tmp_path: Path) -> None:
    rng = random.Random(20261127)
    async with event_server(tmp_path, period_s=0.1) as server, Proxy(server.port) as proxy:
        settings = settings_for(proxy.port, 0, tags=(EVENTS,), load=Load(requests_per_s=12))
        collector = Collector(tmp_path, (settings,), *LIMITS)
        await collector.start()
        await until("the first events", collector, lambda: collector.live > 20)
        first = events_in(collector)[0]
        proxy.cut(blocked=True)
        await asyncio.sleep(AWAY_S)
        proxy.restore()
        mid_fill = 0
        for kill in range(KILLS):
            before = collector.history
            await until("a fill", collector, lambda before=before: collector.history > before, 90)
            await asyncio.sleep(rng.uniform(0, 0.3))
            collector.follow()
            mid_fill += collector.open_gaps > 0
            await collector.kill()
            await asyncio.sleep(4 if kill % 2 else 0.5)
            await collector.start()
        await until("no open gap", collector, lambda: collector.open_gaps == 0 and collector.notices("gap")[-1]["event"] != "opened", 300)
        server.pause = True
        await asyncio.sleep(2)
        await collector.stop()
        got = judge(collector, server, first)
    print(json.dumps(got | {"kills": KILLS, "mid_fill": mid_fill, "from_history": collector.history}))
    assert (got["missing"], got["doubled"], got["unknown"]) == (0, 0, 0), got
    assert mid_fill, "no kill met a fill"
    reasons = {str(told["reason"]) for told in collector.notices("gap") if told["event"] == "unfillable"}
    assert all("not told apart" in reason for reason in reasons), reasons


async def test_a_quiet_notifier_is_filled_without_a_live_event_and_not_again_after_the_next_outage(tmp_path: Path) -> None:
    async with watched(tmp_path, EVENTS) as (server, proxy, sink, task):
        await server.raise_event()
        await until_here(lambda: len(sink.rows()) == 1, 10, task)
        for outage in (2, 3):
            proxy.cut(blocked=True)
            await asyncio.sleep(1)
            await server.raise_event()
            await server.raise_event()
            await asyncio.sleep(AWAY_S)
            proxy.restore()
            await until_here(lambda outage=outage: ups(sink) == outage, 90, task)
            await until_here(lambda outage=outage: len(closed(sink)) == outage - 1, 60, task)
            await until_here(lambda: not sink.known("plc").gaps, 10, task)
    assert [told["event"] for told in closed(sink)] == ["filled", "filled"], closed(sink)
    found = [json.loads(str(row.value))["id"] for row in sink.rows(live=False) if not row.flags & Flag.MARKER]
    assert found == list(server.raised), "each once, in order, from history alone but for the first"


async def test_conditions_alone_where_the_history_ignores_the_where_clause(tmp_path: Path) -> None:
    alarms = replace(EVENTS, id="alarms", path="p/alarms", type="alarm", number=41)
    async with watched(tmp_path, EVENTS, alarms, conditions=True) as (server, proxy, sink, task):
        await server.raise_event(condition=True)
        await until_here(lambda: len(sink.rows()) == 2, 10, task)
        proxy.cut(blocked=True)
        await asyncio.sleep(1)
        for condition in (True, False, True, False):
            await server.raise_event(condition=condition)
        await asyncio.sleep(AWAY_S)
        proxy.restore()
        await until_here(lambda: len(closed(sink)) == 1, 120, task)
        await until_here(lambda: not sink.known("plc").gaps, 10, task)
    assert closed(sink)[0]["event"] == "filled", closed(sink)
    rows = [row for row in sink.rows(live=False) if not row.flags & Flag.MARKER]
    found = {number: [json.loads(str(row.value))["id"] for row in rows if row.tag == number] for number in (40, 41)}
    every = list(server.raised)
    assert found == {40: every, 41: [every[0], every[1], every[3]]}


async def test_a_server_without_a_history_of_events_closes_the_gap_with_that_reason(tmp_path: Path) -> None:
    async with watched(tmp_path, EVENTS, history=False) as (server, proxy, sink, task):
        await server.raise_event()
        await until_here(lambda: len(sink.rows()) == 1, 10, task)
        proxy.cut(blocked=True)
        await asyncio.sleep(AWAY_S)
        proxy.restore()
        await until_here(lambda: len(closed(sink)) == 1, 120, task)
    told = closed(sink)[0]
    assert (told["event"], "no history of events, 1 tags" in str(told["reason"])) == ("unfillable", True), told


@contextlib.asynccontextmanager
async def watched(tmp_path: Path, *tags: TagRow, **server_is: bool) -> AsyncIterator[tuple[EventServer, Proxy, MemorySink, asyncio.Task[None]]]:
    """A source of these tags, up, behind a proxy of its server."""
    async with event_server(tmp_path, **server_is) as server, Proxy(server.port) as proxy:
        settings = settings_for(proxy.port, 0, tags=tags, load=Load(requests_per_s=20))
        sink = MemorySink()
        async with running(make_source(settings, tmp_path), sink) as task:
            await until_here(lambda: ups(sink) == 1, 30, task)
            yield server, proxy, sink, task


def closed(sink: MemorySink) -> list[dict[str, object]]:
    return [told for told in sink.told(NoticeKind.GAP) if told["event"] in ("filled", "unfillable")]
