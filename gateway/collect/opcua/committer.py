"""From batches to acknowledgements: batches enter the sink in order, several wait for the same commit, each is told when it is durable."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.collect.source import Batch, Sink

WAITING_READINGS_MAX: Final = 50_000  # about 5 MB of columns: then the server is asked for less
WAITING_MESSAGES_MAX: Final = 12  # what is neither committed nor acknowledged must fit the server's queue for Republish
PUBLISH_AHEAD: Final = 3  # PublishRequests waiting at the server while all is well: hides the round trip


class Committer:
    """Hands batches to the sink. Sink.commit takes the batches of one source in the order of the calls."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._readings = 0
        self.eased: Callable[[], None] = lambda: None  # called when room may have come

    def submit(self, batch: Batch, done: Callable[[], None] | None = None) -> asyncio.Task[None]:
        """Begin to commit a batch; `done` is called once it is durable."""
        task = asyncio.create_task(self._commit(batch, done))
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def _commit(self, batch: Batch, done: Callable[[], None] | None) -> None:
        self._readings += len(batch.columns)
        try:
            await self._sink.commit(batch)
        finally:
            self._readings -= len(batch.columns)
        if done is not None:
            done()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed = task.exception()
        self.eased()

    def check(self) -> None:
        """Raise what a commit raised: the ring cannot take this source's readings, ever."""
        if self._failed is not None:
            raise self._failed

    def publish_ahead(self) -> int:
        """Return how many PublishRequests may wait at the server now: back-pressure is fewer of them."""
        fullness = max(self._readings / WAITING_READINGS_MAX, len(self._tasks) / WAITING_MESSAGES_MAX)
        return PUBLISH_AHEAD if fullness < 0.5 else 1 if fullness < 1 else 0  # noqa: PLR2004 -- half full

    async def drain(self, timeout_s: float) -> None:
        """Wait until all batches are durable, at most timeout_s."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.shield(next(iter(self._tasks)))
        except TimeoutError:
            return
