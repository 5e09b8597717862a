"""A server that lies, floods, dribbles or answers late: bounded memory, and back by itself as soon as it is sane again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buffer.notice import NoticeKind
from gateway.collect.opcua import source as source_module
from tests.integration.test_opcua import assert_nothing_lost_or_doubled, make_source, running, until, ups
from tests.support.hostile import MODES, HostileProxy
from tests.support.opcua_child import settings_for
from tests.support.opcua_server import OpcuaServer
from tests.support.sinks import MemorySink

pytestmark = pytest.mark.peers

TAGS = 20
HOSTILE_S = 1.5
MEMORY_MB_MAX = 100  # beyond what the process had: 16 MB of message, its chunks as objects, and columns
LIES = {"flipped_bits", "huge_lengths"}  # without signatures a changed value looks like a value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpcuaServer]:
    one = OpcuaServer(tmp_path_factory.mktemp("opcua"), tags=TAGS, period_ms=100).start()
    yield one
    one.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.collect.opcua.link.SILENCE_S", 1.0)
    monkeypatch.setattr("gateway.collect.opcua.link.ANSWER_S", 1.0)
    monkeypatch.setattr("gateway.collect.opcua.guarded.REQUEST_TIMEOUT_S", 3.0)
    monkeypatch.setattr(source_module, "BACKOFF_CAP_S", 1.0)


def memory_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError


@pytest.mark.parametrize("mode", MODES)
async def test_bounded_and_back_by_itself(server: OpcuaServer, tmp_path: Path, mode: str) -> None:
    sink = MemorySink()
    async with HostileProxy(server.port) as proxy, running(make_source(settings_for(proxy.port, TAGS), tmp_path), sink) as task:
        await until(lambda: ups(sink) == 1, 40, task)
        before = peak = memory_mb()
        proxy.mangle = MODES[mode]
        deadline = time.monotonic() + HOSTILE_S
        while time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            peak = max(peak, memory_mb())
            assert not task.done()
        proxy.mangle = None
        proxy.cut()  # a stream once out of step stays so: a sane server begins anew
        newest = max(row.value for row in sink.rows() if isinstance(row.value, float))
        fresh = {row.tag for row in sink.rows()}
        seen = len(sink.rows())
        await until(lambda: fresh <= {row.tag for row in sink.rows()[seen:]}, 60, task)
        peak = max(peak, memory_mb())
    assert peak - before < MEMORY_MB_MAX, f"{peak - before:.0f} MB more"
    assert newest
    if mode not in LIES:
        assert_nothing_lost_or_doubled(sink.rows(), TAGS)
        assert not [told for told in sink.told(NoticeKind.GAP) if told["event"] == "opened"], "within the server's queue"


async def test_silent_death_is_found_and_cured_as_often_as_it_comes(server: OpcuaServer, tmp_path: Path) -> None:
    sink = MemorySink()
    source = make_source(settings_for(server.port, TAGS), tmp_path)
    async with HostileProxy(server.port) as proxy:
        source = make_source(settings_for(proxy.port, TAGS), tmp_path)
        async with running(source, sink) as task:
            for death in range(3):
                await until(lambda death=death: ups(sink) == death + 1, 40, task)
                await asyncio.sleep(0.3)
                proxy.silence()
                await until(lambda: bool(source._lost_ns), 15, task)
                proxy.restore()
            await until(lambda: ups(sink) == 4, 40, task)
            await asyncio.sleep(0.5)
    assert_nothing_lost_or_doubled(sink.rows(), TAGS)
