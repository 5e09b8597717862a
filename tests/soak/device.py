"""python -m tests.soak.device --devices N: Modbus TCP devices whose every answer can be told from all others; the ports go to stdout.

All registers of one answer hold the number of this answer to this request, modulo 65,536. Every second a line of JSON on stdout says what
each device was asked: requests, the most that began in any 10 seconds, connections at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
import time
from collections import deque

REQUEST = struct.Struct(">HHHBBHH")


class Device:
    """One device; one port."""

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        self.requests = 0
        self.most_in_10s = 0
        self.connections = 0
        self.connections_most = 0
        self._recent: deque[float] = deque()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.connections_most = max(self.connections_most, self.connections)
        try:
            while True:
                data = await reader.readexactly(REQUEST.size)
                transaction, _, _, unit, function, start, count = REQUEST.unpack(data)
                self._count()
                number = self.answers[start] = self.answers.get(start, 0) + 1
                body = struct.pack(">H", number & 0xFFFF) * count
                writer.write(struct.pack(">HHHBBB", transaction, 0, 3 + len(body), unit, function, len(body)) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections -= 1
            writer.close()

    def _count(self) -> None:
        now = time.monotonic()
        self.requests += 1
        self._recent.append(now)
        while self._recent[0] <= now - 10:
            self._recent.popleft()
        self.most_in_10s = max(self.most_in_10s, len(self._recent))


async def serve(count: int) -> None:
    devices = [Device() for _ in range(count)]
    servers = [await asyncio.start_server(device.serve, "127.0.0.1", 0) for device in devices]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    while True:
        await asyncio.sleep(1.0)
        out = [[d.requests, d.most_in_10s, d.connections_most, sum(d.answers.values())] for d in devices]
        print(json.dumps(out), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, required=True)
    try:
        asyncio.run(serve(parser.parse_args().devices))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)


if __name__ == "__main__":
    main()
