"""The one task that owns the Ring: batches in, committed batches out. Everything the ring does passes this lock, in order.

A source awaits `commit` and is told when its batch is durable; until then it acknowledges nothing. Memory is bounded: when
PENDING_READINGS_MAX wait, `commit` makes its caller wait before it is even queued, and that wait is the back-pressure a source
turns into fewer requests. A disk that refuses is tried again for ever with back-off; what waits stays in memory, unacknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, cast

from buffer import limits
from buffer.errors import StorageFault
from buffer.notice import NoticeKind, encode_notice
from buffer.types import concat

if TYPE_CHECKING:
    from collections.abc import Callable

    from buffer.ring import Instant, Ring
    from buffer.tagtable import TagTable
    from buffer.types import Columns
    from gateway.collect.source import Batch, Known
    from gateway.runtime import Runtime

PENDING_READINGS_MAX: Final = 200_000  # about 20 MB of columns: ten seconds of a busy site
NOTICES_MAX: Final = 500  # waiting for one commit; more are counted, not kept
RETRY_S: Final = (1.0, 5.0, 15.0, 30.0)  # after a disk that refused

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    batch: Batch
    done: asyncio.Future[None]


@dataclass(slots=True)
class WriterStatus:
    """What `status` shows of the writer."""

    commits: int = 0
    readings: int = 0
    pending: int = 0
    fault: str = ""
    fault_since_ns: int = 0
    notices_dropped: int = 0


class Writer:
    """Implements gateway.collect.source.Sink over one Ring. `run` must be running for `commit` to return."""

    def __init__(self, ring: Ring, table: TagTable, runtime: Runtime, instant: Callable[[], Instant], commit_ns: int) -> None:
        self._ring = ring
        self._table = table
        self._stopping = False
        self._runtime = runtime
        self._instant = instant
        self._commit_s = commit_ns / 1e9
        self._lock = asyncio.Lock()  # whoever holds it may call the ring
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._turn = asyncio.Lock()  # first come, first served
        self._room = asyncio.Event()
        self._notices: list[Columns] = []
        self.status = WriterStatus()

    # ---- gateway.collect.source.Sink ----

    async def commit(self, batch: Batch) -> None:
        """Return when the batch is durable. Waits before queueing while too much is pending."""
        async with self._turn:  # in the order of the calls: a source's position must never go back
            while self.status.pending >= PENDING_READINGS_MAX:
                self._room.clear()
                await self._room.wait()
            self.status.pending += len(batch.columns)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(batch, done))
        self._arrived.set()
        await asyncio.shield(done)

    def known(self, source: str) -> Known:
        """Return the committed state of a source. Needs no lock: the ring keeps it whole while it commits."""
        return self._ring.known(self._table.source_number(source))

    def notice(self, kind: int, source: str, **detail: object) -> None:
        """Queue a notice for the next commit; more than NOTICES_MAX are counted instead of kept."""
        if len(self._notices) >= NOTICES_MAX:
            self.status.notices_dropped += 1
            return
        self._notices.append(encode_notice(NoticeKind(kind), self._runtime.wall_ns(), source, dict(detail)))
        self._arrived.set()

    def use_table(self, table: TagTable) -> None:
        """Number sources by this table from now on; the ring has it already."""
        self._table = table

    # ---- the loop ----

    async def run(self) -> None:
        """Commit until `stop`: soon after something arrived, and at least every 10 s, so that silence has a meaning."""
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.COMMIT_INTERVAL_MAX_NS / 1e9 - self._commit_s):
                    await self._arrived.wait()
            await self._runtime.sleep(self._commit_s)
            await self.flush()

    def stop(self) -> None:
        """Have `run` return after the next commit: what waits then is durable."""
        self._stopping = True
        self._arrived.set()

    async def flush(self) -> None:
        """Commit what waits now (an empty block if nothing does); return when it is durable."""
        self._arrived.clear()
        taken, self._waiting = self._waiting, []
        notices, self._notices = self._notices, []
        if self.status.notices_dropped:
            dropped, self.status.notices_dropped = self.status.notices_dropped, 0
            detail: dict[str, object] = {"dropped_notices": dropped}
            notices.append(encode_notice(NoticeKind.COLLECT, self._runtime.wall_ns(), "", detail))
        async with self._lock:
            for one in taken:
                await self._runtime.offload(partial(self._append, one.batch))
            if notices:
                await self._runtime.offload(partial(self._ring.append, concat(notices)))
            await self._commit_for_ever()
        self.status.commits += 1
        for one in taken:
            self.status.readings += len(one.batch.columns)
            if not one.done.done():
                one.done.set_result(None)
        self.status.pending -= sum(len(one.batch.columns) for one in taken)
        self._room.set()

    async def exclusively(self, action: Callable[[], Result]) -> Result:
        """Run `action` in a thread while nobody else touches the ring (adopting a segment, scrubbing, a new tag table)."""
        async with self._lock:
            return cast("Result", await self._runtime.offload(action))

    def _append(self, batch: Batch) -> None:
        self._ring.append(batch.columns, self._table.source_number(batch.source), batch.position, batch.gap)

    async def _commit_for_ever(self) -> None:
        for attempt in itertools.count():
            try:
                await self._runtime.offload(lambda: self._ring.commit(self._instant()))
                await self._runtime.offload(lambda: self._ring.make_room(self._instant()))
            except StorageFault as fault:
                if not self.status.fault:
                    self.status.fault_since_ns = self._runtime.wall_ns()
                self.status.fault = str(fault)
                log.error("the ring cannot write; sources wait", extra={"data": {"fault": str(fault), "attempt": attempt}})  # noqa: TRY400
                await self._runtime.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            else:
                if self.status.fault:
                    seconds = (self._runtime.wall_ns() - self.status.fault_since_ns) / 1e9
                    self.notice(NoticeKind.STORAGE, "", event="writing again", fault=self.status.fault, seconds=round(seconds, 1))
                self.status.fault = ""
                return
