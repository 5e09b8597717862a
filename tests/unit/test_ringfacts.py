"""What `ring info` says of a ring whose clock was wrong for a while."""

from __future__ import annotations

from gateway.ringfacts import describe, gather
from tests.support.readings import some
from tests.support.store import Store, state_record

DAY_NS = 86_400 * 10**9
NOW_NS = 1_795_000_000 * 10**9


def facts(tmp_path, *clocks):
    """clocks: wall clock and whether it was trusted, per segment of ten readings."""
    store = Store(tmp_path / "g.main")
    for place, (wall_ns, trusted) in enumerate(clocks):
        store.add(some(10 * place, 10), state=state_record(place, 10 * place + 10, wall_ns=wall_ns, clock_trusted=trusted))
        store.seal()
    return gather(tmp_path / "g.main", 25 * 10**9, tmp_path / "status.json")


def test_a_boot_in_1970_does_not_stretch_the_forecast(tmp_path):
    wrong = facts(tmp_path / "a", (5 * 10**9, False), (NOW_NS, True), (NOW_NS + DAY_NS, True))
    right = facts(tmp_path / "b", (NOW_NS, True), (NOW_NS + DAY_NS, True))
    assert wrong["growth_bytes_per_day"] > 0.9 * right["growth_bytes_per_day"] > 0
    assert wrong["oldest_sealed_ns"] == right["oldest_sealed_ns"] == NOW_NS


def test_without_a_trusted_clock_nothing_is_forecast(tmp_path):
    said = facts(tmp_path, (5 * 10**9, False), (NOW_NS, True))
    assert said["horizon_days"] is None
    assert any("time that can be trusted" in line for line in describe(said))


def test_a_ring_without_readings_has_no_newest_one(tmp_path):
    store = Store(tmp_path / "g.main").add(some(0, 0))
    said = describe(gather(store.root, 25 * 10**9, tmp_path / "status.json"))
    assert any("no reading yet" in line for line in said)
    assert not any("newest reading" in line for line in said)
