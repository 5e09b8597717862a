"""A plant whose every value can be told from all others: a server with subscriptions, resends and history, and a Modbus device. Both keep
what they made, when, and what they were asked, for the book and for the load contract.

A tag is a counter: value v of a tag is made once, at one time. The server keeps messages until they are acknowledged (at most KEPT), forgets
its subscriptions when it restarts, and keeps history. The device counts its answers: each carries a number of its own.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from dataclasses import dataclass, field

from gateway.collect.modbus.frame import ConnectionLost, NoAnswer, Refused
from gateway.errors import PlantError
from tests.support.simloop import EPOCH_NS, SimLoop

KEPT = 60  # unacknowledged messages
FIRST_TAG = 16
CONSTANT_FROM = 1000


class Away(PlantError):
    """Nobody answers."""

    def __init__(self) -> None:
        super().__init__("nobody answers")


Item = tuple[int, int, int]  # tag, value, ts ns


@dataclass
class Load:
    """What a device was asked, measured at the device. rate: requests a second allowed. Memory is bounded: a window of recent times."""

    rate: float
    requests: int = 0
    sessions: int = 0
    sessions_most: int = 0
    over: float = 0.0  # how many requests too many, at the worst moment
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=4096))

    def asked(self, now: float) -> None:
        """Count a request: in any T seconds at most T * rate + 1 may begin."""
        self.requests += 1
        self.recent.append(now)
        for span in (1.0, 10.0):
            while len(self.recent) > 1 and span == 10.0 and self.recent[0] <= now - span:
                self.recent.popleft()
            count = sum(1 for t in self.recent if t > now - span + 1e-9)
            self.over = max(self.over, count - (span * self.rate + 1))

    def joined(self) -> None:
        self.sessions += 1
        self.sessions_most = max(self.sessions_most, self.sessions)


class Server:
    """Times are true: a step of the box's clock is no affair of the plant. `kept_s`: how long made values are remembered (0: for ever)."""

    def __init__(self, loop: SimLoop, rng: random.Random, tags: range, every_s: float, rate: float = 20.0, kept_s: float = 0.0) -> None:
        self._loop = loop
        self._rng = rng
        self.tags = tags
        self.every_s = every_s
        self.kept_s = kept_s
        self.reachable = True
        self.running = True
        self.load = Load(rate)
        self.value = dict.fromkeys(tags, 0)
        self.made: dict[int, dict[int, int]] = {tag: {0: self.now_ns()} for tag in tags}
        self.acknowledged: set[tuple[int, int]] = set()
        self.total = 0
        self._subscription = 0
        self._last_id = 0
        self._number = 0
        self._kept: dict[int, list[Item]] = {}
        self._came = asyncio.Event()

    def now_ns(self) -> int:
        return EPOCH_NS + round(self._loop.time() * 1e9)

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            await asyncio.sleep(self.every_s)
            if self.running:
                self._sample()

    def _sample(self) -> None:
        items = []
        for tag in self.tags:
            if self._rng.random() < 0.7:
                self.value[tag] += 1
                self.total += 1
                self.made[tag][self.value[tag]] = self.now_ns()
                items.append((tag, self.value[tag], self.now_ns()))
                if self.kept_s:
                    self._forget(tag)
        if self._subscription and items:
            self._message(items)

    def _forget(self, tag: int) -> None:
        old = self.now_ns() - round(self.kept_s * 1e9)
        made = self.made[tag]
        while made and next(iter(made.values())) < old:
            del made[next(iter(made))]

    def _message(self, items: list[Item]) -> None:
        self._number += 1
        self._kept[self._number] = items
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        self._came.set()

    def restart(self) -> None:
        """Subscriptions are gone; what was measured is not."""
        self._subscription = 0
        self._kept.clear()
        self._came.set()

    # ---- services; each costs the server a request ----

    async def _asked(self) -> None:
        self.load.asked(self._loop.time())
        await asyncio.sleep(0.002 + self._rng.random() * 0.01)
        if not (self.reachable and self.running):
            await asyncio.sleep(2.0)
            raise Away

    async def subscribe(self) -> int:
        """Make a subscription; its first message has every tag's value."""
        await self._asked()
        self._last_id += 1
        self._subscription, self._number = self._last_id, 0
        self._kept.clear()
        self._message([(tag, self.value[tag], self.made[tag][self.value[tag]]) for tag in self.tags])
        return self._subscription

    async def resume(self, subscription: int) -> bool:
        """Say whether that subscription is still there."""
        await self._asked()
        return self._subscription == subscription

    async def publish(self, subscription: int, after: int) -> list[tuple[int, list[Item]]]:
        """Return the kept messages above `after`, waiting for one."""
        await self._asked()
        while True:
            if self._subscription != subscription or not (self.reachable and self.running):
                raise Away
            waiting = [(number, items) for number, items in self._kept.items() if number > after]
            if waiting:
                return waiting
            self._came.clear()
            try:
                async with asyncio.timeout(5.0):
                    await self._came.wait()
            except TimeoutError:
                raise Away from None

    def acknowledge(self, subscription: int, number: int) -> None:
        """Forget messages up to `number`: they are somebody else's now."""
        if subscription != self._subscription or not self.reachable:
            return
        for one in [n for n in self._kept if n <= number]:
            self.acknowledged |= {(tag, value) for tag, value, _ in self._kept[one]}
            del self._kept[one]

    async def history(self, tag: int, from_ns: int, to_ns: int, most: int) -> tuple[list[Item], bool]:
        """Return at most `most` values with from <= ts <= to, and whether there are more."""
        await self._asked()
        found = [(tag, value, ts) for value, ts in self.made[tag].items() if from_ns <= ts <= to_ns]
        return found[:most], len(found) > most


