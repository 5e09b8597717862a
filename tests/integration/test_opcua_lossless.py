"""The promise as one story: cuts, outages, a server restart and ten kill -9 against node-opcua, through the real ring, checked by a ledger.

The ledger is the server's own log of every value it ever held. What the ring holds is read with SQL. Missing or doubled = 0 within the
server's queue and history; what lies outside of both is missing exactly where a gap that was closed as unfillable says so.

Lifetimes are shortened so that an outage "beyond queue, session and subscription" takes seconds, not the usual ten minutes.
"""

from __future__ import annotations

import asyncio
import collections
import random
import time
from pathlib import Path

import pytest

from buffer.types import Flag
from gateway.settings import Load
from tests.support.collector import Collector
from tests.support.opcua_child import settings_for
from tests.support.opcua_server import OpcuaServer
from tests.support.proxy import Proxy

pytestmark = pytest.mark.peers

TAGS, FAST = 120, 20  # more than MaxMonitoredItemsPerCall; twelve requests for history
PERIOD_MS = 100
LIMITS = ("SESSION_TIMEOUT_S=7", "LIFETIME_S=7", "KEEP_ALIVE_S=1", "QUEUE_MAX=30", "BACKOFF_CAP_S=1")  # a queue of three seconds
CUT_S = 60  # beyond everything the server keeps for us but its history
DEAD_S = 10  # away for so long, nothing at the server waits for us any more
RESTARTED = 1_000_000  # first value after the server's restart
KILLS = 10
SEED = 20261126


class Story:
    """Server, proxy and collector, and what the test waits for."""

    def __init__(self, directory: Path, server: OpcuaServer, proxy: Proxy) -> None:
        settings = settings_for(proxy.port, TAGS, load=Load(requests_per_s=20))
        self.server, self.proxy = server, proxy
        self.collector = Collector(directory, (settings,), *LIMITS)

    async def until(self, what: str, seconds: float, condition) -> None:
        deadline = time.monotonic() + seconds
        while self.collector.follow() or not condition():
            assert not self.collector.died, f"collect ended by itself while waiting for {what}: {self.collector.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s; {self.collector.told}"
            await asyncio.sleep(0.02)

    async def up(self, times: int) -> None:
        """Wait until readings flowed for the n-th time."""
        await self.until(f"up {times}", 40, lambda: len(self.collector.notices("source_up")) >= times)

    def ups(self) -> int:
        return len(self.collector.notices("source_up"))

    async def whole(self) -> None:
        """Wait until no gap is open."""
        await self.until("no open gap", 40, lambda: self.collector.open_gaps == 0)

    def closed(self) -> int:
        return sum(told["event"] in {"filled", "unfillable"} for told in self.collector.notices("gap"))

    async def cut(self, seconds: float) -> None:
        """Cut the connection for so long and wait until readings flow again."""
        before = self.ups()
        self.proxy.cut(blocked=True)
        await asyncio.sleep(seconds)
        self.proxy.restore()
        await self.up(before + 1)


async def three_cuts_of_a_second(story: Story) -> None:
    for _ in range(3):
        await story.cut(1)
        await asyncio.sleep(1)
    assert not story.collector.notices("gap"), "within the server's queue there is no gap"


async def cuts_beyond_queue_and_subscription(story: Story) -> None:
    await story.cut(4.2)  # beyond the queue of three seconds, within the life of the subscription
    await story.until("overflow gap", 20, lambda: any("overflow" in str(told.get("reason")) for told in story.collector.notices("gap")))
    await asyncio.sleep(2)
    await story.whole()
    await story.cut(CUT_S)
    await asyncio.sleep(2)
    await story.whole()
    events = [told["event"] for told in story.collector.notices("gap")]
    assert "unfillable" not in events, story.collector.notices("gap")
    assert events.count("filled") >= 2


async def a_server_restart(story: Story) -> tuple[int, int]:
    """The server's queue and history die with it: what it held and we had not read is lost. Return between which ns."""
    began = time.time_ns()
    before = story.ups()
    story.proxy.cut(blocked=True)
    await asyncio.sleep(1.5)
    story.server.stop()
    story.server.start(start=RESTARTED)
    story.proxy.restore()
    await story.up(before + 1)
    ended = time.time_ns()
    await asyncio.sleep(2)
    await story.whole()
    return began, ended


