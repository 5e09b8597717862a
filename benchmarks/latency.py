"""How old live data is while a backlog drains: from the commit's end on the box to the signed receipt of that commit, on loopback.

The real uploader and the real receiver over mutual TLS 1.3. A commit of 1,000 readings four times a second, while 300 million readings
of sealed segments drain beside it at 100 Mbit/s (so that it lasts), and again with no backlog at all. The live lane sends at most once a second, so
half a second is the least a mean can be. The receipt counts when the uploader's cursor covers the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING, Final

from benchmarks.drain import payload
from benchmarks.fabricate import Fabric
from benchmarks.harness import Report, main, percentile
from benchmarks.ingest import fresh
from benchmarks.rings import STREAM, batches, instant, open_ring
from benchmarks.site import Server, Site
from benchmarks.workload import Workload
from buffer.storage import PosixReadStorage
from gateway.lanes import TokenBucket

if TYPE_CHECKING:
    from pathlib import Path

    from buffer.ring import Ring
    from gateway.upload.service import Uploader

READINGS: Final = 1_000_000  # a segment
SEGMENTS: Final = 300
RATE_BPS: Final = 100_000_000
COMMIT_S: Final = 0.25
COMMITS: Final = 140
GOAL: Final = "value <= 2"
WAIT_S: Final = 60.0


@dataclasses.dataclass
class Outcome:
    """Latencies in seconds, and what was left of the backlog at the end."""

    seconds: list[float]
    backlog: int


async def _live(ring: Ring, uploader: Uploader, commits: int) -> list[float]:
    """Commit, and note when each commit is receipted."""
    waiting: dict[int, float] = {}  # block -> end of its commit
    done: list[float] = []

    async def watch() -> None:
        while True:
            held = uploader.machine.memory.cursor.done(ring.generation)
            for block in [b for b in waiting if held.covers(b, b)]:
                done.append(time.perf_counter() - waiting.pop(block))
            await asyncio.sleep(0.005)

    watcher = asyncio.create_task(watch())
    workload = Workload(seed=3)
    for part in batches(workload.scans(commits), 1_000):
        begun = time.perf_counter()
        ring.append(part, 0, bytes(16))
        committed = await asyncio.to_thread(ring.commit, instant())
        waiting[committed.last_block] = time.perf_counter()
        await asyncio.sleep(max(0.0, COMMIT_S - (time.perf_counter() - begun)))
    until = time.perf_counter() + WAIT_S
    while waiting and time.perf_counter() < until:
        await asyncio.sleep(0.05)
    watcher.cancel()
    return done + [WAIT_S] * len(waiting)


async def _run(site: Site, server: Server, ring: Ring, state: Path, commits: int) -> Outcome:
    uploader, carrier, store = site.uploader(server.port, state, PosixReadStorage(site.root / "ring" / STREAM))
    uploader._bucket = TokenBucket(RATE_BPS)
    task = asyncio.create_task(uploader.run())
    machine = uploader.machine
    try:
        await asyncio.sleep(3.0)  # objects, first offers
        seconds = await _live(ring, uploader, commits)
        return Outcome(seconds, machine.plan.backlog(machine.memory.cursor).readings)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        store.close()
        await carrier.close()


def measure(report: Report, segments: int) -> Outcome:
    """One run with this many segments waiting."""
    directory = fresh(report.options)
    site = Site(directory)
    root = site.root / "ring" / STREAM
    root.mkdir(parents=True)
    readings = report.options.size(READINGS, 20_000)
    data = payload(readings)
    first = directory / "payload"
    first.write_bytes(data)
    fabric = Fabric(root, site.data, readings)
    for _ in range(segments):
        fabric.add(data, hashlib.sha256(data).digest(), first)
    ring = open_ring(root, signer=site.data, statement=site.statement)
    server = Server("receive", site.root, directory / "landing")
    try:
        return asyncio.run(_run(site, server, ring, directory / "state", report.options.size(COMMITS, 8)))
    finally:
        server.close()
        ring.close()


def run(report: Report) -> None:
    """Measure with and without a backlog."""
    segments = report.options.size(SEGMENTS, 4)
    with_backlog, without = measure(report, segments), measure(report, 0)
    for share, goal in ((0.5, ""), (0.99, GOAL), (1.0, "")):
        ours, quiet = percentile(with_backlog.seconds, share), percentile(without.seconds, share)
        report.add(
            f"p{share * 100:.0f}", ours, "s", peer="the same without a backlog", peer_value=quiet, goal=goal, commits=len(with_backlog.seconds),
            backlog_readings=segments * READINGS, backlog_left=with_backlog.backlog, backlog_rate_mbps=RATE_BPS / 1e6,
            what="end of commit to signed receipt; one run",
        )  # fmt: skip


if __name__ == "__main__":
    main("latency", run)
