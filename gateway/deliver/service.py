"""Wiring of deliver: landing index -> rows -> sinks. One task per sink and stream; a sink that fails stops nobody else."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError, StorageFault
from buffer.storage import PosixReadStorage, make_directory, publish_file
from buffer.tagtable import TagTable, decode_table
from gateway import footprint
from gateway.deliver.parquet import LakeSink, frame_rows
from gateway.deliver.sink import Part, SinkError, UnreadableError, Work
from gateway.landing import LandingReader, Record, stream_names
from gateway.runtime import full_jitter, notify
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.intervals import Range
    from gateway.deliver.cursor import Cursor
    from gateway.deliver.sink import Rows, Sink
    from gateway.runtime import Runtime
    from gateway.settings import SiteSettings

WORK_READINGS_MAX: Final = 1_000_000  # of one transaction
WORK_RECORDS_MAX: Final = 2_000
RETRY_CAP_S: Final = 60.0
TABLES_KEPT_MAX: Final = 4  # tag tables of a stream: the present one, and some that a backlog goes back to
UNREAD_AGAIN_NS: Final = 3600 * 10**9  # how often records that did not read are tried again, beside each start

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SinkStatus:
    """What `status` shows of one sink and stream."""

    rows: int = 0
    following: dict[str, int] = field(default_factory=dict)
    error: str = ""
    delivered_ns: int = 0
    behind: int = 0  # landing records that wait
    unread: dict[str, list[int]] = field(default_factory=dict)
    why_unread: str = ""  # the newest of them


class Feed:
    """The landing of one stream, turned into work.

    A record whose frame does not read stops one try; the next passes it by (`bad`), and `again` tries it anew.
    """

    def __init__(self, settings: SiteSettings, stream: str) -> None:
        self.stream = stream
        self.site = next((g.site or g.id for g in settings.gateways if stream.startswith(g.id + ".")), "unknown")
        self._reader = LandingReader(PosixReadStorage(settings.landing / stream))
        self._tables: dict[bytes, TagTable] = {}
        self.bad: dict[tuple[str, int], str] = {}  # (lane, number) -> why

    def next(self, cursor: Cursor, sink: Sink) -> Work | None:
        """Return the next piece of work for a sink, None if it has everything; raise CorruptError, StorageFault."""
        self._reader.refresh()
        state = self._reader.state
        if not state.landing:
            return None
        starts = state.since(cursor.landing) if cursor.landing else None
        later = {Lane.LIVE.value: starts.live, Lane.BACKFILL.value: starts.backfill} if starts else {}
        ahead = cursor.copy()
        ahead.follow(state.landing, later)
        if (again := self._again(ahead, later)) is not None:
            return again
        for lane in Lane:
            records = self._records(lane, ahead.following.get(lane.value, 0), sink.limit(cursor, lane.value))
            if records:
                parts = tuple(part for record in records if record.new and (part := self._part(record)) is not None)
                passed = tuple(r.number for r in records if (lane.value, r.number) in self.bad)
                return Work(self.stream, self.site, lane.value, state.landing, later, records[0].number, records[-1].number, parts, passed)
        return None

    def _again(self, cursor: Cursor, later: dict[str, int]) -> Work | None:
        """Return a record that was passed by before and has not been tried since `forget_bad`."""
        for lane in Lane:
            for number in cursor.unread.get(lane.value, ()):
                if (lane.value, number) in self.bad:
                    continue
                record = next((r for r in self._reader.records(lane, number, 1) if r.number == number), None)
                part = self._part(record) if record is not None else None
                if part is not None:
                    return Work(self.stream, self.site, lane.value, self._reader.state.landing, later, number, number, (part,), again=True)
                self.bad.setdefault((lane.value, number), "its index entry is gone")
        return None

    def _records(self, lane: Lane, first: int, limit: int | None) -> list[Record]:
        """Return records first.. without a hole, up to `limit` or as many as one piece of work takes."""
        out: list[Record] = []
        readings = 0
        for record in self._reader.records(lane, first, WORK_RECORDS_MAX):
            if record.number != first + len(out) or (limit is not None and record.number > limit):
                break
            out.append(record)
            readings += record.count
            if readings >= WORK_READINGS_MAX and limit is None:
                break
        return out

    def _part(self, record: Record) -> Part | None:
        if (record.lane.value, record.number) in self.bad:
            return None
        try:
            table = self._table(record.tag_table)
        except CorruptError as error:
            self._spoilt(record, error)
            return None
        return Part(record.number, record.generation, record.new, table, partial(self._load, record))

    def _spoilt(self, record: Record, error: Exception) -> str:
        why = f"{record.lane.value} record {record.number} of {self.stream} does not read: {error}"
        self.bad[record.lane.value, record.number] = why
        return why

    def _table(self, digest: bytes) -> TagTable:
        if digest not in self._tables:
            frame = self._reader.object_frame(digest)
            if frame is None:
                raise CorruptError("the tag table of a landed record is not in the landing", source=digest.hex())
            table = decode_table(frame.payload)
            if len(self._tables) >= TABLES_KEPT_MAX:
                del self._tables[next(iter(self._tables))]
            self._tables[digest] = table
        return self._tables[digest]

    def _load(self, record: Record, ranges: Sequence[Range]) -> Rows:
        try:
            return frame_rows([self._reader.frame(record)], self._table(record.tag_table), ranges)
        except (CorruptError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise UnreadableError(self._spoilt(record, error)) from error


async def feed_sink(runtime: Runtime, feed: Feed, sink: Sink, status: SinkStatus, every_s: float) -> None:
    """Deliver one stream to one sink for ever."""
    attempt, again_at, worked = 0, runtime.monotonic_ns() + UNREAD_AGAIN_NS, False
    while True:
        if runtime.monotonic_ns() > again_at:
            feed.bad.clear()
            again_at = runtime.monotonic_ns() + UNREAD_AGAIN_NS
        try:
            busy = await runtime.offload(partial(_step, runtime, feed, sink, status))
        except UnreadableError as error:
            log.error("passed by", extra={"data": {"sink": sink.name, "error": str(error)}})  # noqa: TRY400 -- it names the file
            status.why_unread = str(error)
            continue
        except Exception as error:  # whatever a target or its driver does, no other sink is touched
            _waits(feed, sink, status, error)
            await runtime.sleep(full_jitter(runtime, attempt, 1.0, RETRY_CAP_S))
            attempt += 1
            continue
        attempt, status.error = 0, ""
        if worked and not busy:
            await runtime.offload(footprint.give_back)
        worked = busy
        if not busy:
            await runtime.sleep(every_s)


def _waits(feed: Feed, sink: Sink, status: SinkStatus, error: Exception) -> None:
    known = isinstance(error, SinkError | CorruptError | StorageFault)
    text = str(error) if known else f"defect in sink {sink.name}: {type(error).__name__}: {error}"
    if status.error != text:
        log.error("sink waits", exc_info=None if known else error, extra={"data": {"sink": sink.name, "stream": feed.stream, "error": text}})
    status.error = text


def _step(runtime: Runtime, feed: Feed, sink: Sink, status: SinkStatus) -> bool:
    cursor = sink.cursor(feed.stream)
    work = feed.next(cursor, sink)
    if work is not None:
        cursor = sink.write(work)
        status.delivered_ns = runtime.wall_ns()
    status.rows, status.following, status.unread = cursor.rows, dict(cursor.following), dict(cursor.unread)
    if feed.bad:
        status.why_unread = next(reversed(feed.bad.values()))
    return work is not None


def make_sinks(runtime: Runtime, settings: SiteSettings) -> list[tuple[Sink, float]]:
    """Return the configured sinks with how often each looks; a sink's library is imported only where it is used."""
    sinks: list[tuple[Sink, float]] = []
    if settings.lake is not None:
        make_directory(settings.lake)
        sinks.append((LakeSink(settings.lake, settings.deliver), settings.lake_every_ns / 1e9))
    for one in settings.sinks:
        from gateway.deliver.postgres import PostgresSink

        sinks.append((PostgresSink(one, runtime.wall_ns), 1.0))
    return sinks


