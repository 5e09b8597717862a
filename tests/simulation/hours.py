"""python -m tests.simulation.hours --hours 48: days of a plant on virtual time, faults included; the last line is JSON.

The collect process is the product's (tests.simulation.box). A reader follows its ring and forgets what it has judged: values of the
server come in order, holes are filled by history or named unfillable, nothing comes twice; values of the device rise; a value that never
changes is repeated by its heartbeat. The load contract is measured at server and device. A PLC is off for 40 % of the time (a weekend of
48 hours is 19), the server restarts, the link to it is cut, the device falls silent, collect is killed and paused, the box's clock is set.
Memory is that of the whole process, simulation included, after a collection, by regression over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from buffer.reader import RingReader
from tests.simulation import book
from tests.simulation.box import Box
from tests.simulation.ledger import LedgerError
from tests.simulation.plant import FIRST_TAG, Device, Server
from tests.simulation.receiver import STATEMENT
from tests.support.simloop import SimLoop, run

LOOK_S = 30.0
READ_S = 300.0  # the follower finds its place anew each time it looks
REST_S = 1_800.0
SLOPE_MAX_KIB = 64.0  # per virtual hour: a leak of 100 bytes a commit is 350
RING_BYTES = 6_000_000
REPEATED = 4


@dataclass
class Follower:
    """Judges what comes, in order, and keeps what is still owed."""

    server: Server
    devices: list[Device]
    box: Box
    readings: int = 0
    blocks: int = 0
    repeated: int = 0
    filled: int = 0
    quiet_ns: int = 0  # the longest time, by the clock of commits, without a word of the constant and without a marker
    holes: dict[int, set[int]] = field(default_factory=dict)
    top: dict[int, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    _next: dict[int, int] = field(default_factory=dict)
    _beat_ns: int = 0

    def look(self) -> None:
        """Read on, up to what is durable."""
        reader = RingReader(self.box.reader())
        inventory = reader.inventory()
        for generation in sorted({journal.generation for journal in inventory.journals}):
            if generation not in self._next:
                self._beat_ns = 0  # another life
            first = self._next.setdefault(generation, 0)
            for frame in reader.blocks(inventory, generation, first):
                m = frame.manifest
                if m.first_block != self._next.get(generation, 0):
                    raise LedgerError(f"blocks of {generation:x} left unread: {self._next.get(generation)} to {m.first_block}")
                self._next[generation] = m.first_block + 1
                self.blocks += 1
                for reading in book.unpacked(bytes(frame.payload), m.count):
                    self._take(reading, m.state.monotonic_ns, history=m.fill is not None)
        for old in [g for g in self._next if g < max(self._next)][:-8]:
            del self._next[old]

    def _take(self, r: book.Reading, at_ns: int, *, history: bool) -> None:
        self.readings += 1
        if r.value is None or r.flags & book.MARKER:
            self._beat_ns = 0
            return
        if r.tag in self.server.tags:
            self._of_server(r, history=history)
        elif any(r.tag == device.constant for device in self.devices):
            self._beat(r, at_ns)
        elif r.tag >= FIRST_TAG and r.value <= self.seen.get(r.tag, 0):
            raise LedgerError(f"{r} of the device came again, after {self.seen[r.tag]}")
        if r.tag >= FIRST_TAG:
            self.seen[r.tag] = r.value

    def _of_server(self, r: book.Reading, *, history: bool) -> None:
        made = self.server.made[r.tag].get(r.value)
        if made is not None and made != r.ts_source:
            raise LedgerError(f"{r}: the server made it at {made}")
        holes, top = self.holes.setdefault(r.tag, set()), self.top.get(r.tag)
        if history:
            if r.value not in holes:
                raise LedgerError(f"{r} came from history, and was there already")
            holes.discard(r.value)
            self.filled += 1
            return
        if top is not None and r.value <= top:
            raise LedgerError(f"{r} came twice")
        if top is not None:
            holes |= set(range(top + 1, r.value))
        self.top[r.tag] = r.value

    def _beat(self, r: book.Reading, at_ns: int) -> None:
        self.repeated += bool(r.flags & REPEATED)
        if self._beat_ns:
            self.quiet_ns = max(self.quiet_ns, at_ns - self._beat_ns)
        self._beat_ns = at_ns


class Hours:
    """One run."""

    def __init__(self, loop: SimLoop, hours: float, seed: int, directory: Path) -> None:
        self._loop = loop
        self.seconds = hours * 3_600
        self._rng = random.Random(seed)
        self.server = Server(loop, random.Random(seed + 1), range(FIRST_TAG, FIRST_TAG + 4), 6.0, kept_s=6 * 3_600.0)
        first = FIRST_TAG + 4
        self.device = Device(loop, random.Random(seed + 2), range(first, first + 3), every_s=6.0, constant=first + 3)
        self.box = Box(loop, seed + 3, directory, STATEMENT, self.server, [self.device], max_bytes=RING_BYTES, seal_s=900.0)
        self.follower = Follower(self.server, [self.device], self.box)
        self.box.before_seal = self.follower.look  # a full ring gives a journal back as soon as it is sealed
        self.counts: dict[str, int] = {}
        self.memory: list[tuple[float, float]] = []  # virtual hours, KiB

    async def faults(self) -> None:
        """About five an hour."""
        events = [self.kill, self.power_cut, self.restart_server, self.cut_link, self.noisy, self.device_away, self.pause, self.clock]
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / 720))
            event = self._rng.choice(events)
            self.counts[event.__name__] = self.counts.get(event.__name__, 0) + 1
            await event()

    async def kill(self) -> None:
        await self.box.kill(after_steps=self._rng.randrange(8))
        self.follower.look()
        self.box.start()

    async def power_cut(self) -> None:
        await self.box.kill(power_cut=True, after_steps=self._rng.randrange(8))
        self.box.start()

    async def restart_server(self) -> None:
        self.server.restart()

    async def cut_link(self) -> None:
        self.server.reachable = False
        await asyncio.sleep(self._rng.uniform(1, 600))
        self.server.reachable = True

    async def noisy(self) -> None:
        self.device.mood = "noisy"
        await asyncio.sleep(self._rng.uniform(10, 600))
        self.device.mood = "good"

    async def device_away(self) -> None:
        self.device.mood = "away"
        await asyncio.sleep(self._rng.uniform(10, 900))
        self.device.mood = "good"

    async def pause(self) -> None:
        name = self._rng.choice(["server", "plc0"])
        load = self.server.load if name == "server" else self.device.load
        self.box.pauses.names.add(name)
        await asyncio.sleep(1.5)
        before = load.requests
        await asyncio.sleep(self._rng.uniform(5, 300))
        if load.requests != before:
            raise LedgerError(f"{name} was asked while paused")
        self.box.pauses.names.discard(name)

    async def clock(self) -> None:
        self.box.step_ns = self._rng.choice([-3_600, 3_600, -2, 2, 86_400 * 365]) * 10**9
        await asyncio.sleep(self._rng.uniform(5, 120))
        self.box.step_ns = 0

    async def weekend(self) -> None:
        """The PLC is switched off."""
        await asyncio.sleep(self.seconds * 0.2)
        self.server.running = False
        self.server.restart()
        await asyncio.sleep(self.seconds * 0.4)
        self.server.running = True

    async def live(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(one) for one in (self.server.run(), self.weekend())]
        trouble = loop.create_task(self.faults())
        self.box.start()
        hour, read = 0, 0.0
        while self._loop.time() < self.seconds:
            await asyncio.sleep(LOOK_S)
            self.box.check_alive()
            if trouble.done():
                trouble.result()
            if self._loop.time() >= read:
                self.follower.look()
                self.box.told.clear()  # for the book, which judges a run as a whole: in days it would be what rises in memory
                self.server.acknowledged.clear()
                read = self._loop.time() + READ_S
            if self._loop.time() >= hour * 3_600:
                self.memory.append((self._loop.time() / 3_600, resident_kib()))
                hour += 1
        trouble.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trouble
        await self._rest()
        for task in tasks:
            task.cancel()

    async def _rest(self) -> None:
        self.server.reachable = self.server.running = True
        self.device.mood, self.box.step_ns = "good", 0
        self.box.pauses.names.clear()
        end = self._loop.time() + REST_S
        while self._loop.time() < end:
            await asyncio.sleep(LOOK_S)
            self.follower.look()
            if self._loop.time() > end - REST_S / 2 and not self.missing():
                return

    def missing(self) -> list[tuple[int, int]]:
        """Return what the server made, we never got, and nobody said is out of reach."""
        return sorted({(tag, v) for tag, holes in self.follower.holes.items() for v in holes} - self.box.left)


def resident_kib() -> float:
    """Return the resident memory of this process after a collection."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4.0


