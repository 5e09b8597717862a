"""The running sources of one collect process: started, stopped one by one, watched. A source that ends by itself is a defect of ours."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.collect.source import Sink, Source

STOP_SECONDS_MAX: Final = 10  # for a source to write its markers and leave the server


class Crew:
    """Sources by name, each in its task. `broken` ends with the error of the first one that ended by itself."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.sources: dict[str, Source] = {}
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, source: Source) -> None:
        """Run a source from now on."""
        self.sources[source.name] = source
        task = asyncio.create_task(source.run(self._sink), name=source.name)
        self._tasks[source.name] = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.broken.done():
            return
        self.broken.set_exception(task.exception() or RuntimeError(f"source {task.get_name()} ended by itself"))

    async def stop(self, names: Iterable[str]) -> list[str]:
        """End these sources in order; return those that did not end in STOP_SECONDS_MAX (their tasks are cancelled and left)."""
        tasks = [task for name in list(names) if (task := self._tasks.pop(name, None)) is not None]
        for task in tasks:
            self.sources.pop(task.get_name(), None)
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await asyncio.gather(*tasks, return_exceptions=True)
        return sorted(task.get_name() for task in tasks if not task.done())

    async def stop_all(self) -> None:
        """End every source."""
        await self.stop(list(self._tasks))
