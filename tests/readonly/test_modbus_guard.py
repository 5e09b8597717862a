"""No function code outside {1, 2, 3, 4} (and 43/14 where it is allowed) reaches the wire, whoever asks, whichever layer is gone."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import os
import pkgutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymodbus.pdu
import pytest
from pymodbus.pdu import ModbusPDU

from gateway.collect.modbus import client, serial
from gateway.collect.modbus.client import Connection, connect
from gateway.collect.modbus.frame import IDENTIFY_PDU, ConnectionLost, Framing, NoAnswer, PlantError, check_wire, crc16, read_pdu, wrap
from gateway.errors import WriteRefused
from gateway.settings import ModbusSource
from tests.support.modbus_device import Device, running

READS = {1, 2, 3, 4}
BODY = b"\x0e\x01\x00\x00\x01\x02\x00\x05\x00\x00"


def allowed(pdu: bytes, identify: bool) -> bool:
    """The rule, written a second time."""
    return (len(pdu) == 5 and pdu[0] in READS) or (identify and len(pdu) == 4 and pdu[:2] == b"\x2b\x0e")


def census() -> Iterator[bytes]:
    """Every function code with every length that a request can have, and some that none has."""
    for code in range(256):
        for length in range(10):
            yield bytes([code]) + BODY[:length]
    yield b""
    yield read_pdu(3, 0, 1) + bytes([6, 0, 1, 0, 5])  # a write behind a read
    yield bytes([16, 0, 1, 0, 1, 2, 0, 5])
    yield bytes([23, 0, 0, 0, 1, 0, 1, 0, 1, 2, 0, 5])
    yield bytes([22, 0, 4, 0, 0xF2, 0, 0x25])
    yield bytes([0x2B, 0x0D, 0, 1])


async def try_all(connection: Connection, pdus: Iterator[bytes], identify: bool) -> int:
    """Ask for each; return how many passed. Fail if the guard and the rule disagree."""
    passed = 0
    for pdu in pdus:
        try:
            await connection.request(1, pdu, 2.0)
        except WriteRefused:
            assert not allowed(pdu, identify)
            continue
        except PlantError:
            pass
        assert allowed(pdu, identify)
        passed += 1
    return passed


def frames_in(stream: bytes, framing: Framing) -> list[bytes]:
    """Return the PDUs that a device received."""
    pdus = []
    while stream:
        if framing is Framing.MBAP:
            length = int.from_bytes(stream[4:6], "big")
            pdus.append(stream[7 : 6 + length])
            stream = stream[6 + length :]
        else:
            length = 7 if stream[1] == 0x2B else 8
            pdus.append(stream[1 : length - 2])
            stream = stream[length:]
    return pdus


@pytest.mark.parametrize("identify", [False, True])
@pytest.mark.parametrize("framing", list(Framing))
async def test_census_of_every_function_code(framing: Framing, identify: bool) -> None:
    device = Device(framing)
    async with running(device) as address:
        connection = await connect(address, framing, identify, "", 2.0)
        assert await try_all(connection, census(), identify) == 4 + identify
        assert connection.is_open
        await connection.request(1, read_pdu(3, 7, 1), 2.0)
        connection.close()
        seen = frames_in(device.received, framing)
        assert len(seen) == 5 + identify  # and not one byte besides
        assert all(allowed(pdu, identify) for pdu in seen)


def pymodbus_requests() -> Iterator[ModbusPDU]:
    """Every request that pymodbus knows, with the least arguments that encode."""
    for found in pkgutil.iter_modules(pymodbus.pdu.__path__):
        module = importlib.import_module(f"pymodbus.pdu.{found.name}")
        for _, class_ in inspect.getmembers(module, inspect.isclass):
            if issubclass(class_, ModbusPDU) and class_ is not ModbusPDU and class_.function_code and "Response" not in class_.__name__:
                yield from _made(class_)


def _made(class_: type[ModbusPDU]) -> Iterator[ModbusPDU]:
    both = {"read_address": 1, "read_count": 1, "write_address": 1, "write_registers": [5]}
    for arguments in (both, {"address": 1, "registers": [5]}, {"address": 1, "bits": [True]}, {"address": 1, "count": 1}, {}):
        try:
            pdu: Any = class_(**arguments)
            pdu.encode()
        except Exception:  # these arguments are not this request's
            continue
        yield pdu
        return


async def test_every_request_that_pymodbus_can_make() -> None:
    codes = set()
    device = Device()
    async with running(device) as address:
        connection = await connect(address, Framing.MBAP, False, "", 2.0)
        for pdu in pymodbus_requests():
            raw = bytes([pdu.function_code]) + pdu.encode()
            codes.add(pdu.function_code)
            if allowed(raw, False):
                continue
            with pytest.raises(WriteRefused):
                await connection.request(1, raw, 2.0)
            with pytest.raises(WriteRefused):
                connection._send(wrap(Framing.MBAP, 1, 1, raw))
        connection.close()
        assert device.received == b""
    assert codes >= {5, 6, 7, 8, 11, 12, 15, 16, 17, 20, 21, 22, 23, 24, 0x2B}


@pytest.mark.parametrize("framing", list(Framing))
async def test_private_ways_to_the_socket_are_guarded(framing: Framing) -> None:
    device = Device(framing)
    async with running(device) as address:
        connection = await connect(address, framing, False, "", 2.0)
        for pdu in census():
            wire = wrap(framing, 9, 1, pdu) if pdu else b""
            if allowed(pdu, False):
                check_wire(framing, wire, False)
                continue
            with pytest.raises(WriteRefused):
                connection._send(wire)
        read = wrap(framing, 9, 1, read_pdu(3, 0, 1))
        write = wrap(framing, 9, 1, bytes([6, 0, 1, 0, 5]))
        for wire in (read + write, write + read, read[:-1], read + b"\0", read[1:], b"\0" + read, read.replace(b"\x03", b"\x06", 1)):
            with pytest.raises(WriteRefused):
                connection._send(wire)
        # No attribute leads to the transport itself; only the guard's own closure holds it.
        for name in [*vars(connection), *(n for c in type(connection).__mro__ for n in getattr(c, "__slots__", ()))]:
            assert not hasattr(getattr(connection, name, None), "write"), name
        connection.close()
        with pytest.raises(ConnectionLost):
            connection._send(read)
        await asyncio.sleep(0.05)
        assert device.received == b""


WRITE = bytes([6, 0, 1, 0, 5])


@pytest.mark.parametrize(("without", "arrives"), [((), 0), (("pdu",), 0), (("wire",), 0), (("pdu", "wire"), 12)])
async def test_each_layer_alone_stops_a_write(monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...], arrives: int) -> None:
    """The last case shows that the test would see a write: with no layer left it arrives."""
    if "pdu" in without:
        monkeypatch.setattr(client, "check_modbus_pdu", lambda pdu, identify: None)
    if "wire" in without:
        monkeypatch.setattr(client, "check_wire", lambda framing, wire, identify: None)
    device = Device()

    async def quiet(adu: bytes, writer: asyncio.StreamWriter) -> None:
        return

    device.hostile = quiet
    async with running(device) as address:
        connection = await connect(address, Framing.MBAP, False, "", 2.0)
        with pytest.raises(NoAnswer if arrives else WriteRefused):
            await connection.request(1, WRITE, 0.2)
        connection.close()
    assert len(device.received) == arrives


def test_only_the_client_writes_to_a_socket() -> None:
    """One place in the package calls transport.write, one imports pymodbus."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(client.__file__).parent.glob("*.py")}
    assert [name for name, text in sources.items() if ".write(" in text] == ["client.py"]
    assert sources["client.py"].count(".write(") == 1
    assert [name for name, text in sources.items() if "import pymodbus" in text or "from pymodbus" in text] == ["serial.py"]
    for word in ("sendall", "sendto", "sock_sendall", "writelines", "write_register", "write_coil", "sendmsg"):
        assert not [name for name, text in sources.items() if word in text]


