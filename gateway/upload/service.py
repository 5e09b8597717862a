"""Wiring of upload: ring -> machine -> carrier -> machine -> state. Decides nothing, decodes no payload, runs until cancelled."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from buffer.errors import CorruptError, StorageFault
from buffer.storage import PosixReadStorage, make_directory, publish_file
from gateway import footprint
from gateway.errors import ConfigError
from gateway.groups import all_streams
from gateway.lanes import TokenBucket, parse_window, window_open
from gateway.runtime import notify
from gateway.trust.certs import load_certificate
from gateway.trust.keys import KeyRing, load_public
from gateway.upload.asides import Why
from gateway.upload.carrier import CarrierError
from gateway.upload.catalogue import Catalogue
from gateway.upload.control import Control
from gateway.upload.jobs import Now, Options
from gateway.upload.machine import Machine
from gateway.upload.plan import Backlog
from gateway.upload.state import SAVE_NS, StateStore
from gateway.upload.transport import HttpsCarrier
from gateway.wire import request as wire
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buffer.layout import DurableMark
    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings
    from gateway.upload.carrier import Carrier
    from gateway.upload.jobs import Job, Loaded
    from gateway.upload.memory import Memory
    from gateway.upload.plan import RingView

WAIT_SECONDS_MAX: Final = 1.0  # windows and live age are looked at again at least this often
BACKLOG_TICKS: Final = 5  # status ticks between two sums over the backlog
ADVISORY_TICKS: Final = 60
SWEEP_TICKS: Final = 60
DEADLINE_SECONDS: Final = 60.0
ALARM_NS: Final = 86_400 * 10**9  # a day: long enough to be seen by people, short enough to be news
SLOWEST_BYTES_PER_S: Final = 4_096  # 32 kbit/s: below that a request of 64 KiB cannot end in time
_ADVISED: Final = ("stream", "time_ns", "cause", "alarm", "backlog_readings", "backlog_bytes", "drain_s", "parked", "last_receipt_ns")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often things are looked at, in seconds."""

    look: float = 10.0  # at the files of the ring; new blocks are seen at every poll
    poll: float = 0.2  # at the durable mark; oftener where live PUTs come oftener
    status: float = 1.0


class Ring(Protocol):
    """What the uploader may ask of a ring (gateway.upload.catalogue; simulation replaces it)."""

    def mark(self) -> DurableMark | None:
        """Return how far it is durable."""
        ...

    def look(self) -> tuple[RingView, tuple[bytes, ...]]:
        """Return what it holds, and its key statements."""
        ...

    def load(self, job: Job) -> Loaded | None:
        """Return the frames of a job."""
        ...


class Store(Protocol):
    """Where the memory is kept (gateway.upload.state; simulation replaces it)."""

    def load(self) -> Memory:
        """Return what was kept."""
        ...

    def rows(self, memory: Memory) -> Any:  # noqa: ANN401 -- the store's own affair
        """Return what is to be kept."""
        ...

    def write(self, rows: Any) -> str:  # noqa: ANN401
        """Keep it; return what went wrong."""
        ...


