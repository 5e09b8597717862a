"""Wiring of deliver: landing index -> rows -> sinks. One task per sink and stream; a sink that fails stops nobody else."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError, StorageFault
from buffer.storage import PosixReadStorage, make_directory, publish_file
from buffer.tagtable import TagTable, decode_table
from gateway.deliver.parquet import LakeSink, frame_rows
from gateway.deliver.sink import Part, SinkError, Work
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

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SinkStatus:
    """What `status` shows of one sink and stream."""

    rows: int = 0
    following: dict[str, int] = field(default_factory=dict)
    error: str = ""
    delivered_ns: int = 0


class Feed:
    """The landing of one stream, turned into work."""

    def __init__(self, settings: SiteSettings, stream: str) -> None:
        self.stream = stream
        self.site = next((g.site or g.id for g in settings.gateways if stream.startswith(g.id + ".")), "unknown")
        self._reader = LandingReader(PosixReadStorage(settings.landing / stream))
        self._tables: dict[bytes, TagTable] = {}

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
        for lane in Lane:
            records = self._records(lane, ahead.following.get(lane.value, 0), sink.limit(cursor, lane.value))
            if records:
                parts = tuple(self._part(record) for record in records if record.new)
                return Work(self.stream, self.site, lane.value, state.landing, later, records[0].number, records[-1].number, parts)
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

    def _part(self, record: Record) -> Part:
        return Part(record.number, record.generation, record.new, self._table(record.tag_table), partial(self._load, record))

    def _table(self, digest: bytes) -> TagTable:
        if digest not in self._tables:
            frame = self._reader.object_frame(digest)
            if frame is None:
                raise CorruptError("the tag table of a landed record is not in the landing", source=digest.hex())
            self._tables[digest] = decode_table(frame.payload)
        return self._tables[digest]

    def _load(self, record: Record, ranges: Sequence[Range]) -> Rows:
        return frame_rows([self._reader.frame(record)], self._table(record.tag_table), ranges)


async def feed_sink(runtime: Runtime, feed: Feed, sink: Sink, status: SinkStatus, every_s: float) -> None:
    """Deliver one stream to one sink for ever."""
    attempt = 0
    while True:
        try:
            busy = await runtime.offload(partial(_step, runtime, feed, sink, status))
            attempt = 0
        except (SinkError, CorruptError, StorageFault) as error:
            if status.error != str(error):
                log.error("sink waits", extra={"data": {"sink": sink.name, "stream": feed.stream, "error": str(error)}})  # noqa: TRY400
            status.error = str(error)
            await runtime.sleep(full_jitter(runtime, attempt, 1.0, RETRY_CAP_S))
            attempt += 1
            continue
        status.error = ""
        if not busy:
            await runtime.sleep(every_s)


def _step(runtime: Runtime, feed: Feed, sink: Sink, status: SinkStatus) -> bool:
    cursor = sink.cursor(feed.stream)
    work = feed.next(cursor, sink)
    if work is not None:
        cursor = sink.write(work)
        status.delivered_ns = runtime.wall_ns()
    status.rows, status.following = cursor.rows, dict(cursor.following)
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
    log.info("deliver is ready", extra={"data": {"sinks": [s.name for s in settings.sinks], "lake": str(settings.lake)}})
    notify("READY=1")
    async with asyncio.TaskGroup() as group:
        while True:
            for stream in stream_names(settings.landing):
                if stream in statuses:
                    continue
                statuses[stream] = {}
                for sink, every_s in make_sinks(runtime, settings):
                    statuses[stream][sink.name] = SinkStatus()
                    group.create_task(feed_sink(runtime, Feed(settings, stream), sink, statuses[stream][sink.name], every_s))
            publish_file(settings.deliver / "status.json", json.dumps(_status(runtime, statuses)).encode(), durable=False)
            notify("WATCHDOG=1")
            await runtime.sleep(1.0)


def _status(runtime: Runtime, statuses: dict[str, dict[str, SinkStatus]]) -> dict[str, Any]:
    streams = {
        stream: {
            name: {"rows": s.rows, "following": s.following, "error": s.error, "delivered_ns": s.delivered_ns} for name, s in sinks.items()
        }
        for stream, sinks in statuses.items()
    }
    return {"process": "deliver", "time_ns": runtime.wall_ns(), "streams": streams}
