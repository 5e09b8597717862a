"""The machine, decision by decision: what moves the cursor, what only makes it send more, and what is no answer at all."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buffer.manifest import FrameKind
from gateway.trust.keys import KeyRing, KeySigner
from gateway.upload.asides import Why
from gateway.upload.carrier import CarrierError, Cause
from gateway.upload.jobs import Loaded, Now, Options
from gateway.upload.machine import BODIES_BYTES_MAX, PARKED_NS, Machine
from gateway.upload.memory import RESEND_FLOOR_BYTES, Memory
from gateway.upload.pathstate import PIECE_BYTES_MIN, REACHED_CAP_NS, UNREACHED_CAP_NS
from gateway.upload.plan import JournalUnit, RingView, SegmentUnit
from gateway.wire import request as wire
from gateway.wire.receipt import NO_CHAIN, Ends, Receipt, Refusal, Verdict, encode_receipt
from gateway.wire.request import Lane

STREAM = "hall1.main"
KEY = KeySigner(Ed25519PrivateKey.from_private_bytes(b"r" * 32))
OTHER = KeySigner(Ed25519PrivateKey.from_private_bytes(b"o" * 32))
GENERATION = 7 << 32 | 1
LANDING = 1 << 32 | 5
LATER = 2 << 32 | 6
TABLE = hashlib.sha256(b"table").digest()
STATEMENT = hashlib.sha256(b"statement").digest()
SECOND = 10**9


def chain(block: int) -> bytes:
    return hashlib.sha256(b"%d" % block).digest()


class Site:
    """A machine with a ring of blocks of `size` bytes; time and answers by hand."""

    def __init__(self, memory: Memory | None = None, size: int = 1000, in_flight: int = 4, random: float = 1.0, held: bool = True) -> None:
        keys = KeyRing()
        keys.trust(KEY.public)
        self.memory = memory or Memory(fresh=False)
        if held:
            self.memory.objects |= {TABLE, STATEMENT}
            self.memory.landing = self.memory.landing or LANDING
        self.machine = Machine(Options(STREAM, SECOND, in_flight), self.memory, keys, lambda: random)
        self.size = size
        self.t = 0
        self.landing = LANDING

    @property
    def now(self) -> Now:
        return Now(self.t, 10**18 + self.t)

    def ring(self, *segments: tuple[int, int], journals: tuple[tuple[int, int], ...] = (), end: int | None = None, statements=(STATEMENT,)) -> None:
        view = RingView(
            tuple(SegmentUnit(GENERATION, a, b, a * 10, b * 10 + 10, self.size * (b - a + 1)) for a, b in segments),
            tuple(JournalUnit(GENERATION, a, b, a * 10, b * 10 + 10, self.size * (b - a + 1)) for a, b in journals),
        )
        if end is not None:
            self.machine.grew(GENERATION, end, self.now)
        self.machine.inventory(view, statements)

    def job(self, open_: bool = True):
        return self.machine.next(self.now, backfill_open=open_)

    def load(self, job):
        if job.kind == FrameKind.OBJECT:
            return Loaded((b"object",), 0, 0, (job.digest,))
        if job.kind == FrameKind.SEGMENT:
            whole = bytes(self.size * (job.last - job.first + 1))
            return Loaded((whole[:100], whole[100:]), job.first, job.last, (chain(job.last),), frozenset({TABLE}))
        count = max(1, min(job.last - job.first + 1, job.max_bytes // self.size))
        last = job.first + count - 1
        return Loaded((bytes(self.size * count),), job.first, last, tuple(chain(b) for b in range(job.first, last + 1)), frozenset({TABLE}))

    def request(self, open_: bool = True):
        job = self.job(open_)
        return None if job is None else self.machine.loaded(job, self.load(job), self.now)

    def receipt(self, request, verdict=Verdict.STORED, signer=KEY, **change) -> bytes:
        target = wire.parse_target(request.target)
        is_object = isinstance(target, wire.ObjectTarget)
        fields = dict(
            verdict=verdict, stream=STREAM, generation=request.job.generation, first=0 if is_object else target.first,
            last=0 if is_object else target.last, chain=target.digest if is_object else chain(target.last), landing=self.landing, ends=Ends(1, 1),
            asked=target.landing, time_ns=1,
        ) | change
        if fields["asked"] != fields["landing"]:
            fields.setdefault("since", Ends(0, 0))
        return encode_receipt(signer, Receipt(**fields))

    def answer(self, request, status=200, body=None, **change) -> None:
        self.machine.answered(request, status, self.receipt(request, **change) if body is None else body, self.now)

    def fail(self, request, *, reached: bool) -> None:
        self.machine.failed(request, CarrierError(Cause.SILENT, "silence", "wait", reached=reached), self.now)

    def done(self):
        return list(self.memory.cursor.done(GENERATION))

    def doubts(self):
        return [(a, b) for _, a, b in self.memory.cursor.doubts()]

    def drain(self, rounds: int = 200) -> None:
        """Answer everything as a good receiver would."""
        for _ in range(rounds):
            request = self.request()
            if request is None:
                self.t += SECOND
                if self.job() is None and not self.machine._jobs:
                    return
                raise AssertionError("a job was lost by this helper")
            self.answer(request)


def test_live_is_one_run_a_second_and_goes_before_the_backlog():
    site = Site()
    site.ring((0, 9), journals=((10, 20),), end=21)
    first = site.request()
    assert (first.job.lane, first.job.first, first.last) == (Lane.LIVE, 20, 20)
    site.answer(first)
    site.machine.grew(GENERATION, 24, site.now)
    backlog = site.request()
    assert backlog.job.lane == Lane.BACKFILL, "not a second live request within the second"
    site.t += SECOND
    again = site.request()
    assert (again.job.lane, again.job.first, again.last) == (Lane.LIVE, 21, 23)


def test_backlog_goes_oldest_first_sealed_as_segments_the_rest_as_runs():
    site = Site()
    site.ring((0, 9), (10, 19), journals=((20, 30),), end=31)
    asked = []
    while (request := site.request()) is not None:
        asked.append((request.job.kind, request.job.first, request.last, request.job.lane))
        site.answer(request)
    assert asked == [
        (FrameKind.BLOCK, 30, 30, Lane.LIVE),
        (FrameKind.SEGMENT, 0, 9, Lane.BACKFILL),
        (FrameKind.SEGMENT, 10, 19, Lane.BACKFILL),
        (FrameKind.BLOCK, 20, 29, Lane.BACKFILL),
    ]
    assert site.done() == [(0, 30)]
    assert site.machine.plan.backlog(site.memory.cursor).blocks == 0


def test_newest_first_on_request():
    site = Site()
    site.machine.newest_first = True
    site.ring((0, 9), (10, 19), journals=((20, 30),), end=31)
    asked = []
    while (request := site.request()) is not None:
        asked.append(request.job.first)
        site.answer(request)
    assert asked == [30, 20, 10, 0]


def test_several_in_flight_and_their_bodies_bounded():
    site = Site(size=100_000)
    site.ring(*((i * 30, i * 30 + 29) for i in range(10)), end=300)
    site.machine.path.piece_bytes = 8 << 20
    flight = []
    while (request := site.request()) is not None:
        flight.append(request)
    backfill = [r for r in flight if r.job.lane == Lane.BACKFILL]
    assert 2 <= len(backfill) <= 4
    assert sum(r.size for r in backfill) <= BODIES_BYTES_MAX
    assert len({r.job.first for r in flight}) == len(flight)


def test_a_segment_that_misses_little_goes_as_blocks_while_a_journal_has_them():
    site = Site()
    site.memory.cursor.receipted(GENERATION, 0, 7, Ends(1, 1))
    site.ring((0, 9), journals=((0, 20),), end=21)
    site.answer(site.request())
    request = site.request()
    assert (request.job.kind, request.job.first, request.last) == (FrameKind.BLOCK, 8, 9)
    site.ring((0, 9), journals=((10, 20),), end=21)
    site.fail(request, reached=False)
    site.t += 3600 * SECOND
    jobs = [site.job(), site.job()]
    assert (FrameKind.SEGMENT, 0, 9) in [(j.kind, j.first, j.last) for j in jobs if j]


def test_objects_go_before_the_first_frame_that_names_them():
    site = Site(held=False)
    site.ring(journals=((0, 3),), end=4)
    statement = site.request()
    assert statement.job.digest == STATEMENT
    assert site.job() is None, "nothing else meanwhile"
    site.answer(statement)
    assert site.request() is None, "the block names a table that must go first"
    table = site.request()
    assert table.job.digest == TABLE
    site.answer(table)
    site.t += SECOND
    assert site.request().job.kind == FrameKind.BLOCK


# ---- only a signed verdict moves the cursor ----

STATUSES = [200, 201, 204, 301, 302, 400, 403, 404, 407, 409, 411, 413, 424, 429, 500, 502, 503, 504]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("body", [b"", b"ok", b"<html>", bytes(512)])
@pytest.mark.parametrize("offer", [False, True])
def test_nothing_unsigned_moves_the_cursor_or_parks(status, body, offer):
    site = Site()
    site.ring((0, 9), end=10)
    site.answer(site.request())
    if offer:
        site.memory.cursor.doubtful(GENERATION, 0, 8)
    request = site.request()
    assert request.job.offer == offer
    site.answer(request, status, body)
    assert site.done() == [(9, 9)]
    assert not site.memory.parked
    assert site.machine._jobs == {}


@pytest.mark.parametrize(
    "change",
    [
        dict(signer=OTHER), dict(stream="hall2.main"), dict(generation=GENERATION + 1), dict(first=1), dict(last=11), dict(chain=chain(5)),
        dict(chain=NO_CHAIN), dict(last=8), dict(asked=LATER, landing=LATER),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verdict", [Verdict.STORED, Verdict.DUPLICATE, Verdict.CONFLICT])
def test_a_receipt_for_something_else_is_no_answer(change, verdict):
    site = Site()
    site.ring((0, 9), end=10)
    site.answer(site.request())
    request = site.request()
    site.answer(request, verdict=verdict, **change)
    assert site.done() == [(9, 9)]
    assert not site.machine.path.good


@pytest.mark.parametrize("verdict", [Verdict.STORED, Verdict.DUPLICATE, Verdict.CONFLICT])
def test_stored_duplicate_and_conflict_move_it(verdict):
    site = Site()
    site.ring((0, 9), end=10)
    site.answer(site.request())
    site.answer(site.request(), verdict=verdict)
    assert site.done() == [(0, 9)]
    assert site.memory.conflicts == (verdict == Verdict.CONFLICT)


def test_a_prefix_moves_the_cursor_as_far_as_it_goes():
    site = Site()
    site.ring(journals=((0, 9),), end=10)
    site.answer(site.request())
    request = site.request()
    assert (request.job.first, request.last) == (0, 8)
    site.answer(request, last=4, chain=chain(4))
    assert site.done() == [(0, 4), (9, 9)]
    assert site.request().job.first == 5


def test_refused_parks_what_the_receipt_names_and_tries_again_hourly_until_it_is_evicted():
    site = Site()
    site.ring(journals=((0, 9),), end=10)
    site.answer(site.request())
    request = site.request()
    site.answer(request, verdict=Verdict.REFUSED, last=0, chain=NO_CHAIN, reason=Refusal.NOT_A_FRAME)
    assert list(site.memory.parked) == [(GENERATION, 0, 0)]
    rest = site.request()
    assert (rest.job.first, rest.last) == (1, 8), "what was not refused goes on"
    site.answer(rest)
    assert site.job() is None
    site.t += PARKED_NS + 1
    again = site.request()
    assert (again.job.first, again.last) == (0, 0)
    site.answer(again, verdict=Verdict.REFUSED, last=0, chain=NO_CHAIN, reason=Refusal.NOT_A_FRAME)
    site.ring(journals=((5, 9),), end=10)
    assert not site.memory.parked
    site.t += PARKED_NS + 1
    assert site.job() is None


def test_a_stream_that_may_not_be_sent_is_asked_once_an_hour_not_once_a_frame():
    site = Site()
    site.ring((0, 9), (10, 19), end=20)
    site.answer(site.request(), verdict=Verdict.REFUSED, chain=NO_CHAIN, reason=Refusal.WRONG_STREAM)
    assert site.job() is None
    site.t += PARKED_NS - 1
    assert site.job() is None
    site.t += 2
    assert site.job() is not None


# ---- offers, restores, lost state ----


def test_after_a_lost_state_everything_is_offered_and_what_is_held_costs_no_body():
    site = Site(Memory(), held=False)
    site.machine.grew(GENERATION, 40, site.now)
    site.ring((0, 9), (10, 19), journals=((20, 39),))
    site.memory.objects |= {TABLE, STATEMENT}
    site.machine.objects._wanted.clear()
    bodies = []
    for _ in range(30):
        request = site.request()
        if request is None:
            break
        if request.size:
            bodies.append((request.job.first, request.last))
            site.answer(request)
        elif request.job.first == 10:
            site.answer(request, 404, b"")
        else:
            assert f"chain={chain(request.last).hex()}" in request.target
            site.answer(request, verdict=Verdict.DUPLICATE)
    assert bodies == [(39, 39), (10, 19)]
    assert site.done() == [(0, 39)]


def restored(since: Ends) -> Site:
    site = Site()
    site.ring((0, 9), (10, 19), (20, 29), end=31, journals=((30, 30),))
    for ends in (Ends(1, 0), Ends(1, 1), Ends(1, 2), Ends(1, 3)):
        site.answer(site.request(), ends=ends)
    assert site.done() == [(0, 30)]
    site.landing = LATER
    site.machine.grew(GENERATION, 32, site.now)
    site.t += SECOND
    site.answer(site.request(), ends=Ends(2, 2), since=since)
    return site


def test_a_restored_receiver_is_noticed_and_what_it_lost_is_offered():
    site = restored(Ends(1, 1))
    assert site.memory.landing == LATER
    assert site.memory.restored_ns
    assert site.memory.restored_blocks >= 20
    assert (10, 29) in site.doubts() or (0, 30) in site.doubts()
    request = site.request()
    while request is None or request.job.kind == FrameKind.OBJECT:
        if request is not None:
            site.answer(request)
        request = site.request()
    assert request.job.offer
    assert request.size == 0
    assert "landing=2-00000006" in request.target


@pytest.mark.parametrize(("held", "told"), [(0, False), (7, True)])
def test_an_empty_memory_that_meets_its_own_past_says_so_and_a_new_gateway_does_not(held, told):
    site = Site(Memory(), held=False)
    site.machine.grew(GENERATION, 40, site.now)
    site.ring((0, 9), (10, 19), journals=((20, 39),))
    sent = 0
    for _ in range(30):
        request = site.request()
        if request is None:  # something else goes first
            continue
        if request.job.offer:
            site.answer(request, 404, b"")
            continue
        sent += request.job.kind != FrameKind.OBJECT
        site.answer(request, ends=Ends(0, held + sent))
    assert sent >= 3
    assert bool(site.memory.forgotten_ns) == told


def test_a_receiver_that_was_merely_started_again_is_no_alarm():
    site = restored(Ends(1, 3))
    assert site.memory.landing == LATER
    assert not site.memory.restored_ns
    assert site.done() == [(0, 31)]


def test_a_receipt_from_before_a_restore_that_is_known_already_is_no_answer():
    """Two requests under way; the receiver answers one, is restored, answers the other; the first answer comes last."""
    site = Site()
    site.ring((0, 9), (10, 19), end=20)
    site.answer(site.request())
    early, late = site.request(), site.request()
    old = site.receipt(early, ends=Ends(1, 9))
    site.landing = LATER
    site.answer(late, ends=Ends(1, 1), since=Ends(0, 0))
    site.answer(early, body=old)
    assert site.done() == [(10, 18)] or site.done() == [(10, 19)]
    assert site.machine.counters.stale == 1
    assert (0, 9) in site.doubts()
    assert site.machine.path.good, "a late answer says nothing bad about the way"


def test_a_424_makes_it_send_the_named_objects_again_but_not_for_ever():
    site = Site()
    site.ring((0, 9), end=10)
    site.t += 3600 * SECOND
    request = site.request()
    site.answer(request, 424, wire.format_missing([TABLE], [bytes(8)]))
    digests = []
    for _ in range(2):
        object_request = site.request()
        digests.append(object_request.job.digest)
        site.answer(object_request)
    assert digests == [STATEMENT, TABLE]
    site.t += SECOND
    request = site.request()
    site.answer(request, 424, wire.format_missing([TABLE]))
    assert site.machine.path.error.cause == Cause.OBJECTS
    assert site.machine.path.reached == 1


def test_a_424_that_names_what_nobody_has_is_no_answer():
    site = Site()
    site.ring((0, 9), end=10)
    request = site.request()
    stranger = hashlib.sha256(b"stranger").digest()
    site.answer(request, 424, wire.format_missing([stranger]))
    job = site.job()
    assert job.digest == stranger
    site.machine.gone(job, site.now)
    site.t += SECOND
    site.answer(site.request(), 424, wire.format_missing([stranger]))
    assert not site.machine.path.good


# ---- back-off, budget, pieces ----


def test_a_way_that_is_down_is_tried_often_and_one_that_swallows_bytes_up_to_hourly():
    for reached, cap in ((False, UNREACHED_CAP_NS), (True, REACHED_CAP_NS)):
        site = Site()
        site.ring(end=10, journals=((0, 9),))
        waits = []
        for _ in range(20):
            request = site.request()
            assert request is not None
            if waits:
                assert site.job() is None, "one request while the way is in doubt"
            site.fail(request, reached=reached)
            assert site.job() is None
            waits.append(site.machine.path.until_ns - site.t)
            site.t = max(site.machine.path.until_ns, site.machine.asides.next_due() or 0)
            site.machine.grew(GENERATION, site.machine.edge.end + 1, site.now)
        assert waits[0] <= 1.1 * SECOND
        assert cap <= max(waits) <= cap + SECOND


def test_after_a_long_outage_one_odd_answer_does_not_cost_an_hour():
    site = Site()
    site.ring(end=10, journals=((0, 9),))
    for _ in range(50):
        site.fail(site.request(), reached=False)
        site.t = site.machine.path.until_ns
        site.machine.grew(GENERATION, site.machine.edge.end + 1, site.now)
    site.answer(site.request(), 503, b"")
    assert site.machine.path.until_ns - site.t <= 1.1 * SECOND


def test_jitter_is_full():
    site = Site(random=0.0)
    site.ring(end=10, journals=((0, 9),))
    for _ in range(10):
        site.fail(site.request(), reached=True)
        assert site.machine.path.until_ns - site.t < SECOND // 10
        site.t = max(site.machine.path.until_ns, site.machine.asides.next_due() or 0)


def test_what_was_sent_and_not_answered_is_offered_before_it_is_sent_again_and_counts_against_the_day():
    site = Site(size=1_000_000, random=0.0)
    site.ring((0, 4), end=5)
    site.answer(site.request())
    site.machine.path.piece_bytes = 8 << 20
    resent = 0
    for _ in range(40):
        request = site.request()
        if request is None:
            break
        if request.size:
            resent += request.size if request.again else 0
            site.fail(request, reached=True)
            site.machine.path.piece_bytes = 8 << 20
        else:
            site.answer(request, 404, b"")
        site.t = max(site.t, site.machine.path.until_ns, site.machine.asides.next_due() or 0) + 1
        if site.machine.asides.count(Why.BUDGET, site.t - 2):
            break
    assert 0 < resent <= RESEND_FLOOR_BYTES
    assert site.memory.day.resent_bytes == resent
    site.t += 86_400 * SECOND
    assert site.request() is not None, "another day"


def test_what_never_left_the_box_is_not_a_second_sending():
    site = Site()
    site.ring((0, 9), end=10)
    for _ in range(5):
        request = site.request()
        assert not request.again
        site.fail(request, reached=False)
        site.t = site.machine.path.until_ns + SECOND
    assert site.memory.day.resent_bytes == 0


def test_a_large_segment_goes_in_pieces_that_continue_where_the_receiver_says():
    site = Site(size=100_000)
    site.ring((0, 9), end=10)
    site.answer(site.request())
    site.machine.path.piece_bytes = 300_000
    seen = []
    held = 0
    while (request := site.request()) is not None:
        target = wire.parse_target(request.target)
        seen.append((target.offset, request.size))
        assert target.length == 1_000_000
        assert sum(len(p) for p in request.parts) == request.size
        held = target.offset + request.size
        if held < 1_000_000:
            site.answer(request, verdict=Verdict.PARTIAL, offset=held, chain=NO_CHAIN)
            site.machine.path.piece_bytes = 300_000
        else:
            site.answer(request)
    assert seen == [(0, 300_000), (300_000, 300_000), (600_000, 300_000), (900_000, 100_000)]
    assert site.done() == [(0, 9)]


def test_a_receiver_that_lost_the_bytes_so_far_is_followed_back():
    site = Site(size=100_000)
    site.ring((0, 9), end=10)
    site.answer(site.request())
    site.machine.path.piece_bytes = 300_000
    site.answer(site.request(), verdict=Verdict.PARTIAL, offset=300_000, chain=NO_CHAIN)
    site.answer(site.request(), verdict=Verdict.PARTIAL, offset=0, chain=NO_CHAIN)
    site.t += 10 * SECOND
    assert wire.parse_target(site.request().target).offset == 0


def test_requests_become_smaller_when_they_do_not_arrive():
    site = Site(size=1000)
    site.ring((0, 999), (1000, 1999), end=2000)
    for _ in range(30):
        request = site.request()
        if request is not None:
            site.fail(request, reached=True)
        site.t = max(site.t + SECOND, site.machine.path.until_ns, site.machine.asides.next_due() or 0)
        site.machine.grew(GENERATION, site.machine.edge.end + 1, site.now)
    assert site.machine.path.piece_bytes == PIECE_BYTES_MIN


# ---- the ring changes under it ----


def test_what_was_evicted_is_dropped_from_the_plan_and_from_the_memory():
    site = Site()
    site.memory.cursor.receipted(GENERATION, 0, 4, Ends(1, 1))
    site.ring((0, 9), (10, 19), end=20)
    site.answer(site.request())
    request = site.job()
    assert request.first == 0
    site.machine.gone(request, site.now)
    site.ring((10, 19), end=20)
    assert site.done() == [(19, 19)]
    assert site.request().job.first == 10
    assert site.job() is None


def test_a_segment_that_cannot_be_read_goes_as_blocks():
    site = Site()
    site.ring((0, 9), journals=((0, 9),), end=10)
    site.answer(site.request())
    job = site.job()
    assert job.kind == FrameKind.SEGMENT
    site.machine.gone(job, site.now)
    request = site.request()
    assert (request.job.kind, request.job.first, request.last) == (FrameKind.BLOCK, 0, 8)


def test_a_hole_in_a_journal_holds_up_nothing_behind_it():
    site = Site()
    site.ring(journals=((0, 9),), end=10)
    site.answer(site.request())
    job = site.job()
    behind = Loaded((bytes(10),), 5, 8, tuple(chain(b) for b in range(5, 9)), frozenset({TABLE}))
    assert site.machine.loaded(job, behind, site.now) is None
    request = site.request()
    assert (request.job.first, request.last) == (5, 8)


def test_an_empty_view_of_a_ring_forgets_nothing():
    site = Site()
    site.ring((0, 9), end=10)
    site.drain()
    site.ring()
    assert site.done() == [(0, 9)]


def test_a_closed_window_stops_backfill_not_live():
    site = Site()
    site.ring((0, 9), journals=((10, 12),), end=13)
    assert site.request(open_=False).job.lane == Lane.LIVE
    assert site.job(open_=False) is None
    assert site.job(open_=True).lane == Lane.BACKFILL


def test_a_person_may_cut_the_waiting_short():
    site = Site()
    site.ring((0, 9), end=10)
    for _ in range(12):
        site.fail(site.request(), reached=True)
        site.t = max(site.machine.path.until_ns, site.machine.asides.next_due() or 0) + SECOND
        site.machine.grew(GENERATION, site.machine.edge.end + 1, site.now)
    site.fail(site.request(), reached=True)
    assert site.job() is None
    site.machine.retry_now()
    assert site.job() is not None
