"""The account by reason and by day, and the coverage of sources."""

from __future__ import annotations

from buffer.manifest import FrameKind, Loss, LossReason, StateRecord
from gateway.completeness import Days, account, ledger_lines
from gateway.coverage import Coverage
from gateway.landing import LandingState, Record
from gateway.wire.request import Lane

DAY = 86_400 * 10**9
G1, G2 = 1 << 32 | 5, 2 << 32 | 7


def state(generation: int, block: int, end: int, wall_ns: int, low=(0, 0), lost=(), predecessor=None) -> StateRecord:
    return StateRecord(
        generation=generation, predecessor=predecessor, block=block, end=end, low=low, lost=tuple(lost), open_gaps=(), wall_ns=wall_ns,
        monotonic_ns=0, boot_id=bytes(16), clock_trusted=True,
    )  # fmt: skip


def record(generation: int, number: int, first: int, count: int, wall_ns: int, *, end: int | None = None, **more) -> Record:
    s = state(generation, number, end if end is not None else first + count, wall_ns, **more)
    new = ((first, first + count - 1),) if count else ()
    return Record(Lane.LIVE, number, FrameKind.BLOCK, generation, number, number, first, count, b"", b"", b"", new, "f", 0, 0, b"", s, wall_ns)


def fed(*records: Record) -> tuple[LandingState, Days]:
    landing, days = LandingState(), Days()
    for one in records:
        landing.take(one)
        days.take(one)
    return landing, days


def test_every_hole_has_one_reason_and_a_received_reading_beats_a_loss():
    lost = (Loss(G1, 10, 19, LossReason.BIT_ROT),)
    landing, _ = fed(record(G1, 0, 0, 5, 1), record(G1, 1, 12, 3, 2), record(G1, 2, 30, 10, 3, end=45, low=(G1, 7), lost=lost))
    one = account("a", landing)
    found = {m.reason: (m.readings, m.ranges) for m in one.missing}
    assert found["bit_rot"] == (7, ((10, 11), (15, 19)))
    assert found["evicted"] == (2, ((5, 6),))
    assert found["waiting"] == (18, ((7, 9), (20, 29), (40, 44)))
    assert one.received + sum(m.readings for m in one.missing) == one.reported == 45
    assert (one.final, one.waiting) == (9, 18)
    assert any("rotted on the gateway's disk" in line for line in ledger_lines(one))


def test_what_a_restored_ring_forgot_is_rolled_back():
    landing, _ = fed(record(G1, 0, 0, 50, 1, end=80), record(G2, 0, 0, 5, 2, predecessor=(G1, 60)))
    assert {m.reason: m.readings for m in account("a", landing).missing} == {"waiting": 10, "rolled_back": 20}


def test_a_hole_belongs_to_its_day_whatever_the_order():
    records = [record(G1, n, n * 100, 100, 20_000 * DAY + n * DAY // 4) for n in range(12)]
    del records[5]  # in the second day, and known to be lost since the last record
    records[-1] = record(G1, 11, 1_100, 100, 20_002 * DAY + 3 * DAY // 4, lost=(Loss(G1, 500, 599, LossReason.STORAGE_FAULT),))
    for order in (records, records[::-1]):
        landing, days = fed(*order)
        found = days.days(account("a", landing), 19_999, 20_003)
        assert [d.missing for d in found] == [{}, {}, {"storage_fault": 100}, {}, {}]
        assert [d.complete for d in found] == [True, True, False, False, False]
        assert [d.reported for d in found] == [True, True, True, False, False]
        assert [d.readings for d in found] == [0, 400, 400, 400, 0]


def test_nobody_collecting_is_a_gap_of_its_day():
    landing, days = fed(record(G1, 0, 0, 10, 20_000 * DAY + DAY // 2), record(G2, 0, 0, 10, 20_001 * DAY + DAY // 4, predecessor=(G1, 10)))
    first, second = days.days(account("a", landing), 20_000, 20_001)
    assert first.off == ((20_000 * DAY + DAY // 2, 20_001 * DAY),)
    assert second.off == ((20_001 * DAY, 20_001 * DAY + DAY // 4),)
    assert not first.complete


def test_sources_are_covered_or_say_why_not():
    coverage = Coverage()
    for kind, ts, text in (
        (2, 10, '{"source": "plc"}'), (1, 20, '{"source": "plc", "event": "no communication", "since_ns": 15, "reason": "connection refused"}'),
        (2, 30, '{"source": "plc"}'), (13, 40, '{"source": "plc", "event": "paused", "reason": "service"}'), (11, 45, "not json"),
    ):  # fmt: skip
        coverage.take(kind, ts, text)
    plc = coverage.sources["plc"]
    assert [(h.since_ns, h.until_ns, h.reason) for h in plc.holes] == [(15, 30, "connection refused"), (40, 0, "paused by a person: service")]
    assert plc.trouble == "paused by a person: service"
    coverage.take(1, 12, '{"source": "plc"}')  # of earlier, come late
    coverage.take(13, 50, '{"source": "plc", "event": "resumed"}')
    assert not plc.trouble
    coverage.take(0, 60, '{"source": "", "event": "stopped in order"}')
    assert plc.trouble == "collecting was stopped in order"
    coverage.take(0, 70, '{"source": "", "event": "started"}')
    assert not plc.trouble
    assert [h.reason for h in coverage.holes(35, 80)] == ["paused by a person: service", "collecting was stopped in order"]


def test_a_replaced_disk_is_told_and_what_it_kept_will_never_come():
    landing, _ = fed(record(G1 + 9, 0, 0, 50, 10, end=80), record(G1, 0, 0, 5, 20, end=7))  # a new disk begins with ordinal 1 again, here below
    one = account("a", landing)
    assert {(m.generation, m.reason): m.readings for m in one.missing} == {(G1 + 9, "rolled_back"): 30, (G1, "waiting"): 2}
    assert len(one.findings) == 1
    assert "replaced" in one.findings[0]


def test_ancestors_that_never_landed_are_no_sign_of_a_replaced_disk():
    landing, _ = fed(record(G1, 0, 0, 5, 10, end=9), record(3 << 32, 0, 0, 5, 20, predecessor=(G2, 40), low=(3 << 32, 0)))
    one = account("a", landing)
    assert {(m.generation, m.reason): m.readings for m in one.missing} == {(G1, "evicted"): 4}
    assert one.findings == ()


def test_an_opening_in_which_nothing_was_committed_is_no_replaced_ring():
    g2 = G1 + (1 << 32)
    empty, _ = fed(record(G1, 0, 0, 0, 1), record(g2, 0, 0, 5, 2))
    assert account("a", empty).findings == ()
    held, _ = fed(record(G1, 0, 0, 1, 1), record(g2, 0, 0, 5, 2))
    assert "does not descend" in account("a", held).findings[0]
