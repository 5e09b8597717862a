"""Lives by hand, without a crash: what a ring must do that no prefix of a random life is sure to meet."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest

from buffer.errors import StorageFault
from buffer.reader import RingReader
from buffer.ring import Ring, RingOptions
from tests.crash.check import held
from tests.crash.plant import PAGE, RESERVE, Book, Collector, Gone, Script
from tests.crash.states import JOURNAL, new_disk
from tests.crash.toys import STREAM, TABLES, TOY
from tests.support.simulated_disk import Crash, Medium


def lived(script: Script) -> Collector:
    """Return a collector after its life, long or short."""
    collector = Collector(new_disk(Medium(), script), script, Book(), 1, 0)
    try:
        collector.run(script)
    except Gone:
        pass
    return collector


@pytest.mark.parametrize("pages", range(26, 60, 3))
@pytest.mark.parametrize("rolls", range(5))
def test_a_tag_table_that_comes_back_into_use_is_not_dropped_with_its_old_readings(pages, rolls):
    more = (("roll", 1), ("live", 2)) * rolls
    actions = (("table", 1), ("live", 2), ("table", 1), ("live", 2), *more, ("table", 1), ("live", 2), ("roll", 1), ("live", 2))
    collector = lived(Script(10**9, JOURNAL, actions, capacity=pages * PAGE))
    held(collector.disk)


def test_no_table_that_is_needed_goes_and_no_other_stays_for_ever():
    actions = (("table", 1), ("live", 2), ("table", 1), *(("live", 2), ("roll", 1)) * 12, ("live", 2))
    collector = lived(Script(3 * JOURNAL, JOURNAL, actions))
    held(collector.disk)
    assert len(collector.disk.list("objects")) == 1
    assert collector.ring.recovered_table == TABLES[0]


def test_what_others_fill_costs_one_eviction_not_the_history():
    collector = lived(Script(10**9, JOURNAL, (("live", 2), ("roll", 1), ("seal", 1)) * 12))
    before = held(collector.disk)
    calls = collector.disk.calls
    calls.capacity, taken = 10**7, calls.used()

    def others_take_what_the_ring_frees() -> None:
        calls.others = max(calls.others, calls.capacity - 3 * PAGE - min(calls.used(), taken))

    calls.before_step = others_take_what_the_ring_frees
    with pytest.raises(Gone):
        collector.run(Script(10**9, JOURNAL, (("live", 2), ("roll", 1)) * 40))
    gone = before.keys() - held(collector.disk).keys()
    assert 0 < len(gone) <= len(before) / 4, f"{len(gone)} of {len(before)} readings evicted for a disk that evicting does not help"


def full(collector: Collector, free: int = 0) -> Collector:
    """Return it with its disk filled by its own files."""
    calls = collector.disk.calls
    calls.capacity = calls.used() + free
    return collector


def restarted(
    collector: Collector, nonce: int, crash_at: int = -1, actions: tuple[tuple[str, int], ...] = (), before_step: Callable[[], None] = lambda: None
) -> Collector:
    """Return the collector of the next life on the same disk, killed before its call number crash_at. Raise Crash, Gone, StorageFault."""
    disk = collector.disk.after_kill()
    disk.calls.capacity, disk.calls.others, disk.calls.log = collector.disk.calls.capacity, collector.disk.calls.others, []
    collector.disk, disk.calls.crash_at, disk.calls.before_step = disk, crash_at, before_step
    after = Collector(disk, Script(10**9, JOURNAL, ()), collector.book, nonce, 0)
    after.run(Script(10**9, JOURNAL, actions))
    return after


def places(book: Book) -> dict[tuple[int, int], int]:
    return {(e.generation, e.first_seq + i): v for e in book.entries for i, v in enumerate(e.values)}


def nothing_lost(collector: Collector) -> None:
    seen, state, expected = held(collector.disk), collector.ring.state, places(collector.book)
    assert state is not None and state.lost == ()
    assert {place: v for place, v in seen.items() if place >= state.low} == {place: v for place, v in expected.items() if place >= state.low}


WORK = (("live", 2), ("roll", 1)) * 4
SEALED = (("live", 2), ("roll", 1), ("seal", 2)) * 12


@pytest.mark.parametrize("free", [0, 2 * PAGE, 7 * PAGE])
@pytest.mark.parametrize("before", [SEALED, WORK * 4, (*SEALED, *WORK)])
def test_a_start_on_a_disk_that_the_ring_filled(before, free):
    collector = full(lived(Script(10**9, JOURNAL, before)), free)
    for nonce in range(2, 12):
        collector = restarted(collector, nonce, actions=WORK)
        full(collector, min(free, collector.disk.calls.capacity - collector.disk.calls.used()))
        nothing_lost(collector)


@pytest.mark.parametrize("before", [SEALED, WORK * 4, (*SEALED, *WORK)])
def test_a_crash_loop_on_a_disk_that_the_ring_filled(before):
    """Every start is killed one call later than the one before: none leaves the next without a place for its record."""
    collector = full(lived(Script(10**9, JOURNAL, before)))
    kept = collector.book.copy()
    for crash_at in range(90):
        with contextlib.suppress(Crash):
            restarted(collector, 2 + crash_at, crash_at)
        collector.disk.calls.crash_at = -1
        reader = RingReader(collector.disk)
        newest = reader.newest(reader.inventory())  # None: `durable` is older than what the last start gave back
        if newest is not None and newest.state is not None:
            low, seen = newest.state.low, held(collector.disk)
            assert all(seen[p] == v for p, v in places(kept).items() if p >= low)
    nothing_lost(restarted(collector, 200, actions=WORK))


def test_starts_on_a_disk_that_others_filled_cost_a_little_once():
    collector = lived(Script(10**9, JOURNAL, SEALED * 8))
    before = held(collector.disk)
    collector.disk.calls.capacity, greedy = 10**7, True

    def others_take_what_the_ring_frees() -> None:
        calls = collector.disk.calls
        calls.others = max(calls.others, calls.capacity - calls.used()) if greedy else 0

    refused = 0
    for nonce in range(2, 40):
        others_take_what_the_ring_frees()
        try:
            restarted(collector, nonce, actions=WORK, before_step=others_take_what_the_ring_frees)
        except (Gone, StorageFault):
            refused += 1
    gone = before.keys() - held(collector.disk).keys()
    assert refused > 30, "the disk was not full"
    assert len(gone) <= len(before) / 4, f"{len(gone)} of {len(before)} readings evicted for a disk that others filled"
    greedy = False
    others_take_what_the_ring_frees()
    nothing_lost(restarted(collector, 100, actions=WORK))


def test_a_start_with_another_tag_table_on_a_disk_that_the_ring_filled():
    collector = full(lived(Script(10**9, JOURNAL, SEALED)))
    disk = collector.disk.after_kill()
    disk.calls.capacity = collector.disk.calls.capacity
    ring = Ring.open(disk, RingOptions(STREAM, 10**9, JOURNAL, reserve_bytes=RESERVE), TOY, TOY, collector.now(), 2, itertools.count(5000).__next__)
    ring.use_table(TABLES[1])
    ring.commit(collector.now())
    assert ring.recovered_table == TABLES[1]
    assert ring.state is not None and ring.state.low > (0, 0)


@pytest.mark.parametrize("free", [0, 3 * PAGE])
def test_a_disk_filled_to_the_last_byte_is_written_round(free):
    script = Script(10**9, JOURNAL, (("live", 2), ("roll", 1)) * 6)  # nothing is sealed: only journals can go, and only what `last` holds
    collector = lived(script)
    for nonce in (2, 3):
        collector = Collector(collector.disk.after_kill(), script, collector.book, nonce, 0)
        collector.run(script)
    calls = collector.disk.calls
    calls.capacity = calls.used() + free
    collector.run(Script(10**9, JOURNAL, (("live", 2), ("roll", 1)) * 40))
    nothing_lost(collector)


def test_a_journal_whose_sync_failed_is_never_written_or_synced_again():
    actions = (("live", 2), ("live", 2), ("roll", 1), ("live", 1), ("seal", 9), ("room", 2), *(("roll", 1), ("live", 2)) * 4)
    log = lived(Script(10**9, JOURNAL, actions, syncs=(6,))).disk.calls.log
    assert log is not None
    at, inode = next((i, effect[1]) for i, effect in enumerate(log) if effect[0] == "sync_failed")
    assert [effect for effect in log[:at] if effect[:2] == ("sync", inode)], "nothing was acknowledged in it: it went at once"
    assert [effect for effect in log[at + 1 :] if effect[0] in ("write", "sync") and effect[1] == inode] == []
