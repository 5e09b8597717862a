"""Wiring of collect: sources -> writer -> ring; sealing child, control files, status. Runs until cancelled, then stops in order.

Order of a stop: sources are cancelled and write their out-of-service markers, a notice says so, the writer commits, the ring closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError, StorageFault
from buffer.manifest import ObjectType, format_generation
from buffer.notice import NoticeKind
from buffer.reader import RingReader
from buffer.ring import Instant, Ring, RingOptions
from buffer.storage import PosixReadStorage, PosixStorage, make_directory, publish_file
from buffer.tagtable import TagTable, decode_table, encode_table
from gateway import __version__, footprint
from gateway.collect.absence import markers_after
from gateway.collect.clock import GatewayClock
from gateway.collect.control import Control
from gateway.collect.crew import STOP_SECONDS_MAX, Crew
from gateway.collect.locks import SourceLocks
from gateway.collect.reload import FINDINGS_SHOWN_MAX, Reloader, tag_changes
from gateway.collect.scrubber import Scrubber
from gateway.collect.sealer import Sealer
from gateway.collect.sources import Maker
from gateway.collect.tables import Tables, build_tables, decode_rows
from gateway.collect.writer import Writer
from gateway.runtime import Runtime, notify
from gateway.trust.keys import KeyRing, KeySigner, load_signer, spki_der
from gateway.trust.rotation import retired

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.findings import Finding
    from gateway.settings import GatewaySettings

RELEASED_NS: Final = 1_790_000_000 * 10**9  # a clock before this release is wrong: readings are flagged until it is set
CONTROL_LOOK_S: Final = 0.1
TRIM_AFTER_NS: Final = 60 * 10**9  # behind a start and a change: what they took goes back when the sources are at work
CERTIFICATE_NS: Final = 3_600 * 10**9  # a load certificate per source and hour

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collector:
    """Everything one collect process owns."""

    runtime: Runtime
    settings: GatewaySettings  # without sources: the reloader knows those in force
    ring: Ring
    writer: Writer
    control: Control
    clock: GatewayClock
    maker: Maker
    crew: Crew
    sealer: Sealer
    reloader: Reloader
    scrubber: Scrubber
    certified_ns: int = 0  # monotonic: when the last load certificates were written
    status_fault: str = ""
    trim_ns: int = 0  # monotonic: when free memory goes back to the system, 0 for not

    # ---- loops beside the sources ----

    async def obey(self) -> None:
        """Look what people ask for: a paused device is left within a second."""
        while True:
            self.control.watch(one.name for one in self.reloader.tables.sources)
            paused, resumed = self.control.poll(self.runtime.monotonic_ns())
            for name, reason in paused.items():
                self.writer.notice(NoticeKind.OPERATOR, name, event="paused", reason=reason)
            for name in resumed:
                self.writer.notice(NoticeKind.OPERATOR, name, event="resumed")
            await self.runtime.sleep(CONTROL_LOOK_S)

    async def watch(self) -> None:
        """Turn events of the ring into notices, publish status, feed the watchdog."""
        while True:
            events, self.ring.counters.events = self.ring.counters.events, []
            for event in events:
                self.writer.notice(NoticeKind.RING, "", event=event)
            said = self.clock.observe(self.runtime.wall_ns(), self.runtime.monotonic_ns(), synchronised=False)
            if said is not None:
                self.writer.notice(NoticeKind.CLOCK, "", event=said.event, offset_ns=said.offset_ns)
            self._certify()
            await self._publish_status()
            if self.trim_ns and self.runtime.monotonic_ns() >= self.trim_ns:
                self.trim_ns = 0
                footprint.trim()
            notify("WATCHDOG=1")
            await self.runtime.sleep(1.0)

    def _certify(self) -> None:
        """Once an hour: what each source had to bear in it."""
        now = self.runtime.monotonic_ns()
        if now - self.certified_ns < CERTIFICATE_NS:
            return
        self.certified_ns = now
        for name, report in self._sources().items():
            if load := report.get("load"):
                self.writer.notice(NoticeKind.LOAD, name, event="load certificate", **load)

    async def _publish_status(self) -> None:
        """A disk that refuses the status is no reason to stop collecting; it is said once."""
        data = json.dumps(self.status(), default=str).encode()
        try:
            await self.runtime.offload(partial(publish_file, self.settings.collect_status, data, durable=False))
        except StorageFault as fault:
            if not self.status_fault:
                log.error("status not published", extra={"data": {"fault": str(fault)}})  # noqa: TRY400
            self.status_fault = str(fault)
        else:
            self.status_fault = ""

    async def reload_when(self, asked: asyncio.Event) -> None:
        """Go over to the new configuration whenever a person asks."""
        while True:
            await asked.wait()
            asked.clear()
            await self.reloader.apply(self.crew, self.maker)
            self.settle()

    def settle(self) -> None:
        """Give back what a start or a change took: now, and once more when the sources are at work again."""
        footprint.give_back()
        self.trim_ns = self.runtime.monotonic_ns() + TRIM_AFTER_NS

    def _sources(self) -> dict[str, Any]:
        return {name: getattr(source, "status", dict)() for name, source in self.crew.sources.items()}

    def status(self) -> dict[str, Any]:
        """Return what `ebbgate status` shows."""
        w, c, state = self.writer.status, self.ring.counters, self.ring.state
        return {
            "process": "collect",
            "time_ns": self.runtime.wall_ns(),
            "stream": self.settings.stream,
            "generation": format_generation(self.ring.generation),
            "readings": c.readings,
            "commits": w.commits,
            "pending": w.pending,
            "fault": w.fault,
            "alarm": self.reloader.fault or self.control.fault,
            "configured_ns": self.reloader.applied_ns,
            "end_seq": state.end if state else 0,
            "low": list(state.low) if state else None,
            "lost": len(state.lost) if state else 0,
            "open_gaps": len(state.open_gaps) if state else 0,
            "segments": len(self.ring.segments),
            "sealed": c.sealed,
            "sealing_waits": self.sealer.waiting,
            "evicted": c.evicted_files,
            "failed_syncs": c.failed_syncs,
            "ring_bytes": self.ring.usage_bytes(),
            "ring_bytes_max": self.settings.ring.max_bytes,
            "bytes_written": c.bytes_written,
            "written_bytes_per_day": self.ring.info(instant(self.runtime, self.clock)).written_bytes_per_day,
            "sources": self._sources(),
        }


def instant(runtime: Runtime, clock: GatewayClock) -> Instant:
    """Return the time of now, as the ring wants it."""
    return Instant(runtime.wall_ns(), runtime.monotonic_ns(), runtime.boot_id, clock.trusted)


async def run(
    runtime: Runtime, settings: GatewaySettings, load: Callable[[], GatewaySettings] | None = None, asked: asyncio.Event | None = None
) -> None:
    """Collect until cancelled; raise EbbgateError or StorageFault where it cannot start.

    load: reads the configuration again whenever `asked` is set (SIGHUP).
    """
    footprint.one_heap()
    collector = _wire(runtime, settings, await runtime.offload(partial(_open, runtime, settings)), load)
    settings = collector.settings
    commit = asyncio.create_task(collector.writer.run())
    loops: list[asyncio.Task[None]] = []
    try:
        await collector.reloader.publish()
        loops.append(asyncio.create_task(collector.watch(), name="watch"))
        await collector.sealer.catch_up()
        for one in collector.reloader.tables.sources:
            collector.crew.start(collector.maker.make(one))
        loops += [
            asyncio.create_task(collector.obey(), name="obey"),
            asyncio.create_task(collector.sealer.run(), name="seal"),
            asyncio.create_task(collector.scrubber.run(), name="scrub"),
            asyncio.create_task(collector.reload_when(asked or asyncio.Event()), name="reload"),
        ]
        collector.writer.notice(NoticeKind.COLLECT, "", event="started", release=__version__, generation=format_generation(collector.ring.generation))
        log.info("collect is ready", extra={"data": {"stream": settings.stream, "sources": list(collector.crew.sources)}})
        collector.settle()
        notify("READY=1")
        await asyncio.gather(asyncio.shield(commit), collector.crew.broken, *loops)  # what ends by itself is a defect of ours: be started again
    finally:
        await _stop(collector, commit, loops)


async def _stop(collector: Collector, commit: asyncio.Task[None], loops: list[asyncio.Task[None]]) -> None:
    for task in loops:
        task.cancel()
    await collector.crew.stop_all()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await asyncio.gather(*loops, return_exceptions=True)
    collector.writer.notice(NoticeKind.COLLECT, "", event="stopped in order")
    collector.writer.stop()
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await commit
    collector.control.close()
    collector.ring.close()


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a start found on the disk."""

    ring: Ring
    tables: Tables
    before: TagTable | None
    clock: GatewayClock
    root: Path


