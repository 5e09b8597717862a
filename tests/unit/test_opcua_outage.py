"""A PLC that is off: thousands of refused connections cost neither memory nor words. On time that runs as fast as it can."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import tracemalloc
from pathlib import Path

import pytest

from buffer.notice import NoticeKind
from gateway.collect.clock import GatewayClock
from gateway.collect.opcua.session import Session
from gateway.collect.opcua.source import OpcuaSource
from gateway.runtime import real
from tests.support.opcua_child import Nobody, settings_for
from tests.support.opcua_server import free_port
from tests.support.sinks import MemorySink

HOUR = 3600 * 10**9
GROWTH_BYTES_MAX = 100_000  # free lists and caches of libraries; a leak of one small object per try would be more


async def test_hours_without_a_plc_cost_no_memory_and_few_words(tmp_path: Path) -> None:
    logging.disable(logging.CRITICAL)
    passed = 0
    started = real().monotonic_ns()

    async def sleep(seconds: float) -> None:
        nonlocal passed
        passed += int(seconds * 1e9)
        await asyncio.sleep(0)

    runtime = dataclasses.replace(real(), sleep=sleep, monotonic_ns=lambda: started + passed, wall_ns=lambda: 1_790_000_000 * 10**9 + passed)
    sink = MemorySink()
    source = OpcuaSource(settings_for(free_port(), 20), runtime, GatewayClock(runtime.wall_ns(), started, 0, 0), Nobody(), tmp_path)
    task = asyncio.create_task(source.run(sink))
    try:
        sizes = []
        for hours in (1, 2, 5):
            while passed < hours * HOUR:
                await asyncio.sleep(0.01)
                assert not task.done()
            gc.collect()
            if not tracemalloc.is_tracing():
                tracemalloc.start()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        logging.disable(logging.NOTSET)
    assert sizes[2] - sizes[1] < GROWTH_BYTES_MAX, sizes
    assert source._attempt > 300, "it kept trying"
    assert len(sink.told(NoticeKind.SOURCE_DOWN)) <= 2, "one outage is one notice (and one for the stop)"
    assert len(sink.notices) < 10


async def test_a_pause_does_not_wait_for_a_connection_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, left = asyncio.Event(), asyncio.Event()

    async def endless(*_: object) -> Session:
        connecting.set()
        try:
            return await asyncio.Future[Session]()
        finally:
            left.set()

    monkeypatch.setattr(Session, "connect", endless)
    nobody, sink, runtime = Nobody(), MemorySink(), real()
    source = OpcuaSource(settings_for(1, 20), runtime, GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), 0, 0), nobody, tmp_path)
    task = asyncio.create_task(source.run(sink))
    try:
        await connecting.wait()
        monkeypatch.setattr(nobody, "paused", lambda _source: True)
        async with asyncio.timeout(20):
            await left.wait()
            while not sink.told(NoticeKind.SOURCE_DOWN):
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert sink.told(NoticeKind.SOURCE_DOWN)[0]["event"] == "paused"
