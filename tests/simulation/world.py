"""One seed: a ring, an uploader, a link and a receiver on virtual time, faults drawn from the seed, then rest, then the books.

What is replaced: ring, link, disk of the receiver, time, chance. What is the product's: the uploader's machine, plan, cursor, lanes,
service and state tables; the receiver's verification, verdicts, landing and receipts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from dataclasses import dataclass, field
from pathlib import Path

from gateway import settings as s
from gateway.landing import LandingReader
from gateway.runtime import Runtime
from gateway.trust.keys import KeyRing
from gateway.upload.memory import Memory
from gateway.upload.service import Rhythm, Uploader
from gateway.upload.state import from_rows, to_rows
from gateway.wire.request import Lane
from tests.simulation import ledger
from tests.simulation.link import SimCarrier, Weather
from tests.simulation.receiver import RECEIPT, STATEMENT, SimReceiver
from tests.simulation.ring import STREAM, SimRing
from tests.support.simloop import SimLoop, run, virtual_runtime

TROUBLE_S = 900.0  # virtual seconds of faults
REST_S = 6 * 3_600.0  # at most so long until everything has arrived: back-off and parking end within an hour each
LOOK_S = 20.0
SKEW_NS = 9 * 3_600 * 10**9  # begins an hour before midnight UTC: what the day's re-send budget holds back goes within the rest


class SimStore:
    """What was written last survives."""

    def __init__(self) -> None:
        self.kept = None
        self.failing = False

    def load(self) -> Memory:
        return Memory() if self.kept is None else from_rows(self.kept)

    def rows(self, memory: Memory):
        return to_rows(memory, STREAM)

    def write(self, rows) -> str:
        if self.failing:
            return "disk full"
        self.kept = rows
        return ""


@dataclass
class Outcome:
    """One line of a run. trace: SHA-256 over everything that happened, in order."""

    seed: int
    trace: str
    events: int
    virtual_s: float
    readings: int = 0
    evicted: int = 0
    restores: int = 0
    alarms: int = 0
    crashes: int = 0
    wipes: int = 0
    stats: dict[str, int] = field(default_factory=dict)


def settings(in_flight: int, newest_first: bool) -> s.GatewaySettings:
    nowhere = Path("/nonexistent")
    receiver = s.Receiver(
        "https://receiver.test:1", "127.0.0.1", nowhere, nowhere, nowhere, nowhere, live_ns=2 * 10**9,
        backfill=s.Backfill(limit_bps=20_000_000, in_flight=in_flight, newest_first=newest_first),
    )
    return s.GatewaySettings("hall1", "acme/ghent", "UTC", STREAM, s.RingSettings(nowhere), receiver, (), nowhere, nowhere)


class _QuietUploader(Uploader):
    async def _publish(self, status) -> None:
        """No status file in a simulation; that the status can be made is still shown."""


class Later:
    """What comes after the ring: uploader, link, receiver, and what can happen to them."""

    events: tuple[tuple[int, str], ...] = (
        (30, "_weather"), (6, "_kill_receiver"), (5, "_backup_receiver"), (3, "_restore_receiver"), (6, "_restart_uploader"),
        (3, "_wipe_uploader"), (2, "_receiver_full"), (2, "_store_fails"),
    )  # fmt: skip

    def __init__(self, loop: SimLoop, seed: int, ring, runtime: Runtime, uploader=_QuietUploader) -> None:
        self.rng = random.Random(seed)
        self._hash = hashlib.sha256()
        self._loop = loop
        self.outcome = Outcome(seed, "", 0, 0.0)
        self.runtime = runtime
        self.ring = ring
        receiver_runtime = virtual_runtime(loop, self.rng.getrandbits(64), SKEW_NS)
        self.receiver = SimReceiver(receiver_runtime, random.Random(self.rng.getrandbits(64)))
        self.link = SimCarrier(self.receiver, random.Random(self.rng.getrandbits(64)), self.trace)
        self.store = SimStore()
        self._settings = settings(self.rng.choice([1, 2, 4]), self.rng.random() < 0.2)
        self._make = uploader
        self._task: asyncio.Task[None] | None = None
        self.uploader: Uploader | None = None
        self._backup = None

    def trace(self, *what: object) -> None:
        self.outcome.events += 1
        self._hash.update(repr((round(self._loop.time(), 6), *what)).encode())

    # ---- uploader ----

    def start_uploader(self) -> None:
        keys = KeyRing()
        keys.trust(RECEIPT.public)
        self.uploader = self._make(
            self.runtime, self._settings, self.ring, self.link, self.store, keys, rhythm=Rhythm(look=8.0, poll=1.0, status=10.0)
        )
        self._task = asyncio.get_running_loop().create_task(self.uploader.run(), name="uploader")

    async def kill_uploader(self) -> None:
        """kill -9: nothing is saved on the way out."""
        if self._task is None:
            return
        if self._task.done():
            self._task.result()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = self.uploader = None

    def check_alive(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()

    # ---- things that happen ----

    async def happenings(self) -> None:
        """Weather, crashes, restores, lost state: drawn from the seed."""
        weights = [weight for weight, _ in self.events]
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / 15))
            [(_, happen)] = self.rng.choices(self.events, weights)
            self.trace(happen)
            await getattr(self, happen)()

    async def _weather(self) -> None:
        self.link.weather = self.rng.choices(list(Weather), [4, 5, 2, 1, 2, 1])[0]
        self.trace("weather", self.link.weather.value)

    async def _kill_receiver(self) -> None:
        self.outcome.crashes += 1
        self.receiver.kill(power_cut=self.rng.random() < 0.5)
        await asyncio.sleep(self.rng.uniform(0, 30))
        self.receiver.start()

    async def _backup_receiver(self) -> None:
        self._backup = self.receiver.copy()

    async def _restore_receiver(self) -> None:
        if self._backup is None:
            return
        self.outcome.restores += 1
        self.receiver.restore(self._backup)
        await asyncio.sleep(self.rng.uniform(0, 10))
        self.receiver.start()

    async def _restart_uploader(self) -> None:
        await self.kill_uploader()
        await asyncio.sleep(self.rng.uniform(0, 60))
        self.start_uploader()

    async def _wipe_uploader(self) -> None:
        self.outcome.wipes += 1
        await self.kill_uploader()
        self.store.kept = None
        self.start_uploader()

    async def _receiver_full(self) -> None:
        self.receiver.refusing = True
        await asyncio.sleep(self.rng.uniform(1, 60))
        self.receiver.refusing = False

    async def _store_fails(self) -> None:
        self.store.failing = True
        await asyncio.sleep(self.rng.uniform(1, 60))
        self.store.failing = False

    def heal(self) -> None:
        """Everything works again."""
        self.link.weather, self.receiver.refusing, self.store.failing = Weather.GOOD, False, False
        if not self.receiver.up:
            self.receiver.start()
        if self.uploader is None:
            self.start_uploader()

    def new_ranges(self) -> list[tuple[int, int, int]]:
        """Return what the landing says is new: generation, first, last."""
        reader = LandingReader(self.receiver.disk)
        reader.refresh()
        records = [r for lane in Lane for r in reader.records(lane, 0, 10**9)]
        return [(r.generation, first, last) for r in records for first, last in r.new]

    def close_trace(self) -> Outcome:
        """Fill in what is known at the end."""
        out = self.outcome
        if self.uploader is not None:
            memory = self.uploader.machine.memory
            out.alarms = int(bool(memory.restored_ns))
            self.trace(sorted(p[:3] for p in memory.cursor.pieces()))
        out.virtual_s = round(self._loop.time(), 3)
        out.stats = dict(sorted(self.link.stats.items()))
        out.trace = self._hash.hexdigest()[:24]
        return out


class World(Later):
    """A ring in memory that writes, seals and evicts, and everything after it."""

    events = (*Later.events, (3, "_reopen_ring"), (2, "_snapshot_ring"), (1, "_restore_ring"), (2, "_new_table"))

    def __init__(self, loop: SimLoop, seed: int, uploader=_QuietUploader) -> None:
        rng = random.Random(seed)
        runtime = virtual_runtime(loop, rng.getrandbits(64), SKEW_NS)
        ring = SimRing(random.Random(rng.getrandbits(64)), runtime.wall_ns, STATEMENT, rng.choice([300_000, 2_000_000, 10**9]))
        super().__init__(loop, seed, ring, runtime, uploader)
        self._snapshot = None

    async def writer(self) -> None:
        """Collect, as far as the ring knows."""
        rng = random.Random(self.rng.getrandbits(64))
        while True:
            await asyncio.sleep(rng.choice([0.5, 1.0, 2.0, 5.0]))
            big = rng.random() < 0.02
            self.ring.commit(rng.choice([0, 0, 1, 3, 10]), rng.randrange(150_000, 400_000) if big else rng.randrange(300))
            if rng.random() < 0.04:
                self.ring.seal()
            self.outcome.evicted += self.ring.make_room()

    async def _reopen_ring(self) -> None:
        self.ring.reopen()

    async def _snapshot_ring(self) -> None:
        self._snapshot = self.ring.snapshot()

    async def _restore_ring(self) -> None:
        if self._snapshot is not None:
            self.ring.restore(self._snapshot)

    async def _new_table(self) -> None:
        self.ring.new_table()
        self.ring.commit(1)

    # ---- the books ----

    def check_claims(self) -> None:
        """What the cursor says is receipted by the landing that is there now lies on its disk."""
        if self.uploader is None or not self.receiver.up:
            return
        memory = self.uploader.machine.memory
        if memory.landing != self.receiver.landing:
            return  # a restart or a restore it has not met yet
        claimed = set()
        for piece in memory.cursor.pieces():
            claimed |= self.ring.blocks(piece.generation, piece.first, piece.last)
        ledger.claimed_is_held(claimed, ledger.on_disk(self.receiver.platter()))

    def books(self) -> None:
        """Raise LedgerError unless everything in the ring has arrived, once, unchanged."""
        held = ledger.on_disk(self.receiver.platter())
        ledger.nothing_missing(self.ring.committed, self.ring.held(), held)
        ledger.each_new_once(self.new_ranges(), held)

    def settled(self) -> bool:
        """Say whether the newest record of the ring, and with it all before it, has come."""
        newest, record = self.receiver.newest_record(self.ring.generation), self.ring.record
        if newest is None or record is None or newest.block < record.block or self.uploader is None:
            return False
        return self.uploader.machine.plan.backlog(self.uploader.machine.memory.cursor).blocks == 0

    async def live(self) -> Outcome:
        """Trouble, then rest, then the books."""
        self.start_uploader()
        writer = asyncio.get_running_loop().create_task(self.writer(), name="writer")
        trouble = asyncio.get_running_loop().create_task(self.happenings(), name="happenings")
        until = self._loop.time() + TROUBLE_S
        while self._loop.time() < until:
            await asyncio.sleep(LOOK_S * 10)
            for task in (writer, trouble):
                if task.done():
                    task.result()
            self.check_alive()
            self.check_claims()
        for task in (trouble, writer):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._rest()
        self.check_claims()
        self.books()
        self.outcome.readings = len(self.ring.committed)
        return self.close_trace()

    async def _rest(self) -> None:
        """Collect goes on committing, as it does."""
        self.heal()
        end = self._loop.time() + REST_S
        while self._loop.time() < end:
            self.ring.commit(1)
            await asyncio.sleep(LOOK_S)
            self.check_alive()
            if self.settled():
                return
        raise ledger.LedgerError(f"not at rest after {REST_S / 3600:.0f} h of good link: {self.uploader and self.uploader.status()}")


def run_seed(seed: int, uploader=_QuietUploader) -> Outcome:
    """Run one seed from beginning to end; raise LedgerError, or whatever a defect raises."""
    logging.disable(logging.CRITICAL)
    try:
        return run(lambda loop: World(loop, seed, uploader).live())
    finally:
        logging.disable(logging.NOTSET)
