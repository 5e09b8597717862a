"""The load contract as the device sees it: requests, bytes, connections, rest between requests, and mercy when it gets slow."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from buffer.notice import NoticeKind
from buffer.types import BAD_OUT_OF_SERVICE
from gateway.collect.locks import SourceBusy, SourceLocks
from gateway.collect.modbus import probe
from gateway.collect.modbus import source as source_module
from gateway.runtime import real
from gateway.settings import Load
from tests.integration.test_modbus import RecordingSink, Switch, build, polling, settings, tag, until
from tests.support.modbus_device import Device, running

MANY = [tag(16 + i, f"hr:{i}") for i in range(100)]
SCATTERED = [tag(16 + i, f"hr:{3 * i}") for i in range(20)]
JITTER_S = 0.005  # between two clocks that look at one event from both ends of a socket


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BACK_OFF_S", (0.05, 0.1, 0.2, 0.3))


async def test_bytes_both_ways_stay_within_the_budget(tmp_path: Path) -> None:
    device, loop = Device(), asyncio.get_running_loop()
    load = Load(requests_per_s=1000.0, duty=1.0, bytes_per_s=2_000)
    async with running(device) as address, polling(build(settings(address, *MANY, load=load), tmp_path), RecordingSink()):
        await until(lambda: device.requests)
        began = loop.time()
        await asyncio.sleep(1.5)
        elapsed, moved = loop.time() - began, device.sent + len(device.received)
    assert moved <= 2_000 * (elapsed + JITTER_S) + 12 + 209  # the first exchange is paid for after it
    assert len(device.requests) >= 3


async def test_the_device_rests_as_long_as_pause_says(tmp_path: Path) -> None:
    device = Device()
    load = Load(requests_per_s=1000.0, duty=1.0, pause_ns=60_000_000)
    async with running(device) as address, polling(build(settings(address, *SCATTERED, load=load), tmp_path), RecordingSink()):
        await until(lambda: len(device.requests) >= 10)
    rests = [asked[0] - answered for asked, answered in zip(device.requests[1:], device.answered, strict=False)]
    assert min(rests) >= 0.06 - JITTER_S


async def test_the_device_is_busy_with_us_for_no_more_than_its_duty(tmp_path: Path) -> None:
    device = Device()
    device.delay_s = 0.04
    load = Load(requests_per_s=1000.0, duty=0.25)
    async with running(device) as address, polling(build(settings(address, *SCATTERED, load=load), tmp_path), RecordingSink()):
        await until(lambda: len(device.requests) >= 10)
    periods = [(b[0] - a[0], end - a[0]) for (a, b), end in zip(pairwise(device.requests), device.answered, strict=False)]
    assert all(busy <= 0.25 * (period + JITTER_S) for period, busy in periods)


async def test_never_more_than_one_connection_whatever_happens(tmp_path: Path) -> None:
    device = Device()
    tags = [tag(16, "hr:1"), tag(17, "hr:5"), tag(18, "hr:9")]
    async with running(device) as address:
        for _ in range(3):
            async with polling(build(settings(address, *tags, timeout_ns=50_000_000), tmp_path), RecordingSink()):
                seen = len(device.requests)
                await until(lambda seen=seen: len(device.requests) > seen + 3)
                device.lose = 3
                await until(lambda: device.lose == 0)
                seen = len(device.requests)
                await until(lambda seen=seen: len(device.requests) > seen + 3)
            await until(lambda: device.open == 0)
    assert device.connections > 3
    assert device.most_open == 1


async def test_a_device_that_gets_slow_is_asked_less_and_then_as_before(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    load = Load(requests_per_s=50.0, duty=1.0)
    async with running(device) as address:
        source = build(settings(address, tag(16, "hr:1"), tag(17, "hr:9"), load=load, timeout_ns=2_000_000_000), tmp_path)
        async with polling(source, sink):
            await until(lambda: len(device.requests) >= 20)
            device.delay_s = 0.4
            await until(lambda: source.status()["load"]["slowdown"] >= 4)  # type: ignore[index]
            device.delay_s = 0.0
            await until(lambda: source.status()["load"]["slowdown"] == 1)  # type: ignore[index]
    slow = [b[0] - a[0] for a, b in pairwise(device.requests)]
    assert max(slow) >= 0.4  # it was left to rest
    assert any(kind == NoticeKind.LOAD and detail["event"] == "polls skipped" for kind, detail in sink.notices)


async def test_a_paused_device_is_left_within_a_second_and_its_marker_is_committed(tmp_path: Path) -> None:
    device, sink, switch, loop = Device(), RecordingSink(), Switch(), asyncio.get_running_loop()
    async with running(device) as address, polling(build(settings(address, tag(16, "hr:1")), tmp_path, switch), sink):
        await until(lambda: sink.rows(16))
        switch.on = True
        began = loop.time()
        await until(lambda: device.open == 0)
        assert loop.time() - began < 1.0
        await until(lambda: len(sink.rows(16)) == 2)
        seen = len(device.requests)
        await asyncio.sleep(0.5)
        assert len(device.requests) == seen
        assert sink.rows(16)[1][2] == BAD_OUT_OF_SERVICE
        switch.on = False
        await until(lambda: len(sink.rows(16)) == 3)


@pytest.mark.parametrize(("spare", "most"), [(1, 1), (2, 2)])
async def test_a_question_by_hand_opens_no_second_connection_beside_collect_unless_one_is_to_spare(tmp_path: Path, spare: int, most: int) -> None:
    device, sink = Device(), RecordingSink()
    locks = SourceLocks(tmp_path, ["m"])
    async with running(device) as address:
        one = settings(address, tag(16, "hr:1"))
        other = replace(one, name="other", unit=2, load=Load(requests_per_s=100.0, duty=1.0, sessions=spare))
        assert locks.take("m")  # as collect does
        async with polling(build(one, tmp_path), sink):
            await until(lambda: sink.rows(16))
            with nullcontext() if spare > 1 else pytest.raises(SourceBusy, match="m on the connection of other"):
                await probe.read(other, real(), tmp_path, "hr:1", "uint16", line=[one, other])
    locks.release("m")
    assert device.most_open == most
