"""The product's receiver over a disk in memory: crash, power cut, restore from a copy."""

from __future__ import annotations

import asyncio
import random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buffer.errors import StorageFault
from gateway.receive.partial import Partials
from gateway.receive.receiver import Receiver
from gateway.receive.verify import Missing, Refused
from gateway.runtime import Runtime
from gateway.settings import GatewayPolicy
from gateway.trust.keys import KeyRing, KeySigner, endorse_statement, propose_statement
from gateway.upload.carrier import Answer
from gateway.wire import request as wire
from gateway.wire.request import FramesTarget
from tests.simulation.ring import STREAM
from tests.support.frames import signer
from tests.support.simulated_disk import SimulatedDisk

POLICY = GatewayPolicy("hall1", "acme/ghent", ("hall1.*",))
RECEIPT = KeySigner(Ed25519PrivateKey.from_private_bytes(b"r" * 32))
AUTHORITY = KeySigner(Ed25519PrivateKey.from_private_bytes(b"a" * 32))
STATEMENT = endorse_statement(AUTHORITY, propose_statement(signer(), STREAM))


class SimReceiver:
    """One machine. `disk` survives what `start` replaces."""

    def __init__(self, runtime: Runtime, rng: random.Random) -> None:
        self._runtime = runtime
        self._rng = rng
        self.disk = SimulatedDisk()
        self.up = False
        self.refusing = False  # its disk is below min_free
        self.start()

    def start(self) -> None:
        keys = KeyRing([AUTHORITY.public])
        self.product = Receiver(self._runtime, (POLICY,), RECEIPT, keys, lambda stream: self.disk, lambda: not self.refusing)
        self.partials = Partials(keys)
        if self.disk.paths():
            self.product.open_stream(STREAM)
        self.up = True

    def kill(self, *, power_cut: bool) -> None:
        self.up = False
        self.disk = self.disk.after_power_cut(self._rng) if power_cut else self.disk.after_kill()

    def copy(self) -> SimulatedDisk:
        return self.disk.after_kill()

    def restore(self, backup: SimulatedDisk) -> None:
        self.up = False
        self.disk = backup.after_kill()

    async def put(self, text: str, body: bytes) -> Answer:
        """Answer one request as the HTTP door would; raise StorageFault or TimeoutError where the machine died meanwhile."""
        target = wire.parse_target(text)
        product = self.product
        if isinstance(target, FramesTarget) and target.offset is not None:
            return self._answer(await self._continued(product, target, body))
        async with asyncio.timeout(5):
            return self._answer(await product.put(POLICY, target, body))

    def _answer(self, answer) -> Answer:
        return Answer(answer.status, answer.body)

    async def _continued(self, product: Receiver, target: FramesTarget, body: bytes):
        now = self._runtime.wall_ns()
        held = self.partials.held(target, now)
        if (target.offset or 0) > held or not body:
            return product.partly(target, held)
        with self.partials.sending(target, now) as one:
            try:
                one.add(target.offset or 0, body)
            except Missing as missing:
                self.partials.forget(one)
                return Answer(wire.MISSING_OBJECTS, wire.format_missing(missing.objects, missing.keys))
            except Refused as refused:
                self.partials.forget(one)
                return product.refusal(target, refused.reason, refused.last)
            if not one.whole:
                return product.partly(target, len(one.data))
            answer = await product.put(POLICY, target, bytes(one.data))
            if answer.status == wire.OK:
                self.partials.forget(one)
            return answer

    # ---- what the ledger looks at ----

    def platter(self) -> dict[str, bytes]:
        """Return what is durable, conflicts apart."""
        return {path: self.disk.on_platter(path) for path in self.disk.paths() if path.startswith(("live/", "segments/"))}

    @property
    def landing(self) -> int:
        door = self.product.doors.get(STREAM)
        return door.landing.state.landing if door else 0

    def newest_record(self, generation: int):
        door = self.product.doors.get(STREAM)
        return door.landing.state.states.get(generation) if door else None


__all__ = ["AUTHORITY", "POLICY", "RECEIPT", "STATEMENT", "SimReceiver", "StorageFault"]
