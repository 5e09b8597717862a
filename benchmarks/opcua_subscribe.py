"""What a subscribed value costs, against asyncua in the same run; and whether 50,000 changes a second all arrive (make bench NAME=opcua-subscribe).

CPU is that of this process (time.process_time): servers are processes of their own. Ours is the whole source as it runs in collect, up to
columns: connection, publish pump, decoding, clock, tag states; the sink counts and forgets. asyncua runs with a handler that counts, and
with its iterator (queue as large as needed). On a machine that is busy otherwise the server offers less than it should; CPU per value is
judged all the same: a window lasts until VALUES_MIN values have come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from asyncua import Client, ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary

from benchmarks.harness import Report, main
from benchmarks.opcua_peers import cost, node_opcua, source_settings
from buffer.last import Known
from buffer.types import Flag
from gateway.collect.clock import GatewayClock
from gateway.collect.opcua import subscribe
from gateway.collect.opcua.answers import decode_message, parse_publish
from gateway.collect.opcua.source import OpcuaSource
from gateway.collect.source import Batch
from gateway.runtime import real

TAGS, PERIOD_MS, PUBLISH_MS = 1_000, 100, 500  # 5,000 values in a message
WINDOW_S, SETTLE_S, VALUES_MIN = 4.0, 3.0, 20_000
WINDOW_MOST_S = 30.0  # where the server gets little CPU, longer until VALUES_MIN have come
MESSAGES, CAPTURE_S = 8, 90.0
SERVERS, SERVER_TAGS, SERVER_PERIOD_MS = 7, 1_000, 100  # 70,000 changes a second, of which timers of node leave 50,000 and more
DELIVERY_BEGIN_S, DELIVERY_S = 10.0, 20.0
FIRST_NUMBER = 16  # of a tag


class CountingSink:
    """Takes columns and forgets them."""

    def __init__(self) -> None:
        self.values = 0

    async def commit(self, batch: Batch) -> None:
        self.values += len(batch.columns)

    def known(self, source: str) -> Known:
        return Known(None, {}, ())

    def notice(self, kind: int, source: str, **detail: object) -> None:
        pass


class JudgingSink(CountingSink):
    """Judges every value: the server counts up by one in each tag at each change, so a step of anything else is a value lost, doubled or moved."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.lost = self.wrong = self.gaps = 0  # wrong: a value not above the one before it
        self._newest = np.full(tags, np.nan)

    async def commit(self, batch: Batch) -> None:
        columns = batch.columns
        self.gaps += batch.gap is not None
        told = (columns.flags & np.uint16(Flag.MARKER)) == 0
        order = np.argsort(columns.tag[told], kind="stable")
        rows, values = columns.tag[told][order] - FIRST_NUMBER, columns.values[told].view("f8")[order]
        first = np.diff(rows, prepend=-1) != 0
        steps = values - np.where(first, self._newest[rows], np.roll(values, 1))
        self._newest[rows] = values  # the last one of each tag stays
        known = ~np.isnan(steps)
        self.wrong += int(np.count_nonzero(steps[known] < 1))
        self.lost += int(np.maximum(steps[known] - 1, 0).sum())
        self.values += int(np.count_nonzero(known))


class Nobody:
    def paused(self, source: str) -> bool:
        return False

    def asked(self, source: str) -> None:
        return None


@contextlib.asynccontextmanager
async def our_source(name: str, port: int, tags: int, sink: CountingSink):
    runtime = real()
    clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), 0, 0)
    with tempfile.TemporaryDirectory() as directory:
        source = OpcuaSource(source_settings(name, port, tags, PUBLISH_MS), runtime, clock, Nobody(), Path(directory))
        task = asyncio.create_task(source.run(sink))
        try:
            yield source
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def window(count) -> float:
    """Return microseconds of CPU per value over one window."""
    deadline = time.monotonic() + CAPTURE_S
    while not count() and time.monotonic() < deadline:  # noqa: ASYNC110 -- a count, not an event
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_S)
    before, cpu = count(), time.process_time()
    await asyncio.sleep(WINDOW_S)
    deadline = time.monotonic() + WINDOW_MOST_S - WINDOW_S
    while count() - before < VALUES_MIN and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(1)
    spent, values = time.process_time() - cpu, count() - before
    if values < VALUES_MIN / 4:
        raise SystemExit(f"only {values} values in {WINDOW_MOST_S} s: the server does not keep up, nothing can be said")
    return spent / values * 1e6


