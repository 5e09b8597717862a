"""The short form of the campaign, driven by Hypothesis so that a failure shrinks; and that the fuzzer finds what is planted."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buffer.errors import CorruptError
from tests.fuzz.targets import Target, change, feed, targets

EVERY = targets()


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_seed_is_taken(name):
    if name not in ("receipt, unknown key", "key proposal"):
        assert any(feed(EVERY[name], seed) for seed in EVERY[name].seeds), "the seeds are good, or the changes start from nothing"


@pytest.mark.parametrize("name", sorted(EVERY))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_changed_bytes_are_taken_or_corrupt(name, seed):
    rng = random.Random(seed)
    feed(EVERY[name], change(rng.choice(EVERY[name].seeds), rng))


@pytest.mark.parametrize("name", sorted(EVERY))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_any_bytes_are_taken_or_corrupt(name, data):
    feed(EVERY[name], data)


def test_memory_is_bounded_by_no_number_in_the_bytes():
    rng = random.Random(5)
    for name, target in EVERY.items():
        tracemalloc.start()
        for _ in range(40):
            feed(target, change(rng.choice(target.seeds), rng))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 * 1024**2, f"{name}: {peak:,} bytes for inputs of at most {max(map(len, target.seeds)):,}"


def test_a_planted_defect_is_found():
    def careless(data: bytes) -> int:
        if len(data) < 8:
            raise CorruptError("short")
        return 1 // (data[7] & 0xFF)  # a zero there is what the fuzzer must find

    target = Target(careless, (bytes(range(1, 64)),))
    rng = random.Random(1)
    with pytest.raises(ZeroDivisionError):
        for _ in range(5_000):
            feed(target, change(target.seeds[0], rng))
