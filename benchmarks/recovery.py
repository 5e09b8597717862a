"""Restart: from nothing to a ring that takes readings, with 1,000 and 15,500 full segments and a journal that was being written.

15,500 segments of a million readings are 30 days of 6,000 tags a second. Segments are names and manifests over one real
payload (benchmarks.fabricate); the journal is real, half full, and is read past the page cache, verified and decoded as after a crash. Each
start is a process of its own: wall time and CPU of `Ring.open`, and how much memory it took beyond the imports. Peer: SQLite opens, checks
(`PRAGMA quick_check`) and counts a million readings, which a start that trusts nothing would have to do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.fabricate import Fabric
from benchmarks.harness import Report, Sample, interleave, main, median, stopwatch
from benchmarks.ingest import fresh
from benchmarks.peers import Sqlite
from benchmarks.rings import batches, instant, open_ring, tag_table
from benchmarks.workload import Workload
from buffer import limits
from buffer.rows import make_rows
from buffer.segment import arrow_table, parquet_bytes
from gateway.trust.keys import create_signer, load_signer

if TYPE_CHECKING:
    from collections.abc import Callable

SEGMENTS: Final = {10: "", 1_000: "value <= 1", 15_500: "value <= 10"}  # seconds
JOURNAL_BLOCKS: Final = 500  # of a thousand readings, in the journal that was being written
FLAT_MIB: Final = 64  # memory of 15,500 beyond that of 10: names, one object each


def build(report: Report, segments: int) -> Path:
    """Make the ring; return its directory."""
    root = fresh(report.options) / "ring"
    signer = create_signer(root.parent / "ring.key")
    columns = Workload().scans(20)
    rows = make_rows(columns, np.arange(len(columns)), tag_table(), by_tag=True)
    data = parquet_bytes(arrow_table(rows, 1), {}, tries={})
    payload = root.parent / "payload"
    payload.write_bytes(data)
    fabric = Fabric(root, signer, limits.SEGMENT_READINGS_MAX)
    digest = hashlib.sha256(data).digest()
    for _ in range(segments):
        fabric.add(data, digest, payload)
    ring = open_ring(root, signer=signer)
    for part in batches(Workload(seed=2).scans(report.options.size(JOURNAL_BLOCKS, 5)), 1_000):
        ring.append(part, 0, bytes(16))
        ring.commit(instant())
    ring.close()  # writes nothing: what a crash leaves looks the same
    return root


def run_open(root: Path, readings: int) -> Sample:
    """Start once in a process of its own."""
    out = subprocess.run([sys.executable, "-m", "benchmarks.recovery", "--open", str(root)], capture_output=True, text=True, check=True).stdout
    facts: dict[str, Any] = json.loads(out)
    return Sample(readings, facts["wall_s"], facts["cpu_s"], {key: facts[key] for key in ("mib", "held", "queued_s")})


def peak_kib() -> int:
    """Return the peak resident memory of this process since it was forgotten last (proc(5), status)."""
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")).split()[1])


def run_queue_s() -> float:
    """Return how long this thread has waited for a processor that others were using (kernel documentation, sched-stats)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def open_once(root: Path) -> None:
    """Open, say what it took, end."""
    signer = load_signer(root.parent / "ring.key")
    ring_module = open_ring.__globals__["Ring"]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far; ru_maxrss would begin with that of our parent
    before = peak_kib()
    facts: dict[str, float] = {}
    real = ring_module.open

    def timed(*arguments: Any) -> Any:
        wall, cpu, queued = time.perf_counter(), time.process_time(), run_queue_s()
        ring = real(*arguments)
        facts.update(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu, queued_s=run_queue_s() - queued)
        facts.update(mib=(peak_kib() - before) / 1024)
        return ring

    ring_module.open = timed
    ring = open_ring(root, signer=signer)
    facts["held"] = ring.info(instant()).readings
    print(json.dumps(facts))


def run_sqlite(path: Path, readings: int) -> Sample:
    """Open, check and count."""
    samples: list[Sample] = []
    with stopwatch(readings, samples):
        db = sqlite3.connect(path)
        if db.execute("PRAGMA quick_check").fetchone() != ("ok",) or db.execute("SELECT count(*) FROM r").fetchone() != (readings,):
            message = "SQLite lost something"
            raise RuntimeError(message)
    db.close()
    return samples[0]


def run(report: Report) -> None:
    """Measure all sizes."""
    options = report.options
    wanted = {10: ""} if options.quick else SEGMENTS
    roots = {n: build(report, n) for n in wanted}
    readings = options.size(1_000_000, 10_000)
    directory = fresh(options)
    peer, seq = Sqlite(directory), 0
    for part in batches(Workload().scans(readings // 1_000), 1_000 * min(10, readings // 1_000)):
        peer.commit(peer.prepare(part, seq))
        seq += len(part)
    peer.close()
    contestants: dict[str, Callable[[], Sample]] = {"SQLite": lambda: run_sqlite(directory / "log.db", readings)}
    for n, root in roots.items():
        contestants[str(n)] = lambda n=n, root=root: run_open(root, n * limits.SEGMENT_READINGS_MAX)  # type: ignore[misc]
    result = interleave(options.rounds, contestants)
    small = median(result["10"], lambda s: s.extra["mib"])
    for n, goal in wanted.items():
        samples = result[str(n)]
        report.add(
            f"{n}", median(samples, lambda s: s.wall_s), "s", goal=goal, cpu_s=median(samples, lambda s: s.cpu_s),
            waited_for_a_processor_s=median(samples, lambda s: s.extra["queued_s"]), readings_held=median(samples, lambda s: s.extra["held"]), journal_readings=options.size(JOURNAL_BLOCKS, 5) * 1_000,
            peer_note=f"SQLite quick_check and count of {readings} readings: {median(result['SQLite'], lambda s: s.wall_s):.3f} s",
        )  # fmt: skip
        mib = median(samples, lambda s: s.extra["mib"])
        report.add(f"{n}.memory", mib, "MiB", peer="10 segments", peer_value=small, goal=f"value <= {small + FLAT_MIB:.0f}" if n != 10 else "",
                   what="peak resident memory of Ring.open beyond the imports")  # fmt: skip
    for root in roots.values():
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        open_once(Path(sys.argv[2]))
    else:
        main("recovery", run)