def _wire(runtime: Runtime, settings: GatewaySettings, opened: _Opened, load: Callable[[], GatewaySettings] | None) -> Collector:
    ring, tables, clock = opened.ring, opened.tables, opened.clock
    now = partial(instant, runtime, clock)
    writer = Writer(ring, tables.table, runtime, now, settings.ring.commit_ns)
    locks = SourceLocks(settings.state / "collect", [one.name for one in tables.sources])
    control = Control(settings.state / "control", locks, format_generation(ring.generation))
    control.poll(runtime.monotonic_ns())
    maker = Maker(runtime, settings.state / "collect", clock, control)
    sealer = Sealer(runtime, writer, ring, opened.root, now, settings.ring.seal_ns)
    reloader = Reloader(runtime, settings, tables, load or (lambda: settings), ring, writer)
    if opened.before is not None and encode_table(opened.before) != encode_table(tables.table):
        told = [f"{one.where}: {one.what}" for one in _changes_since(settings)]
        writer.notice(NoticeKind.CONFIG, "", event="tag table changed", tags=told[:FINDINGS_SHOWN_MAX], tags_changed=len(told))
    alone, began = replace(settings, sources=()), runtime.monotonic_ns()  # the tags of the start are held by nobody for ever
    scrubber = Scrubber(runtime, alone, ring, writer, now, lambda: reloader.tables.table)
    return Collector(runtime, alone, ring, writer, control, clock, maker, Crew(writer), sealer, reloader, scrubber, certified_ns=began)


