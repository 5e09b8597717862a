"""The judge of memory tells a leak from what looks like one."""

from __future__ import annotations

import math
import random

import pytest

from tests.soak.judge import held, slope, steady

MINUTES = 15


def samples(at, noise=0.15, work=0.0, seed=1, minutes=MINUTES, since=15.0):
    """A sample a second, as the soak takes them: at(hours) MiB, noise, and for a third of each half minute the memory of a piece of work."""
    rng = random.Random(seed)
    seconds = [since * 60 + i for i in range(int(minutes * 60))]
    return [(s / 3600, at(s / 3600) + rng.gauss(0, noise) + (work if s % 30 < 10 else 0.0)) for s in seconds]


def judged(points):
    return steady(slope(held(points)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("work", [0.0, 120.0])
def test_flat_is_steady_and_two_mib_an_hour_are_not(seed, work):
    assert judged(samples(lambda _: 100.0, work=work, seed=seed)) is True
    assert judged(samples(lambda hours: 100.0 + 2.0 * hours, work=work, seed=seed)) is False


@pytest.mark.parametrize("seed", range(5))
def test_a_cache_that_fills_in_the_first_minutes_is_no_leak(seed):
    assert judged(samples(lambda hours: 100.0 + 20.0 * (1 - math.exp(-hours * 60 / 3)), seed=seed)) is True


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("minute", [17, 20, 23, 27])
@pytest.mark.parametrize("size", [0.8, 3.0])
def test_one_step_is_no_leak_and_hides_none(size, minute, seed):
    def step(hours):
        return size if hours * 60 > minute else 0.0

    assert judged(samples(lambda hours: 100.0 + step(hours), seed=seed)) is True
    assert judged(samples(lambda hours: 100.0 + step(hours) + 3.0 * hours, seed=seed)) is not True


def test_a_great_step_and_a_second_one_are_a_leak():
    assert judged(samples(lambda hours: 100.0 + (30.0 if hours * 60 > 22 else 0.0))) is not True
    assert judged(samples(lambda hours: 100.0 + 2.0 * sum(hours * 60 > minute for minute in (18, 22, 26)))) is not True


def test_steps_that_go_on_are_a_leak():
    assert judged(samples(lambda hours: 100.0 + int(hours * 60 / 3) * 0.25)) is False


def test_what_cannot_be_said_is_not_said():
    assert judged([]) is None
    assert judged(samples(lambda _: 100.0, minutes=8)) is None, "too few minutes"
    rng = random.Random(1)
    wild = [(minute / 60, 100.0 + rng.gauss(0, 30)) for minute in range(15)]
    assert steady(slope(wild)) is None, "noise of 30 MiB hides a leak of 2 MiB an hour"


def test_a_minute_that_was_cut_off_does_not_count():
    assert len(held(samples(lambda _: 1.0, minutes=3.2, since=15.0))) == 3
