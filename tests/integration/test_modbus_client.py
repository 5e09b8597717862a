"""The client against devices that lie, drip, stall and flood: the deadline holds, memory is bounded, no answer is taken for another."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import pytest

from gateway.collect.modbus.client import USER_TIMEOUT_MS, Connection, connect, parse_host_port
from gateway.collect.modbus.frame import BadAnswer, ConnectionLost, Framing, NoAnswer, Refused, parse_identification, read_pdu
from gateway.collect.modbus.hub import Hub
from gateway.errors import ConfigError, PlantError
from gateway.runtime import real
from gateway.settings import ModbusSource
from tests.support.modbus_device import Device, rtu, running

READ = read_pdu(3, 7, 2)
ANSWER = bytes([3, 4, 0, 7, 0, 8])
PATIENCE_S = 20.0  # a hang ends here; nothing is measured


def mbap(transaction: int, unit: int, pdu: bytes, protocol: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">HHHB", transaction, protocol, len(pdu) + 1 if length is None else length, unit) + pdu


LIES: dict[str, tuple[Callable[[int], bytes], type[PlantError]]] = {
    "another transaction": (lambda t: mbap(t + 1, 1, ANSWER), BadAnswer),
    "the transaction before": (lambda t: mbap(t - 1, 1, ANSWER), BadAnswer),
    "another unit": (lambda t: mbap(t, 2, ANSWER), BadAnswer),
    "another protocol": (lambda t: mbap(t, 1, ANSWER, protocol=1), BadAnswer),
    "another function": (lambda t: mbap(t, 1, bytes([4]) + ANSWER[1:]), BadAnswer),
    "an exception of another function": (lambda t: mbap(t, 1, bytes([0x84, 2])), BadAnswer),
    "too few registers": (lambda t: mbap(t, 1, bytes([3, 2, 0, 7])), BadAnswer),
    "too many registers": (lambda t: mbap(t, 1, bytes([3, 6, 0, 7, 0, 8, 0, 9])), BadAnswer),
    "a count that does not fit": (lambda t: mbap(t, 1, bytes([3, 2, 0, 7, 0, 8])), BadAnswer),
    "a length of zero": (lambda t: mbap(t, 1, ANSWER, length=0), BadAnswer),
    "a length of 65535": (lambda t: mbap(t, 1, ANSWER, length=65_535), BadAnswer),
    "an empty PDU": (lambda t: mbap(t, 1, b""), BadAnswer),
    "an exception that goes on": (lambda t: mbap(t, 1, bytes([0x83, 2, 0])), BadAnswer),
    "two answers": (lambda t: mbap(t, 1, ANSWER) * 2, BadAnswer),
    "half an answer": (lambda t: mbap(t, 1, ANSWER)[:8], NoAnswer),
    "nothing": (lambda t: b"", NoAnswer),
    "HTTP": (lambda t: b"HTTP/1.1 400 Bad Request\r\n\r\n", BadAnswer),
    "a flood": (lambda t: b"\xff" * 4_000_000, BadAnswer),
    "an answer and a flood": (lambda t: mbap(t, 1, ANSWER) + b"\0" * 4_000_000, BadAnswer),
}


async def ask(connection: Connection, timeout_s: float = 0.3) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await connection.request(1, READ, timeout_s)


@pytest.mark.parametrize("lie", LIES)
async def test_lies_end_the_connection_and_the_next_answer_is_right(lie: str) -> None:
    build, fault = LIES[lie]
    device = Device()

    async def hostile(adu: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(build(int.from_bytes(adu[:2], "big")))
        await writer.drain()

    device.hostile = hostile
    async with running(device) as address:
        connection = await connect(address, Framing.MBAP, False, "", 2.0)
        with pytest.raises(fault):
            await ask(connection)
        assert not connection.is_open
        with pytest.raises(ConnectionLost):
            await ask(connection)
        assert connection.bytes_moved < 1_000_000  # the flood was not read on
        device.hostile = None
        again = await connect(address, Framing.MBAP, False, "", 2.0)
        assert await ask(again) == ANSWER
        again.close()


async def test_one_byte_at_a_time_is_an_answer_if_it_ends_in_time() -> None:
    device = Device()

    async def drip(adu: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in mbap(int.from_bytes(adu[:2], "big"), 1, ANSWER):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.005)

    device.hostile = drip
    async with running(device) as address:
        connection = await connect(address, Framing.MBAP, False, "", 2.0)
        assert await ask(connection, 5.0) == ANSWER
        connection.close()


async def test_one_byte_every_5_ms_for_ever_meets_the_deadline() -> None:
    device = Device()
    sent = 0

    async def drip(adu: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for byte in mbap(int.from_bytes(adu[:2], "big"), 1, bytes([3, 250]) + bytes(250)):
            writer.write(bytes([byte]))
            sent += 1
            await asyncio.sleep(0.005)

    device.hostile = drip
    async with running(device) as address:
        connection = await connect(address, Framing.MBAP, False, "", 2.0)
        with pytest.raises(NoAnswer):
            async with asyncio.timeout(PATIENCE_S):
                await connection.request(1, read_pdu(3, 0, 125), 0.2)
        assert sent < 250


async def test_a_late_answer_is_never_taken_for_the_next_one() -> None:
    """The device answers each request with its start address, the first one too late: through the hub, as sources ask."""
    device = Device()
    first = True

    async def late(adu: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        was, first = first, False
        await asyncio.sleep(0.3 if was else 0)
        answer = bytes([3, 2]) + adu[8:10]
        if not writer.is_closing():
            writer.write(adu[:4] + struct.pack(">HB", len(answer) + 1, adu[6]) + answer)

    device.hostile = late
    async with running(device) as address:
        settings = ModbusSource("m", "modbus-tcp", address, timeout_ns=150_000_000)
        hub = Hub(real())
        hub.join("m")
        assert isinstance((await hub.ask(settings, read_pdu(3, 1, 1))).answer, NoAnswer)
        for start in range(2, 8):
            assert (await hub.ask(settings, read_pdu(3, start, 1))).answer == bytes([3, 2, 0, start])
            await asyncio.sleep(0.05)
        assert device.connections == 2
        hub.leave("m")


async def test_a_cancelled_request_ends_the_connection() -> None:
    device = Device()
    device.delay_s = 0.2
    async with running(device) as address:
        connection = await connect(address, Framing.MBAP, False, "", 2.0)
        task = asyncio.create_task(ask(connection, 2.0))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not connection.is_open


async def test_bytes_nobody_asked_for_end_the_connection() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    connection = await connect(address, Framing.MBAP, False, "", 2.0)
    await asyncio.sleep(0.1)
    assert not connection.is_open
    server.close()


async def test_exceptions_leave_the_connection_open() -> None:
    device = Device()
    device.missing = {(3, 8)}
    async with running(device) as address:
        connection = await connect(address, Framing.MBAP, False, "", 2.0)
        with pytest.raises(Refused) as caught:
            await ask(connection)
        assert caught.value.code == 2
        device.missing.clear()
        assert await ask(connection) == ANSWER
        assert device.connections == 1
        connection.close()


async def test_rtu_over_tcp_with_its_checksum() -> None:
    device = Device(Framing.RTU)
    async with running(device) as address:
        connection = await connect(address, Framing.RTU, True, "", 2.0)
        assert await ask(connection) == ANSWER
        said = await connection.request(1, b"\x2b\x0e\x01\x00", 2.0)
        assert parse_identification(said) == {"vendor": "ACME", "product": "M1"}
        device.missing = {(3, 8)}
        with pytest.raises(Refused):
            await ask(connection)
        for bad in (rtu(1, ANSWER)[:-1] + b"\0", rtu(2, ANSWER), rtu(1, b"\x04" + ANSWER[1:]), rtu(1, ANSWER) + b"\0", b"\x01\x03\xff" + bytes(300)):

            async def hostile(adu: bytes, writer: asyncio.StreamWriter, reply: bytes = bad) -> None:
                writer.write(reply)

            device.hostile = hostile
            one = await connect(address, Framing.RTU, True, "", 2.0)
            with pytest.raises(BadAnswer):
                await ask(one)
            assert not one.is_open
        connection.close()


def test_a_damaged_identification_does_not_raise() -> None:
    whole = b"\x2b\x0e\x01\x01\x00\x00\x02\x00\x04ACME\x01\x02M1"
    for cut in range(len(whole)):
        parse_identification(whole[:cut])
    assert parse_identification(whole[:6] + b"\xff\x00\x04AC\xffE") == {"vendor": "AC\ufffdE"}


async def test_connect_says_what_the_network_said() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ConnectionLost, match="all connections of this device are taken"):
            await connect(address, Framing.MBAP, False, "", 2.0)
    with pytest.raises(ConnectionLost, match="no_such_if0"):
        await connect("127.0.0.1:502", Framing.MBAP, False, "no_such_if0", 2.0)


async def test_socket_options_and_interface() -> None:
    device = Device()
    async with running(device) as address:
        try:
            connection = await connect(address, Framing.MBAP, False, "lo", 2.0)
        except ConnectionLost as error:
            pytest.skip(f"SO_BINDTODEVICE is not permitted here: {error}")
        assert await ask(connection) == ANSWER
        connection.close()
    from gateway.collect.modbus.client import _socket

    with _socket("127.0.0.1", "lo") as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == USER_TIMEOUT_MS


@pytest.mark.parametrize("text", ["meter.plant:502", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", ":502", "10.0.0.1:5\u0661", "10.0.0.256:502", ""])
def test_addresses_are_literal(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_host_port(text)


def test_good_addresses() -> None:
    assert parse_host_port("192.168.10.40:502") == ("192.168.10.40", 502)
    assert parse_host_port("[::1]:502") == ("::1", 502)
