"""What a PLC does while it stays connected: a program download, tags that come and go, arrays, values that stand still. Against node-opcua."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from buffer.notice import NoticeKind
from buffer.types import BAD_OUT_OF_SERVICE, Flag
from gateway.collect.opcua.arrays import BAD_INDEX_RANGE_NO_DATA
from gateway.settings import SECOND, Alive, TagRow
from gateway.tagarrays import expand_rows
from tests.integration.test_opcua import make_source, running, until, ups
from tests.support.opcua_child import MS, settings_for
from tests.support.opcua_server import OpcuaServer
from tests.support.proxy import Proxy
from tests.support.sinks import MemorySink, rows_of

pytestmark = pytest.mark.peers
SETPOINT = TagRow("sp", "x", "plc", "ns=1;s=Setpoint", every_ns=100 * MS, heartbeat_ns=SECOND // 2, number=16)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpcuaServer]:
    extras = {"waves": True, "commands": True}
    one = OpcuaServer(tmp_path_factory.mktemp("program"), tags=5, period_ms=100, extras=extras).start()
    yield one
    one.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a minute in a plant takes a second here."""
    monkeypatch.setattr("gateway.collect.opcua.link.REFUSED_AGAIN_S", 1.0)
    monkeypatch.setattr("gateway.collect.opcua.link.UNSTEADY_S", 3.0)


def downloads(sink: MemorySink) -> list[object]:
    return [told["changed"] for told in sink.told(NoticeKind.TAG) if "another program" in str(told["event"])]


async def test_a_program_download_is_found_on_a_living_connection(server: OpcuaServer, tmp_path: Path, impatient: None) -> None:
    sink = MemorySink()
    async with Proxy(server.port) as proxy, running(make_source(settings_for(proxy.port, 5), tmp_path), sink) as task:
        await until(lambda: ups(sink) == 1, 20, task)
        await asyncio.sleep(2.5)
        assert not downloads(sink), "nothing was downloaded yet"
        server.tell("namespace urn:vendor:new-program")
        await until(lambda: downloads(sink) == ["namespaces"], 20, task)
        await until(lambda: ups(sink) == 2, 20, task)
        await asyncio.sleep(3.5)  # a start time that changes again and again is believed once in UNSTEADY_S
        server.tell("started")
        await until(lambda: downloads(sink) == ["namespaces", "start time"], 20, task)
        await until(lambda: ups(sink) == 3, 20, task)
        seen = len(sink.rows())
        await until(lambda: len(sink.rows()) > seen + 20, 20, task)
    assert not any(told["subscription_kept"] for told in sink.told(NoticeKind.SOURCE_UP)), "old items may mean other variables now"
    opened = [told for told in sink.told(NoticeKind.GAP) if told["event"] == "opened"]
    assert len(opened) == 2, "what changed between the two subscriptions may be missing"