class Uploader:
    """One stream: its ring, its machine, its carrier, its memory."""

    def __init__(
        self, runtime: Runtime, settings: GatewaySettings, ring: Ring, carrier: Carrier, store: Store, keys: KeyRing,
        control: Control | None = None, rhythm: Rhythm | None = None, bucket: TokenBucket | None = None,
    ) -> None:  # fmt: skip
        self._rhythm = rhythm or Rhythm()
        backfill = settings.receiver.backfill
        self._runtime = runtime
        self._settings = settings
        self._ring = ring
        self._carrier = carrier
        self._store = store
        self._control = control
        try:
            self._window, self._zone = parse_window(backfill.window), ZoneInfo(settings.timezone)
        except (ValueError, ZoneInfoNotFoundError) as error:
            raise ConfigError(f"backfill window or timezone: {error}", "Correct [gateway] timezone and [receiver] backfill.") from error
        options = Options(settings.stream, settings.receiver.live_ns, backfill.in_flight, backfill.newest_first)
        self.certificate_ends_ns = 0  # wall clock; 0: not known
        self.machine = Machine(options, store.load(), keys, runtime.random)
        self._bucket = bucket or TokenBucket(backfill.limit_bps)  # one for all streams of a link
        self._reading = asyncio.Lock()  # the catalogue has one caller at a time
        self._wake = asyncio.Event()
        self._backlog = Backlog()
        self._rate_bps = 0.0
        self._faults: dict[str, str] = {}  # of ring and state, for status

    def _now(self) -> Now:
        return Now(self._runtime.monotonic_ns(), self._runtime.wall_ns())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for loop in (self._follow(), self._look(), self._save(), self._report()):
                group.create_task(loop)
            await self._pump(group)

    # ---- the ring ----

    async def _read(self, work: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 -- what `work` returns; None after a fault
        """Run one read of the ring in a thread; a fault is said in status and log, and is never the end."""
        async with self._reading:
            try:
                result = await self._runtime.offload(work)
            except (StorageFault, CorruptError) as fault:
                if self._faults.get(what) != str(fault):
                    log.error("the ring cannot be read", extra={"data": {"what": what, "fault": str(fault)}})  # noqa: TRY400
                self._faults[what] = str(fault)
                return None
        self._faults.pop(what, None)
        return result

    async def _follow(self) -> None:
        """See new blocks soon."""
        interval = min(self._rhythm.poll, self._settings.receiver.live_ns / 4e9)
        while True:
            mark = await self._read(self._ring.mark, "durable")
            if mark is not None and self.machine.grew(mark.generation, mark.end_block, self._now()):
                self._wake.set()
            await self._runtime.sleep(interval)

    async def _look(self) -> None:
        """See what was sealed and what was evicted."""
        while True:
            seen = await self._read(self._ring.look, "files")
            if seen is not None:
                self.machine.inventory(*seen)
                self._wake.set()
            done = seen is None or seen[0].complete
            await self._runtime.sleep(self._rhythm.look if done else 0.0)

    # ---- the link ----

    async def _pump(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._wake.clear()
            now = self._now()
            is_open = window_open(self._window, self._zone, now.wall)
            while (job := self.machine.next(now, backfill_open=is_open)) is not None:
                group.create_task(self._carry(job))
                now = self._now()
            wake = self.machine.wake_ns(now)
            wait = WAIT_SECONDS_MAX if wake is None else min(WAIT_SECONDS_MAX, (wake - now.mono) / 1e9)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(wait, 0.001)):
                    await self._wake.wait()

    async def _carry(self, job: Job) -> None:
        """One job from the ring to its end."""
        machine = self.machine
        try:
            loaded: Loaded | None = await self._read(lambda: self._ring.load(job), "frames")
            if loaded is None:
                machine.gone(job, self._now())
                return
            request = machine.loaded(job, loaded, self._now())
            del loaded  # an offer keeps no body
            if request is None:
                return
            pace = self._pace if job.lane == Lane.BACKFILL and request.size and self._bucket.rate_bps > 0 else None
            try:
                answer = await self._carrier.put(request.target, request.parts, job.lane, self._deadline_s(request.size, job.lane), pace)
            except CarrierError as error:
                self._say(error)
                machine.failed(request, error, self._now())
            else:
                machine.answered(request, answer.status, answer.body, self._now())
                self._say(machine.path.error)
        finally:
            self._wake.set()

    def _pace(self, size_bytes: int) -> float:
        return self._bucket.take(size_bytes, self._runtime.monotonic_ns()) / 1e9

    def _deadline_s(self, size_bytes: int, lane: Lane) -> float:
        seconds = DEADLINE_SECONDS + size_bytes / SLOWEST_BYTES_PER_S
        if lane == Lane.BACKFILL and self._bucket.rate_bps:
            seconds += size_bytes * 8 * self._settings.receiver.backfill.in_flight / self._bucket.rate_bps
        return seconds

    def _say(self, error: CarrierError | None) -> None:
        cause = error.message if error else ""
        if cause and self._faults.get("link") != cause and error is not None:
            log.warning("no answer", extra={"data": {"cause": cause, "kind": str(error.cause), "remedy": error.remedy}})
        self._faults["link"] = cause

    # ---- what is kept and shown ----

    async def _save(self) -> None:
        while True:
            await self._runtime.sleep(SAVE_NS / 1e9)
            rows = self._store.rows(self.machine.memory)
            self._note_state(await self._runtime.offload(partial(self._store.write, rows)))

    def save_now(self) -> None:
        """Keep the memory, at the end."""
        self._note_state(self._store.write(self._store.rows(self.machine.memory)))

    def _note_state(self, fault: str) -> None:
        if fault and not self._faults.get("state"):
            log.error("the upload state cannot be written; a restart would ask the receiver again", extra={"data": {"fault": fault}})
        self._faults["state"] = fault

    async def _report(self) -> None:
        """Publish status every second, tell the receiver every minute, look what people ask."""
        tick = sent = 0
        while True:
            if self._control is not None:
                self._obey(self._control)
            if tick % BACKLOG_TICKS == 0:
                self._backlog = self.machine.plan.backlog(self.machine.memory.cursor)
            bytes_now = self.machine.counters.bytes_backfill
            self._rate_bps += 0.1 * ((bytes_now - sent) * 8 / self._rhythm.status - self._rate_bps)
            sent = bytes_now
            status = self.status()
            await self._publish(status)
            if tick % ADVISORY_TICKS == ADVISORY_TICKS - 1 and self.machine.path.good:
                body = json.dumps({name: status[name] for name in _ADVISED}).encode()[: wire.STATUS_BYTES_MAX]
                with suppress(CarrierError):
                    await self._carrier.put(wire.STATUS_PATH, (body,), Lane.LIVE, DEADLINE_SECONDS, None)
            tick += 1
            if tick % SWEEP_TICKS == 0:
                footprint.sweep()
            notify("WATCHDOG=1")
            await self._runtime.sleep(self._rhythm.status)

    async def _publish(self, status: dict[str, Any]) -> None:
        data = json.dumps(status).encode()
        path = self._settings.upload_state / "status.json"
        try:
            await self._runtime.offload(lambda: publish_file(path, data, durable=False))
        except StorageFault as fault:
            self._note_state(str(fault))

    def _obey(self, control: Control) -> None:
        self.machine.newest_first = self.machine.options.newest_first or control.newest_first()
        if control.retry():
            self.machine.retry_now()
            self._wake.set()

    def status(self) -> dict[str, Any]:
        """Return what `ebbgate status` and the console show; times in ns since 1970."""
        machine, memory, now = self.machine, self.machine.memory, self._now()
        backlog, path = self._backlog, machine.path
        return {
            "process": "upload",
            "time_ns": now.wall,
            "stream": self._settings.stream,
            "state": "sending" if path.good else "waiting",
            "cause": path.error.message if path.error else "",
            "cause_kind": str(path.error.cause) if path.error else "",
            "remedy": path.error.remedy if path.error else "",
            "failing_since_ns": path.failing_since_ns,
            "alarm": self._alarm(),
            "backlog_readings": backlog.readings,
            "backlog_bytes": backlog.size_bytes,
            "backlog_blocks": backlog.blocks,
            "drain_s": self._drain_s(),
            "lanes": {
                "live": {"sent_bytes": machine.counters.bytes_live, "waiting": machine.edge.end - machine.edge.first(now.mono)},
                "backfill": {
                    "sent_bytes": machine.counters.bytes_backfill,
                    "rate_bps": round(self._rate_bps),
                    "limit_bps": self._bucket.rate_bps,
                    "open": window_open(self._window, self._zone, now.wall),
                    "newest_first": machine.newest_first,
                },
            },
            "last_receipt_ns": memory.receipt_ns,
            "receipts": machine.counters.receipts,
            "offers": machine.counters.offers,
            "failures": machine.counters.failures,
            "parked": len(memory.parked),
            "parked_oldest_ns": min((p.since_ns for p in memory.parked.values()), default=None),
            "held_back_by_budget": machine.asides.count(Why.BUDGET, now.mono),
            "unreadable": machine.asides.count(Why.UNREADABLE, now.mono),
            "today": {"sent_bytes": memory.day.sent_bytes, "resent_bytes": memory.day.resent_bytes},
            "conflicts": memory.conflicts,
            "restored_ns": memory.restored_ns or None,
            "landing": memory.landing,
            "faults": {what: fault for what, fault in self._faults.items() if fault and what != "link"},
        }

    def _alarm(self) -> str:
        memory = self.machine.memory
        if memory.parked:
            return f"the receiver refused {len(memory.parked)} pieces; they are tried again hourly and kept until the ring needs their room"
        if self.machine.objects.refused:
            return "the receiver refuses this gateway's key statement: the site it trusts did not sign it"
        if memory.restored_ns and self._now().wall - memory.restored_ns < ALARM_NS:
            return f"the receiver was restored from an earlier state; {memory.restored_blocks} blocks are offered to it again"
        if memory.forgotten_ns and self._now().wall - memory.forgotten_ns < ALARM_NS:
            return "upload began without its state, and the receiver holds this stream already: it is asked what it holds; nothing is lost"
        if memory.conflicts:
            return "the receiver holds other readings under the same numbers; see its alarms"
        if self.certificate_ends_ns and self._now().wall > self.certificate_ends_ns:
            return "this gateway's TLS certificate has expired: ebbgate identity renew; the receiver's grace ends, nothing stored is lost"
        return ""

    def _drain_s(self) -> float | None:
        """Return how long the backlog still needs at the present rate, at most at the cap; None if nothing moves."""
        if not self._backlog.size_bytes:
            return 0.0
        return round(self._backlog.size_bytes * 8 / self._rate_bps, 1) if self._rate_bps > 1 else None


async def run(runtime: Runtime, settings: GatewaySettings) -> None:
    """Upload all streams of the gateway over one link until cancelled; raise EbbgateError or StorageFault where it cannot start."""
    footprint.one_heap()
    keys = KeyRing()
    keys.trust(load_public(settings.receiver.receipt_key))
    streams = all_streams(settings, await runtime.offload(partial(_rings, settings.ring.path)))
    shared = replace(settings.receiver.backfill, in_flight=max(1, settings.receiver.backfill.in_flight // len(streams)))
    carrier = HttpsCarrier(runtime, settings.receiver)
    bucket = TokenBucket(shared.limit_bps)
    ends_ns = int(load_certificate(settings.receiver.certificate).not_valid_after_utc.timestamp()) * 10**9
    uploaders: list[tuple[Uploader, StateStore]] = []
    for one in streams:
        make_directory(one.upload_state)
        store = StateStore(one.upload_state / "state.db", one.stream)
        ring = Catalogue(PosixReadStorage(one.ring.path / one.stream))
        own = replace(one, receiver=replace(one.receiver, backfill=shared))
        uploader = Uploader(runtime, own, ring, carrier, store, keys, Control(settings.state / "control"), bucket=bucket)
        uploader.certificate_ends_ns = ends_ns
        uploaders.append((uploader, store))
    footprint.give_back()
    log.info("upload is ready", extra={"data": {"streams": [one.stream for one in streams], "receiver": settings.receiver.url}})
    notify("READY=1")
    try:
        async with asyncio.TaskGroup() as group:
            for uploader, _ in uploaders:
                group.create_task(uploader.run())
    finally:
        for uploader, store in uploaders:
            uploader.save_now()
            store.close()
        await carrier.close()


def _rings(path: Path) -> list[str]:
    """Return the names of the rings that hold something, also those that nobody writes any more."""
    try:
        return sorted(one.name for one in path.iterdir() if (one / "durable").exists())
    except OSError:
        return []  # not there yet; a ring that cannot be read is said by its uploader
