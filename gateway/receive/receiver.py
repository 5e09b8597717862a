"""What the receiver answers, without HTTP: verify, then the stream's landing, then a signed receipt. Decodes no payload.

Nothing is believed before its signature is: the grammar of frames and manifests is checked first (bounded, no allocation by what
it reads), then the key, then what that key may sign.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
from collections import OrderedDict
from collections.abc import Callable  # Job is a value
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError, StorageFault
from gateway.receive.landing import Arrival, Landed, Landing
from gateway.receive.verify import Missing, Refused, verify_frames, verify_object
from gateway.trust.keys import KeyRing
from gateway.trust.rotation import introduce_all
from gateway.wire import request as wire
from gateway.wire.receipt import NO_CHAIN, Ends, Receipt, Refusal, Verdict, encode_receipt

if TYPE_CHECKING:
    from buffer.cose import Signer
    from buffer.storage import Storage
    from gateway.runtime import Runtime
    from gateway.settings import GatewayPolicy
    from gateway.wire.request import FramesTarget, ObjectTarget

STREAMS_MAX: Final = 64  # of one gateway: a stream is a ring, and a box has a few

Job = Arrival | Callable[[Landing], Landed | None]  # frames to land, or a question to the landing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer; gateway.wire.request says what each means."""

    status: int
    body: bytes = b""


