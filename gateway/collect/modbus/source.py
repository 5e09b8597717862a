"""One Modbus device: polled on a steady schedule, within its load contract, never hurried. Implements gateway.collect.source.Source.

* Each `every` has its own grid of due times; a poll that is late by a whole period is skipped and counted, never made up for.
* The time of a value is the middle of its request. A poll is committed whole.
* No answer twice in a row: the source is down. One marker per tag (null, Bad_NoCommunication), one notice, then one try per back-off step.
* What a device refuses, or is silent for while it answers others, is narrowed down to the values concerned (modbus.holes); those are Bad with
  the reason (modbus.group). Everything else goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Protocol

from buffer.errors import StorageFault
from buffer.notice import NoticeKind
from buffer.types import BAD_NO_COMMUNICATION, BAD_OUT_OF_SERVICE, GOOD, UNCERTAIN, Flag
from gateway.collect.modbus.frame import IDENTIFY_PDU, Refused, is_silence, parse_identification, read_pdu
from gateway.collect.modbus.group import Group, Poll, quality_of
from gateway.collect.modbus.holes import Verdict
from gateway.collect.modbus.life import LifeBit
from gateway.collect.modbus.memory import Memory
from gateway.collect.modbus.outbox import Outbox
from gateway.collect.modbus.plan import Block, Span, compile_tags, rules_of
from gateway.errors import ConfigError, PlantError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from gateway.collect.clock import GatewayClock
    from gateway.collect.modbus.hub import Asked, Hubs
    from gateway.collect.source import Sink
    from gateway.runtime import Runtime
    from gateway.settings import ModbusSource as Settings

BACK_OFF_S: Final = (1.0, 5.0, 30.0, 300.0)
FAULTS_TOLERATED: Final = 1  # noise on a line, or a device that closed an idle connection, is no outage
PAUSE_LOOK_S: Final = 0.2  # a paused device is left within a second
SAVE_S: Final = 60.0  # between two saves of budget and holes
SKIP_NOTICE_NS: Final = 600 * 10**9  # between two notices about skipped polls
STOP_S: Final = 5.0  # for the last markers at an orderly stop
IDS_SHOWN_MAX: Final = 20  # in one notice


class Pauses(Protocol):
    """Who knows which sources people asked to leave alone (collect.control)."""

    def paused(self, source: str) -> bool:
        """Say whether this source is to be left alone."""
        ...


@dataclass(slots=True)
class State:
    """How the source is, for status."""

    tags: int
    state: str = "starting"  # up, down, paused
    reason: str = ""
    since_ns: int = 0  # time of readings, not monotonic
    polls: int = 0
    polls_skipped: int = 0
    requests_per_round: int = 0
    frozen: bool = False


class ModbusSource:
    """Polls one device. Times inside are monotonic; `clock` gives the time of readings."""

    def __init__(self, settings: Settings, runtime: Runtime, clock: GatewayClock, pauses: Pauses, directory: Path, hubs: Hubs) -> None:
        """directory: <state>/collect, where <source>.json is kept. Raise ConfigError naming every tag that cannot be read."""
        self._points, findings = compile_tags(settings)
        if findings:
            raise ConfigError(f"source.{settings.name}:\n    " + "\n    ".join(f"{f.where}: {f.what}" for f in findings), "Correct tags.csv.")
        self.name = settings.name
        self.state = State(len(self._points))
        self._settings = settings
        self._runtime = runtime
        self._now = runtime.monotonic_ns
        self._clock = clock
        self._hub = hubs.of(settings)
        self._pauses = pauses
        self._rules = rules_of(settings)
        self._memory = Memory(directory / f"{settings.name}.json", settings.load, runtime)
        self._holes = self._memory.holes
        self._life = LifeBit(settings.alive)
        self._groups: list[Group] = []
        self._good: Span | None = None  # a value that was read last: asked for to see whether the device lives
        self._faults = 0
        self._unasked = 0  # polls since the last one was due that a silence ended before their last block
        self._changed: dict[tuple[str, str], list[str]] = {}  # (event, reason) -> tags, in this round
        self._skip_noticed_ns: int | None = None
        self._saved_ns = self._now()

    def status(self) -> dict[str, object]:
        """Return what status.json shows of this source."""
        return asdict(self.state) | {"refused": self._refused(), "load": asdict(self._memory.budget.certificate(self._now()))}

    def _refused(self) -> int:
        """Return how many tags the device does not give."""
        resting = {value for group in self._groups for block in group.blocks if self._holes.rests(block) for value in block.values}
        return sum(point.span in resting for point in self._points) if resting else 0

    async def run(self, sink: Sink) -> None:
        """Read until cancelled. Raise StorageFault if the ring will never take a poll."""
        outbox = Outbox(self.name, sink)
        last = sink.known(self.name).last
        every = sorted({point.tag.every_ns for point in self._points})
        self._groups = [Group(ns, [point for point in self._points if point.tag.every_ns == ns], last) for ns in every]
        self._replan()
        try:
            while True:
                if self._pauses.paused(self.name):
                    await self._pause(sink, outbox)
                await self._until_paused(self._poll_for_ever(sink, outbox))
        except asyncio.CancelledError:
            await self._stop(outbox)
            raise

    async def _until_paused(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        try:
            while not task.done() and not self._pauses.paused(self.name):
                await self._runtime.sleep(PAUSE_LOOK_S)
            if task.done():
                await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._hub.leave(self.name)

    async def _pause(self, sink: Sink, outbox: Outbox) -> None:
        self._mark(outbox, BAD_OUT_OF_SERVICE)
        self._enter("paused", "a person asked for it", sink)
        await self._save()
        while self._pauses.paused(self.name):
            await self._runtime.sleep(PAUSE_LOOK_S)
        self._memory.reload()
        self.state.state = "starting"

    async def _stop(self, outbox: Outbox) -> None:
        """Write the last markers; bounded, so that a dead disk does not hold up the others."""
        with contextlib.suppress(TimeoutError, StorageFault):
            self._mark(outbox, BAD_OUT_OF_SERVICE)
            async with asyncio.timeout(STOP_S):
                await outbox.drain()
                await self._save()

    # ---- schedule ----

    async def _poll_for_ever(self, sink: Sink, outbox: Outbox) -> None:
        self._hub.join(self.name)
        while not self._groups:
            await self._runtime.sleep(3_600.0)
        start = self._now() + int(self._runtime.random() * self._groups[0].every_ns)
        due = {group.every_ns: start for group in self._groups}
        while True:
            group = min(self._groups, key=lambda one: due[one.every_ns])
            await self._wait_until(due[group.every_ns])
            full = outbox.full
            silent = None if full else await self._round(group, sink, outbox)
            if silent is None:
                due[group.every_ns], skipped = next_due(due[group.every_ns], group.every_ns, self._now())
                self._skipped(skipped + full + self._unasked, sink)
                self._unasked = 0
            else:
                await self._silent(silent, sink, outbox)
                late = {every: next_due(at, every, self._now()) for every, at in due.items()}
                if self.state.state == "up":  # no marker says so: a fault that is tolerated
                    self._skipped(sum(count for _, count in late.values()), sink)
                due = {every: at for every, (at, _) in late.items()} | {group.every_ns: self._now()}
            if self._now() - self._saved_ns > SAVE_S * 1e9:
                await self._save()

    async def _silent(self, fault: PlantError, sink: Sink, outbox: Outbox) -> None:
        """Nobody answered: say so if it is not the first time, and wait."""
        self._faults += 1
        if self._faults > FAULTS_TOLERATED:
            self._mark(outbox, BAD_NO_COMMUNICATION)
            self._enter("down", fault.message, sink)
        step = BACK_OFF_S[min(self._faults - 1, len(BACK_OFF_S) - 1)]
        await self._runtime.sleep(step * (0.75 + 0.5 * self._runtime.random()))

    def _skipped(self, count: int, sink: Sink) -> None:
        self.state.polls_skipped += count
        if count and (self._skip_noticed_ns is None or self._now() - self._skip_noticed_ns > SKIP_NOTICE_NS):
            self._skip_noticed_ns = self._now()
            sink.notice(
                NoticeKind.LOAD,
                self.name,
                event="polls skipped",
                skipped=self.state.polls_skipped,
                requests_per_s_wanted=round(sum(len(group.blocks) * 1e9 / group.every_ns for group in self._groups), 2),
                requests_per_s_allowed=self._settings.load.requests_per_s,
                slowdown=round(self._memory.budget.slowdown, 2),
            )

    async def _wait_until(self, at_ns: int) -> None:
        while (left := at_ns - self._now()) > 0:
            await self._runtime.sleep(left / 1e9)

    # ---- one round of requests ----

    async def _round(self, group: Group, sink: Sink, outbox: Outbox) -> PlantError | None:
        """Poll one group, again at once while holes are being narrowed down; return the fault if nothing answered."""
        while True:
            poll = group.begin()
            silent = await self._poll(group, poll)
            if silent is not None:
                return silent
            if not self._holes.again:
                break
            self._replan()
        self._faults = 0
        if self.state.state != "up":
            await self._up(sink)
        self.state.polls += 1
        self._notice_tags(sink)
        got = group.decode(poll)
        if self._life.look(group, poll, got, self._now()):
            self.state.frozen = self._life.frozen
            sink.notice(NoticeKind.FROZEN, self.name, event="stands still" if self._life.frozen else "moves again", tag=self._life.tag)
        if self._life.frozen:
            got.quality[got.quality == GOOD] = UNCERTAIN
        outbox.put(group.finish(poll, got, 0 if self._clock.trusted else Flag.CLOCK_UNTRUSTED))
        if self._holes.finish(poll.good, poll.refused_all):
            self._replan()
            self._holes.rest_all(group.blocks, self._now())
        if self._settings.close_after_poll:
            await self._hub.release()
        return None

    async def _poll(self, group: Group, poll: Poll) -> PlantError | None:
        """Ask for the blocks of a group; return the fault if not one request was answered."""
        order = self._holes.order(group.blocks, self._now())
        answered = not order
        if order and (small := self._small(group.blocks[order[0]])) is not None:
            if (fault := _silence(await self._ask(small))) is not None:
                return fault
            self._good, answered = small, True
        for index in order:
            block = group.blocks[index]
            asked = await self._ask(block.span)
            fault = _silence(asked)
            if fault is not None and not answered:
                return fault
            self._note(group, poll, index, asked)
            if fault is not None:
                self._unasked += index != order[-1]
                break
            answered = True
        return None

    def _small(self, block: Block) -> Span | None:
        """Return one value to ask for first, to tell a silent device from a silent block; each time another. None: no reason, or no such value."""
        if self._faults == 0 and (self._good is None or self._holes.proven(block)):
            return None
        values = [span for span in (self._good, *block.values) if span is not None and span != block.span]
        return values[self._faults % len(values)] if values else None

    def _note(self, group: Group, poll: Poll, index: int, asked: Asked) -> None:
        """Keep an answer, or learn from a refusal or from a silence between answers."""
        block, ts_ns, answer = group.blocks[index], self._middle(asked), asked.answer
        if isinstance(answer, bytes):
            poll.put(index, answer, ts_ns)
            self._good = block.values[0]
            if self._holes.accepted(block):
                self._changed.setdefault(("accepted again", ""), []).extend(group.ids_of(block))
            return
        if _silence(asked) is not None:
            verdict = self._holes.silent(block, self._now())
        elif isinstance(answer, Refused) and answer.of_a_part:
            verdict = self._holes.refused(block, self._now())
        else:
            verdict = Verdict.BAD
        if verdict is Verdict.RESTS:
            self._changed.setdefault(("refused", answer.message), []).extend(group.ids_of(block))
        if verdict is not Verdict.SPLIT:
            poll.fail(index, quality_of(answer), ts_ns)

    def _notice_tags(self, sink: Sink) -> None:
        """Tell which tags the device refuses, or no longer refuses: one notice per reason and round."""
        for (event, reason), ids in self._changed.items():
            sink.notice(NoticeKind.TAG, self.name, event=event, reason=reason, tags=ids[:IDS_SHOWN_MAX], count=len(ids))
        self._changed.clear()

    async def _ask(self, span: Span) -> Asked:
        return await self._request(read_pdu(span.table, span.first, span.count))

    async def _request(self, pdu: bytes) -> Asked:
        """One request, when the load contract lets it begin."""
        budget = self._memory.budget
        await self._wait_until(budget.ready_ns(self._now()))
        budget.begin(self._now())
        asked = await self._hub.ask(self._settings, pdu)
        failed = isinstance(asked.answer, PlantError) and not isinstance(asked.answer, Refused)
        budget.spent(asked.ended_ns, asked.ended_ns - asked.began_ns, asked.size_bytes, failed=failed)
        return asked

    def _middle(self, asked: Asked) -> int:
        """Return the time of readings at the middle of a request."""
        now = self._now()
        return self._clock.now(self._runtime.wall_ns(), now) - (now - (asked.began_ns + asked.ended_ns) // 2)

    # ---- states ----

    def _replan(self) -> None:
        for group in self._groups:
            group.replan(self._rules, self._holes.cuts)
        self.state.requests_per_round = sum(len(group.blocks) for group in self._groups)

    async def _up(self, sink: Sink) -> None:
        self._life.restart(self._now())
        self._holes.wake(self._now())
        detail: dict[str, object] = {"requests_per_round": self.state.requests_per_round}
        if self._settings.identify:
            asked = await self._request(IDENTIFY_PDU)
            detail["device"] = parse_identification(asked.answer) if isinstance(asked.answer, bytes) else str(asked.answer)
        self._enter("up", "", sink, **detail)

    def _enter(self, state: str, reason: str, sink: Sink, **detail: object) -> None:
        """Change the state and tell people, once."""
        self.state.reason = reason
        if self.state.state == state:
            return
        now = self._clock.now(self._runtime.wall_ns(), self._now())
        if self.state.since_ns:
            detail["after_s"] = round((now - self.state.since_ns) / 1e9, 3)
        kind = NoticeKind.SOURCE_UP if state == "up" else NoticeKind.SOURCE_DOWN
        sink.notice(kind, self.name, state=state, reason=reason, tags=self.state.tags, **detail)
        self.state.state, self.state.since_ns = state, now

    def _mark(self, outbox: Outbox, quality: int) -> None:
        now = self._clock.now(self._runtime.wall_ns(), self._now())
        for group in self._groups:
            outbox.put(group.reported.mark(now, quality))

    async def _save(self) -> None:
        self._saved_ns = self._now()
        await self._memory.save()


def _silence(asked: Asked) -> PlantError | None:
    """Return the fault if nobody answered."""
    return asked.answer if isinstance(asked.answer, PlantError) and is_silence(asked.answer) else None


def next_due(due_ns: int, every_ns: int, now_ns: int) -> tuple[int, int]:
    """Return the next place of the grid after now, and how many places were passed over."""
    periods = max(0, now_ns - due_ns) // every_ns
    return due_ns + (periods + 1) * every_ns, periods