async def test_a_status_that_says_semantics_changed_makes_us_look_at_once(
    server: OpcuaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.collect.opcua.link.REFUSED_AGAIN_S", 600.0)
    monkeypatch.setattr("gateway.collect.opcua.link.CHANGED_AGAIN_S", 0.5)
    sink = MemorySink()
    async with running(make_source(settings_for(server.port, 5), tmp_path), sink) as task:
        await until(lambda: ups(sink) == 1, 20, task)
        server.tell("namespace urn:vendor:changed-again")
        await asyncio.sleep(1.5)
        assert not downloads(sink), "without the bit the next look is ten minutes away"
        server.tell("semantics")
        await until(lambda: downloads(sink) == ["namespaces"], 20, task)
        assert any("types, units or structure changed" in str(told["event"]) for told in sink.told(NoticeKind.TAG))
        await until(lambda: ups(sink) == 2, 20, task)


async def test_a_refused_tag_comes_by_itself_once_the_server_has_it(server: OpcuaServer, tmp_path: Path, impatient: None) -> None:
    late = TagRow("late", "x", "plc", "ns=1;s=Late", every_ns=100 * MS, number=40)
    array = [replace(tag, number=50 + tag.element) for tag in expand_rows([TagRow("nil", "y", "plc", "ns=1;s=Nil", expand=2)])]
    tags = settings_for(0, 3).tags + (late, *array)
    sink = MemorySink()
    source = make_source(settings_for(server.port, 0, tags=tags), tmp_path)
    async with running(source, sink) as task:
        await until(lambda: len({row.tag for row in sink.rows()} & {16, 17, 18}) == 3, 20, task)
        await asyncio.sleep(2.2)
        assert source.status()["refused"] == 3
        bad = sorted((row.tag, row.quality) for row in sink.rows(live=False) if row.value is None)
        assert bad == [(tag, 0x8034_0000) for tag in (40, 50, 51)], "one reading each, not one per try"
        before = ups(sink)
        server.tell("add Late")
        await until(lambda: any(row.tag == 40 and row.value == 1.0 for row in sink.rows()), 20, task)
        assert source.status()["refused"] == 2
        assert ups(sink) == before, "the others were not disturbed"
    assert [told["event"] for told in sink.told(NoticeKind.TAG) if told["tag"] == "late"][1:] == ["accepted by the server"]


# ---- heartbeat and life bit ----


async def test_no_heartbeat_without_an_answer_that_proves_it(server: OpcuaServer, tmp_path: Path) -> None:
    """The connection is silent but open; nobody has noticed yet. A value repeated now would be a guess."""
    sink = MemorySink()
    settings = settings_for(server.port, 0, tags=(SETPOINT,))
    async with Proxy(server.port) as proxy:
        settings = replace(settings, urls=(f"opc.tcp://127.0.0.1:{proxy.port}",))
        async with running(make_source(settings, tmp_path), sink) as task:

            def beats() -> int:
                return sum(bool(row.flags & Flag.REPEATED) for row in sink.rows(live=False))

            await until(lambda: beats() >= 3, 20, task)
            proxy.silence()
            await asyncio.sleep(0.5)  # what was on its way
            silent = beats()
            await asyncio.sleep(3)
            assert beats() == silent, "a heartbeat without a proof of life"
            proxy.restore()
            proxy.cut()
            await until(lambda: beats() > silent + 2, 30, task)
    first, *repeated = [row for row in sink.rows(live=False) if not row.flags & Flag.MARKER]
    assert {row.value for row in repeated} == {1.5}
    assert all(row.ts_source_ns == first.ts_source_ns and row.ts_ns > first.ts_ns for row in repeated)


async def test_the_life_bit_is_frozen_only_while_it_stands_still(server: OpcuaServer, tmp_path: Path) -> None:
    """Tag00000 moves: nothing is said. The setpoint stands still, and its heartbeat is no sign of life."""
    for moving, alive in ((True, "t0"), (False, "sp")):
        sink = MemorySink()
        tags = (*settings_for(0, 1).tags, replace(SETPOINT, number=30))
        settings = settings_for(server.port, 0, tags=tags, alive=Alive(alive, 2 * SECOND))
        (tmp_path / alive).mkdir()
        async with running(make_source(settings, tmp_path / alive), sink) as task:
            await until(lambda: ups(sink) == 1, 20, task)  # noqa: B023 -- awaited here
            if moving:
                await asyncio.sleep(3)
                assert not sink.told(NoticeKind.FROZEN)
            else:
                await until(lambda: bool(sink.told(NoticeKind.FROZEN)), 10, task)  # noqa: B023


# ---- arrays as tags ----


async def test_elements_of_an_array_are_tags_live_and_marked(server: OpcuaServer, tmp_path: Path) -> None:
    rows = (TagRow("wave", "w", "plc", "ns=1;s=Wave", every_ns=0, expand=4), TagRow("row", "r", "plc", "ns=1;s=Row", expand=2, every_ns=100 * MS))
    tags = tuple(replace(tag, number=60 + i) for i, tag in enumerate(expand_rows(rows)))
    sink = MemorySink()
    async with running(make_source(settings_for(server.port, 0, tags=tags), tmp_path), sink) as task:
        await until(lambda: sum(row.tag == 63 and row.quality == BAD_INDEX_RANGE_NO_DATA for row in sink.rows()) >= 2, 20, task)
        await asyncio.sleep(0.5)
    by_tag = collections.defaultdict(list)
    for row in sink.rows():
        by_tag[row.tag].append(row)
    for k in range(4):
        values = [row.value for row in by_tag[60 + k] if row.value is not None]
        assert values == [value for value in values if value % 1 == k / 4], "elements are not mixed up"
        assert values == sorted(set(values))
    whole = [int(row.value) for row in by_tag[60] if row.value is not None]
    assert whole == list(range(whole[0], whole[0] + len(whole))), "one message lost or doubled"
    short = [row.ts_ns for row in by_tag[63] if row.value is None]
    assert short == [row.ts_ns for row in by_tag[60] if row.value is not None and row.value % 10 == 9]
    assert [by_tag[64][0].value, by_tag[65][0].value] == [1, 2]
    longer = [told for told in sink.told(NoticeKind.TAG) if "longer" in str(told["event"])]
    assert [(told["tag"], told["elements"]) for told in longer] == [("row.0", 3)], "the third element is not kept, and that is said once"
    last = {row.tag: row for row in sink.rows(live=False)}
    assert [(row.value, row.quality) for row in last.values()] == [(None, BAD_OUT_OF_SERVICE)] * 6


async def test_elements_of_an_array_are_filled_from_history(server: OpcuaServer, tmp_path: Path) -> None:
    tags = tuple(replace(tag, number=60 + tag.element) for tag in expand_rows([TagRow("wave", "w", "plc", "ns=1;s=Wave", every_ns=0, expand=4)]))
    sink = MemorySink()
    settings = settings_for(server.port, 0, tags=tags)
    async with running(make_source(settings, tmp_path), sink) as task:
        await until(lambda: len({row.tag for row in sink.rows()}) == 4, 20, task)
    await asyncio.sleep(1.5)
    async with running(make_source(settings, tmp_path), sink) as task:
        await until(lambda: "filled" in {told["event"] for told in sink.told(NoticeKind.GAP)}, 30, task)
        await until(lambda: not sink.known("plc").gaps, 5, task)
    filled = [row for batch in sink.batches if batch.gap for row in rows_of(batch.columns)]
    assert len(filled) >= 4 * 10
    everything = [row for row in sink.rows(live=False) if not row.flags & (Flag.MARKER | Flag.REPEATED)]
    for k in range(4):
        rows = sorted((row for row in everything if row.tag == 60 + k), key=lambda row: row.ts_ns)
        seen = [int(row.value) for row in rows if row.value is not None]
        wanted = [n for n in range(seen[0], seen[-1] + 1) if k < 3 or n % 10 != 9]
        assert seen == wanted, f"element {k}: a hole or a double"
