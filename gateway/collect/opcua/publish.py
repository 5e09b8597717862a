"""The publish pump of one connection: keeps PublishRequests waiting at the server, as many as back-pressure allows, with acknowledgements."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.collect.opcua.guarded import plain_bytes, plant

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.collect.opcua.session import Session
    from gateway.collect.opcua.throttle import Throttle

PUBLISH_MAX = 5  # what any server takes per session


class Publisher:
    """Run `keep_asking` as a task; await `answer` in another."""

    def __init__(self, session: Session, throttle: Throttle, ahead: Callable[[], int], acknowledge: Callable[[], list[tuple[int, int]]]) -> None:
        self._session = session
        self._throttle = throttle
        self._ahead = ahead
        self._acknowledge = acknowledge
        self._answers: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
        self._room = asyncio.Event()
        self._most = PUBLISH_MAX
        self.waiting = 0  # requests at the server

    def eased(self) -> None:
        """Look again whether another request may go."""
        self._room.set()

    def fewer(self) -> None:
        """The server said BadTooManyPublishRequests."""
        self._most = max(1, min(self._most, self.waiting))

    async def keep_asking(self) -> None:
        """Send PublishRequests for ever."""
        while True:
            while self.waiting >= min(self._most, self._ahead()):
                self._room.clear()
                await self._room.wait()
            await self._throttle.begin()
            future = self._session.publish(self._acknowledge())
            self.waiting += 1
            future.add_done_callback(self._answered)

    def _answered(self, future: asyncio.Future[Any]) -> None:
        self.waiting -= 1
        if not future.cancelled():
            future.exception()  # seen, also where nobody waits any more
        self._answers.put_nowait(future)
        self._room.set()

    async def answer(self) -> bytes:
        """Return the bytes of the next PublishResponse; raise PlantError when the connection is lost."""
        future = await self._answers.get()
        with plant("Publish"):
            if future.cancelled():
                raise ConnectionError("connection lost")
            data = plain_bytes(future.result())
        self._throttle.spent(None, len(data))
        return data
