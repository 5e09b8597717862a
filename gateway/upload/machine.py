"""What to send next and what an answer means: the uploader's every decision. Pure: bytes, ranges and times in, jobs out.

Only a signed verdict moves the cursor or parks a frame. 404 to an offer and 424 only make it send more. Everything else is no
answer. A receipt whose request named another landing generation than the one now known is no answer either; what was
receipted above a start of a later landing is offered again (the receiver was restored).

The shell asks `next`, reads the frames of the job, hands them to `loaded`, sends the request, and reports `answered`, `failed` or
`gone`. Every job ends with exactly one of these three, or with None from `loaded`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError, SignatureError
from buffer.intervals import Intervals
from buffer.manifest import FrameKind
from gateway.lanes import LiveEdge, backfill_slots
from gateway.upload.asides import Asides, Why
from gateway.upload.carrier import CarrierError, altered, explain_status, objects_missing, wrong_key
from gateway.upload.jobs import Counters, Job, Request, chain_after, cut
from gateway.upload.memory import Parked
from gateway.upload.objects import Objects
from gateway.upload.pathstate import PathState
from gateway.upload.plan import Plan
from gateway.wire import request as wire
from gateway.wire.receipt import Refusal, Verdict, parse_receipt
from gateway.wire.request import FramesTarget, Lane, ObjectTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.cose import Verifier
    from gateway.upload.jobs import Loaded, Now, Options
    from gateway.upload.memory import Memory
    from gateway.upload.plan import Pick, RingView
    from gateway.wire.receipt import Receipt

BODIES_BYTES_MAX: Final = 8 * 1024 * 1024  # of all backfill bodies under way: bounds the process's memory
RUN_BYTES_MAX: Final = 2 * 1024 * 1024  # of one run of blocks, so that four fit
PARKED_NS: Final = 3_600 * 10**9  # a refused frame is tried again after this long
UNREADABLE_NS: Final = 60 * 10**9  # a block that could not be read is looked for again after this long


class Machine:
    """See the module. One caller at a time."""

    def __init__(self, options: Options, memory: Memory, verifier: Verifier, random: Callable[[], float]) -> None:
        self.options = options
        self.memory = memory
        self.plan = Plan()
        self.path = PathState()
        self.edge = LiveEdge()
        self.asides = Asides()
        self.counters = Counters()
        self.newest_first = options.newest_first
        self._verifier = verifier
        self._random = random
        self._jobs: dict[int, tuple[Job, int]] = {}  # under way, with the bytes they may hold
        self._ids = 0
        self._live_began: int | None = None  # of the live PUT under way
        self._live_due = 0
        self.objects = Objects(memory.objects)
        self._sent: dict[int, Intervals] = {}  # blocks sent with their bodies and not answered
        self._offsets: dict[tuple[int, int, int], int] = {}  # bytes of a segment frame that the receiver holds
        self._looked: dict[int, Intervals] = {}  # while memory is fresh: what was put in doubt once
        self._doubt_end: tuple[int, int] | None = None
        for parked in memory.parked.values():
            self.asides.put((parked.generation, parked.first, parked.last), Why.PARKED, 0)

    # ---- what the ring says ----

    def grew(self, generation: int, end: int, now: Now) -> bool:
        """Take the durable mark; say whether there is anything new."""
        before = self.edge.end if self.edge.generation == generation else None
        if not self.edge.grew(generation, end, now.mono):
            return False
        first = self.edge.first(now.mono) if before is None else before
        if self._doubt_end is None:
            self._doubt_end = (generation, first)
        self.plan.grew(generation, first, end)
        return True

    def inventory(self, view: RingView, statements: Sequence[bytes]) -> None:
        """Take what the ring holds; forget what it holds no more. statements: SHA-256 of the key statements in it."""
        self.plan.update(view)
        self.objects.in_ring(statements)
        oldest = self.plan.oldest()
        if oldest is not None:
            self.memory.cursor.drop_before(*oldest)
            self.asides.keep(self.plan.holds)
            for key in [k for k in self.memory.parked if not self.plan.holds(*k)]:
                del self.memory.parked[key]
            self._offsets = {k: v for k, v in self._offsets.items() if self.plan.holds(*k)}
        if self.memory.fresh:
            self._doubt_everything(complete=view.complete)

    def _doubt_everything(self, *, complete: bool) -> None:
        """Our own state was lost, or this is the first start: perhaps the receiver holds all of it."""
        if self._doubt_end is None:
            return
        for generation, first, last in self.plan.ranges():
            top = last if generation < self._doubt_end[0] else min(last, self._doubt_end[1] - 1)
            looked = self._looked.setdefault(generation, Intervals())
            if generation > self._doubt_end[0] or first > top:
                continue
            for a, b in looked.holes(first, top):
                self.memory.cursor.doubtful(generation, a, b)
            looked.add(first, top)
        if complete:
            self.memory.fresh = False
            self._looked.clear()

    # ---- what to do next ----

    def next(self, now: Now, *, backfill_open: bool) -> Job | None:
        """Return the next job, None if there is nothing to do before `wake_ns` or another event."""
        if now.mono < self.path.until_ns or (not self.path.good and self._jobs):
            return None
        digest = self.objects.next()
        if digest is not None:  # before everything that names it, and so before everything
            return self._object(digest, now) if self._live_began is None else None
        job = self._next_live(now) if self._live_began is None else None
        if job is None and backfill_open:
            job = self._next_backfill(now)
        return job

    def wake_ns(self, now: Now) -> int | None:
        """Return the monotonic time at which `next` may say something else though nothing happened; None: never."""
        if now.mono < self.path.until_ns:
            return self.path.until_ns
        times = [t for t in (self._live_due, self.asides.next_due()) if t is not None and t > now.mono]
        return min(times, default=None)

    def _start(self, job: Job, reserve: int) -> Job:
        self._jobs[job.id] = (job, reserve)
        return job

    def _id(self) -> int:
        self._ids += 1
        return self._ids

    def _object(self, digest: bytes, now: Now) -> Job:
        self._live_began = now.mono
        return self._start(Job(self._id(), Lane.LIVE, FrameKind.OBJECT, digest=digest), 0)

    def _next_live(self, now: Now) -> Job | None:
        if now.mono < self._live_due:
            return None
        edge = self.edge
        pick = self.plan.live(edge.generation, edge.first(now.mono), edge.end, self.memory.cursor, self._busy(now))
        if pick is None:
            return None
        self._live_began, self._live_due = now.mono, now.mono + self.options.live_ns
        return self._start(self._blocks(pick, Lane.LIVE), 0)

    def _piece(self) -> int:
        return min(self.path.piece_bytes, RUN_BYTES_MAX)

    def _next_backfill(self, now: Now) -> Job | None:
        reserved = [reserve for job, reserve in self._jobs.values() if job.lane == Lane.BACKFILL]
        if len(reserved) >= backfill_slots(self.options.in_flight, self._live_began, now.mono):
            return None
        edge = (self.edge.generation, self.edge.first(now.mono))
        pick = self.plan.backfill(edge, self.memory.cursor, self._busy(now), newest_first=self.newest_first)
        if pick is None:
            return None
        size = pick.segment.size if pick.segment else self._piece()
        if reserved and sum(reserved) + size > BODIES_BYTES_MAX:
            return None
        if pick.segment is None:
            return self._start(self._blocks(pick, Lane.BACKFILL), size)
        job = Job(self._id(), Lane.BACKFILL, FrameKind.SEGMENT, pick.generation, pick.first, pick.last, pick.offer, segment=pick.segment)
        return self._start(job, size)

    def _blocks(self, pick: Pick, lane: Lane) -> Job:
        return Job(self._id(), lane, FrameKind.BLOCK, pick.generation, pick.first, pick.last, pick.offer, self._piece())

    def _busy(self, now: Now) -> dict[int, Intervals]:
        """Return what must not be picked: under way, or set aside for now."""
        busy = self.asides.busy(now.mono)
        for job, _ in self._jobs.values():
            if job.kind != FrameKind.OBJECT:
                busy.setdefault(job.generation, Intervals()).add(job.first, job.last)
        return busy

    # ---- a job was read ----

    def loaded(self, job: Job, loaded: Loaded, now: Now) -> Request | None:
        """Return the request to send, None if something else must go first (the job is over then)."""
        if job.kind == FrameKind.OBJECT:
            target = wire.format_target(ObjectTarget(job.digest, self.options.stream, self.memory.landing))
            return self._request(job, target, loaded.parts, loaded, now)
        if self.objects.need(loaded.objects):
            self._end(job)
            return None
        if loaded.first > job.first:
            self._set_aside(job, Why.UNREADABLE, now.mono + UNREADABLE_NS, last=loaded.first - 1)
            self._end(job)
            return None
        if job.offer:
            self.counters.offers += 1
            return self._request(job, self._target(job, loaded, chain=loaded.chains[-1]), (), loaded, now)
        return self._body(job, loaded, now)

    def _body(self, job: Job, loaded: Loaded, now: Now) -> Request | None:
        parts, offset, length = loaded.parts, None, loaded.size
        key = (job.generation, job.first, job.last)
        if job.kind == FrameKind.SEGMENT and (length > self.path.piece_bytes or key in self._offsets):
            offset = min(self._offsets.get(key, 0), length - 1)
            parts = cut(parts, offset, self.path.piece_bytes)
        size = sum(len(part) for part in parts)
        day = self.memory.day
        day.turn(now.wall)
        sent = self._sent.setdefault(job.generation, Intervals())
        again = not offset and bool(sent.within(job.first, loaded.last))
        if again and not day.may_resend(size):
            self._set_aside(job, Why.BUDGET, now.mono + PARKED_NS // 6)
            self._end(job)
            return None
        day.sent_bytes += 0 if again else size
        day.resent_bytes += size if again else 0
        sent.add(job.first, loaded.last)
        target = self._target(job, loaded, offset=offset, length=length if offset is not None else None)
        return self._request(job, target, parts, loaded, now, offset, again=again)

    def _target(self, job: Job, loaded: Loaded, *, chain: bytes | None = None, offset: int | None = None, length: int | None = None) -> str:
        target = FramesTarget(self.options.stream, job.generation, job.first, loaded.last, self.memory.landing, job.lane, chain, offset, length)
        return wire.format_target(target)

    def _request(
        self,
        job: Job,
        target: str,
        parts: tuple[bytes | memoryview, ...],
        loaded: Loaded,
        now: Now,
        offset: int | None = None,
        *,
        again: bool = False,
    ) -> Request:
        size = sum(len(part) for part in parts)
        if job.lane == Lane.BACKFILL:
            self._jobs[job.id] = (job, loaded.size)  # a piece holds on to its whole segment
        self.counters.sent(job, size)
        return Request(job, target, parts, size, loaded.last, loaded.chains, self.memory.landing, now.mono, offset, again)

    # ---- how a job ended ----

    def gone(self, job: Job, now: Now) -> None:
        """What the job names is not in the ring any more, or cannot be read."""
        if job.segment is not None:
            self.plan.give_up(job.segment)
        elif job.kind == FrameKind.OBJECT:
            self.objects.tried(job.digest, now.mono)
        else:
            self._set_aside(job, Why.UNREADABLE, now.mono + UNREADABLE_NS)
        self._end(job)

    def failed(self, request: Request, error: CarrierError, now: Now) -> None:
        """There was no answer."""
        job = request.job
        self.counters.failures += 1
        self._end(job)
        self.path.failed(error, request.began_ns, now.mono, now.wall, self._random)
        if request.size and error.reached:
            self.path.smaller()
        elif not error.reached and not request.again:
            self._sent_forget(job)
        if job.kind != FrameKind.OBJECT and job.lane == Lane.BACKFILL and error.reached:
            self._set_aside(job, Why.NO_ANSWER, self.asides.again_ns((job.generation, job.first, job.last), now.mono, self._random))
            if request.size:
                self.memory.cursor.doubtful(job.generation, job.first, request.last)

    def answered(self, request: Request, status: int, body: bytes, now: Now) -> None:
        """A carrier brought this. Only what is signed, and speaks of this request, is believed."""
        job = request.job
        try:
            if status == wire.OK:
                self._receipt(request, self._judge(request, body), now)
            elif status == wire.NOT_HELD and job.offer:
                self.memory.cursor.not_held(job.generation, job.first, request.last)
                self._end(job)
            elif status == wire.MISSING_OBJECTS:
                self._missing(job, body, now)
            else:
                raise explain_status(status)
        except CarrierError as error:
            self.failed(request, error, now)

    def _judge(self, request: Request, body: bytes) -> Receipt:
        job = request.job
        try:
            receipt = parse_receipt(body, self._verifier)
        except SignatureError:
            raise wrong_key() from None
        except CorruptError as error:
            raise altered(error.message) from None
        first, last = (0, 0) if job.kind == FrameKind.OBJECT else (job.first, request.last)
        named = (receipt.stream, receipt.generation, receipt.first, receipt.asked)
        if named != (self.options.stream, job.generation, first, request.asked) or receipt.last > last:
            raise altered("a receipt for another request")
        if receipt.verdict not in (Verdict.REFUSED, Verdict.PARTIAL) and receipt.chain != chain_after(request, receipt.last):
            raise altered("a receipt for other content")
        return receipt

    def _missing(self, job: Job, body: bytes, now: Now) -> None:
        try:
            objects, keys = wire.parse_missing(body)
        except CorruptError as error:
            raise altered(error.message) from None
        if not self.objects.asked(objects, keys=bool(keys), now_ns=now.mono):
            raise objects_missing(body.decode("ascii", errors="replace").replace("\n", ", "))
        self._sent_forget(job)
        self._end(job)

    # ---- signed verdicts ----

    def _receipt(self, request: Request, receipt: Receipt, now: Now) -> None:
        job = request.job
        self._end(job)
        if receipt.asked != self.memory.landing:
            self.counters.stale += 1
            if job.kind != FrameKind.OBJECT:
                self.memory.cursor.doubtful(job.generation, job.first, request.last)
            return
        self.counters.receipts += 1
        self.path.verdict(request.size, now.mono - request.began_ns)
        self.memory.receipt_ns = now.wall
        self._met(receipt, now)
        if job.kind == FrameKind.OBJECT:
            self.objects.taken(job.digest, now.mono, refused=receipt.verdict == Verdict.REFUSED)
        elif receipt.verdict == Verdict.REFUSED:
            self._refused(receipt, now)
        elif receipt.verdict == Verdict.PARTIAL:
            self._partial(job, request, receipt, now)
        else:
            self._held(job, receipt)

    def _met(self, receipt: Receipt, now: Now) -> None:
        """Notice another landing, which is offered what it cannot hold any more; and one that holds more than this memory ever sent."""
        if not self.memory.landing and receipt.ends.live + receipt.ends.backfill > self.counters.bodies:
            self.memory.forgotten_ns = now.wall
        if receipt.since is not None:
            again = self.memory.cursor.forget_above(receipt.since)
            if again:
                self.memory.restored_ns, self.memory.restored_blocks = now.wall, again
                self.objects.forget()
            self._offsets.clear()
        self.memory.landing = receipt.landing

    def _held(self, job: Job, receipt: Receipt) -> None:
        memory, key = self.memory, (job.generation, job.first, job.last)
        memory.cursor.receipted(job.generation, receipt.first, receipt.last, receipt.ends)
        memory.conflicts += receipt.verdict == Verdict.CONFLICT
        self._sent.setdefault(job.generation, Intervals()).remove(receipt.first, receipt.last)
        self._offsets.pop(key, None)
        self.asides.forget(key)
        memory.parked.pop(key, None)

    def _refused(self, receipt: Receipt, now: Now) -> None:
        """Park it: tried again hourly until evicted. A refusal of the whole stream holds everything for that long."""
        reason = receipt.reason or Refusal.NOT_A_FRAME
        key = (receipt.generation, receipt.first, receipt.last)
        known = self.memory.parked.get(key)
        self.memory.parked[key] = Parked(*key, int(reason), known.since_ns if known else now.wall)
        self.asides.put(key, Why.PARKED, now.mono + PARKED_NS)
        if reason == Refusal.WRONG_STREAM:
            self.path.until_ns = now.mono + PARKED_NS

    def _partial(self, job: Job, request: Request, receipt: Receipt, now: Now) -> None:
        key = (job.generation, job.first, job.last)
        held = receipt.offset or 0
        if request.offset is not None and held <= request.offset:
            self._set_aside(job, Why.NO_ANSWER, self.asides.again_ns(key, now.mono, self._random))
        self._offsets[key] = held

    # ---- book-keeping ----

    def _set_aside(self, job: Job, why: Why, until_ns: int, *, last: int | None = None) -> None:
        self.asides.put((job.generation, job.first, job.last if last is None else last), why, until_ns)

    def _sent_forget(self, job: Job) -> None:
        """Nobody took it, or the receiver wanted something else first: what follows is not a second sending."""
        if job.kind != FrameKind.OBJECT:
            self._sent.setdefault(job.generation, Intervals()).remove(job.first, job.last)

    def _end(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        if job.lane == Lane.LIVE:
            self._live_began = None

    def retry_now(self) -> None:
        """A person asked: everything waiting for its time is tried now."""
        self.path.retry_now()
        self.asides.all_due()

