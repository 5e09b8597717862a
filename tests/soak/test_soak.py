"""The soak in short: real processes for seconds (always) and for a minute at the full rate (slow). The long form is `make soak MINUTES=30`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def soak(minutes: str, rate: str) -> dict:
    command = [sys.executable, "-m", "tests.soak.run", "--minutes", minutes, "--rate", rate]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout, done.stderr[-4000:]
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def test_seconds():
    out = soak("0.3", "2500")
    assert out["whole"] and out["polite"] and out["readings"] > 2500, out


@pytest.mark.slow
def test_a_minute():
    out = soak("1", "20000")
    assert out["whole"] and out["polite"] and out["readings"] > 200_000, out
