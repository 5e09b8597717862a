"""Commit latency while segments are sealed beside it: the collector's own way to seal, against the same commits with nothing beside them.

1,000 readings a commit, twenty commits a second, as a thread that owns the ring would do it. Beside it, without a pause, the collector's Sealer
has the sealing child seal journals of 950,000 readings, publishes each, counts it between two commits, has the next commit begin a
new journal, and makes the file for the one after. What a commit waits for any of it is in its latency. Peer: the same without sealing, in turns.
In life a journal is sealed every quarter of an hour; here, every second or two.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from benchmarks.harness import Report, Sample, interleave, main, median, percentile, ratio, stopwatch
from benchmarks.ingest import fresh
from benchmarks.rings import batches, instant, open_ring
from benchmarks.workload import Workload
from gateway.collect.sealer import Sealer
from gateway.runtime import real

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buffer.ring import Ring

Result = TypeVar("Result")

COMMITS: Final = 200
EVERY_S: Final = 0.05
JOURNAL: Final = 950_000  # readings in a journal that is sealed
JOURNALS: Final = 8
WHAT: Final = {"p50": 0.5, "p99": 0.99, "longest": 1.0}


class Turn:
    """One caller of the ring at a time, as gateway.collect.writer has it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def exclusively(self, action: Callable[[], Result]) -> Result:
        """Run `action` in a thread while nobody else touches the ring."""
        async with self.lock:
            return await asyncio.to_thread(action)

    def notice(self, kind: int, source: str, **detail: object) -> None:
        """Nothing may go wrong here."""
        raise RuntimeError(detail)


async def _commits(ring: Ring, turn: Turn, number: int) -> list[float]:
    """Commit `number` times; return how long each took, waiting for its turn included."""
    out: list[float] = []
    for part in batches(Workload(seed=4).scans(number), 1_000):
        begun = time.perf_counter()
        async with turn.lock:
            ring.append(part, 0, bytes(16))
            await asyncio.to_thread(ring.commit, instant())
        out.append(time.perf_counter() - begun)
        await asyncio.sleep(max(0.0, EVERY_S - out[-1]))
    return out


async def _seal(ring: Ring, root: Path, turn: Turn) -> None:
    sealer = Sealer(real(), cast("Any", turn), ring, root, instant, 0)
    while True:
        await sealer.spare()
        if not await sealer.one():
            await asyncio.sleep(EVERY_S)
        await turn.exclusively(lambda: ring.roll_if_due(instant(), 0))


async def _both(ring: Ring, root: Path, number: int, *, sealing: bool) -> list[float]:
    turn = Turn()
    task = asyncio.create_task(_seal(ring, root, turn)) if sealing else None
    await asyncio.sleep(1.0)  # the child has started
    latencies = await _commits(ring, turn, number)
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return latencies


def _journals(ring: Ring, readings: int) -> None:
    """Have journals to seal."""
    parts = list(batches(Workload().scans(readings // 1_000), 10_000))
    for _ in range(JOURNALS):
        for part in parts:
            ring.append(part)
            ring.commit(instant())
        ring.roll_if_due(instant(), 0)
    ring.commit(instant())


def measure(report: Report, *, sealing: bool) -> Sample:
    """One run."""
    root = fresh(report.options) / "ring"
    ring = open_ring(root)
    if sealing:
        _journals(ring, report.options.size(JOURNAL, 20_000))
    number = report.options.size(COMMITS, 10)
    samples: list[Sample] = []
    with stopwatch(number, samples) as extra:
        latencies = asyncio.run(_both(ring, root, number, sealing=sealing))
    extra |= {f"{name}_ms": percentile(latencies, share) * 1e3 for name, share in WHAT.items()} | {"sealed": ring.counters.sealed}
    ring.close()
    return samples[0]


def run(report: Report) -> None:
    """Measure in turns."""
    result = interleave(report.options.rounds, {"with": lambda: measure(report, sealing=True), "without": lambda: measure(report, sealing=False)})
    for what in (f"{name}_ms" for name in WHAT):
        report.add(
            what, median(result["with"], lambda s: s.extra[what]), "ms", peer="the same without sealing",
            peer_value=median(result["without"], lambda s: s.extra[what]), ratio=ratio(result["with"], result["without"], lambda s: s.extra[what]),
            segments_sealed_a_round=median(result["with"], lambda s: s.extra["sealed"]), commits=report.options.size(COMMITS, 10),
            readings_per_commit=1_000,
        )  # fmt: skip


if __name__ == "__main__":
    main("commit", run)