class Device:
    """Modbus: n UInt32 in holding registers, all equal to the number of the answer; from register CONSTANT_FROM on everything is 7."""

    def __init__(self, loop: SimLoop, rng: random.Random, tags: range, rate: float = 5.0, every_s: float = 2.0, constant: int = 0) -> None:
        self._loop = loop
        self._rng = rng
        self.tags = tags
        self.every_ns = round(every_s * 1e9)
        self.constant = constant  # number of a tag that never changes; 0: none
        self.load = Load(rate)
        self.answered = 0
        self.mood = "good"  # away: nobody answers; noisy: sometimes nothing, a broken connection, busy

    async def connect(self) -> DeviceLink:
        await asyncio.sleep(0.005)
        if self.mood == "away":
            await asyncio.sleep(1.0)
            raise ConnectionLost("no route to the device")
        return DeviceLink(self)

    async def answer(self, pdu: bytes, timeout_s: float) -> bytes:
        self.load.asked(self._loop.time())
        await asyncio.sleep(0.003 + self._rng.random() * 0.02)
        if self.mood == "away":
            await asyncio.sleep(timeout_s)
            raise NoAnswer("silence")
        if self.mood == "noisy":
            fate = self._rng.random()
            if fate < 0.1:
                await asyncio.sleep(timeout_s)
                raise NoAnswer("silence")
            if fate < 0.15:
                raise ConnectionLost("the device closed the connection")
            if fate < 0.2:
                raise Refused(6)
        function, start, count = struct.unpack(">BHH", pdu)
        if start >= CONSTANT_FROM:
            return bytes([function, 2 * count]) + struct.pack(">H", 7) * count
        self.answered += 1
        words = struct.pack(">I", self.answered) * ((start + count) // 2 + 1)
        return bytes([function, 2 * count]) + words[2 * start % 4 :][: 2 * count]


class DeviceLink:
    """One connection, as gateway.collect.modbus.hub wants it. kill -9 of its process closes it, as the kernel does."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.bytes_moved = 0
        self.noisy = False
        self.is_open = True
        device.load.joined()

    async def request(self, unit: int, pdu: bytes, timeout_s: float) -> bytes:
        if not self.is_open:
            raise ConnectionLost("not connected")
        try:
            answer = await self._device.answer(pdu, timeout_s)
        except (NoAnswer, ConnectionLost):
            self.close()
            raise
        except asyncio.CancelledError:
            self.close()
            raise
        self.bytes_moved += 12 + len(answer) + 7
        return answer

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._device.load.sessions -= 1
