"""Wiring of collect: sources -> writer -> ring; sealing child, control files, status. Runs until cancelled, then stops in order.

Order of a stop: sources are cancelled and write their out-of-service markers, a notice says so, the writer commits, the ring closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError, StorageFault
from buffer.manifest import ObjectType, format_generation
from buffer.notice import NoticeKind
from buffer.reader import RingReader
from buffer.ring import Instant, Ring, RingOptions, with_root
from buffer.storage import PosixReadStorage, PosixStorage, make_directory, publish_file
from buffer.tagtable import TagTable, decode_table, encode_table
from gateway import __version__
from gateway.collect.clock import GatewayClock
from gateway.collect.control import Control
from gateway.collect.locks import SourceLocks
from gateway.collect.sealer import run_child
from gateway.collect.sources import make_sources
from gateway.collect.tables import Tables, build_tables
from gateway.collect.writer import Writer
from gateway.runtime import Runtime, notify
from gateway.trust.keys import KeyRing, KeySigner, load_signer, spki_der

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.collect.source import Source
    from gateway.settings import GatewaySettings

SEAL_LOOK_S: Final = 1.0
RELEASED_NS: Final = 1_790_000_000 * 10**9  # a clock before this release is wrong: readings are flagged until it is set
STOP_SECONDS_MAX: Final = 10  # for a source to write its markers and leave the server

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collector:
    """Everything one collect process owns."""

    runtime: Runtime
    settings: GatewaySettings
    ring: Ring
    tables: Tables
    writer: Writer
    control: Control
    clock: GatewayClock
    sources: list[Source]
    root: Path

    # ---- loops beside the sources ----

    async def seal(self) -> None:
        """Have journals sealed, one after the other, by a child process."""
        while True:
            await self.runtime.sleep(SEAL_LOOK_S)
            now = self.instant()
            await self.writer.exclusively(partial(self.ring.roll_if_due, now, self.settings.ring.seal_ns))
            request = await self.writer.exclusively(self.ring.sealable)
            if request is None:
                continue
            result = await run_child(with_root(request, str(self.root)))
            if result.error or not result.parts:
                await self.writer.exclusively(partial(self.ring.seal_failed, request, result.error))
                self.writer.notice(NoticeKind.STORAGE, "", event="journal not sealed", why=result.error)
                continue
            try:
                await self.writer.exclusively(partial(self.ring.adopt, request, result, self.instant()))
            except (CorruptError, StorageFault) as error:
                await self.writer.exclusively(partial(self.ring.seal_failed, request, str(error)))
                self.writer.notice(NoticeKind.STORAGE, "", event="segment not published", why=str(error))

    async def watch(self) -> None:
        """Poll control files, turn events of the ring into notices, publish status, feed the watchdog."""
        while True:
            paused, resumed = self.control.poll(self.runtime.monotonic_ns())
            for name, reason in paused.items():
                self.writer.notice(NoticeKind.OPERATOR, name, event="paused", reason=reason)
            for name in resumed:
                self.writer.notice(NoticeKind.OPERATOR, name, event="resumed")
            events, self.ring.counters.events = self.ring.counters.events, []
            for event in events:
                self.writer.notice(NoticeKind.RING, "", event=event)
            said = self.clock.observe(self.runtime.wall_ns(), self.runtime.monotonic_ns(), synchronised=False)
            if said is not None:
                self.writer.notice(NoticeKind.CLOCK, "", event=said.event, offset_ns=said.offset_ns)
            path = self.settings.state / "collect" / "status.json"
            publish_file(path, json.dumps(self.status(), default=str).encode(), durable=False)
            notify("WATCHDOG=1")
            await self.runtime.sleep(1.0)

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
            "end_seq": state.end if state else 0,
            "low": list(state.low) if state else None,
            "lost": len(state.lost) if state else 0,
            "open_gaps": len(state.open_gaps) if state else 0,
            "segments": len(self.ring.segments),
            "sealed": c.sealed,
            "evicted": c.evicted_files,
            "failed_syncs": c.failed_syncs,
            "ring_bytes": self.ring.usage_bytes(),
            "ring_bytes_max": self.settings.ring.max_bytes,
            "bytes_written": c.bytes_written,
            "sources": {source.name: getattr(source, "status", dict)() for source in self.sources},
        }

    def instant(self) -> Instant:
        """Return the time of now."""
        return instant(self.runtime, self.clock)


def instant(runtime: Runtime, clock: GatewayClock) -> Instant:
    """Return the time of now, as the ring wants it."""
    return Instant(runtime.wall_ns(), runtime.monotonic_ns(), runtime.boot_id, clock.trusted)


async def run(runtime: Runtime, settings: GatewaySettings) -> None:
    """Collect until cancelled; raise EbbgateError or StorageFault where it cannot start."""
    collector = await runtime.offload(partial(_open, runtime, settings))
    commit = asyncio.create_task(collector.writer.run())
    tasks = [asyncio.create_task(source.run(collector.writer), name=source.name) for source in collector.sources]
    tasks += [asyncio.create_task(collector.seal(), name="seal"), asyncio.create_task(collector.watch(), name="watch")]
    collector.writer.notice(NoticeKind.COLLECT, "", event="started", release=__version__, generation=format_generation(collector.ring.generation))
    log.info("collect is ready", extra={"data": {"stream": settings.stream, "sources": [s.name for s in collector.sources]}})
    notify("READY=1")
    try:
        await asyncio.gather(asyncio.shield(commit), *tasks)  # whatever ends by itself is a defect of ours: stop, be started again
    finally:
        await _stop(collector, commit, tasks)


async def _stop(collector: Collector, commit: asyncio.Task[None], tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await asyncio.gather(*tasks, return_exceptions=True)
    collector.writer.notice(NoticeKind.COLLECT, "", event="stopped in order")
    collector.writer.stop()
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await commit
    collector.control.close()
    collector.ring.close()


def _open(runtime: Runtime, settings: GatewaySettings) -> Collector:
    root = settings.ring.path / settings.stream
    for directory in (root, settings.state / "collect", settings.state / "control"):
        make_directory(directory)
    signer = load_signer(settings.data_key)
    verifier = _verifier(settings, signer, root)
    options = RingOptions(settings.stream, settings.ring.max_bytes, public_keys=(spki_der(signer.public),))
    newest = _newest_wall_ns(root)
    clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), RELEASED_NS, newest)
    now = instant(runtime, clock)
    ring = Ring.open(PosixStorage(root), options, signer, verifier, now, runtime.nonce32(), runtime.nonce64)
    before = _table_before(ring)
    tables = build_tables(settings, before)
    statement = settings.data_key.with_suffix(".statement")
    if statement.exists():
        ring.add_object(ObjectType.KEY_STATEMENT, statement.read_bytes())
    ring.use_table(encode_table(tables.table))
    ring.commit(now)
    name = f"addresses-{hashlib.sha256(tables.addresses).hexdigest()[:16]}.json"
    publish_file(settings.state / "collect" / name, tables.addresses, mode=0o600)
    writer = Writer(ring, tables.table, runtime, partial(instant, runtime, clock), settings.ring.commit_ns)
    locks = SourceLocks(settings.state / "collect", [one.name for one in settings.sources])
    control = Control(settings.state / "control", locks)
    control.poll(runtime.monotonic_ns())
    sources = make_sources(runtime, settings, tables.sources, clock, control)
    if before is not None and encode_table(before) != encode_table(tables.table):
        writer.notice(NoticeKind.CONFIG, "", event="tag table changed", tags=len(tables.table.tags))
    return Collector(runtime, settings, ring, tables, writer, control, clock, sources, root)


def _verifier(settings: GatewaySettings, signer: KeySigner, root: Path) -> KeyRing:
    """Return the keys whose blocks this ring may hold: the present one."""
    if not settings.data_key.with_suffix(".statement").exists() and not (root / "durable").exists():
        log.warning(
            "this data key has no statement yet: the receiver will ask for one",
            extra={"data": {"remedy": "ebbgate ca statement, then put it beside the key"}},
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
