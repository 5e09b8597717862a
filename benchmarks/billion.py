"""A ring of a billion readings on one small machine: built, restarted, asked, checked, scrubbed, and evicted (`make billion`).

`build` is the collector's own way: commits of 50,000 readings into journals, each sealed by the sealing child beside the next commits, hashed,
signed and published by the ring. Then, each in a process of its own, as the commands do it: `restart` (kill -9 left a journal half full),
`query` (the statements of `ebbgate query`), `check` (`ebbgate ring check`: everything read and decoded again), `scrub` (the weekly round of
collect, without its pauses), `evict` (max_size lowered to 60 %, then ten more segments written at that limit), and `check` and `restart` of
what is left. Wall and CPU time with that of child processes; memory is the peak resident of the process, and of its largest child.

A campaign of an hour, so it goes on where it was stopped: what a step measured is kept beside the ring, and `build` adds what is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import WORK, Options, Report
from benchmarks.query import sql
from benchmarks.recovery import peak_kib, run_queue_s
from benchmarks.rings import STREAM, batches, instant, open_ring, tag_table
from benchmarks.workload import FIRST_S, TAGS, Workload
from buffer import limits
from buffer.check import check_ring
from buffer.query import QueryOptions, _connect, run_query
from buffer.ring import with_root
from buffer.scrub import Progress, Scrub
from buffer.snapshot import stream_directories, take_snapshot
from buffer.storage import PosixReadStorage
from gateway.collect.sealer import run_child
from gateway.trust.keys import KeyRing, load_signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from buffer.ring import Ring

READINGS: Final = 1_000_000_000
QUICK: Final = 1_900_000
COMMIT_SCANS: Final = 50  # of a thousand readings: a block
JOURNAL_COMMITS: Final = (limits.SEGMENT_READINGS_MAX - limits.BLOCK_READINGS_MAX) // (COMMIT_SCANS * TAGS)  # then the ring would begin another
AT_LIMIT: Final = 10  # segments written while the ring is full
LOWERED: Final = 0.6
Facts = dict[str, Any]


# ---- steps: each in a process of its own, in this order ----


class Filler:
    """Writes whole journals of the synthetic plant, and has them sealed beside the next one."""

    def __init__(self, root: Path, ring: Ring, seed: int = 1, after_s: int = 0) -> None:
        self._root, self._ring, self._plant = root, ring, Workload(seed + after_s, first_s=FIRST_S + after_s)
        self.commit_s: list[float] = []
        self.used_most = 0

    def _journal(self, commits: int) -> None:
        for part in batches(self._plant.scans(commits * COMMIT_SCANS), COMMIT_SCANS * TAGS):
            begun = time.perf_counter()
            self._ring.append(part, 0, bytes(16))
            self._ring.commit(instant())
            self._ring.make_room(instant())
            self.commit_s.append(time.perf_counter() - begun)
            self.used_most = max(self.used_most, self._ring.usage_bytes())

    async def fill(self, readings: int) -> None:
        """Write so many readings (whole commits); what was written before the newest two journals is sealed."""
        left = max(1, readings // (COMMIT_SCANS * TAGS))
        while left:
            commits = min(left, JOURNAL_COMMITS)
            request = self._ring.sealable()
            child = asyncio.create_task(run_child(with_root(request, str(self._root)))) if request is not None else None
            await asyncio.to_thread(self._journal, commits)
            left -= commits
            if child is not None and request is not None:
                result = await child
                if not result.error:
                    self._ring.adopt(request, result, instant())
                elif self._ring.sealable() == request:  # else it was evicted while the child read it
                    raise RuntimeError(result.error)
            if left:
                self._ring.roll_if_due(instant(), 0)


def build(root: Path, readings: int) -> Facts:
    """Make the ring, or what is missing of it; the newest journal is left as a kill would."""
    key = root.parent / f"{STREAM}.key"
    ring = open_ring(root, signer=load_signer(key) if key.exists() else None)
    before = ring.info(instant()).readings
    filler = Filler(root, ring, after_s=before // TAGS)
    asyncio.run(filler.fill(readings - before))
    filler.commit_s.sort()
    c, info = ring.counters, ring.info(instant())
    ring.close()
    return {
        "readings": info.readings, "readings_of_this_run": c.readings, "segments": info.segments, "commits": len(filler.commit_s), "commit_p50_ms": filler.commit_s[len(filler.commit_s) // 2] * 1e3,
        "commit_p99_ms": filler.commit_s[int(len(filler.commit_s) * 0.99)] * 1e3, "sealed_bytes_per_reading": c.sealed_bytes / max(1, c.sealed_readings),
        "block_bytes_per_reading": c.payload_bytes / c.readings, "ring_bytes": info.used_bytes,
    }  # fmt: skip


def restart(root: Path, readings: int) -> Facts:
    """Open; commit the first block."""
    ring = open_ring(root, signer=load_signer(root.parent / f"{STREAM}.key"))
    info = ring.info(instant())
    ring.close()
    return {"readings": info.readings, "segments": info.segments, "journals": info.journals}


def query(root: Path, readings: int) -> Facts:
    """Ask in an open session, then once as a command."""
    tags = [tag.id for tag in tag_table().tags]
    first_s = FIRST_S + readings // TAGS // 2
    facts: Facts = {}
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        begun = time.perf_counter()
        session = _connect([take_snapshot(one, Path(scratch)) for one in stream_directories(root)], Path(scratch), QueryOptions())
        facts["session_ms"] = (time.perf_counter() - begun) * 1e3
        statements = {
            "tag_hour": sql("readings", tags[510], first_s - 3600, 1),
            "tag_all": f"SELECT count(value), avg(value) FROM readings WHERE tag = '{tags[43]}'",
            "count": "SELECT count(*) FROM readings",
        }
        for name, statement in statements.items():
            times: list[float] = []
            for _ in range(5 if name == "tag_hour" else 1):
                begun = time.perf_counter()
                rows = session.execute(statement).fetchall()
                times.append((time.perf_counter() - begun) * 1e3)
            facts[f"{name}_ms"], facts[f"{name}_first_ms"] = sorted(times)[len(times) // 2], times[0]
            facts[f"{name}_rows"] = rows[0][0] if name != "tag_hour" else len(rows)
        session.close()
    begun = time.perf_counter()
    facts["command_rows"] = len(run_query(root, statements["tag_hour"]).rows)
    return facts | {"command_ms": (time.perf_counter() - begun) * 1e3}


def check(root: Path, readings: int) -> Facts:
    """Read and judge everything."""
    report = check_ring(root, _keys(root))
    if report.findings:
        raise RuntimeError(report.findings[0])
    return {"readings": report.readings, "segments": report.segments, "blocks": report.blocks, "compared": report.compared}


def scrub(root: Path, readings: int) -> Facts:
    """One round."""
    one = Scrub(PosixReadStorage(root), _keys(root), Progress())
    now = time.time_ns()
    while (checked := one.step(now)) is not None:
        if checked.problem:
            raise RuntimeError(checked.problem)
    return {"files": one.progress.files, "bytes_read": one.progress.size_bytes}


def evict(root: Path, readings: int) -> Facts:
    """Lower max_size, then go on at that limit."""
    signer = load_signer(root.parent / f"{STREAM}.key")
    before = _bytes(root)
    most = int(before * LOWERED)
    ring = open_ring(root, signer=signer, max_bytes=most)
    begun = time.perf_counter()
    ring.make_room(instant())
    lowered_s, files, left = time.perf_counter() - begun, ring.counters.evicted_files, ring.usage_bytes()
    filler = Filler(root, ring, after_s=readings // TAGS)
    asyncio.run(filler.fill(min(readings, AT_LIMIT * JOURNAL_COMMITS * COMMIT_SCANS * TAGS)))
    facts = {
        "before_bytes": before, "max_bytes": most, "lowered_s": lowered_s, "lowered_files": files, "lowered_bytes": left,
        "at_limit_files": ring.counters.evicted_files - files, "at_limit_most_bytes": filler.used_most,
        "at_limit_commit_max_ms": max(filler.commit_s) * 1e3, "low": ring.state.low[1] if ring.state else 0,
    }  # fmt: skip
    ring.close()
    return facts


STEPS: Final[dict[str, Callable[[Path, int], Facts]]] = {
    "build": build, "restart": restart, "query": query, "check": check, "scrub": scrub, "evict": evict, "check_evicted": check, "restart_evicted": restart,
}  # fmt: skip


def _keys(root: Path) -> KeyRing:
    keys = KeyRing()
    keys.trust(load_signer(root.parent / f"{STREAM}.key").public)
    return keys


def _bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def step(name: str, root: Path, readings: int) -> Facts:
    """Do one step in this process; return what it took and what it says."""
    before, wall, queued = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), run_queue_s()
    facts = STEPS[name](root, readings)
    wall, queued, own, children = time.perf_counter() - wall, run_queue_s() - queued, resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime + children.ru_utime + children.ru_stime
    return facts | {
        "wall_s": wall, "cpu_s": cpu, "main_thread_waited_for_a_processor_s": queued, "mib": peak_kib() / 1024, "child_mib": children.ru_maxrss / 1024, "bytes": _bytes(root),
    }  # fmt: skip


# ---- the campaign ----


def run(report: Report, readings: int, until: str) -> None:
    """Do the steps that were not done yet, up to `until`; say all of them."""
    for name in list(STEPS)[: list(STEPS).index(until) + 1]:
        kept = report.options.work / f"{name}.json"
        if not kept.exists():
            command = [sys.executable, "-m", "benchmarks.billion", "--step", name, "--directory", str(report.options.work), "--readings", str(readings)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            kept.write_text(done.stdout)
        say(report, name, json.loads(kept.read_text()))


def say(report: Report, name: str, facts: Facts) -> None:
    """Say one step."""
    measured = {key: facts.pop(key) for key in ("wall_s", "cpu_s", "mib", "child_mib")}
    report.add(name, measured["wall_s"], "s", **facts)
    report.add(f"{name}.cpu", measured["cpu_s"], "s")
    report.add(f"{name}.memory", measured["mib"], "MiB", largest_child_mib=measured["child_mib"])
    if name == "build":
        if facts["readings_of_this_run"] == facts["readings"]:  # else it was stopped on the way: the time is of the rest
            report.add("build.speed", facts["readings"] / measured["wall_s"], "readings/s")
        report.add("build.ring", facts["ring_bytes"], "bytes")
        report.add("build.segment", facts["sealed_bytes_per_reading"], "bytes/reading", goal="value <= 1.7")
    if name == "query":
        report.add("query.tag_hour", facts["tag_hour_ms"], "ms", what="SQL in an open session, median of five")
        report.add("query.tag_all", facts["tag_all_ms"], "ms", what="all readings of one tag")
        report.add("query.command", facts["command_ms"], "ms", what="one tag, one hour: new process, landlock, imports, names, plan, answer")
    if name == "evict":
        report.add("evict.lowered", facts["lowered_s"], "s", what="max_size lowered to 60 %, one call of make_room")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.billion", description=__doc__)
    parser.add_argument("--readings", type=int, default=READINGS)
    parser.add_argument("--directory", type=Path, help="on a disk with 4 bytes of room a reading; gone afterwards unless stopped before the last step")
    parser.add_argument("--until", choices=STEPS, default=list(STEPS)[-1], help="stop after this step and keep everything")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--save", action="store_true", help="keep the lines in benchmarks/results/billion.json")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    readings = QUICK if chosen.quick else chosen.readings
    if chosen.step:
        print(json.dumps(step(chosen.step, chosen.directory / STREAM, readings)))
        return
    WORK.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=WORK)) if chosen.quick else chosen.directory or WORK / f"billion-{readings}"
    work.mkdir(parents=True, exist_ok=True)
    report = Report("billion", Options(chosen.quick, 1, work))
    run(report, readings, chosen.until)
    if chosen.save and not chosen.quick:
        report.save()
    if chosen.until == list(STEPS)[-1]:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
