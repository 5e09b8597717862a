"""RTU numbers nothing: what comes late, twice, torn or amid noise must never be taken for the answer to another question.

Two lines that keep their bytes over a reconnect: a serial line (pseudo terminal), and a gateway that passes the bytes of a serial line on to
whoever is connected. Holding register i holds i, so a value that is not its address is a wrong value. What RTU cannot show is not claimed here: a second answer that arrives after the next question was sent.
"""

from __future__ import annotations

import asyncio
import os
import struct
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway.collect.modbus.frame import BadAnswer, NoAnswer, read_pdu
from gateway.collect.modbus.hub import Hub
from gateway.errors import PlantError
from gateway.runtime import real
from gateway.settings import ModbusSource
from tests.support.modbus_device import rtu

PATIENCE_S = 30.0
TIMEOUT_S = 0.15
Trick = Callable[[bytes], list[tuple[float, bytes]]]  # the right answer -> what is sent, each part so long after the request


class Line:
    """A device on a wire. The first requests meet the tricks, one each; then it answers well."""

    def __init__(self, *tricks: Trick) -> None:
        self.tricks = list(tricks)
        self.asked: list[int] = []
        self.send: Callable[[bytes], None] = lambda data: None

    def hear(self, data: bytes) -> None:
        """Take one request (they come whole here)."""
        if len(data) < 8:
            return
        start, count = struct.unpack(">HH", data[2:6])
        self.asked.append(start)
        answer = rtu(data[0], bytes([data[1], 2 * count]) + struct.pack(f">{count}H", *range(start, start + count)))
        parts = self.tricks.pop(0)(answer) if self.tricks else [(0.0, answer)]
        for after, part in parts:
            asyncio.get_running_loop().call_later(after, lambda part=part: self.send(part))


@asynccontextmanager
async def serial(line: Line) -> AsyncIterator[ModbusSource]:
    master, slave = os.openpty()
    tty.setraw(slave)
    loop = asyncio.get_running_loop()
    line.send = lambda data: (os.write(master, data), None)[1]
    loop.add_reader(master, lambda: line.hear(os.read(master, 4096)))
    try:
        yield ModbusSource("s", "modbus-rtu", os.ttyname(slave), parity="N", timeout_ns=int(TIMEOUT_S * 1e9))
    finally:
        loop.remove_reader(master)
        line.send = lambda data: None
        os.close(master)
        os.close(slave)


@asynccontextmanager
async def gateway(line: Line) -> AsyncIterator[ModbusSource]:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(4096):
            line.hear(data)
        writers.remove(writer)
        writer.close()

    def send(data: bytes) -> None:
        for writer in writers[-1:]:
            writer.write(data)

    line.send = send
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield ModbusSource("s", "modbus-rtu-tcp", f"127.0.0.1:{port}", timeout_ns=int(TIMEOUT_S * 1e9))
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


LINES = {"serial": serial, "gateway": gateway}
TRICKS: dict[str, Trick] = {
    "late": lambda answer: [(TIMEOUT_S * 1.4, answer)],
    "at the deadline": lambda answer: [(TIMEOUT_S, answer)],
    "twice at once": lambda answer: [(0.0, answer * 2)],
    "that of another register before it": lambda answer: [(0.0, rtu(answer[0], bytes([3, 2, 0, 1])) + answer)],
    "that of another register behind it": lambda answer: [(0.0, answer + rtu(answer[0], bytes([3, 2, 0, 1])))],
    "half, then the rest late": lambda answer: [(0.0, answer[:4]), (TIMEOUT_S * 1.4, answer[4:])],
    "half": lambda answer: [(0.0, answer[:4])],
    "damaged": lambda answer: [(0.0, answer[:-1] + bytes([answer[-1] ^ 1]))],
    "another unit": lambda answer: [(0.0, rtu(9, answer[1:-2]))],
    "another function": lambda answer: [(0.0, rtu(answer[0], bytes([4]) + answer[2:-2]))],
    "another length": lambda answer: [(0.0, rtu(answer[0], bytes([3, 4, 0, 1, 0, 2])))],
    "silence": lambda answer: [],
    "byte by byte": lambda answer: [(0.005 * i, bytes([byte])) for i, byte in enumerate(answer)],
    "byte by byte, too slow": lambda answer: [(0.03 * i, bytes([byte])) for i, byte in enumerate(answer)],
    "junk before": lambda answer: [(0.0, b"\0\xff\0" + answer)],
    "junk behind": lambda answer: [(0.0, answer + b"\xff\0")],
    "junk alone": lambda answer: [(0.0, b"\xff" * 300)],
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("line", LINES)
async def test_a_value_is_right_or_none(line: str, trick: str) -> None:
    """The trick comes twice, with good answers between; every answer that is taken is that to its own question."""
    device = Line(TRICKS[trick], TRICKS[trick])
    hub = Hub(real())
    good = 0
    async with LINES[line](device) as settings, asyncio.timeout(PATIENCE_S):
        for start in range(100, 112):
            asked = await hub.ask(settings, read_pdu(3, start, 1))
            if isinstance(asked.answer, bytes):
                assert asked.answer == bytes([3, 2]) + struct.pack(">H", start)
                good += 1
            else:
                assert isinstance(asked.answer, PlantError)
        hub.close()
    assert device.asked == list(range(100, 112))  # asked once each: nothing is asked again in secret
    assert good >= 8


@pytest.mark.parametrize("line", LINES)
async def test_a_line_where_another_master_speaks_is_said(line: str) -> None:
    device = Line(lambda answer: [])
    hub = Hub(real())
    async with LINES[line](device) as settings, asyncio.timeout(PATIENCE_S):
        first = await hub.ask(settings, read_pdu(3, 1, 1))
        assert isinstance(first.answer, NoAnswer | BadAnswer)

        async def chatter() -> None:
            while True:
                device.send(rtu(5, bytes([3, 2, 0, 9])))
                await asyncio.sleep(TIMEOUT_S / 3)

        task = asyncio.create_task(chatter())
        second = await hub.ask(settings, read_pdu(3, 2, 1))
        task.cancel()
        assert isinstance(second.answer, PlantError)
        assert "another master" in second.answer.message
        assert device.asked == [1]
        third = await hub.ask(settings, read_pdu(3, 3, 1))
        assert third.answer == bytes([3, 2, 0, 3])
        hub.close()


async def test_units_on_one_line_each_have_the_time_that_their_source_gives_them() -> None:
    """The line is opened by whoever asks first."""
    device, hub = Line(lambda answer: [(0.0, answer)], lambda answer: [(TIMEOUT_S * 2, answer)]), Hub(real())
    async with serial(device) as settings, asyncio.timeout(PATIENCE_S):
        await hub.ask(settings, read_pdu(3, 1, 1))
        asked = await hub.ask(replace(settings, name="slow", unit=2, timeout_ns=int(TIMEOUT_S * 20e9)), read_pdu(3, 2, 1))
        hub.close()
    assert asked.answer == bytes([3, 2, 0, 2])
