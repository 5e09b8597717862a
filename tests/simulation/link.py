"""A link that loses, doubles, reorders, truncates, and boxes on it that answer nonsense. Implements gateway.upload.carrier.Carrier."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from enum import Enum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buffer.errors import StorageFault
from gateway.trust.keys import KeySigner
from gateway.upload.carrier import Answer, CarrierError, Cause
from gateway.wire import request as wire
from gateway.wire.receipt import Ends, Receipt, Verdict, encode_receipt
from gateway.wire.request import FramesTarget, Lane
from tests.simulation.receiver import SimReceiver

STRANGER = KeySigner(Ed25519PrivateKey.from_private_bytes(b"s" * 32))
KEPT_ANSWERS = 200


class Weather(Enum):
    GOOD = "good"
    LOSSY = "lossy"  # everything that can happen to packets
    HOSTILE = "hostile"  # a middlebox, or somebody, answers as it likes
    SMALL = "small"  # bodies above 100 kB are answered with 413
    DOWN = "down"  # refused at once
    SILENT = "silent"  # packets vanish


def _unreachable() -> CarrierError:
    return CarrierError(Cause.UNREACHABLE, "no route", "wait", reached=False)


def _silent() -> CarrierError:
    return CarrierError(Cause.SILENT, "silence", "wait", reached=True)


class SimCarrier:
    """One link; outlives both its ends."""

    def __init__(self, receiver: SimReceiver, rng: random.Random, trace) -> None:
        self.receiver = receiver
        self.weather = Weather.GOOD
        self.stats: Counter[str] = Counter()
        self._rng = rng
        self._trace = trace
        self._answers: list[bytes] = []  # receipts seen on this link: what a box in between can replay
        self._late: list[asyncio.Task[None]] = []

    async def put(self, target: str, parts, lane: Lane, deadline_s: float, pace) -> Answer:
        body = b"".join(bytes(part) for part in parts)
        self.stats["requests"] += 1
        self.stats["body_bytes"] += len(body)
        self.stats["offers"] += not body
        if body and pace is not None:
            await asyncio.sleep(pace(len(body)))
        try:
            answer = await self._carry(target, body, deadline_s)
        except CarrierError as error:
            self._trace("no answer", target, len(body), str(error.cause))
            raise
        self._trace("answer", target, len(body), answer.status, len(answer.body))
        return answer

    async def _carry(self, target: str, body: bytes, deadline_s: float) -> Answer:
        rng, weather = self._rng, self.weather
        if weather == Weather.DOWN:
            await asyncio.sleep(0.01)
            raise _unreachable()
        if weather == Weather.SILENT:
            await asyncio.sleep(min(20.0, deadline_s))
            raise _unreachable() if rng.random() < 0.8 else _silent()
        await asyncio.sleep(0.005 + rng.expovariate(30))
        if weather == Weather.SMALL and len(body) > 100_000:
            return Answer(413, b"")
        if weather == Weather.HOSTILE and rng.random() < 0.5:
            return self._nonsense(target)
        if weather in (Weather.LOSSY, Weather.HOSTILE):
            return await self._lossy(target, body, deadline_s)
        return await self._deliver(target, body)

    async def _deliver(self, target: str, body: bytes) -> Answer:
        if not self.receiver.up:
            raise _unreachable()
        try:
            answer = await self.receiver.put(target, body)
        except (StorageFault, TimeoutError):
            raise _silent() from None
        if answer.status == wire.OK:
            self._answers = [*self._answers, answer.body][-KEPT_ANSWERS:]
        return answer

    async def _lossy(self, target: str, body: bytes, deadline_s: float) -> Answer:
        fate = self._rng.random()
        if fate < 0.56:
            return await self._deliver(target, body)
        if fate < 0.64:
            raise _unreachable()
        if fate < 0.72:  # lost on the way there
            await asyncio.sleep(min(20.0, deadline_s))
            raise _silent()
        if fate < 0.80:  # landed, the answer is lost
            await self._deliver(target, body)
            await asyncio.sleep(min(20.0, deadline_s))
            raise _silent()
        if fate < 0.85:  # doubled
            await self._deliver(target, body)
            return await self._deliver(target, body)
        if fate < 0.90:  # a copy comes much later
            self._late.append(asyncio.get_running_loop().create_task(self._later(target, body, self._rng.uniform(1, 120))))
            raise _silent()
        if fate < 0.98:  # the answer takes its time: others overtake it
            answer = await self._deliver(target, body)
            await asyncio.sleep(self._rng.uniform(1, 60))
            return answer
        if body:  # cut: the door sees fewer bytes than announced
            return Answer(wire.BAD_REQUEST, b"cut")
        return await self._deliver(target, body)

    async def _later(self, target: str, body: bytes, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self._deliver(target, body)
            self._trace("late copy", target, len(body))
        except CarrierError:
            self._trace("late copy lost", target)

    def _nonsense(self, text: str) -> Answer:
        rng = self._rng
        random_bytes = rng.randbytes(rng.randrange(wire.ANSWER_BYTES_MAX))
        kinds = [
            Answer(200, random_bytes),
            Answer(200, b""),
            Answer(200, b"<html>Web filter: please log in</html>"),
            Answer(200, self._forged(text)),
            Answer(404, b""),
            Answer(424, b"object " + rng.randbytes(32).hex().encode()),
            Answer(424, b"key 0011223344556677"),
            Answer(424, random_bytes),
            Answer(204, b""),
            Answer(302, b""),
            Answer(403, b"blocked"),
            Answer(413, b""),
            Answer(503, b""),
        ]
        if self._answers:
            old = rng.choice(self._answers)
            flipped = bytearray(old)
            flipped[rng.randrange(len(old))] ^= 1 << rng.randrange(8)
            kinds += [Answer(200, old), Answer(200, bytes(flipped)), Answer(200, old)]
        return rng.choice(kinds)

    def _forged(self, text: str) -> bytes:
        """A perfect receipt, but for the key."""
        target = wire.parse_target(text)
        if not isinstance(target, FramesTarget):
            return b"forged"
        receipt = Receipt(
            Verdict.STORED, target.stream, target.generation, target.first, target.last, target.chain or bytes(32), target.landing,
            Ends(10**6, 10**6), target.landing, 1,
        )
        return encode_receipt(STRANGER, receipt)

    async def close(self) -> None:
        return
