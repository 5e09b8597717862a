"""A Modbus TCP or RTU-over-TCP device in asyncio, for what a real server will not do: record every byte, refuse, delay, lie."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.collect.modbus.frame import Framing, crc16

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Hostile = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Device:
    """Holding register i holds i, input register i 1000 + i, coil i is i % 3 == 0, discrete input i is i % 2."""

    def __init__(self, framing: Framing = Framing.MBAP) -> None:
        self.framing = framing
        self.received = b""
        self.requests: list[tuple[float, int, int, int, int]] = []  # loop time, unit, function, start, count
        self.answered: list[float] = []  # loop time at which each answer was handed to the network
        self.sent = 0  # bytes
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.missing: set[tuple[int, int]] = set()  # (function, address) that are refused with exception 2
        self.silent: set[tuple[int, int]] = set()  # (function, address) that make the device say nothing
        self.silent_units: set[int] = set()
        self.registers: dict[tuple[int, int], int] = {}
        self.lose = 0  # answers to keep back from now on
        self.exception = 0  # answer everything with this
        self.delay_s = 0.0
        self.hostile: Hostile | None = None  # (request ADU, writer): instead of an answer
        self.port = 0
        self.writers: set[asyncio.StreamWriter] = set()

    def answer(self, pdu: bytes, unit: int) -> bytes | None:
        """Return the PDU of the answer, or None for silence."""
        function = pdu[0]
        if pdu[:2] == b"\x2b\x0e":
            return bytes([0x2B, 0x0E, 1, 1, 0, 0, 2, 0, 4]) + b"ACME" + bytes([1, 2]) + b"M1"
        start, count = struct.unpack(">HH", pdu[1:5])
        self.requests.append((asyncio.get_running_loop().time(), unit, function, start, count))
        places = {(function, i) for i in range(start, start + count)}
        if self.lose:
            self.lose -= 1
            return None
        if unit in self.silent_units or places & self.silent:
            return None
        if self.exception:
            return bytes([function | 0x80, self.exception])
        if places & self.missing:
            return bytes([function | 0x80, 2])
        if function in (1, 2):
            bits = [(i % 3 == 0) if function == 1 else bool(i % 2) for i in range(start, start + count)]
            data = bytes(sum(bit << j for j, bit in enumerate(bits[i : i + 8])) for i in range(0, count, 8))
        else:
            base = 0 if function == 3 else 1000
            values = [self.registers.get((function, i), (base + i) % 65536) for i in range(start, start + count)]
            data = struct.pack(f">{count}H", *values)
        return bytes([function, len(data)]) + data

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.writers.add(writer)
        try:
            while data := await reader.read(4096):
                self.received += data
                await self._reply(data, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self.writers.discard(writer)
            writer.close()

    async def _reply(self, adu: bytes, writer: asyncio.StreamWriter) -> None:
        if self.hostile is not None:
            await self.hostile(adu, writer)
            return
        mbap = self.framing is Framing.MBAP
        unit, pdu = (adu[6], adu[7:]) if mbap else (adu[0], adu[1:-2])
        answer = self.answer(pdu, unit)
        await asyncio.sleep(self.delay_s)
        if answer is not None:
            whole = adu[:4] + struct.pack(">HB", len(answer) + 1, unit) + answer if mbap else rtu(unit, answer)
            self.answered.append(asyncio.get_running_loop().time())
            self.sent += len(whole)
            writer.write(whole)
            await writer.drain()


def rtu(unit: int, pdu: bytes) -> bytes:
    """Return an RTU frame."""
    body = bytes([unit]) + pdu
    return body + struct.pack("<H", crc16(body))


@asynccontextmanager
async def running(device: Device, port: int = 0) -> AsyncIterator[str]:
    """Serve on loopback; give the address."""
    server = await asyncio.start_server(device.serve, "127.0.0.1", port)
    device.port = server.sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{device.port}"
    finally:
        server.close()
        for writer in list(device.writers):
            writer.transport.abort()
        await asyncio.sleep(0)