def slope(points: list[tuple[float, float]]) -> float | None:
    """Return the slope of a straight line through the second half; None where there are too few points to say."""
    half = points[len(points) // 2 :]
    if len(half) < 6:
        return None
    mean_x, mean_y = sum(x for x, _ in half) / len(half), sum(y for _, y in half) / len(half)
    return sum((x - mean_x) * (y - mean_y) for x, y in half) / sum((x - mean_x) ** 2 for x, _ in half)


def simulate(hours: float, seed: int) -> dict[str, object]:
    """Run it; return what the last line says. Raise LedgerError."""
    began = time.monotonic()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:
        made: list[Hours] = []

        async def main(loop: SimLoop) -> None:
            made.append(Hours(loop, hours, seed, Path(directory)))
            with made[0].box.installed():
                await made[0].live()

        try:
            run(main)
        finally:
            logging.disable(logging.NOTSET)
    one = made[0]
    loads = {"server": one.server.load, "device": one.device.load}
    rising = slope(one.memory)
    missing = one.missing()
    out: dict[str, object] = {
        "name": "plant", "virtual_hours": hours, "seed": seed, "readings": one.follower.readings, "blocks": one.follower.blocks,
        "made": one.server.total, "missing": len(missing), "doubled": 0, "filled": one.follower.filled, "unfillable": len(one.box.left),
        "heartbeats": one.follower.repeated, "longest_without_heartbeat_s": round(one.follower.quiet_ns / 1e9, 1), "lives": one.box.lives, "faults": one.counts,
        "requests": {name: load.requests for name, load in loads.items()},
        "over_contract": max(max(0.0, load.over) for load in loads.values()), "sessions_most": one.device.load.sessions_most,
        "memory_kib": [round(y) for _, y in one.memory[:: max(1, len(one.memory) // 8)]],
        "memory_slope_kib_per_virtual_hour": None if rising is None else round(rising, 1), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    good = not missing and out["over_contract"] == 0 and one.device.load.sessions_most == 1 and (rising is None or rising <= SLOPE_MAX_KIB)
    return out | {"first_missing": missing[:3], "ok": good}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=48.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        out = simulate(options.hours, options.seed)
    except LedgerError as error:
        out = {"name": "plant", "virtual_hours": options.hours, "seed": options.seed, "ok": False, "broken": str(error)}
    print(json.dumps(out))
    return 0 if out["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