# ---- serial, through pymodbus ----


class Pty:
    """A pseudo terminal: what the client wrote can be read at the other end."""

    def __init__(self) -> None:
        self.master, self._slave = os.openpty()
        os.set_blocking(self.master, False)
        self.settings = ModbusSource("s", "modbus-rtu", os.ttyname(self._slave), parity="N", timeout_ns=200_000_000)

    def read(self) -> bytes:
        try:
            return os.read(self.master, 4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def pty() -> Iterator[Pty]:
    one = Pty()
    yield one
    one.close()


async def test_serial_census_with_the_hooks_gone(monkeypatch: pytest.MonkeyPatch, pty: Pty) -> None:
    monkeypatch.setattr(serial.SerialLine, "_check_pdu", lambda self, sending, pdu: pdu)
    monkeypatch.setattr(serial.SerialLine, "_check_packet", lambda self, sending, packet: packet)
    line = await serial.open_serial(replace(pty.settings, identify=False))
    for pdu in census():
        if not allowed(pdu, False):
            with pytest.raises(WriteRefused):
                await line.request(1, pdu, 0.2)
    assert pty.read() == b""
    line.close()


@pytest.mark.parametrize(("without", "arrives"), [((), False), (("pdu",), False), (("packet",), False), (("pdu", "packet"), True)])
async def test_serial_hooks_each_alone_stop_every_request_of_pymodbus(
    monkeypatch: pytest.MonkeyPatch, pty: Pty, without: tuple[str, ...], arrives: bool
) -> None:
    """Past our own `request`, straight at pymodbus' client: its hooks are the guard."""
    if "pdu" in without:
        monkeypatch.setattr(serial.SerialLine, "_check_pdu", lambda self, sending, pdu: pdu)
    if "packet" in without:
        monkeypatch.setattr(serial.SerialLine, "_check_packet", lambda self, sending, packet: packet)
    line = await serial.open_serial(replace(pty.settings, timeout_ns=20_000_000))
    written = 0
    for pdu in pymodbus_requests():
        raw = bytes([pdu.function_code]) + pdu.encode()
        if allowed(raw, False):
            continue
        pdu.dev_id = 1
        if not line.is_open:
            await line.open()
        try:
            await line._client.execute(False, pdu)
        except WriteRefused:
            assert not arrives
        except Exception:
            assert arrives
        written += len(pty.read())
    assert bool(written) == arrives
    line.close()
    gc.collect()


def test_crc_against_the_standard() -> None:
    assert crc16(bytes.fromhex("0207")) == 0x1241  # MODBUS over Serial Line 1.02, 6.2.2: CRC low byte 0x41, high 0x12
    assert wrap(Framing.RTU, 0, 1, IDENTIFY_PDU)[:-2] == bytes([1]) + IDENTIFY_PDU
    assert wrap(Framing.MBAP, 258, 17, read_pdu(3, 107, 3)) == struct.pack(">HHHBBHH", 258, 0, 6, 17, 3, 107, 3)