async def ours(port: int) -> float:
    sink = CountingSink()
    async with our_source("plc", port, TAGS, sink):
        return await window(lambda: sink.values)


class Handler:
    def __init__(self) -> None:
        self.values = 0

    def datachange_notification(self, node: object, value: object, data: object) -> None:
        self.values += 1


async def asyncua(port: int, *, iterate: bool) -> float:
    async with Client(f"opc.tcp://127.0.0.1:{port}") as client:
        nodes = [client.get_node(f"ns=1;s=Tag{i:05d}") for i in range(TAGS)]
        handler = Handler()
        if iterate:
            subscription = await client.create_subscription(PUBLISH_MS, None, queue_maxsize=10**6)
        else:
            subscription = await client.create_subscription(PUBLISH_MS, handler)
        await subscription._subscribe(nodes, ua.AttributeIds.Value, None, queuesize=100, sampling_interval=0)
        drain = asyncio.create_task(_drain(subscription, handler)) if iterate else None
        try:
            return await window(lambda: handler.values)
        finally:
            if drain is not None:
                drain.cancel()
            with contextlib.suppress(Exception):
                await subscription.delete()


async def _drain(subscription, handler: Handler) -> None:
    async for _ in subscription:
        handler.values += 1


async def rounds_of_cost(rounds: int) -> list[tuple[float, float, float]]:
    """Return what a value costs us, asyncua's handler and its iterator, round by round."""
    with node_opcua(tags=TAGS, period_ms=PERIOD_MS) as port:
        return [(await ours(port), await asyncua(port, iterate=False), await asyncua(port, iterate=True)) for _ in range(rounds)]


def costs(report: Report) -> None:
    rounds = asyncio.run(rounds_of_cost(report.options.rounds))
    about = {"server": "node-opcua, Double", "tags": TAGS, "period_ms": PERIOD_MS, "publish_ms": PUBLISH_MS, "security": "None"}
    mine, handler, iterator = ([one[i] for one in rounds] for i in range(3))
    cost(report, "handler", mine, "asyncua handler", handler, 20, **about)
    cost(report, "iterator", mine, "asyncua iterator", iterator, 10, **about)


async def capture(port: int) -> list[bytes]:
    """Return the bytes of messages as a server sent them."""
    from gateway.collect.opcua import link

    kept: list[bytes] = []
    original = link.parse_publish

    def keep(data: bytes):
        kept.append(data)
        return original(data)

    link.parse_publish = keep
    try:
        async with our_source("plc", port, TAGS, CountingSink()):
            deadline = time.monotonic() + CAPTURE_S
            while sum(len(data) > 10 * TAGS for data in kept) < MESSAGES + 1 and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        link.parse_publish = original
    whole = [data for data in kept if len(data) > 10 * TAGS][1:]  # the first one is of first values
    if not whole:
        raise SystemExit(f"no message of {TAGS} values within {CAPTURE_S:.0f} s: the server does not keep up")
    return whole


def decode_costs(messages: list[bytes]) -> tuple[float, float]:
    def our() -> int:
        return sum(len(decode_message(parse_publish(data).message)) for data in messages)

    def stock() -> int:
        answers = (struct_from_binary(ua.PublishResponse, Buffer(data)) for data in messages)
        return sum(len(one.MonitoredItems) for answer in answers for one in answer.Parameters.NotificationMessage.NotificationData or ())

    found = []
    for decode, times in ((our, 20), (stock, 1)):
        cpu = time.process_time()
        values = sum(decode() for _ in range(times))
        found.append((time.process_time() - cpu) / values * 1e6)
    return found[0], found[1]


