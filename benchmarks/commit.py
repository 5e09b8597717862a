"""Commit latency while segments are sealed beside it: the collector's own way to seal, against the same commits with nothing beside them.

1,000 readings a commit, ten commits a second, as a thread that owns the ring would do it. Beside it, without a pause, the sealing child
(`python -m buffer.segment`, nice 19) seals a journal of 950,000 readings, and its result is adopted (hashed, signed, published) under
the same lock that commits take: what a commit waits for an adoption is in its latency. Peer: the same without sealing, in turns.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from benchmarks.harness import Report, Sample, interleave, main, median, percentile, ratio, stopwatch
from benchmarks.ingest import fresh
from benchmarks.rings import batches, instant, open_ring, sealable
from benchmarks.workload import Workload
from buffer.ring import with_root
from gateway.collect.sealer import run_child

if TYPE_CHECKING:
    from pathlib import Path

    from buffer.ring import Ring

COMMITS: Final = 100
EVERY_S: Final = 0.1
JOURNAL: Final = 950_000  # readings in the journal that is sealed
LOST_S: Final = 120.0


async def _commits(ring: Ring, lock: asyncio.Lock, number: int) -> list[float]:
    """Commit `number` times; return how long each took, waiting for the lock included."""
    out: list[float] = []
    for part in batches(Workload(seed=4).scans(number), 1_000):
        begun = time.perf_counter()
        async with lock:
            ring.append(part, 0, bytes(16))
            await asyncio.to_thread(ring.commit, instant())
        out.append(time.perf_counter() - begun)
        await asyncio.sleep(max(0.0, EVERY_S - out[-1]))
    return out


async def _seal_again_and_again(ring: Ring, root: Path, lock: asyncio.Lock, sealed: list[int]) -> None:
    """Seal what is waiting; when all is sealed, seal the same journal again without adopting it."""
    again = None
    while True:
        async with lock:
            request = ring.sealable()
        again = with_root(request, str(root)) if request is not None else again
        if again is None:
            return
        result = await run_child(again)
        if result.error:
            raise RuntimeError(result.error)
        if request is not None:
            async with lock:
                await asyncio.to_thread(ring.adopt, request, result, instant())
        sealed.append(sum(part.count for part in result.parts))


async def _both(ring: Ring, root: Path, number: int, *, sealing: bool) -> tuple[list[float], list[int]]:
    lock = asyncio.Lock()
    sealed: list[int] = []
    task = asyncio.create_task(_seal_again_and_again(ring, root, lock, sealed)) if sealing else None
    if task is not None:
        await asyncio.sleep(1.0)  # the child has started
    latencies = await _commits(ring, lock, number)
    if task is not None:
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
    return latencies, sealed


def measure(report: Report, *, sealing: bool) -> Sample:
    """One run."""
    root = fresh(report.options) / "ring"
    ring = open_ring(root)
    if sealing:
        workload = Workload()
        for part in batches(workload.scans(report.options.size(JOURNAL, 20_000) // 1_000), 10_000):
            ring.append(part)
            ring.commit(instant())
        if sealable(ring, root) is None:
            message = "nothing to seal"
            raise RuntimeError(message)
    number = report.options.size(COMMITS, 10)
    samples: list[Sample] = []
    with stopwatch(number, samples) as extra:
        latencies, sealed = asyncio.run(_both(ring, root, number, sealing=sealing))
    extra |= {"p50_ms": percentile(latencies, 0.5) * 1e3, "p99_ms": percentile(latencies, 0.99) * 1e3, "sealed": len(sealed)}
    ring.close()
    return samples[0]


def run(report: Report) -> None:
    """Measure in turns."""
    result = interleave(report.options.rounds, {"with": lambda: measure(report, sealing=True), "without": lambda: measure(report, sealing=False)})
    for what in ("p50_ms", "p99_ms"):
        report.add(
            what, median(result["with"], lambda s: s.extra[what]), "ms", peer="the same without sealing",
            peer_value=median(result["without"], lambda s: s.extra[what]), ratio=ratio(result["with"], result["without"], lambda s: s.extra[what]),
            segments_sealed_a_round=median(result["with"], lambda s: s.extra["sealed"]), commits=report.options.size(COMMITS, 10),
            readings_per_commit=1_000,
        )  # fmt: skip


if __name__ == "__main__":
    main("commit", run)
