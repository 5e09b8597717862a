"""The whole system from one seed: a plant, the collect process on its disk, and everything after it; faults, then rest, then the book.

Whatever happens on the collecting box (kill -9 and power cuts at any change of the disk, EIO, ENOSPC by others, slow disk, clock steps, plant
and device away, restored or replaced disk) is drawn from one chain of chance, whatever happens after it from another. So the same box
can be run with nobody behind it, with an honest receiver, and with one that answers nonsense under a good key: what it did to its
disk must be the same, byte for byte (G8).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from buffer.manifest import StateRecord
from gateway.upload.carrier import Answer
from gateway.upload.catalogue import Catalogue
from gateway.wire import request as wire
from gateway.wire.receipt import Ends, Receipt, Verdict, encode_receipt
from gateway.wire.request import FramesTarget
from tests.simulation import book, ledger
from tests.simulation.box import Box
from tests.simulation.plant import FIRST_TAG, Device, Server
from tests.simulation.receiver import RECEIPT, STATEMENT
from tests.simulation.world import Later, Outcome
from tests.support.simloop import SimLoop, run, virtual_runtime
from tests.support.simulated_disk import Medium

TROUBLE_S = (120.0, 240.0, 480.0)
REST_S = 6 * 3_600.0
LOOK_S = 30.0
DATA_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32).public_key()
HOUR_NS = 3_600 * 10**9


class BoxEvents:
    """What can happen to the box, its disk, its clock and its plant."""

    def __init__(self, box: Box, seed: int, *, disaster: bool) -> None:
        self._box = box
        self._rng = random.Random(seed)
        self._snapshot: Medium | None = None
        self.stepped = self.replaced = 0
        self.kills = 0
        self.events = [
            (8, self._kill), (5, self._power_cut), (6, self._sync_fails), (4, self._writes_fail), (4, self._full), (4, self._slow),
            (4, self._clock), (6, self._link_cut), (5, self._server_restart), (3, self._server_off), (5, self._device), (2, self._pause),
        ]  # fmt: skip
        if disaster:
            self.events += [(4, self._snapshot_disk), (4, self._restore_disk), (1, self._new_disk)]

    async def happen(self) -> None:
        """Draw for ever."""
        weights = [weight for weight, _ in self.events]
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / 14))
            [(_, event)] = self._rng.choices(self.events, weights)
            await event()

    async def _down(self, *, power_cut: bool) -> None:
        self.kills += 1
        await self._box.kill(power_cut=power_cut, after_steps=self._rng.choice([0, 0, 1, 2, 3, 5, 8, 13]))
        await asyncio.sleep(self._rng.choice([0.0, 0.5, 3.0, 20.0]))

    def _start(self) -> None:
        if self._rng.random() < 0.15:  # the start itself will be cut
            self._box.disk.calls.crash_at = self._rng.randrange(1, 30)
        self._box.start()

    async def _kill(self) -> None:
        await self._down(power_cut=False)
        self._start()
        await self._again()

    async def _power_cut(self) -> None:
        await self._down(power_cut=True)
        self._start()
        await self._again()

    async def _again(self) -> None:
        """A start that was cut is a kill; its supervisor starts the next one."""
        await asyncio.sleep(5.0)
        if self._box.disk.calls.crash_at >= 0:
            await self._box.kill(power_cut=self._rng.random() < 0.5)
            self._box.start()

    async def _sync_fails(self) -> None:
        calls = self._box.disk.calls
        calls.sync_faults = frozenset(calls.syncs + self._rng.randrange(4) for _ in range(self._rng.choice([1, 1, 2, 3])))
        some = self._rng.random()
        calls.sync_reaches = lambda count: [i for i in range(count) if (i * 0.618) % 1 < some]

    async def _writes_fail(self) -> None:
        calls = self._box.disk.calls
        calls.fail = {self._rng.choice(["pwrite", "fdatasync", "create", "rename", "fsync_dir"])}
        await asyncio.sleep(self._rng.uniform(1, 40))
        calls.fail = set()
        self._box.disk.calls.fail = set()

    async def _full(self) -> None:
        calls = self._box.disk.calls
        calls.capacity = calls.used() + self._rng.choice([0, 4096, 100_000, 400_000])
        await asyncio.sleep(self._rng.uniform(5, 60))
        calls.capacity = 10**12
        if self._rng.random() < 0.3:
            number = calls.steps + self._rng.randrange(6)
            calls.faults = {number: errno.EMFILE}

    async def _slow(self) -> None:
        self._box.slow_s = self._rng.choice([0.2, 2.0, 8.0])
        await asyncio.sleep(self._rng.uniform(5, 40))
        self._box.slow_s = 0.0

    async def _clock(self) -> None:
        self.stepped += 1
        now = self._box.runtime.wall_ns()
        step = self._rng.choice([2 * 10**9, -2 * 10**9, HOUR_NS, -HOUR_NS, 8760 * HOUR_NS, -8760 * HOUR_NS, -now])
        self._box.step_ns += step
        await asyncio.sleep(self._rng.uniform(1, 60))
        self._box.step_ns = 0

    async def _link_cut(self) -> None:
        self._box.server.reachable = False
        await asyncio.sleep(self._rng.uniform(1, 90))
        self._box.server.reachable = True

    async def _server_restart(self) -> None:
        self._box.server.restart()

    async def _server_off(self) -> None:
        self._box.server.running = False
        self._box.server.restart()
        await asyncio.sleep(self._rng.uniform(5, 60))
        self._box.server.running = True

    async def _device(self) -> None:
        device = self._rng.choice(self._box.devices)
        device.mood = self._rng.choice(["away", "noisy"])
        await asyncio.sleep(self._rng.uniform(5, 60))
        device.mood = "good"

    async def _pause(self) -> None:
        names = self._box.pauses.names
        name = self._rng.choice(["server", "plc0"])
        names.add(name)
        await asyncio.sleep(self._rng.uniform(2, 30))
        names.discard(name)

    async def _snapshot_disk(self) -> None:
        self._snapshot = self._box.disk.medium.copy()

    async def _restore_disk(self) -> None:
        if self._snapshot is not None:
            await self._other_disk(self._snapshot.copy())

    async def _new_disk(self) -> None:
        await self._other_disk(Medium())

    async def _other_disk(self, medium: Medium) -> None:
        self.replaced += 1
        await self._box.kill()
        self._box.replace_disk(medium)
        self._box.start()

    def heal(self) -> None:
        """Everything works again."""
        box, calls = self._box, self._box.disk.calls
        calls.fail, calls.faults, calls.sync_faults, calls.capacity = set(), {}, frozenset(), 10**12
        box.slow_s, box.step_ns = 0.0, 0
        box.server.reachable = box.server.running = True
        for device in box.devices:
            device.mood = "good"
        box.pauses.names.clear()


class Liar:
    """A receiver that has the right key and says whatever it likes. Implements gateway.upload.carrier.Carrier."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.stats: Counter[str] = Counter()

    async def put(self, target: str, parts, lane, deadline_s: float, pace) -> Answer:
        await asyncio.sleep(self._rng.random() * 2)
        parsed = wire.parse_target(target)
        if not isinstance(parsed, FramesTarget) or self._rng.random() < 0.3:
            return Answer(self._rng.choice([200, 404, 424, 500]), self._rng.randbytes(self._rng.randrange(500)))
        top, landing = self._rng.choice([0, 5, 10**6]), self._rng.choice([parsed.landing, 1 << 32 | 1, 2 << 32 | 7])
        receipt = Receipt(
            self._rng.choice(list(Verdict)), parsed.stream, parsed.generation, parsed.first, parsed.last, parsed.chain or self._rng.randbytes(32),
            parsed.landing, Ends(top, top), landing, 1,
        )  # fmt: skip
        return Answer(200, encode_receipt(RECEIPT, receipt))

    async def close(self) -> None:
        return


