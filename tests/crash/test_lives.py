"""Lives by hand, without a crash: what a ring must do that no prefix of a random life is sure to meet."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest

from buffer.errors import SignatureError, StorageFault
from buffer.frame import MAGIC, payload_digest
from buffer.manifest import Loss, LossReason
from buffer.reader import RingReader
from buffer.ring import Ring, RingOptions
from tests.crash.check import examine, held
from tests.crash.directed import DIRECTED, JOURNAL
from tests.crash.plant import PAGE, RESERVE, Book, Collector, Gone, Script
from tests.crash.states import Moment, bring_back, live, live_of, moments, new_disk, one, replay
from tests.crash.toys import STREAM, TABLES, TOY, ToySigner
from tests.support.simulated_disk import Crash, Effect, Medium, SimulatedDisk


def lived(script: Script) -> Collector:
    """Return a collector after its life, long or short."""
    collector = Collector(new_disk(Medium(), script), script, Book(), 1, 0)
    try:
        collector.run(script)
    except Gone:
        pass
    return collector


def moment(script: Script, wanted: Callable[[Effect], bool]) -> Moment:
    """Return the moment after the newest effect of a life that is wanted."""
    life = live_of(script)
    number = max(i for i, effect in enumerate(life.log) if wanted(effect))
    return next(m for m in moments(life.start, life.log, life.book, life.first) if m.number == number)


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


@pytest.mark.parametrize("actions", [(("live", 2), ("roll", 1)) * 40, (("live", 2),) * 60], ids=["journals that have room", "journals filled to the end"])
@pytest.mark.parametrize("free", [0, 3 * PAGE])
def test_a_disk_filled_to_the_last_byte_is_written_round(free, actions):
    script = Script(10**9, JOURNAL, (("live", 2), ("roll", 1)) * 6)  # nothing is sealed: only journals can go, and only what `last` holds
    collector = lived(script)
    for nonce in (2, 3):
        collector = Collector(collector.disk.after_kill(), script, collector.book, nonce, 0)
        collector.run(script)
    calls = collector.disk.calls
    calls.capacity = calls.used() + free
    collector.run(Script(10**9, JOURNAL, actions))
    nothing_lost(collector)


def test_a_journal_whose_sync_failed_is_never_written_or_synced_again():
    actions = (("live", 2), ("live", 2), ("roll", 1), ("live", 1), ("seal", 9), ("room", 2), *(("roll", 1), ("live", 2)) * 4)
    log = lived(Script(10**9, JOURNAL, actions, syncs=(6,))).disk.calls.log
    assert log is not None
    at, inode = next((i, effect[1]) for i, effect in enumerate(log) if effect[0] == "sync_failed")
    assert [effect for effect in log[:at] if effect[:2] == ("sync", inode)], "nothing was acknowledged in it: it went at once"
    assert [effect for effect in log[at + 1 :] if effect[0] in ("write", "sync") and effect[1] == inode] == []


def test_a_start_believes_no_name_that_a_power_cut_can_take_back():
    # the second journal holds nothing but a position, which stands in the `last` file whose name is not durable yet
    script = Script(10**9, JOURNAL, (("live", 2), ("live", 2), ("roll", 1), ("live", 1), ("roll", 1), ("idle", 1), ("seal", 1)))
    published = moment(script, lambda effect: effect[0] == "name" and effect[3].startswith("last/0"))
    assert published.book.facts(published.book.acked).position == 5
    disk = SimulatedDisk(published.medium.copy())  # kill -9
    _, book = examine(disk, published.book, published.lows, script, 2, long=False)
    examine(SimulatedDisk(disk.medium.power_cut([])), book, published.lows, script, 3)


@pytest.mark.parametrize("second", range(9, 18))
def test_a_block_that_stands_alone_in_a_journal_before_an_empty_one_is_not_passed_over(second):
    assert replay(f"-2/63/kill/{second}/kill") == ""  # killed behind a sync that failed though every byte arrived, and again in the start after it


def test_directories_are_durable_when_they_are_made():
    disk = SimulatedDisk()
    disk.mkdir("a/b/c")
    disk.publish("a/b/c/file", [b"x"])
    assert SimulatedDisk(disk.medium.power_cut([])).read("a/b/c/file", 0, 9) == b"x"


@pytest.mark.parametrize("sealed", [0, 1])
def test_the_oldest_goes_first_and_no_more_than_must(sealed):
    script = Script((8 - 4 * sealed) * JOURNAL, JOURNAL, ())
    collector = lived(script)
    ring, lows, unit = collector.ring, [], PAGE if sealed else JOURNAL
    for action in (("live", 2), ("roll", 1), ("seal", sealed), ("room", 2)) * (60 + 90 * sealed):
        before, used = collector.book.low, ring.usage_bytes()
        collector.act(*action)
        low, seen = collector.book.low, held(collector.disk)
        assert min(seen, default=low) >= low, "what lies below `low` is there"
        expected = [(e.generation, e.first_seq + i) for e in collector.book.entries for i in range(len(e.values))]
        assert sorted(seen) == [place for place in expected if place >= low], "a hole, or not the oldest"
        assert ring.usage_bytes() <= script.max_bytes or action[0] == "seal", "a segment makes room at the next commit"
        if low != before:
            lows.append(low)
            assert used > script.max_bytes - 2 * JOURNAL, "evicted though there was room"
            assert ring.usage_bytes() > script.max_bytes - 2 * unit, "more went than had to"
    assert len(lows) > (0 if sealed else 20)
    medium = collector.disk.medium
    removed = [effect for effect in collector.disk.calls.log or () if effect[0] == "name" and effect[3] == ""]
    assert removed
    assert not any(medium.cache[inode] for _, inode, _, _ in removed), "unlinked before it was cut: a slow reader pins the space"


def test_what_is_left_of_a_journal_that_was_half_sealed_is_sealed_later():
    collector = lived(DIRECTED[12])
    segments = collector.ring.segments
    log = collector.disk.calls.log or ()
    published = [effect[3] for effect in log if effect[0] == "name" and effect[3].endswith(".parquet")]
    assert any(effect[0] == "sync_failed" for effect in log)
    assert [name.parquet for name in segments] == published, "one of them twice, or one that is not there"
    assert len(segments) == 2
    assert collector.ring.sealable() is None


def test_readings_carry_the_tag_table_that_was_in_use():
    collector = lived(Script(10**9, JOURNAL, ()))
    reader = RingReader(collector.disk)
    for how in (2, 1, 3, 2, 1, 1):
        collector.act("live", how)
        newest = reader.newest(reader.inventory())
        assert newest is not None and newest.count
        assert newest.tag_table_sha256 == payload_digest(TABLES[collector._table])
        collector.act("table", 1)


def test_a_block_with_a_wrong_signature_is_lost_and_named():
    collector = lived(Script(10**9, JOURNAL, (("live", 2), ("live", 2))))
    reader = RingReader(collector.disk)
    generation = collector.ring.generation
    newest = list(reader.blocks(reader.inventory(), generation, 0))[-1]

    class Doubting(ToySigner):
        def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
            if newest.cose.endswith(signature):
                raise SignatureError("not by a key of this stream")
            super().verify(key_id, algorithm, to_be_signed, signature)

    ring = Ring.open(collector.disk.after_kill(), collector.ring.options, TOY, Doubting(), collector.now(), 2, lambda: 1)
    ring.use_table(TABLES[0])
    ring.commit(collector.now())
    assert ring.state is not None
    first = newest.manifest.first_seq
    assert ring.state.lost == (Loss(generation, first, first + newest.manifest.count - 1, LossReason.STORAGE_FAULT),)


def test_the_end_of_a_commit_reaches_the_disk_after_its_beginning():
    script = Script(10**9, 3 * JOURNAL, (("live", 2), ("gap", 1)))  # the last commit has two blocks
    end = moment(script, lambda effect: effect[0] == "write" and effect[3].startswith(MAGIC))
    log = live_of(script).log
    _, inode, offset, _ = log[end.number]
    last = [piece for piece in end.medium.pending() if piece[:2] == ("data", inode) and end.medium.data[inode][piece[2]][0] >= offset]
    assert last
    examine(SimulatedDisk(end.medium.power_cut(last)), end.book, end.lows, script, 2)


def test_a_block_whose_sync_failed_stands_alone_and_is_believed_after_two_kills():
    """Killed while the next journal is still empty; then killed wherever the start that believed the block had come to."""
    script, life = live(-2)
    failed = [i for i, effect in enumerate(life.log) if effect[0] == "sync_failed"][-1]
    for first in moments(life.start, life.log, life.book, life.first):
        if failed < first.number < failed + 14:
            broken, second, _ = one(first, bring_back(first.medium, "kill"), script, 2, None, long=False)
            assert not broken
            for again in moments(second.start, second.log, second.book, second.first):
                assert one(again, bring_back(again.medium, "kill"), script, 3, None, long=False)[0] == "", f"{first.number}, {again.number}"