async def run(runtime: Runtime, settings: SiteSettings) -> None:
    """Deliver until cancelled; new streams are taken up as they appear."""
    make_directory(settings.deliver)
    statuses: dict[str, dict[str, SinkStatus]] = {}
    readers: dict[str, LandingReader] = {}  # of the status alone: a sink that works once a minute is behind in between
    log.info("deliver is ready", extra={"data": {"sinks": [s.name for s in settings.sinks], "lake": str(settings.lake)}})
    notify("READY=1")
    async with asyncio.TaskGroup() as group:
        while True:
            for stream in stream_names(settings.landing):
                if stream in statuses:
                    continue
                statuses[stream], readers[stream] = {}, LandingReader(PosixReadStorage(settings.landing / stream))
                for sink, every_s in make_sinks(runtime, settings):
                    statuses[stream][sink.name] = SinkStatus()
                    group.create_task(feed_sink(runtime, Feed(settings, stream), sink, statuses[stream][sink.name], every_s))
            for stream, reader in readers.items():
                await runtime.offload(partial(_measure, reader, statuses[stream]))
            _publish(settings, _status(runtime, statuses))
            notify("WATCHDOG=1")
            await runtime.sleep(1.0)


def _measure(reader: LandingReader, sinks: dict[str, SinkStatus]) -> None:
    """Say how far each sink is behind the landing now. A landing that does not read is the feeds' affair."""
    with suppress(CorruptError, StorageFault):
        reader.refresh()
    ends = reader.state.ends
    for status in sinks.values():
        status.behind = sum(max(0, ends.of(lane) - status.following.get(lane.value, 0)) for lane in Lane)


def _publish(settings: SiteSettings, status: dict[str, Any]) -> None:
    """Show the status. A full disk here must not stop a sink whose target has room."""
    try:
        publish_file(settings.deliver / "status.json", json.dumps(status).encode(), durable=False)
    except StorageFault as fault:
        log.error("status", extra={"data": {"fault": str(fault)}})  # noqa: TRY400


def _status(runtime: Runtime, statuses: dict[str, dict[str, SinkStatus]]) -> dict[str, Any]:
    streams = {
        stream: {
            name: {
                "rows": s.rows, "following": s.following, "error": s.error, "delivered_ns": s.delivered_ns, "behind": s.behind,
                "unread": sum(len(x) for x in s.unread.values()), "why_unread": s.why_unread if s.unread else "",
            }
            for name, s in sinks.items()
        }
        for stream, sinks in statuses.items()
    }
    return {"process": "deliver", "time_ns": runtime.wall_ns(), "streams": streams}
