"""The simulations in short; the long forms are `make simulate SEEDS=...` and `make plant HOURS=...`, the defects they must see are `make mutants`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import book
from tests.simulation.ledger import LedgerError

ROOT = Path(__file__).parents[2]


def last_line(*arguments: str) -> dict:
    """Run a simulation apart: it puts simulated parts in the place of real ones."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def test_uploader_and_receiver_lose_nothing_under_faults():
    assert last_line("tests.simulation.run", "--world", "parts", "--seeds", "4", "--first", "17")["replayed"] == 1


@pytest.mark.parametrize("seed", [2, 26, 103])
def test_the_whole_system_loses_nothing_under_faults(seed):
    out = last_line("tests.simulation.run", "--world", "whole", "--seeds", "1", "--first", str(seed))
    assert out["failures"] == 0 and out["whole_readings"] > 500


def test_what_is_behind_the_box_changes_no_byte_on_it():
    code = "from tests.simulation.whole import same_bytes; same_bytes(2); print('{}')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=600, check=True)


def test_minutes_of_a_plant():
    out = last_line("tests.simulation.hours", "--hours", "0.2")
    assert out["ok"] and out["readings"] > 300 and out["over_contract"] == 0


# ---- the judge itself ----


def a_book(values: list[int]) -> book.Book:
    readings = {(1, seq): book.Reading(16, 100 + v, 100 + v, book.INT64, v, 0, 0) for seq, v in enumerate(values)}
    state = [1, 9, None, len(values), [1, 0], [], [], 0, 0, b"", True]
    return book.Book(readings, {1: state})


def truth(**more) -> book.Truth:
    return book.Truth({16: {v: 100 + v for v in range(10)}}, frozenset([16]), more.get("told", set()), exact=True)


def test_the_judge_sees_what_it_is_for():
    book.judge(a_book([0, 1, 2]), truth(told={(16, 2)}))
    with pytest.raises(LedgerError, match="twice"):
        book.judge(a_book([0, 1, 1, 2]), truth())
    with pytest.raises(LedgerError, match="missing"):
        book.judge(a_book([0, 1, 3]), truth())
    with pytest.raises(LedgerError, match="missing"):
        book.judge(a_book([0, 1]), truth(told={(16, 2)}))
    with pytest.raises(LedgerError, match="never made"):
        book.judge(a_book([0, 1, 77]), truth())
    short = a_book([0, 1, 2])
    del short.readings[1, 2]
    with pytest.raises(LedgerError, match="G2"):
        book.judge(short, truth())
    short.states[1][4] = [1, 3]
    book.judge(short, truth(told={(16, 2)}))  # evicted, and said so
