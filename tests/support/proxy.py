"""A TCP proxy that tests can cut: refuse, abort, or go silent without closing anything."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """Forwards 127.0.0.1:<port> to a server. `recorded`: every byte from the client, in order."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.recorded = bytearray()
        self.connections = 0
        self._blocked = False
        self._silent = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._blocked:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            there, to = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, to}
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):  # the end of the proxy is no fault of a connection
            await asyncio.gather(self._pipe(reader, to, True), self._pipe(there, writer, False))
        self._writers -= {writer, to}
        if task is not None:
            self._tasks.discard(task)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            while data := await reader.read(65_536):
                while self._silent:
                    await asyncio.sleep(0.02)
                if up:
                    self.recorded += data
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    def cut(self, blocked: bool = False) -> None:
        """Abort all connections; refuse new ones while blocked."""
        self._blocked = blocked
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()

    def restore(self) -> None:
        """Forward again."""
        self._blocked = self._silent = False

    def silence(self) -> None:
        """Keep connections open and forward nothing: a cable pulled behind a switch."""
        self._silent = True