@dataclass(slots=True)
class Door:
    """One stream: whoever waits is served in groups by one thread at a time, so that a group shares its syncs."""

    stream: str
    gateway: str
    open_landing: Callable[[], Landing]
    landing: Landing
    waiting: list[tuple[Job, asyncio.Future[Landed | None]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def reopened(self) -> Landing:
        """Return the landing, opened anew after a fault; raise StorageFault."""
        if self.landing.broken:
            events = self.landing.events
            self.landing.close()
            self.landing = self.open_landing()
            for event in events:
                self.landing.event(event)
        return self.landing


class Receiver:
    """Policies, keys, streams. `put` is the only entrance; runs in one event loop, its work in threads."""

    def __init__(
        self,
        runtime: Runtime,
        policies: tuple[GatewayPolicy, ...],
        signer: Signer,
        keys: KeyRing,
        storage_of: Callable[[str], Storage],
        has_room: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self.policies = {policy.id: policy for policy in policies}
        self._signer = signer
        self.keys = keys
        self._storage_of = storage_of
        self._has_room = has_room
        self.doors: dict[str, Door] = {}
        self._opening = asyncio.Lock()
        self.advisory: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by gateway: unsigned, shown as such

    # ---- streams ----

    def open_stream(self, stream: str) -> Door:
        """Open the landing of a stream that exists, and believe the key statements in it; raise StorageFault."""

        def open_landing() -> Landing:
            return Landing(self._storage_of(stream), stream, self._runtime)

        landing = open_landing()
        gateway = next((x.id for x in self.policies.values() if allows(x, stream)), "")
        self.doors[stream] = Door(stream, gateway, open_landing, landing)
        self._introduce(landing, list(landing.statements()))
        return self.doors[stream]

    def _introduce(self, landing: Landing, statements: list[bytes]) -> None:
        for _, error in introduce_all(self.keys, statements, landing.stream):
            landing.event(f"key statement in objects/: {error}")

    async def _through(self, door: Door, job: Job) -> Landed | None:
        future: asyncio.Future[Landed | None] = asyncio.get_running_loop().create_future()
        door.waiting.append((job, future))
        if door.task is None or door.task.done():
            door.task = asyncio.create_task(self._drain(door))
        return await future

    async def _drain(self, door: Door) -> None:
        while door.waiting:
            jobs, door.waiting = door.waiting, []
            outcomes: list[Landed | BaseException | None]
            try:
                outcomes = await self._runtime.offload(partial(_serve, door, [job for job, _ in jobs]))
            except Exception as error:  # a defect of ours: nobody may hang on it
                log.exception("defect", extra={"data": {"stream": door.stream}})
                outcomes = [error for _ in jobs]
            for (_, future), outcome in zip(jobs, outcomes, strict=True):
                if future.cancelled():
                    continue
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    # ---- requests ----

    async def put(self, policy: GatewayPolicy, target: wire.Target, body: bytes | memoryview) -> Answer:
        """Answer one request of this gateway. Raises StorageFault where the disk refuses: nothing was promised."""
        if isinstance(target, wire.StatusTarget):
            return self._status(policy, bytes(body))
        if not allows(policy, target.stream):
            log.error("refused", extra={"data": {"gateway": policy.id, "stream": target.stream, "why": "not a stream of this gateway"}})
            return self.refusal(target, Refusal.WRONG_STREAM)
        if not body:
            return await self._offered(target)
        if not self._has_room():
            return Answer(wire.CANNOT_STORE)
        try:
            if isinstance(target, wire.ObjectTarget):
                return await self._object(policy, target, body)
            return await self._frames(target, body)
        except Missing as missing:
            return Answer(wire.MISSING_OBJECTS, wire.format_missing(missing.objects, missing.keys))
        except Refused as refused:
            log.error("refused", extra={"data": {"gateway": policy.id, "stream": target.stream, "why": str(refused)}})  # noqa: TRY400
            return self.refusal(target, refused.reason, refused.last)

    async def _offered(self, target: FramesTarget | ObjectTarget) -> Answer:
        door = self.doors.get(target.stream)
        if door is None:
            return Answer(wire.NOT_HELD)
        if isinstance(target, wire.ObjectTarget):
            digest = target.digest
            landed = await self._through(
                door, lambda x: x.answer(Verdict.DUPLICATE, 0, digest, target.landing) if digest in x.objects else None
            )
        elif target.chain is not None:
            wanted, chain = (target.generation, target.first, target.last), target.chain
            landed = await self._through(door, lambda x: x.offer(wanted, chain, target.landing))
        else:
            return Answer(wire.BAD_REQUEST)
        return Answer(wire.NOT_HELD) if landed is None else self._receipt(target, landed)

    async def _frames(self, target: FramesTarget, body: bytes | memoryview) -> Answer:
        door = self.doors.get(target.stream)
        held = door.landing.objects if door else set[bytes]()
        arrival: Arrival = await self._runtime.offload(lambda: verify_frames(target, body, self.keys, held))
        if door is None:  # the key is known, yet its stream has no landing: its objects come first
            raise Missing((arrival.units[0].tag_table,), (arrival.frames[0].sign1.key_id,))
        landed = await self._through(door, arrival)
        return Answer(wire.CANNOT_STORE) if landed is None else self._receipt(target, landed)

    async def _object(self, policy: GatewayPolicy, target: ObjectTarget, body: bytes | memoryview) -> Answer:
        frame = verify_object(target, body, self.keys)
        async with self._opening:
            door = self.doors.get(target.stream)
            if door is None:
                if sum(allows(policy, stream) for stream in self.doors) >= STREAMS_MAX:
                    raise Refused(Refusal.BEYOND_LIMITS, 0, f"more than {STREAMS_MAX} streams of one gateway")
                door = await self._runtime.offload(lambda: self.open_stream(target.stream))
        landed = await self._through(door, lambda x: x.store_object(frame, target.landing))
        return Answer(wire.CANNOT_STORE) if landed is None else self._receipt(target, landed)

    def _status(self, policy: GatewayPolicy, body: bytes) -> Answer:
        try:
            shown = wire.parse_status(body)
        except CorruptError:
            return Answer(wire.BAD_REQUEST)
        self.advisory[policy.id] = {"received_ns": self._runtime.wall_ns(), "unsigned": shown}
        return Answer(wire.NO_CONTENT)

    # ---- receipts ----

    def partly(self, target: FramesTarget, held: int) -> Answer:
        """Return the receipt that says how many bytes are here."""
        return self._receipt(target, self._bare(Verdict.PARTIAL, target, NO_CHAIN, target.last), held)

    def refusal(self, target: FramesTarget | ObjectTarget, reason: Refusal, last: int | None = None) -> Answer:
        """Return a signed refusal."""
        end = last if last is not None else target.last if isinstance(target, wire.FramesTarget) else 0
        return self._receipt(target, self._bare(Verdict.REFUSED, target, NO_CHAIN, end, reason))

    def _bare(
        self, verdict: Verdict, target: FramesTarget | ObjectTarget, chain: bytes, last: int, reason: Refusal | None = None
    ) -> Landed:
        """Return an outcome that says nothing about the landing: its generation is the one that was named."""
        return Landed(verdict, last, chain, None, target.landing, Ends(), None, reason)

    def _receipt(self, target: FramesTarget | ObjectTarget, x: Landed, offset: int | None = None) -> Answer:
        frames = isinstance(target, wire.FramesTarget)
        receipt = Receipt(
            verdict=x.verdict,
            stream=target.stream,
            generation=target.generation if isinstance(target, wire.FramesTarget) else 0,
            first=target.first if isinstance(target, wire.FramesTarget) else 0,
            last=x.last_block if frames else 0,
            chain=x.chain,
            landing=x.landing,
            ends=x.ends,
            asked=target.landing,
            time_ns=self._runtime.wall_ns(),
            number=x.number,
            since=x.since,
            reason=x.reason,
            offset=offset,
        )
        return Answer(wire.OK, encode_receipt(self._signer, receipt))

    async def close(self) -> None:
        """Let what is under way end, then close every landing."""
        for door in self.doors.values():
            if door.task is not None:
                await door.task
            door.landing.close()


def allows(policy: GatewayPolicy, stream: str) -> bool:
    """Say whether a gateway may send a stream."""
    return any(fnmatch.fnmatchcase(stream, pattern) for pattern in policy.streams)


def _serve(door: Door, jobs: list[Job]) -> list[Landed | BaseException | None]:
    """Serve a group: questions one by one, arrivals together. A fault is everybody's answer; the next group opens anew."""
    try:
        landing = door.reopened()
    except StorageFault as fault:
        return [fault for _ in jobs]
    out: list[Landed | BaseException | None] = [None for _ in jobs]
    arrivals = [(place, job) for place, job in enumerate(jobs) if isinstance(job, Arrival)]
    try:
        if arrivals:
            for (place, _), landed in zip(arrivals, landing.land([job for _, job in arrivals]), strict=True):
                out[place] = landed
        for place, job in enumerate(jobs):
            if not isinstance(job, Arrival):
                out[place] = job(landing)
    except StorageFault as fault:
        log.exception("the landing cannot write", extra={"data": {"stream": door.stream}})
        return [fault for _ in jobs]
    return out
