"""One connection at work, against a session that answers what it likes, on time that runs as fast as it can."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from gateway.collect.clock import GatewayClock
from gateway.collect.load import Budget
from gateway.collect.opcua.answers import SERVICE_FAULT, CreatedItem
from gateway.collect.opcua.decode import Items
from gateway.collect.opcua.facts import Facts
from gateway.collect.opcua.feed import Feed
from gateway.collect.opcua.link import Link, together
from gateway.collect.opcua.state import SourceState, Subscription
from gateway.collect.opcua.subscribe import KEEP_ALIVE_S, revised_keep_alive_s
from gateway.collect.opcua.throttle import Throttle
from gateway.errors import PlantError
from gateway.runtime import Runtime, real
from tests.support.opcua_child import settings_for
from tests.support.sinks import MemorySink
from tests.unit.test_opcua_readings import doubles

HOUR_S = 3600.0
TOO_MANY_PUBLISH, TIMEOUT = 0x8078_0000, 0x800A_0000


def fault(status: int) -> bytes:
    """A ServiceFault (OPC 10000-4, 7.35) as it comes."""
    return struct.pack("<BBHqII", 1, 0, SERVICE_FAULT, 0, 0, status) + b"\0" + struct.pack("<i", -1) + b"\0\0\0"


def quick() -> tuple[Runtime, Any]:
    """A runtime whose sleeps take no time (those of an hour never end), and its monotonic clock in seconds."""
    passed = 0

    async def sleep(seconds: float) -> None:
        nonlocal passed
        if seconds >= HOUR_S:
            await asyncio.Event().wait()
        passed += int(seconds * 1e9)
        await asyncio.sleep(0)

    return dataclasses.replace(real(), sleep=sleep, monotonic_ns=lambda: passed, wall_ns=lambda: 1_790_000_000 * 10**9 + passed), lambda: passed / 1e9


class Bytes:
    """An answer as asyncua's buffer gives it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def copy(self) -> Bytes:
        return self

    def read(self, size: int) -> bytes:
        return self._data[:size]


class Faulty:
    """A session that answers reads, and every Publish with the same fault."""

    def __init__(self, status: int) -> None:
        self.url, self.resumed, self.renew_after_s = "", True, HOUR_S
        self.facts = Facts((), 0, 0, {})
        self._status = status

    def publish(self, acknowledge: Iterable[tuple[int, int]]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_result(Bytes(fault(self._status)))
        return answer

    async def read(self, nodes: Sequence[str], attribute: int) -> Items:
        return doubles(*((0, 0.0, 0) for _ in nodes))

    async def read_facts(self, wall_ns: object) -> Facts:
        return self.facts


@pytest.mark.parametrize("status", [TOO_MANY_PUBLISH, TIMEOUT])
async def test_a_server_that_answers_every_publish_with_a_fault_publishes_nothing(status: int) -> None:
    """It answers, so it is not silent; and no reading ever comes."""
    runtime, seconds = quick()
    settings = settings_for(1, 1)
    feed = Feed(settings, runtime, GatewayClock(runtime.wall_ns(), 0, 0, 0), MemorySink(interval_s=0))
    feed.begin(Subscription(1, "", "", 10.0), 0)
    link = Link(Faulty(status), feed, SourceState(), Throttle(Budget(settings.load, 0), runtime), lambda kept: None)  # type: ignore[arg-type]
    with pytest.raises(PlantError, match="no publish"):
        async with asyncio.timeout(20):
            await link.run()
    assert seconds() < 60


class Halting(Faulty):
    """A session whose first attempt to create items is cut off."""

    def __init__(self) -> None:
        super().__init__(TIMEOUT)
        self.made: list[int] = []  # subscriptions
        self.asked = 0

    async def create_subscription(self, *wanted: object) -> tuple[int, float, int]:
        self.made.append(len(self.made) + 1)
        return self.made[-1], 1000.0, 10

    async def create_items(self, subscription: int, wishes: Sequence[object]) -> list[CreatedItem]:
        self.asked += 1
        if self.asked == 1:
            raise PlantError("connection lost")
        return [CreatedItem(0, 1, 1000.0, 10) for _ in wishes]


async def test_a_subscription_cut_off_before_all_its_items_were_made_is_never_kept() -> None:
    """It lives, publishes keep-alives, and would say nothing for ever."""
    runtime, _ = quick()
    settings = settings_for(1, 1)
    feed = Feed(settings, runtime, GatewayClock(runtime.wall_ns(), 0, 0, 0), MemorySink(interval_s=0))
    session, state = Halting(), SourceState()
    for attempt in range(2):
        link = Link(session, feed, state, Throttle(Budget(settings.load, 0), runtime), lambda kept: None)  # type: ignore[arg-type]
        with pytest.raises(PlantError) if attempt == 0 else contextlib.nullcontext():
            await link.prepare()
    assert (session.made, session.asked) == ([1, 2], 2)
    assert feed.subscription is not None
    assert feed.subscription.id == 2


def test_a_keep_alive_that_is_no_time_is_ours() -> None:
    assert revised_keep_alive_s(1000.0, 10) == 10.0
    for interval_ms, count in [(0.0, 10), (math.nan, 10), (math.inf, 10), (-1.0, 10), (1000.0, 0), (math.inf, 0)]:
        assert revised_keep_alive_s(interval_ms, count) == KEEP_ALIVE_S


async def never() -> None:
    await asyncio.get_running_loop().create_future()


async def fails(error: Exception) -> None:
    raise error


async def test_work_side_by_side_ends_with_the_first_that_fails_and_nobody_was_told_to_stop() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="defect"):  # of two, the one that is no plant's
            await together(never(), fails(PlantError("gone")), fails(ValueError("defect")))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_a_stop_that_meets_failing_work_is_not_forgotten() -> None:
    ending = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await never()
        finally:
            ending.set()
            await asyncio.sleep(3600)

    work = asyncio.create_task(together(slow_to_end(), fails(PlantError("gone"))))
    await ending.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_work_that_is_cancelled_inside_is_no_stop_and_no_end() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    go = asyncio.Event()

    async def fails_later() -> None:
        await go.wait()
        raise PlantError("gone")

    work = asyncio.create_task(together(cancelled(), fails_later()))
    await asyncio.sleep(0.01)
    assert not work.done()
    go.set()
    with pytest.raises(PlantError, match="gone"):
        await work
