"""Events of a node-opcua server as readings: text, severity and time, over a cut, without a Call."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from buffer.notice import NoticeKind
from buffer.types import Flag
from gateway.collect.opcua.active import BAD_WAITING_FOR_INITIAL_DATA
from gateway.settings import TagRow
from tests.integration.test_opcua import Control, make_source, running, until, ups
from tests.support.opcua_child import settings_for
from tests.support.opcua_server import OpcuaServer
from tests.support.proxy import Proxy
from tests.support.sinks import MemorySink

pytestmark = pytest.mark.peers


async def test_every_event_once_over_a_cut_and_never_a_call(tmp_path: Path) -> None:
    server = OpcuaServer(tmp_path, tags=1, period_ms=500, events_ms=100).start()
    sink = MemorySink()
    tags = (
        TagRow("events", "p/events", "plc", "i=2253", type="event", number=40),
        TagRow("alarms", "p/alarms", "plc", "i=2253", type="alarm", number=41),
    )
    try:
        settings = settings_for(server.port, 1)
        async with Proxy(server.port) as proxy:
            settings = settings_for(proxy.port, 0, tags=settings.tags + tags)
            async with running(make_source(settings, tmp_path), sink) as task:
                await until(lambda: sum(row.tag == 40 for row in sink.rows()) > 10, 30, task)
                proxy.cut(blocked=True)
                await asyncio.sleep(1)
                proxy.restore()
                await until(lambda: ups(sink) == 2, 20, task)
                before = sum(row.tag == 40 for row in sink.rows())
                await until(lambda: sum(row.tag == 40 for row in sink.rows()) > before + 10, 20, task)
    finally:
        server.stop()
    rows = [row for row in sink.rows() if row.tag == 40]
    others = [json.loads(str(row.value)) for row in rows if "Störung" not in str(row.value)]
    rows = [row for row in rows if "Störung" in str(row.value)]
    events = [json.loads(str(row.value)) for row in rows]
    numbers = [int(event["message"].removeprefix("Störung ")) for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "an event lost, doubled or out of order"
    assert {event["source"] for event in events} == {"Press7"}
    assert [event["severity"] for event in events] == [500 + number % 500 for number in numbers]
    times = [row.ts_ns for row in rows]
    assert times == sorted(times)
    assert not any(row.flags & (Flag.TIME_SUBSTITUTED | Flag.OVERFLOW) for row in rows)
    alarms = [json.loads(str(row.value)) for row in sink.rows() if row.tag == 41]
    assert {alarm["condition"] for alarm in alarms} == {"LevelHigh"}, "conditions, and nothing else"
    assert {alarm["active"] for alarm in alarms} == {True, False}
    assert {one.get("condition") for one in others} == {"LevelHigh"}, "an alarm is an event, too"
    assert "CallRequest" not in server.services


def alarms_told(sink: MemorySink) -> list[dict[str, object]]:
    return [one for one in sink.told(NoticeKind.TAG) if "alarms" in str(one["event"])]


async def test_what_is_active_when_nobody_has_told_us_since_is_read_from_the_server_s_nodes(tmp_path: Path) -> None:
    server = OpcuaServer(tmp_path, tags=1, events_ms=60_000, high=True, extras={"commands": True}).start()
    sink, control = MemorySink(), Control()
    tag = TagRow("alarms", "p/alarms", "plc", "i=2253", type="alarm", number=41)
    settings = settings_for(server.port, 0, tags=(*settings_for(server.port, 1).tags, tag))
    try:
        async with running(make_source(settings, tmp_path, control), sink) as task:
            await until(lambda: ups(sink) == 1 and len(alarms_told(sink)) == 1, 30, task)
            control.names.add("plc")
            await until(lambda: len(sink.told(NoticeKind.SOURCE_DOWN)) == 1, 20, task)
            server.tell("level 0")
            await asyncio.sleep(1)
            control.names.clear()
            await until(lambda: ups(sink) == 2 and len(alarms_told(sink)) == 2, 30, task)
            await asyncio.sleep(0.2)  # committed, too
    finally:
        server.stop()
    rows = [row for row in sink.rows(live=False) if row.tag == 41]
    told = [json.loads(str(row.value)) for row in rows if row.flags & Flag.INITIAL]
    assert [(one["condition"], one["active"], one["retain"]) for one in told] == [("LevelHigh", True, True), ("LevelHigh", False, True)], rows
    assert told[0]["severity"] > 0 and told[0]["source"]
    assert [row.quality for row in rows if row.flags == Flag.MARKER and not row.quality] == [0, 0], "these, and no others"
    first = next(row for row in rows if row.flags & Flag.INITIAL)
    assert first.ts_source_ns < first.ts_ns, "ts says as of when, ts_source since when"
    assert [one["active"] for one in sink.told(NoticeKind.TAG) if one["event"] == "active alarms read"] == [1, 1]
    assert "CallRequest" not in server.services


async def test_where_the_server_shows_no_conditions_the_state_is_said_to_be_unknown(tmp_path: Path) -> None:
    server = OpcuaServer(tmp_path, tags=1).start()
    sink = MemorySink()
    tag = TagRow("alarms", "p/alarms", "plc", "i=2253", type="event", number=41)
    settings = settings_for(server.port, 0, tags=(*settings_for(server.port, 1).tags, tag))
    try:
        async with running(make_source(settings, tmp_path), sink) as task:
            await until(lambda: ups(sink) == 1 and len(alarms_told(sink)) == 1, 30, task)
            await asyncio.sleep(0.2)
    finally:
        server.stop()
    marked = [row for row in sink.rows(live=False) if row.tag == 41 and row.quality == BAD_WAITING_FOR_INITIAL_DATA]
    assert len(marked) == 1 and marked[0].flags & Flag.MARKER and marked[0].value is None
    told = [one for one in sink.told(NoticeKind.TAG) if "not known" in str(one["event"])]
    assert [one["tags"] for one in told] == [["alarms"]]
