"""Every benchmark runs and says valid JSON. No speeds here: those are ratios in `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import report
from benchmarks.harness import Sample, _judge, interleave, median, percentile, ratio
from benchmarks.opcua_subscribe import JudgingSink
from buffer.types import Columns, Flag
from gateway.collect.source import Batch
from tests.support.peers import absent

ROOT = Path(__file__).parents[2]
KEYS = {"name", "value", "unit", "peer", "peer_value", "ratio", "goal", "ok", "settings"}
LONG = ("latency", "opcua_subscribe")  # minutes by their nature
SMOKE = [pytest.param(name, marks=[pytest.mark.peers] if name in report.OT else []) for name in report.NAMES if name not in LONG]


@pytest.mark.parametrize("name", SMOKE)
def test_runs_and_prints_valid_json(name):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if name in report.OT and "ops/ci/install-peers.sh" in done.stderr:
        absent(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines
    for line in lines:
        assert set(line) == KEYS and line["name"].startswith(f"{name}.")
        assert line["value"] is not None or "absent" in line["settings"], "a figure is missing and nobody says why"
        assert (line["ok"] is None) or isinstance(line["ok"], bool)
    assert any(line["value"] is not None for line in lines) or name == "wear"  # wear needs root and a loop device


def test_ratios_are_taken_within_a_round():
    turns: list[str] = []

    def run(name: str, seconds: list[float]):
        def once() -> Sample:
            turns.append(name)
            return Sample(10, seconds.pop(0), 0.0)

        return once

    result = interleave(3, {"a": run("a", [1.0, 10.0, 2.0]), "b": run("b", [2.0, 20.0, 1.0])})
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert ratio(result["a"], result["b"], lambda s: s.per_s) == 2.0
    assert median(result["a"], lambda s: s.wall_s) == 2.0
    assert percentile([4, 2, 3, 1], 0.5) == 2 and percentile([1], 0.99) == 1
    assert percentile(range(1, 101), 0.99) == 99, "the hundredth of a hundred is the longest"


@pytest.mark.parametrize(
    ("goal", "value", "ratio_", "ok"),
    [("", 1, 1, None), ("ratio >= 5", 1, 5, True), ("ratio >= 5", 1, 4.9, False), ("value <= 1.7", 1.8, None, False), ("ratio >= 5", 1, None, None)],
)
def test_a_goal_is_judged_by_what_was_measured(goal, value, ratio_, ok):
    assert _judge(goal, value, ratio_) is ok


def test_the_page_holds_every_measured_figure(tmp_path, monkeypatch):
    line = {"name": "segment.synthetic.bytes.zstd", "value": 1.5, "unit": "bytes/reading", "peer": "pyarrow, zstd", "peer_value": 4.5,
            "ratio": 0.333, "goal": "value <= 1.4", "ok": False, "settings": {"peer_settings": "defaults"}}  # fmt: skip
    machine = {"cpus": 2, "cpu": "x", "memory_gib": 4, "virtual": True, "filesystem": "ext4", "kernel": "6.1", "python": "3.11", "packages": {},
               "load_average": [9, 9, 9], "busy": True, "date": "2026-01-01"}  # fmt: skip
    (tmp_path / "segment.json").write_text(json.dumps({"benchmark": "segment", "machine": machine, "rounds": 5, "lines": [line]}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.main()
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| 1.5 |" in page and "**missed**" in page and "load average 9" in page and "0 of 1 goals" in page
    assert "1.5" in (tmp_path / "benchmarks" / "segment.svg").read_text()


async def test_the_judge_of_delivery_sees_what_is_lost_doubled_or_moved():
    def batch(values: list[tuple[int, float]], marker: bool = False) -> Batch:
        tags, numbers = np.array([tag for tag, _ in values], np.uint32), np.array([value for _, value in values], np.float64)
        n = len(values)
        flags = np.full(n, Flag.MARKER if marker else 0, np.uint16)
        columns = Columns(tags, np.zeros(n, np.int64), np.zeros(n, np.uint8), numbers.view(np.uint64), np.zeros(n, np.uint32), flags, None, ())
        return Batch("plc", columns)

    sink = JudgingSink(2)
    await sink.commit(batch([(16, 5), (17, 5), (16, 6), (17, 6)]))
    await sink.commit(batch([(16, 7), (17, 7)]))
    await sink.commit(batch([(16, 0), (17, 0)], marker=True))
    assert (sink.values, sink.lost, sink.wrong) == (4, 0, 0)
    await sink.commit(batch([(16, 10)]))
    assert (sink.lost, sink.wrong) == (2, 0)
    await sink.commit(batch([(16, 10), (17, 8), (17, 7)]))
    assert (sink.lost, sink.wrong) == (2, 2)