def decoding(report: Report) -> None:
    """Compare decoders on messages as a server sent them; each round decodes all of them."""
    for types, label in ((1, "Double"), (5, "five types, sorted")):
        with node_opcua(tags=TAGS, period_ms=PERIOD_MS, types=types) as port:
            messages = asyncio.run(capture(port))
        check_equal(messages[0])
        rounds = [decode_costs(messages) for _ in range(report.options.rounds)]
        values = sum(len(decode_message(parse_publish(data).message)) for data in messages) // len(messages)
        mine, stock = [one[0] for one in rounds], [one[1] for one in rounds]
        name, peer = f"decode.{types}", "asyncua struct_from_binary"
        cost(report, name, mine, peer, stock, 100, items=label, messages=len(messages), values_per_message=values)


def check_equal(data: bytes) -> None:
    """Ours and the stock decoder see the same values, or nothing is printed."""
    items = decode_message(parse_publish(data).message)
    answer = struct_from_binary(ua.PublishResponse, Buffer(data))
    stock = [one for part in answer.Parameters.NotificationMessage.NotificationData for one in part.MonitoredItems]
    assert [one.ClientHandle for one in stock] == items.handle.tolist()
    assert [one.Value.Value.Value for one in stock] == [items.value(row) for row in range(len(items))]


async def delivered(servers: int, seconds_wanted: float) -> tuple[float, float, dict[str, object]]:
    """Return the share of the values that the servers held which arrived once and in order, how many they held a second, and the rest."""
    with ExitStack() as stack:
        ports = [stack.enter_context(node_opcua(tags=SERVER_TAGS, period_ms=SERVER_PERIOD_MS)) for _ in range(servers)]
        sinks = [JudgingSink(SERVER_TAGS) for _ in ports]
        async with contextlib.AsyncExitStack() as sources:
            for i, (port, sink) in enumerate(zip(ports, sinks, strict=True)):
                await sources.enter_async_context(our_source(f"plc{i}", port, SERVER_TAGS, sink))
            await asyncio.sleep(DELIVERY_BEGIN_S)
            before, cpu, began = sum(sink.values + sink.lost for sink in sinks), time.process_time(), time.monotonic()
            await asyncio.sleep(seconds_wanted)
            seconds = time.monotonic() - began
            offered = (sum(sink.values + sink.lost for sink in sinks) - before) / seconds
            share = (time.process_time() - cpu) / seconds
    values, lost, wrong, gaps = (sum(getattr(sink, name) for sink in sinks) for name in ("values", "lost", "wrong", "gaps"))
    about: dict[str, object] = {
        "servers": servers,
        "tags": servers * SERVER_TAGS,
        "judged": values,
        "lost": lost,
        "doubled_or_moved": wrong,
        "gaps_opened": gaps,
        "cpu_share": round(share, 3),
        "seconds": seconds_wanted,
        "load_average": round(os.getloadavg()[0], 1),
    }
    return 0.0 if gaps else 100 * (values - wrong) / (values + lost), offered, about


def delivery(report: Report) -> None:
    """Offer 50,000 changes a second; every value of every tag of each server must arrive once, in order."""
    quick = report.options.quick
    share, offered, about = asyncio.run(delivered(1 if quick else SERVERS, 3.0 if quick else DELIVERY_S))
    asked = about["servers"] * SERVER_TAGS * 1000 / SERVER_PERIOD_MS
    report.add("delivery", share, "% of the values the servers held", goal="value >= 100", **about)
    note = "servers that get too little CPU change less often than they were told to"
    report.add("delivery.offered", offered, "values/s held by the servers", goal="value >= 50000", told_per_s=asked, note=note)


def run(report: Report) -> None:
    """Decode, cost, delivery."""
    logging.disable(logging.CRITICAL)
    subscribe.QUEUE_MAX = 1_000
    decoding(report)
    costs(report)
    delivery(report)


if __name__ == "__main__":
    main("opcua_subscribe", run)
