"""`ebbgate demo` as a person runs it: an outage, and kill -9 of random processes; every reading arrives once."""

from __future__ import annotations

import json
import subprocess
import sys


def demo(*arguments: str) -> tuple[dict, str]:
    command = [sys.executable, "-m", "gateway.cli", "demo", "--headless", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip(), done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def complete(summary: dict) -> bool:
    whole = summary["committed"] == summary["landed"] == summary["delivered_lake"] > 500
    return whole and summary["missing"] == 0 and summary["duplicates"] == 0 and summary["writes_seen"] == 0


def test_an_outage_loses_and_doubles_nothing():
    summary, _ = demo("--seconds", "30", "--outage", "8")
    assert complete(summary), summary
    assert summary["outage_s"] > 6
    assert summary["segments"] > 0
    assert summary["memory_peak_mb"]["collect"] <= 130
    assert summary["memory_peak_mb"]["upload"] <= 70


def test_kill_9_of_random_processes_loses_and_doubles_nothing():
    summary, stderr = demo("--seconds", "60", "--outage", "6", "--kills", "10", "--seed", "2")
    assert complete(summary), (summary, stderr[-2000:])
    assert sum(summary["killed"].values()) == 10
