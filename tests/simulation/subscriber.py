"""A source that speaks to `plant.Server` by the rules of DESIGN section 5: resend above the committed position, a gap before the first
reading after a lost subscription, history until the gap is closed, acknowledgement after the commit. Rules the product has as pure
functions are the product's: `stamp`, `debts_of`, `remaining`, `harvest`. The protocol itself (asyncua) is tested against real servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct

import numpy as np

from buffer.notice import NoticeKind
from buffer.types import Columns, Flag, Kind, concat, empty_columns
from gateway.collect.clock import stamp
from gateway.collect.opcua.answers import History
from gateway.collect.opcua.debt import Chunk, debts_of, harvest, pack_progress, remaining
from gateway.collect.opcua.decode import Items
from gateway.collect.source import Batch, GapChange, GapStep
from gateway.settings import OpcuaSource
from tests.simulation.plant import Away, Item, Server

POSITION = struct.Struct(">II")
WINDOW_NS = 10 * 86_400 * 10**9
CHUNK_TAGS = 2
CHUNK_VALUES = 10


class Subscriber:
    """Implements gateway.collect.source.Source. left: (tag, value) that nobody will ask for any more, said as unfillable."""

    def __init__(self, settings: OpcuaSource, runtime, clock, pauses, server: Server, left: set[tuple[int, int]]) -> None:
        self.name = settings.name
        self._settings = settings
        self._runtime = runtime
        self._clock = clock
        self._pauses = pauses
        self._server = server
        self._left = left
        self._settled = False
        self._down = False

    async def run(self, sink) -> None:
        while True:
            if self._pauses.paused(self.name):
                await self._runtime.sleep(0.2)
                continue
            session = asyncio.create_task(self._session(sink))
            try:
                while not session.done() and not self._pauses.paused(self.name):
                    await self._runtime.sleep(0.2)
                if session.done():
                    await session
            except Away:
                if not self._down:
                    sink.notice(NoticeKind.SOURCE_DOWN, self.name, reason="nobody answers")
                self._down = True
                await self._runtime.sleep(1 + 4 * self._runtime.random())
            finally:
                session.cancel()
                with contextlib.suppress(asyncio.CancelledError, Away):
                    await session

    async def _session(self, sink) -> None:
        self._settled = False
        fill = asyncio.create_task(self._fill(sink))
        try:
            await self._live(sink, fill)
        finally:
            fill.cancel()
            with contextlib.suppress(asyncio.CancelledError, Away):
                await fill

    async def _live(self, sink, fill: asyncio.Task[None]) -> None:
        position = sink.known(self.name).position
        subscription, number = POSITION.unpack(position) if position else (0, 0)
        broken = False
        if not subscription or not await self._server.resume(subscription):
            broken = position is not None
            subscription, number = await self._server.subscribe(), 0
        self._server.acknowledge(subscription, number)
        while True:
            messages = await self._server.publish(subscription, number)
            gap = broken or messages[0][0] != number + 1
            broken = False
            known = sink.known(self.name).last
            since_ns = max((r.ts_source_ns for r in known.values()), default=self._now_ns())
            parts = []
            for came, items in messages:
                if came == 1:  # nothing happened in between where the value is the one we have
                    items = [one for one in items if one[0] not in known or known[one[0]].value != one[1]]
                parts.append(self._columns(items, initial=came == 1, since_ns=since_ns))
            change = GapChange(GapStep.OPEN, from_ns=since_ns) if gap else None
            await sink.commit(Batch(self.name, concat(parts), POSITION.pack(subscription, messages[-1][0]), change))
            number, self._settled, self._down = messages[-1][0], True, False
            self._server.acknowledge(subscription, number)
            if fill.done():
                fill.result()

    def _now_ns(self) -> int:
        return self._clock.now(self._runtime.wall_ns(), self._runtime.monotonic_ns())

    def _columns(self, items: list[Item], *, initial: bool, since_ns: int) -> Columns:
        if not items:
            return empty_columns()
        now_ns, n = self._now_ns(), len(items)
        source = np.array([ts for _, _, ts in items], np.int64)
        stamped = stamp(source, np.full(n, initial), now_ns, min(since_ns, now_ns), self._clock.trusted, self._settings.clock)
        return Columns(
            np.array([tag for tag, _, _ in items], np.uint32), stamped.ts_ns, np.full(n, Kind.INT64, np.uint8),
            np.array([value for _, value, _ in items], np.uint64), np.zeros(n, np.uint32), stamped.flags, stamped.ts_source_ns, (),
        )  # fmt: skip

    # ---- history ----

    async def _fill(self, sink) -> None:
        while True:
            await self._runtime.sleep(1.0)
            gaps = sink.known(self.name).gaps
            if self._settled and gaps:
                await self._pay(sink, max(gaps, key=lambda gap: gap.from_ns))

    async def _pay(self, sink, gap) -> None:
        if abs(self._server.now_ns() - self._now_ns()) > self._settings.clock.max_skew_ns:
            self._give_up(gap)
            await self._close(sink, gap, GapStep.UNFILLABLE)
            return
        debts, _ = debts_of(gap, {tag: str(tag) for tag in self._server.tags}, WINDOW_NS)
        chunks, _ = remaining(debts, gap.progress, CHUNK_TAGS)
        for chunk in chunks:
            await self._ask(sink, gap, chunk)
        await self._close(sink, gap, GapStep.FILLED)

    async def _ask(self, sink, gap, chunk: Chunk) -> None:
        """As gateway.collect.opcua.fill does it."""
        to_ns = max(debt.before_ns for debt in chunk.debts)
        from_ns = max(chunk.cursor_ns, min(debt.after_ns for debt in chunk.debts))
        while True:
            results = []
            for debt in chunk.debts:
                await self._runtime.sleep(0.3)
                items, more = await self._server.history(debt.number, from_ns, to_ns, CHUNK_VALUES)
                results.append(History(0, b"more" if more else b"", _items(items)))
            got = harvest(_history, chunk, results, from_ns, CHUNK_VALUES)
            done = got.cursor_ns is None or got.cursor_ns >= to_ns
            chunk.cursor_ns = to_ns if done else got.cursor_ns or 0
            change = GapChange(GapStep.PROGRESS, gap.id, gap.from_ns, pack_progress(chunk, 0))
            await sink.commit(Batch(self.name, got.columns, None, change))
            if done:
                return
            from_ns = got.cursor_ns or to_ns

    async def _close(self, sink, gap, step: GapStep) -> None:
        sink.notice(NoticeKind.GAP, self.name, event=str(step), gap=gap.id)
        await sink.commit(Batch(self.name, empty_columns(), None, GapChange(step, gap.id, gap.from_ns)))

    def _give_up(self, gap) -> None:
        for tag, last in gap.last.items():
            made = self._server.made.get(tag, {})
            self._left |= {(tag, value) for value, ts in made.items() if ts >= last.ts_source_ns}


def _items(items: list[Item]) -> Items:
    n = len(items)
    return Items(
        np.arange(n, dtype=np.uint32), np.full(n, Kind.INT64, np.uint8), np.array([value for _, value, _ in items], np.uint64),
        np.zeros(n, np.uint32), np.zeros(n, np.uint16), np.array([ts for _, _, ts in items], np.int64), (),
    )  # fmt: skip


def _history(number: int, items: Items, rows) -> Columns:
    n = len(rows)
    flags = np.full(n, Flag(0), np.uint16)
    return Columns(
        np.full(n, number, np.uint32), items.source_ns[rows], items.kind[rows], items.values[rows], items.quality[rows], flags, None, ()
    )


__all__ = ["Subscriber"]
