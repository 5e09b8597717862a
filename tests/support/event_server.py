"""asyncua's own server with a history of events, in SQLite or in memory, and the ledger of all it ever raised. Nobody here wrote it.

What it does otherwise than the standard says, and the tests know: history ignores the where clause, and OfType means that very type. In SQLite it
keeps no conditions (their table has a column twice), and an event only where its SourceNode is the notifier.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from asyncua import Server, ua
from asyncua.server.history_sql import HistorySQLite

from tests.support.opcua_server import free_port


class EventServer:
    """One server. raised: EventId in base64 -> time, ms, of every event, in order."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.raised: dict[str, int] = {}
        self.pause = False
        self._generator: Any = None
        self._condition: Any = None

    async def start(self, server: Server, *, conditions: bool, history: bool) -> None:
        notifier = server.nodes.server
        self._generator = await server.get_event_generator(ua.ObjectIds.BaseEventType, notifier)
        if conditions:
            self._condition = await server.get_event_generator(ua.ObjectIds.ConditionType, notifier)
            self._condition.event.ConditionName, self._condition.event.Retain = "LevelHigh", True
        if history:
            await server.historize_node_event(notifier, period=None)

    async def raise_event(self, when: datetime | None = None, *, condition: bool = False) -> None:
        """Raise one event; ms, for more would not come through SQL the same."""
        one = self._condition if condition else self._generator
        when = when or datetime.now(UTC)
        await one.trigger(time_attr=when, message=f"event {len(self.raised)}")
        self.raised[base64.b64encode(one.event.EventId.Value).decode()] = int(when.timestamp() * 1000)

    async def keep_raising(self, period_s: float) -> None:
        """Raise an event again and again; every tenth is a condition where there are any; now and then three have one time."""
        last = datetime.now(UTC) - timedelta(seconds=1)
        while True:
            await asyncio.sleep(period_s)
            if self.pause:
                continue
            now = max(datetime.now(UTC), last + timedelta(milliseconds=1))
            last = now
            for _ in range(3 if len(self.raised) % 7 == 0 else 1):
                await self.raise_event(now, condition=self._condition is not None and len(self.raised) % 10 == 9)


@contextlib.asynccontextmanager
async def event_server(directory: Path, *, conditions: bool = False, history: bool = True, period_s: float = 0) -> AsyncIterator[EventServer]:
    """Run one; with conditions it keeps its history in memory."""
    server, one = Server(), EventServer(free_port())
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{one.port}/")
    if not conditions:
        storage = HistorySQLite(str(directory / "events.sqlite"))
        server.iserver.history_manager.set_storage(storage)
        await storage.init()
    async with server:
        await one.start(server, conditions=conditions, history=history)
        task = asyncio.create_task(one.keep_raising(period_s)) if period_s else None
        try:
            yield one
        finally:
            if task is not None:
                task.cancel()
