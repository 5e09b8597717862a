"""The load contract: whatever happens, no source is asked more than its budget allows."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.collect.load import SLOWDOWN_MAX, Budget
from gateway.settings import Load

S = 10**9
MS = 10**6

step = st.tuples(
    st.integers(0, 3 * S),  # idle before asking
    st.integers(0, 2 * S),  # time the device takes
    st.integers(0, 70_000),  # bytes
    st.booleans(),  # failed
    st.booleans(),  # the process is killed after it, and starts again
)
loads = st.builds(
    Load,
    requests_per_s=st.floats(0.2, 200),
    bytes_per_s=st.integers(500, 10**6),
    pause_ns=st.integers(0, S),
    duty=st.floats(0.05, 1.0),
)


@given(loads, st.lists(step, max_size=40))
def test_contract_holds_over_restarts(load: Load, steps: list[tuple[int, int, int, bool, bool]]) -> None:
    now, saved = 5 * S, None
    budget = Budget(load, now)
    began: list[int] = []
    ended: list[int] = []
    for idle, busy, size, failed, killed in steps:
        now = budget.ready_ns(now + idle)
        if ended:
            assert now - began[-1] >= S / load.requests_per_s - 1
            assert now - ended[-1] >= load.pause_ns
            assert (ended[-1] - began[-1]) <= load.duty * (now - began[-1]) + 2
        began.append(now)
        budget.begin(now)
        now += busy
        ended.append(now)
        budget.spent(now, busy, size, failed=failed)
        if killed:
            saved = json.loads(json.dumps(budget.export(now, now + 1_700_000_000 * S)))
            budget = Budget(load, now, saved, now + 1_700_000_000 * S)


def test_killed_before_it_could_save_still_costs_an_interval() -> None:
    load = Load(requests_per_s=2)
    first = Budget(load, 0)
    saved = first.export(0, 0)
    first.begin(first.ready_ns(0))
    assert Budget(load, 10 * MS, saved, 10 * MS).ready_ns(10 * MS) == 510 * MS
    assert Budget(load, 10 * MS, {}, 10 * MS).ready_ns(10 * MS) == 510 * MS


def test_killed_before_it_could_save_the_device_rests_all_the_same() -> None:
    assert Budget(Load(requests_per_s=5.0, pause_ns=10 * S), 0, {}).ready_ns(0) == 10 * S
    slow = Load(requests_per_s=5.0, duty=0.1)
    budget = Budget(slow, 0)
    budget.spent(2 * S, 2 * S, 0)
    saved = budget.export(30 * S, 30 * S)  # long before the kill
    assert Budget(slow, 0, saved, 90 * S).ready_ns(0) == 18 * S  # as behind the usual answer of 2 s


def test_bytes_are_paid_off() -> None:
    budget = Budget(Load(requests_per_s=1000, bytes_per_s=1000, duty=1.0), 0)
    budget.spent(0, 0, 5000)
    assert budget.ready_ns(0) == 5 * S


def test_slots_for_requests_in_flight_together() -> None:
    budget = Budget(Load(requests_per_s=10), 0)
    starts = []
    for _ in range(4):
        at = budget.ready_ns(0)
        budget.begin(at)
        starts.append(at)
    assert starts == [0, 100 * MS, 200 * MS, 300 * MS]


def test_slows_down_and_recovers() -> None:
    load = Load(requests_per_s=10, duty=1.0)
    budget = Budget(load, 0)
    now = 0

    def ask(busy: int, failed: bool = False) -> None:
        nonlocal now
        now = budget.ready_ns(now) + busy
        budget.spent(now, busy, 300, failed=failed)

    for _ in range(5):
        ask(20 * MS)
    assert budget.slowdown == 1.0
    ask(S)
    assert budget.slowdown == 1.5
    ask(S, failed=True)
    assert budget.slowdown == 3.0
    for _ in range(20):
        ask(S, failed=True)
    assert budget.slowdown == SLOWDOWN_MAX
    before = now
    ask(20 * MS)
    assert now - before >= 720 * MS  # 8 times the interval of 100 ms, less one step
    for _ in range(80):
        ask(20 * MS)
    assert budget.slowdown == 1.0


def test_certificate_counts_one_hour_and_survives_a_restart() -> None:
    load = Load(requests_per_s=5, duty=1.0)
    budget = Budget(load, 0)
    now = 0
    for _ in range(100):
        now = budget.ready_ns(now) + 10 * MS
        budget.spent(now, 10 * MS, 100)
    seen = budget.certificate(now)
    assert (seen.requests, seen.bytes, seen.failed, seen.most_in_a_second) == (100, 10_000, 0, 5)
    assert 0.04 < seen.busy_share < 0.06
    saved = json.loads(json.dumps(budget.export(now, 1000 * S)))
    later = Budget(load, 3 * S, saved, 1060 * S)  # another boot: monotonic time began again, one minute passed
    assert later.certificate(3 * S).requests == 100
    assert later.certificate(3 * S + 3600 * S).requests == 0


SCALARS = st.none() | st.integers() | st.floats() | st.text()
JUNK = st.recursive(SCALARS, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=5)


@given(JUNK)
@example(10**400)
def test_any_saved_file_starts_and_goes_on(junk: object) -> None:
    keys = ("wall_ns", "owed_ns", "slowdown", "usual_ns", "minutes")
    load = Load(requests_per_s=4)
    budget = Budget(load, 7, dict.fromkeys(keys, junk), 9)
    assert 7 + S // 4 <= budget.ready_ns(7) <= 7 + 3600 * S
    budget.spent(8, 1, 1)
    Budget(load, 7, {"minutes": {"3": junk, "4": dict.fromkeys(("busy_ns", "slowest_ns"), junk)}}, 9).certificate(7)