class Whole(Later):
    """later: "honest"; "none": nobody reads the ring; "liar"."""

    def __init__(self, loop: SimLoop, seed: int, directory: Path, later: str) -> None:
        rng = random.Random(seed)
        self.disaster = rng.random() < 0.2
        self.trouble_s = rng.choice(TROUBLE_S)
        server = Server(loop, random.Random(rng.getrandbits(64)), range(FIRST_TAG, FIRST_TAG + 5), rng.choice([0.5, 1.0, 2.0]))
        first = FIRST_TAG + 5
        devices = [Device(loop, random.Random(rng.getrandbits(64)), range(first + 3 * i, first + 3 * i + 3)) for i in range(2)]
        small = rng.random() < 0.25
        self.box = Box(
            loop, rng.getrandbits(64), directory, STATEMENT, server, devices, max_bytes=1_600_000 if small else 10**9, seal_s=rng.choice([30.0, 120.0])
        )
        self.box_events = BoxEvents(self.box, rng.getrandbits(64), disaster=self.disaster)
        self.later = later
        later_seed, own = rng.getrandbits(64), virtual_runtime(loop, rng.getrandbits(64))
        runtime = replace(own, wall_ns=lambda: own.wall_ns() + self.box.step_ns)  # the box's clock, but chance of its own
        super().__init__(loop, later_seed, Catalogue(self.box.reader()), runtime)
        self.outcome.seed = seed
        if later == "liar":
            self.link = Liar(random.Random(self.rng.getrandbits(64)))  # type: ignore[assignment]
        self.digest = ""

    def start_uploader(self) -> None:
        self.ring = Catalogue(self.box.reader())
        super().start_uploader()

    async def live(self, *, rest: bool = True) -> Outcome:
        """Trouble, then rest, then the book."""
        loop, box = asyncio.get_running_loop(), self.box
        helpers = [loop.create_task(box.server.run(), name="server")]
        trouble = [loop.create_task(self.box_events.happen(), name="trouble")]
        if self.later == "honest":
            trouble.append(loop.create_task(self.happenings(), name="later"))
        box.start()
        if self.later != "none":
            self.start_uploader()
        until = self._loop.time() + self.trouble_s
        while self._loop.time() < until:
            await asyncio.sleep(LOOK_S)
            for task in trouble + helpers:
                if task.done():
                    task.result()
            self.check_alive()
        for task in trouble:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.digest = box.log.digest.hexdigest()
        if rest:
            await self._rest()
            self.judge()
        for task in helpers:
            task.cancel()
        self.outcome.crashes += self.box_events.kills
        self.trace(self.digest, len(box.told))
        return self.close_trace()

    async def _rest(self) -> None:
        """Everything works; the plant goes on until all gaps are closed, then stands still until all has arrived."""
        self.box_events.heal()
        await self.box.kill()
        self.box_events.heal()
        self.box.start()
        self.heal()
        await self._until(lambda: not self._state().open_gaps, "gaps stay open")
        self.box.server.every_s = 10**9
        for i in range(len(self.box.devices)):
            self.box.pauses.names.add(f"plc{i}")
        await self._until(self._settled, "not at rest")

    async def _until(self, reached: Callable[[], bool], what: str) -> None:
        end = self._loop.time() + REST_S
        await asyncio.sleep(120.0)
        while not reached():
            await asyncio.sleep(LOOK_S)
            self.check_alive()
            self.box.check_alive()
            if self._loop.time() > end:
                raise ledger.LedgerError(f"{what} after {REST_S / 3600:.0f} h: {self._state()} {self.uploader and self.uploader.status()}")

    def _state(self) -> StateRecord:
        reader = self.ring._reader
        newest = reader.newest(reader.inventory())
        assert newest is not None and newest.state is not None
        return newest.state

    def _settled(self) -> bool:
        state = self._state()
        there = self.receiver.newest_record(state.generation)
        assert self.uploader is not None
        backlog = self.uploader.machine.plan.backlog(self.uploader.machine.memory.cursor)
        return there is not None and there.end == state.end and backlog.readings == 0

    def _book(self) -> book.Book:
        disk = self.receiver.disk
        return book.read({path: disk.on_platter(path) for path in disk.paths() if path.startswith(("live/", "segments/"))}, DATA_KEY)

    def judge(self) -> None:
        """Raise LedgerError unless all promises are kept."""
        box, held = self.box, self._book()
        made: dict[int, dict[int, int | None]] = {tag: dict(values) for tag, values in box.server.made.items()}
        for device in box.devices:
            made |= dict.fromkeys(device.tags, dict.fromkeys(range(1, device.answered + 1)))
        exact = not self.box_events.replaced
        told = (box.told | box.server.acknowledged) if exact else set()
        owed = frozenset(box.server.tags) if exact else frozenset()
        book.judge(held, book.Truth(made, owed, told, exact, frozenset(box.left)))
        new: dict[book.Place, int] = {}
        for generation, first, last in self.new_ranges():
            for seq in range(first, last + 1):
                new[generation, seq] = new.get((generation, seq), 0) + 1
        twice = [place for place, count in new.items() if count > 1]
        if twice or new.keys() != held.readings.keys():
            difference = sorted(new.keys() ^ held.readings.keys())
            raise ledger.LedgerError(f"G4 new twice: {twice[:3]}; new and held differ: {difference[:3]} ({len(difference)})")
        for load, name in [(box.server.load, "server"), *((d.load, "device") for d in box.devices)]:
            if load.over > 0 or load.sessions_most > 1:
                raise ledger.LedgerError(f"G10 the {name} was asked {load.over} too often, {load.sessions_most} sessions")
        self.outcome.readings = len(held.readings)
        self.outcome.evicted = book.excused(held)


def run_seed(seed: int, later: str = "honest", *, rest: bool = True) -> tuple[Outcome, str]:
    """Run one seed; return its outcome and the digest of what the box did to its disk. Raise LedgerError, or whatever a defect raises."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:

        async def main(loop: SimLoop) -> tuple[Outcome, str]:
            whole = Whole(loop, seed, Path(directory), later)
            with whole.box.installed():
                return await whole.live(rest=rest), whole.digest

        try:
            return run(main)
        finally:
            logging.disable(logging.NOTSET)


def same_bytes(seed: int) -> None:
    """G8: raise LedgerError unless the box does the same whatever is behind it."""
    digests = {later: run_seed(seed, later, rest=False)[1] for later in ("none", "honest", "liar")}
    if len(set(digests.values())) > 1:
        raise ledger.LedgerError(f"G8 what is behind the box changes what it writes: {digests}")