def _changes_since(settings: GatewaySettings) -> tuple[Finding, ...]:
    """Return what this start changes in the tags of the run before; a start goes on whatever it is: not to collect would be worse."""
    try:
        before = decode_rows(settings.tags_in_force.read_bytes())
    except (OSError, ValueError):
        return ()
    return tag_changes(before, [row for source in settings.sources for row in source.tags], settings)


def _open(runtime: Runtime, settings: GatewaySettings) -> _Opened:
    root = settings.ring.path / settings.stream
    for directory in (root, settings.state / "collect", settings.state / "control"):
        make_directory(directory)
    _rehearse(runtime, settings)
    signer = load_signer(settings.data_key)
    verifier = _verifier(settings, signer, root)
    before_keys = retired(settings.data_key)
    for public, _ in before_keys:
        verifier.trust(public)
    spki = (spki_der(signer.public), *(spki_der(public) for public, _ in before_keys))
    options = RingOptions(settings.stream, settings.ring.max_bytes, public_keys=spki)
    try:
        newest = _newest_wall_ns(root)
        clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), RELEASED_NS, newest)
        now = instant(runtime, clock)
        ring = Ring.open(PosixStorage(root), options, signer, verifier, now, runtime.nonce32(), runtime.nonce64)
    except StorageFault as fault:
        what = str(fault).removeprefix(f"{fault.path}: ")
        raise StorageFault(what, path=str(root / fault.path), errno=fault.errno) from None
    try:
        before = _table_before(ring)
        tables = build_tables(settings, before)
        statement = settings.data_key.with_suffix(".statement")
        for payload in [*(old for _, old in before_keys if old), *([statement.read_bytes()] if statement.exists() else [])]:
            ring.add_object(ObjectType.KEY_STATEMENT, payload)
        ring.use_table(encode_table(tables.table))
        _mark_absence(ring, tables, newest)
        ring.commit(now)
    except BaseException:
        ring.close()
        raise
    return _Opened(ring, tables, before, clock, root)


def _rehearse(runtime: Runtime, settings: GatewaySettings) -> None:
    """Raise what is wrong with the sources while no file of the ring has been touched: a mistake restarted for days costs no generation."""
    clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), RELEASED_NS, 0)
    Maker(runtime, settings.state / "collect", clock, Control(settings.state / "control")).rehearse(settings.sources)


def _mark_absence(ring: Ring, tables: Tables, committed_ns: int) -> None:
    """Append the markers that a killed collector could not write, of the sources that are still read."""
    for source in tables.sources:
        number = tables.table.source_number(source.name)
        columns = markers_after(ring.known(number).last, committed_ns)
        if len(columns):
            ring.append(columns, number)


def _verifier(settings: GatewaySettings, signer: KeySigner, root: Path) -> KeyRing:
    """Return the keys whose blocks this ring may hold: the present one."""
    if not settings.data_key.with_suffix(".statement").exists() and not (root / "durable").exists():
        log.warning(
            "this data key has no statement yet: the receiver will ask for one",
            extra={"data": {"remedy": "enrol: ebbgate enroll, or ebbgate identity install"}},
        )
    keys = KeyRing()
    keys.trust(signer.public)
    return keys


def _newest_wall_ns(root: Path) -> int:
    """Return when the newest committed block was committed, 0 on a new disk: a clock before that is wrong."""
    reader = RingReader(PosixReadStorage(root))
    try:
        newest = reader.newest(reader.inventory())
    except CorruptError:
        return 0
    return newest.state.wall_ns if newest is not None and newest.state is not None else 0


def _table_before(ring: Ring) -> TagTable | None:
    """Return the tag table of the newest committed block, whose numbers go on; None on a new disk, or where it is gone."""
    try:
        payload = ring.recovered_table
        return decode_table(payload) if payload is not None else None
    except CorruptError as error:
        log.warning("the tag table before is unreadable; numbers begin anew", extra={"data": {"why": str(error)}})
        return None
