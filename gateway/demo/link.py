"""A switchable TCP link between uploader and receiver: up forwards, down resets what is open and refuses what comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Final

CHUNK_BYTES: Final = 64 * 1024
_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER 0: close sends RST


class Link:
    """Listens on a free loopback port and forwards to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.up = True
        self.cuts = 0
        self.refused = 0
        self.bytes_out = 0  # towards the receiver
        self.bytes_back = 0

    async def start(self) -> int:
        """Listen; return the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Take the link down: every open connection is reset."""
        self.up = False
        self.cuts += 1
        for writer in list(self._open):
            _reset(writer)

    def restore(self) -> None:
        """Bring the link back."""
        self.up = True

    async def stop(self) -> None:
        """Close everything."""
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            self.refused += 1
            _reset(writer)
            return
        try:
            there_reader, there = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        self._open |= {writer, there}
        for source, sink, out in ((reader, there, True), (there_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, sink, out))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, out: bool) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await source.read(CHUNK_BYTES):
                if not self.up:
                    break
                if out:
                    self.bytes_out += len(data)
                else:
                    self.bytes_back += len(data)
                sink.write(data)
                await sink.drain()
        self._open.discard(sink)
        sink.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    writer.transport.abort()