async def ten_kills(story: Story, rng: random.Random) -> int:
    """Return how many of them hit the middle of a fill."""
    mid_fill, closed = 0, story.closed()
    for kill in range(KILLS):
        if kill % 2:
            await asyncio.sleep(rng.uniform(0.05, 2.5))  # anywhere: while it starts, connects, reads
        else:
            # on a busy machine a fill may have passed between two looks
            await story.until("a fill", 40, lambda closed=closed: story.collector.filling or story.closed() > closed)
            await asyncio.sleep(rng.uniform(0, 0.1))
            story.collector.follow()
            mid_fill += story.collector.filling
        await story.collector.kill()
        closed = story.closed()
        await asyncio.sleep(DEAD_S if kill % 2 else rng.uniform(0, 1))  # every other time longer than the subscription lives
        await story.collector.start()
    return mid_fill


def judge(story: Story, lost_between: tuple[int, int]) -> dict[str, int]:
    """Compare the server's log with the ring, value by value."""
    log = [(int(tick), int(ms)) for tick, ms in (line.split() for line in (story.server.log).read_text().splitlines())]
    gaps = [told for told in story.collector.notices("gap") if told["event"] == "unfillable"]
    assert len(gaps) == 1, f"one gap cannot be filled: the restart; {gaps}"
    since, until = int(str(gaps[0]["since_ns"])), int(str(gaps[0]["until_ns"]))
    assert lost_between[0] - 2e9 <= since <= until <= lost_between[1] + 2e9, "the gap says more than is missing"
    mask = int(Flag.MARKER | Flag.REPEATED)
    rows = story.collector.rows(
        f"SELECT tag, value_double, epoch_ms(coalesce(ts_source, ts)) FROM readings WHERE tag LIKE 't%' AND flags & {mask} = 0 AND quality & 3221225472 = 0"
    )
    found: dict[str, collections.Counter[tuple[int, int]]] = collections.defaultdict(collections.Counter)
    for tag, value, ms in rows:
        found[str(tag)][int(value), int(ms)] += 1
    assert len(found) == TAGS
    missing = outside = doubled = forged = 0
    for tag, seen in found.items():
        held = {one for one in log if int(tag[1:]) < FAST or one[0] % 5 == 0}
        first, last = min(ms for _, ms in seen), max(ms for _, ms in seen)
        absent = [ms for one in held for ms in [one[1]] if first < ms < last and one not in seen]
        missing += len(absent)
        outside += sum(not since - 1e6 <= ms * 1e6 <= until + 1e6 for ms in absent)
        doubled += sum(times - 1 for times in seen.values())
        forged += sum(one not in held and one[0] not in (0, RESTARTED) for one in seen)
    return {"values": len(rows), "missing": missing, "outside": outside, "doubled": doubled, "forged": forged}


async def test_nothing_missing_nothing_doubled_and_exactly_the_rest_as_gaps(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    limits = {"max_items": 100, "max_read": 60, "history": True}
    server = OpcuaServer(tmp_path / "server", tags=TAGS, slow_from=FAST, period_ms=PERIOD_MS, log=str(tmp_path / "held"), **limits).start()
    server.log = tmp_path / "held"
    rng = random.Random(SEED)
    async with Proxy(server.port) as proxy:
        story = Story(tmp_path, server, proxy)
        try:
            await story.collector.start()
            await story.up(1)
            await three_cuts_of_a_second(story)
            await cuts_beyond_queue_and_subscription(story)
            lost_between = await a_server_restart(story)
            await story.collector.kill()
            await asyncio.sleep(DEAD_S)
            await story.collector.start()
            mid_fill = await ten_kills(story, rng)
            await story.until("no open gap", 60, lambda: story.collector.open_gaps == 0)
            await asyncio.sleep(1)
            await story.whole()
            assert await story.collector.stop() == 0
        finally:
            if not story.collector.died:
                await story.collector.kill()
            server.stop()
    result = judge(story, lost_between) | {"mid_fill": mid_fill}
    print(result)
    assert result["values"] > 5_000, result
    assert result["outside"] == result["doubled"] == result["forged"] == 0, result
    assert result["missing"] >= FAST * 10, f"a second and a half of the fast tags went down with the server: {result}"
    assert mid_fill >= 3, "the kills did not hit a fill"
