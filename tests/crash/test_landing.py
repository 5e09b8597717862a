"""The landing at every step of its life: killed, cut from power, out of space, restored. Nothing receipted is lost, nothing is doubled,
no reader sees what may still vanish. Mutants at the end show that these checks can fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random

import pytest

from buffer import layout
from buffer.errors import CorruptError, MisuseError, StorageFault
from buffer.frame import payload_digest
from buffer.manifest import ObjectType
from gateway.landing import LandingReader
from gateway.landing.index import LANES
from gateway.receive import landing as module
from gateway.receive.accept import unit_of
from gateway.receive.landing import Arrival, Landing
from gateway.runtime import Runtime
from gateway.wire.receipt import Ends, Verdict
from gateway.wire.request import Lane
from tests.support.frames import TABLE, Source, object_frame
from tests.support.simulated_disk import Crash, SimulatedDisk

SOURCE = Source([2, 1, 0, 3, 1, 2, 1, 1])
SECOND = Source([1, 1], generation=2 << 32 | 5, predecessor=(SOURCE.generation, 11))
FORK = Source([2, 1, 0, 3, 1, 2, 1, 1], salt=b"another life", salted_from=1)


def runtime(seed: int = 1) -> Runtime:
    rng = random.Random(seed)

    async def offload(f):
        return f()

    return Runtime(lambda: 5, lambda: 5, asyncio.sleep, rng.random, offload, lambda: rng.getrandbits(32), lambda: rng.getrandbits(64), bytes(16))


def arrival(*frames, lane=Lane.LIVE, asked=0) -> Arrival:
    return Arrival(tuple(frames), tuple(unit_of(f) for f in frames), lane, asked)


B = SOURCE.blocks
GROUPS = [
    [arrival(B[0])],
    [arrival(B[1], B[2]), arrival(SOURCE.segment(0, 3), lane=Lane.BACKFILL)],
    [arrival(B[2])],
    [arrival(FORK.blocks[3])],  # a conflict
    [arrival(B[6]), arrival(B[5])],
    [arrival(SOURCE.segment(4, 7), lane=Lane.BACKFILL), arrival(SECOND.blocks[0])],
    [arrival(SECOND.blocks[1])],
]


def play(disk: SimulatedDisk, part_bytes: int = 10**9, groups=GROUPS) -> list[tuple[Arrival, object]]:
    """Land the groups; return what was receipted, also when the disk crashes on the way."""
    receipted = []
    try:
        landing = Landing(disk, "hall1.main", runtime(disk.calls.crash_at + 7), part_bytes)
        for group in groups:
            receipted += zip(group, landing.land(group), strict=True)
    except Crash:
        pass
    return receipted


def records(reader: LandingReader) -> dict:
    reader.refresh()
    return {(lane, r.number): r for lane in LANES for r in reader.records(lane, 0, 10**6)}


def check(disk: SimulatedDisk, receipted, seen) -> Landing:
    """Reopen after a crash; raise AssertionError where a promise is broken."""
    landing = Landing(disk, "hall1.main", runtime(99))
    for one, landed in receipted:
        if landed.verdict == Verdict.CONFLICT:
            assert any(disk.size(c) and c in landing.state.conflicts for c in disk_conflicts(disk)), "a conflict was receipted and is gone"
            continue
        for unit in one.units:
            assert _held(landing, unit), "receipted blocks are gone"
            if unit.count:
                seqs = landing.state.seqs[unit.generation]
                assert seqs.covers(unit.first_seq, unit.first_seq + unit.count - 1), "receipted readings are gone"
    reader = LandingReader(disk)
    found = records(reader)
    for key, record in seen.items():
        assert found.get(key) == record, "a reader saw a record that is no more"
    once(landing, reader, found)
    return landing


def disk_conflicts(disk: SimulatedDisk) -> list[str]:
    return [path for path in disk.paths() if path.startswith("conflict/")]


def once(landing: Landing, reader: LandingReader, found: dict) -> None:
    told: set[tuple[int, int]] = set()
    for record in found.values():
        mine = {(record.generation, seq) for a, b in record.new for seq in range(a, b + 1)}
        assert not mine & told, "a reading is new twice"
        told |= mine
        if record.file:
            frame = reader.frame(record)  # raises if it is not verbatim there
            assert unit_of(frame).digest == record.digest
        else:
            assert not record.new
    held = {(g, seq) for g, seqs in landing.state.seqs.items() for a, b in seqs for seq in range(a, b + 1)}
    assert told == held, "what is held and what is delivered differ"


def send_all_again(landing: Landing) -> None:
    for group in GROUPS:
        for one, landed in zip(group, landing.land(group), strict=True):
            assert landed.last_block == one.units[-1].last_block
    assert landing.state.seqs[SOURCE.generation].covers(0, 10)
    assert landing.state.seqs[SECOND.generation].covers(0, 1)


def crash_everywhere(part_bytes: int, step: int = 1) -> int:
    clean = SimulatedDisk()
    play(clean, part_bytes)
    for at in range(0, clean.steps + 1, step):
        disk, seen = SimulatedDisk(crash_at=at), {}
        disk.calls.before_step = lambda disk=disk, seen=seen: look(disk, seen)
        receipted = play(disk, part_bytes)
        disk.calls.before_step = lambda: None
        cuts = [disk.after_kill(), *(disk.after_power_cut(random.Random(at * 10 + i)) for i in range(4))]
        for after in cuts:
            landing = check(after, receipted, seen)
            send_all_again(landing)
            reader = LandingReader(after)
            once(landing, reader, records(reader))
    return clean.steps


def look(disk: SimulatedDisk, seen: dict) -> None:
    """What any reader could see at this moment."""
    seen.update(records(LandingReader(disk)))


@pytest.mark.parametrize("part_bytes", [10**9, 1500])
def test_a_crash_before_any_step_loses_and_doubles_nothing(part_bytes: int) -> None:
    assert crash_everywhere(part_bytes) > 40


def test_what_was_receipted_after_a_kill_survives_a_power_cut() -> None:
    """A receiver that was killed between a rename and the sync of its directory finds a name that a power cut can still take back."""
    table = object_frame(TABLE, ObjectType.TAG_TABLE)

    def work(disk: SimulatedDisk) -> list[tuple[Arrival, object]]:
        landing = Landing(disk, "hall1.main", runtime(disk.calls.crash_at + 7))
        assert landing.store_object(table, 0).verdict in (Verdict.STORED, Verdict.DUPLICATE)
        return [pair for group in GROUPS[:3] for pair in zip(group, landing.land(group), strict=True)]

    clean = SimulatedDisk()
    work(clean)
    for at in range(clean.steps + 1):
        disk = SimulatedDisk(crash_at=at)
        with contextlib.suppress(Crash):
            work(disk)
        started = disk.after_kill()
        receipted = work(started)
        after = SimulatedDisk(started.medium.power_cut([]))
        assert after.size(layout.object_path(payload_digest(TABLE))), f"step {at}: an object was receipted and is gone"
        check(after, receipted, {})


def test_a_clean_run_says_what_became_of_each_request() -> None:
    disk = SimulatedDisk()
    verdicts = [landed.verdict for _, landed in play(disk)]
    s, d, c = Verdict.STORED, Verdict.DUPLICATE, Verdict.CONFLICT
    assert verdicts == [s, s, s, d, c, s, s, s, s, s]
    reader = LandingReader(disk)
    found = records(reader)
    assert reader.state.ends == Ends(7, 2)
    assert found[Lane.BACKFILL, 0].new == ((3, 5),)
    assert reader.state.states[SECOND.generation].predecessor == (SOURCE.generation, 11)
    assert [c.first_block for c in reader.state.conflicts.values()] == [3]
    assert reader.records(Lane.LIVE, 3, 2) == [found[Lane.LIVE, 3], found[Lane.LIVE, 4]]


def test_a_reader_that_follows_sees_the_same_as_one_that_begins() -> None:
    disk, seen = SimulatedDisk(), {}
    landing = Landing(disk, "hall1.main", runtime(), 1500)
    follower, place = LandingReader(disk), dict.fromkeys(LANES, 0)
    for group in GROUPS:
        landing.land(group)
        follower.refresh()
        assert not follower.refresh()
        for lane in LANES:
            while some := follower.records(lane, place[lane], 1):
                seen[lane, some[0].number] = some[0]
                place[lane] += 1
    fresh = LandingReader(disk)
    assert seen == records(fresh)
    assert follower.state == fresh.state == landing.state


def test_a_fault_breaks_the_landing_and_promises_nothing() -> None:
    for kind in ("pwrite", "fdatasync", "rename", "create"):
        disk = SimulatedDisk()
        landing = Landing(disk, "hall1.main", runtime())
        first = landing.land(GROUPS[0])
        disk.calls.fail.add(kind)
        with pytest.raises(StorageFault):
            landing.land([arrival(B[1]), arrival(SOURCE.segment(4, 7)), arrival(B[3])])
            landing.land([arrival(FORK.blocks[1])])
            raise StorageFault("create happens at the first frame only", path="")
        disk.calls.fail.clear()
        if kind != "create":
            with pytest.raises(MisuseError, match="after a fault"):
                landing.land(GROUPS[1])
        for after in (disk.after_kill(), disk.after_power_cut(random.Random(1))):
            check(after, list(zip(GROUPS[0], first, strict=True)), {})


def test_after_a_failed_sync_the_cache_is_not_believed() -> None:
    disk = SimulatedDisk()
    landing = Landing(disk, "hall1.main", runtime())
    landing.land(GROUPS[0])
    index = disk._names[next(h for h, path in disk._names.items() if path.startswith("index/"))]
    disk.calls.sync_faults = frozenset({disk.calls.syncs + 1})  # that of the index, after that of the live frames
    with pytest.raises(StorageFault, match="index"):
        landing.land([arrival(B[1])])
    assert disk.content(index) != disk.on_platter(index)  # the page is clean now, the device has nothing: EIO was reported once
    again = Landing(disk, "hall1.main", runtime(3))
    assert again.state.blocks[SOURCE.generation].covers(0, 0)
    assert not again.state.blocks[SOURCE.generation].covers(1, 1)
    assert again.state.live_end == 1


def test_a_receiver_restored_from_yesterday_tells_where_to_begin_again() -> None:
    disk = SimulatedDisk()
    landing = Landing(disk, "hall1.main", runtime(1))
    landing.land(GROUPS[0])
    yesterday = disk.after_kill()
    known = [x for g in GROUPS[1:] for x in landing.land(g)]
    assert all(x.since == Ends(0, 0) for x in known)  # they named no landing generation: unknown
    now = landing.land([arrival(B[0], asked=landing.state.landing)])[0]
    assert now.since is None
    restored = Landing(yesterday, "hall1.main", runtime(2))
    answer = restored.land([arrival(B[0], asked=now.landing)])[0]
    assert answer.landing != now.landing
    assert answer.since == Ends(1, 0), "everything receipted with ends above this is offered again"
    assert now.ends.live > answer.since.live
    wanted = (SOURCE.generation, 1, 2)
    assert restored.offer(wanted, SOURCE.h[2], answer.landing) is None
    send_all_again(restored)
    assert restored.offer(wanted, SOURCE.h[2], answer.landing).verdict == Verdict.DUPLICATE


def test_a_kill_alone_asks_for_nothing_again() -> None:
    disk = SimulatedDisk()
    receipted = play(disk)
    last = receipted[-1][1]
    again = Landing(disk.after_kill(), "hall1.main", runtime(2))
    since = again.state.since(last.landing)
    assert since == last.ends  # nothing was receipted above it


def test_every_flipped_byte_of_the_index_is_named_or_harmless_and_healed() -> None:
    """Rot anywhere in the newest part: a start always starts, no reading is new twice, and what vanished is asked for again."""
    disk = SimulatedDisk()
    receipted = play(disk)
    high = receipted[-1][1].ends
    known = receipted[-1][1].landing
    name = max(p for p in disk.paths() if p.startswith("index/"))
    size = len(disk.content(name))
    for at in range(0, size, 11):
        after = disk.after_kill()
        after.flip(name, at, 0x20)
        landing = Landing(after, "hall1.main", runtime(5))
        since = landing.state.since(known)
        for one, landed in receipted:
            gone = [u for u in one.units if not _held(landing, u)]
            if gone and landed.verdict != Verdict.CONFLICT:
                assert since is not None and (since.live < landed.ends.live or since.backfill < landed.ends.backfill), f"byte {at}"
        assert landing.state.ends.live >= high.live and landing.state.ends.backfill >= high.backfill
        send_all_again(landing)
        reader = LandingReader(after)
        assert reader.refresh()
        assert reader.state.ends == landing.state.ends


def _held(landing: Landing, unit) -> bool:
    blocks = landing.state.blocks.get(unit.generation)
    return blocks is not None and blocks.covers(unit.first_block, unit.last_block)


def test_every_cut_of_the_index_is_a_torn_tail_or_asked_for_again() -> None:
    disk = SimulatedDisk()
    receipted = play(disk)
    known = receipted[-1][1].landing
    name = max(p for p in disk.paths() if p.startswith("index/"))
    for size in range(0, len(disk.content(name)), 13):
        after = disk.after_kill()
        after.rot(name, after.content(name)[:size])
        landing = Landing(after, "hall1.main", runtime(5))
        since = landing.state.since(known)
        for one, landed in receipted:
            if landed.verdict != Verdict.CONFLICT and any(not _held(landing, u) for u in one.units):
                assert since is not None and (since.live < landed.ends.live or since.backfill < landed.ends.backfill)
        send_all_again(landing)


def test_a_receiver_that_starts_again_and_again_leaves_two_parts_and_forgets_nothing() -> None:
    disk = SimulatedDisk()
    landing = Landing(disk, "hall1.main", runtime())
    landing.land(GROUPS[0])
    before = records(LandingReader(disk))
    follower = LandingReader(disk)
    follower.refresh()
    for nonce in range(1_000):  # the number of starts beyond OPENINGS_MAX changes nothing
        landing.close()
        landing = Landing(disk, "hall1.main", runtime(nonce))
        if nonce % 100 == 0:
            follower.refresh()
    assert len(disk.list("index")) == 2
    follower.refresh()
    assert records(follower) == before == records(LandingReader(disk))
    assert follower.state == landing.state


def test_an_empty_block_is_indexed_and_a_segment_with_nothing_new_is_not_stored() -> None:
    disk = SimulatedDisk()
    landing = Landing(disk, "hall1.main", runtime())
    landing.land([arrival(B[0], B[1])])
    landing.land([arrival(SOURCE.segment(0, 2))])  # block 2 is empty: the segment brings no reading
    reader = LandingReader(disk)
    found = records(reader)
    assert found[Lane.LIVE, 2].new == () and found[Lane.LIVE, 2].file == ""
    assert landing.land([arrival(B[2])])[0].verdict == Verdict.DUPLICATE
    assert not [p for p in disk.paths() if p.startswith("segments/")]


def test_a_prefix_is_receipted_where_the_rest_meets_another_fate() -> None:
    landing = Landing(SimulatedDisk(), "hall1.main", runtime())
    landing.land([arrival(FORK.blocks[4])])
    answer = landing.land([arrival(*B[2:6])])[0]
    assert (answer.verdict, answer.last_block, answer.chain) == (Verdict.STORED, 3, SOURCE.h[3])
    answer = landing.land([arrival(*B[4:6])])[0]
    assert (answer.verdict, answer.last_block) == (Verdict.CONFLICT, 4)


def test_conflicts_beyond_the_cap_stay_with_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONFLICTS_MAX", 1)
    landing = Landing(SimulatedDisk(), "hall1.main", runtime())
    landing.land([arrival(*B)])
    assert landing.land([arrival(FORK.blocks[1])])[0].verdict == Verdict.CONFLICT
    assert landing.land([arrival(FORK.blocks[1])])[0].verdict == Verdict.CONFLICT  # the same again: known
    assert landing.land([arrival(FORK.blocks[3])])[0] is None
    assert landing.land([arrival(B[0])])[0].verdict == Verdict.DUPLICATE


# ---- mutants: each check above can fail ----


def test_mutant_receipt_before_the_index_is_synced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsynced(self, entries):
        data = b"".join(module.encode_entry(e) for e in entries)
        self._storage.pwrite(self._index, self._index_end, data)
        self._index_end += len(data)

    monkeypatch.setattr(Landing, "_append", unsynced)
    with pytest.raises(AssertionError):
        crash_everywhere(10**9)


def test_mutant_frames_not_synced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimulatedDisk.fdatasync
    monkeypatch.setattr(
        SimulatedDisk, "fdatasync", lambda self, handle: None if self._names[handle].startswith("live/") else real(self, handle)
    )
    with pytest.raises((AssertionError, CorruptError)):
        crash_everywhere(10**9)


def test_mutant_new_ignored_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.accept.decide

    def everything_is_new(state, unit, chain_at):
        decision = real(state, unit, chain_at)
        return dataclasses.replace(decision, new=((unit.first_seq, unit.first_seq + unit.count - 1),) if unit.count else ())

    monkeypatch.setattr(module.accept, "decide", everything_is_new)
    with pytest.raises(AssertionError, match="new twice"):
        crash_everywhere(10**9)


def test_mutant_readers_not_held_back_by_durable_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LandingReader._mark

    def to_the_end(self):
        mark = real(self)
        if mark is None:
            return None
        parts = sorted(self._storage.list("index"))
        return dataclasses.replace(mark, end_offset=self._storage.size("index/" + parts[-1]))

    monkeypatch.setattr(LandingReader, "_mark", to_the_end)
    with pytest.raises(AssertionError):
        crash_everywhere(10**9)


def test_mutant_no_landing_generation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.LandingState, "since", lambda self, known: None)
    with pytest.raises(AssertionError):
        test_a_receiver_restored_from_yesterday_tells_where_to_begin_again()
