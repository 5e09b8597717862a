"""Between a steady schedule and a ring that syncs once a second: whole polls wait here, in order, and are committed together.

Bounded: a source does not poll while `full`; it skips polls and says so, and the device is left alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from buffer.types import concat
from gateway.collect.source import Batch

if TYPE_CHECKING:
    from buffer.types import Columns
    from gateway.collect.source import Sink

READINGS_MAX: Final = 50_000  # waiting for the ring; below one block, about 2 MB


class Outbox:
    """Whole polls of one source on their way to the sink."""

    def __init__(self, source: str, sink: Sink) -> None:
        self._source = source
        self._sink = sink
        self._polls: list[Columns] = []
        self._readings = 0
        self._sender: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether the ring is so slow that no poll should be made."""
        return self._readings >= READINGS_MAX

    def put(self, columns: Columns | None) -> None:
        """Hand over one poll; raise what an earlier commit raised (StorageFault: this source must stop)."""
        if self._sender is not None and self._sender.done():
            self._sender.result()
            self._sender = None
        if columns is None:
            return
        self._polls.append(columns)
        self._readings += len(columns)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def drain(self) -> None:
        """Return when everything is committed; raise what a commit raised."""
        if self._sender is not None:
            await asyncio.shield(self._sender)

    async def _send(self) -> None:
        while self._polls:
            polls, self._polls = self._polls, []
            columns = concat(polls)
            await self._sink.commit(Batch(self._source, columns))
            self._readings -= len(columns)
