"""How every benchmark measures and speaks: interleaved rounds, medians, wall and CPU time, one JSON object a line.

    python -m benchmarks.NAME            prints the lines, about 8 minutes at most on 2 cores
    python -m benchmarks.NAME --save     keeps them in benchmarks/results/NAME.json too, for docs/benchmarks.md
    python -m benchmarks.NAME --quick    seconds; shows that it runs, its figures mean nothing

A line: name, value, unit; peer, peer_value and ratio = value / peer_value where there is a peer; goal ("ratio >= 5", "value <= 1.7") and
ok where there is a goal, else null; settings: whatever somebody needs to repeat or judge it. `peer_value` null: the peer is not on
this machine, and settings says why.

What is compared runs in turns, A B C A B C ..., so that a busy neighbour meets all of them; the value is the median over the rounds
and a ratio is the median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import operator
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROUNDS_MIN: Final = 5
RESULTS: Final = Path(__file__).parent / "results"
WORK: Final = Path(__file__).parents[1] / "build" / "bench"  # on the disk of the checkout: never tmpfs
BUSY_LOAD: Final = 1.0  # load average at the start above which a run is marked as made on a busy machine
_LOAD_AT_START: Final = os.getloadavg()  # before we add our own
_PACKAGES: Final = ("numpy", "pcodec", "zstandard", "pyarrow", "duckdb", "aiohttp", "cryptography")
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contestant: n things in wall_s seconds, of which cpu_s on a processor. extra: what else was measured."""

    n: int
    wall_s: float
    cpu_s: float
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        """Things a second, wall time."""
        return self.n / self.wall_s

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per thing."""
        return self.cpu_s / self.n * 1e6


@dataclass(frozen=True, slots=True)
class Options:
    """Of one run."""

    quick: bool
    rounds: int
    work: Path  # a directory of this run, removed after it

    def size(self, full: int, quick: int) -> int:
        """Return how much to do."""
        return quick if self.quick else full


class Report:
    """Prints lines as they come, and keeps them."""

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self.options = options
        self.lines: list[dict[str, Any]] = []

    def add(
        self, name: str, value: float | None, unit: str, *, peer: str = "", peer_value: float | None = None, ratio: float | None = None,
        goal: str = "", **settings: Any,
    ) -> None:  # fmt: skip
        """Say one line. goal: "ratio >= 5" or "value <= 1.7"; ratio: the median of ratios where it was measured so."""
        if ratio is None and value is not None and peer_value:
            ratio = value / peer_value
        line = {
            "name": f"{self.name}.{name}",
            "value": _rounded(value),
            "unit": unit,
            "peer": peer or None,
            "peer_value": _rounded(peer_value),
            "ratio": _rounded(ratio),
            "goal": goal or None,
            "ok": _judge(goal, value, ratio),
            "settings": {key: _rounded(x) if isinstance(x, float) else x for key, x in settings.items()},
        }
        self.lines.append(line)
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        """Keep the lines beside what the machine was like."""
        RESULTS.mkdir(exist_ok=True)
        body = {"benchmark": self.name, "machine": machine(), "rounds": self.options.rounds, "lines": self.lines}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(body, indent=1) + "\n")


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.4g}") if value is not None else None


def _judge(goal: str, value: float | None, ratio: float | None) -> bool | None:
    if not goal:
        return None
    what, how, bound = goal.split()
    measured = {"value": value, "ratio": ratio}[what]
    return None if measured is None else _COMPARE[how](measured, float(bound))


# ---- measuring ----


@contextmanager
def stopwatch(n: int, out: list[Sample], children: Callable[[], float] | None = None) -> Iterator[dict[str, float]]:
    """Append a Sample of the body to `out`. children: CPU seconds of other processes so far, where they do part of the work.

    Yields the dictionary that becomes `extra`.
    """
    extra: dict[str, float] = {}
    gc.collect()
    outside = children() if children else 0.0
    cpu, wall = time.process_time(), time.perf_counter()
    yield extra
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    out.append(Sample(n, wall, cpu + ((children() - outside) if children else 0.0), extra))


def interleave(rounds: int, contestants: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Run each contestant once per round, all in each round, the order turned by one each time; return the samples by name."""
    out: dict[str, list[Sample]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            out[name].append(contestants[name]())
    return out


def median(samples: Sequence[Sample], what: Callable[[Sample], float]) -> float:
    """Return the median of something."""
    return statistics.median(map(what, samples))


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], what: Callable[[Sample], float]) -> float:
    """Return the median over the rounds of ours / theirs in that round."""
    return statistics.median(what(a) / what(b) for a, b in zip(ours, theirs, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0..1) of the values lie, nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def process_cpu_s(pid: int) -> float:
    """Return user and system seconds of another process and its children so far (proc(5), stat); 0 where it is gone."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for one in [pid, *_children(pid)]:
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15])) / ticks
    return total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(x) for x in task.read_text().split()]
        except OSError:
            continue
    return found + [grand for child in found for grand in _children(child)]


# ---- the machine ----


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine, nothing that names it."""
    memory_kb = int(next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal")).split()[1])
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gib": round(memory_kb / 1024**2),
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "filesystem": file_system(WORK),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "load_average": [round(x, 1) for x in _LOAD_AT_START],
        "busy": max(_LOAD_AT_START[:2]) > BUSY_LOAD,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`."""
    path = path.resolve()
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, this, *_ = line.split()
        if (path.is_relative_to(mount)) and len(mount) >= len(best):
            best, kind = mount, this
    return kind


# ---- running ----


def main(name: str, run: Callable[[Report], None], arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark from the command line. Exit code 1 where a goal was missed (never with --quick)."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=sys.modules[run.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--save", action="store_true", help=f"keep the lines in benchmarks/results/{name}.json")
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN, help=f"interleaved rounds, at least {ROUNDS_MIN}")
    chosen = parser.parse_args(arguments)
    rounds = 1 if chosen.quick else max(ROUNDS_MIN, chosen.rounds)
    WORK.mkdir(parents=True, exist_ok=True)
    if file_system(WORK) in ("tmpfs", "ramfs", "overlay"):
        sys.exit(f"{WORK} lies on {file_system(WORK)}: a benchmark of durability needs a disk")
    work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=WORK))
    work.chmod(0o755)  # servers run as users of their own
    report = Report(name, Options(chosen.quick, rounds, work))
    try:
        run(report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if chosen.save and not chosen.quick:
        report.save()
    missed = [line["name"] for line in report.lines if line["ok"] is False]
    if missed and not chosen.quick:
        sys.exit(f"goals missed: {', '.join(missed)}")
