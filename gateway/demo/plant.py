"""The plant's servers: OPC UA (asyncua, SignAndEncrypt, user and password) and Modbus TCP, both on loopback.

`python -m gateway.demo.plant --state DIR --seed N` prints one JSON line with its ports when ready, writes DIR/tags.csv and
DIR/plant.der (the server certificate to pin), and ends on SIGTERM or when its parent dies. Both servers would accept writes; every
write they see is counted in DIR/plant-writes.jsonl, so that the demo can state how many there were.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import logging
import signal
import struct
import sys
from pathlib import Path
from typing import Any, Final

from asyncua import Server, ua
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.user_managers import UserManager

from buffer.parent import end_with_parent
from gateway.demo.physics import Plant, Variable
from gateway.settings import TagRow
from gateway.tagfile import write_tags
from gateway.trust.certs import create_application_certificate
from gateway.units import parse_duration_ns

USER: Final = "ebbgate_ro"
PASSWORD: Final = "plant"  # noqa: S105 -- a simulated plant on loopback
NAMESPACE: Final = "urn:ebbgate:demo:plant"
STEP_S: Final = 0.25
_TYPES: Final = {
    "Double": ua.VariantType.Double,
    "Int32": ua.VariantType.Int32,
    "UInt32": ua.VariantType.UInt32,
    "UInt64": ua.VariantType.UInt64,
    "Boolean": ua.VariantType.Boolean,
    "String": ua.VariantType.String,
}
_WRITES: Final = frozenset({5, 6, 15, 16, 21, 22, 23})


class Recorder:
    """Counts what no gateway of ours may ever send."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("", encoding="utf-8")

    def note(self, protocol: str, what: str) -> None:
        """Write one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"protocol": protocol, "what": what}) + "\n")


class _Users(UserManager):
    """One user, with the role of an administrator: the server would let it write."""

    def get_user(self, _session: Any, username: str | None = None, password: str | None = None, certificate: Any = None) -> User | None:  # noqa: ANN401, ARG002
        return User(role=UserRole.Admin, name=USER) if (username, password) == (USER, PASSWORD) else None


class OpcUaPlant:
    """The OPC UA side."""

    def __init__(self, variables: list[Variable], recorder: Recorder) -> None:
        self._variables = [v for v in variables if v.modbus is None]
        self._recorder = recorder
        self._server = Server(user_manager=_Users())
        self._nodes: list[tuple[Variable, Any]] = []
        self._shown: dict[str, Any] = {}

    async def start(self, port: int, certificate: Path, key: Path) -> None:
        """Listen."""
        server = self._server
        await server.init()
        server.set_endpoint(f"opc.tcp://127.0.0.1:{port}")
        server.set_server_name("Ebbgate demo plant")
        await server.set_application_uri(NAMESPACE)
        server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        await server.load_certificate(str(certificate))
        await server.load_private_key(str(key))
        index = await server.register_namespace(NAMESPACE)
        folder = await server.nodes.objects.add_folder(index, "Plant")
        for v in self._variables:
            node = await folder.add_variable(ua.NodeId(v.id, index), v.id, v.read(), _TYPES[v.type])
            await node.set_writable()
            self._nodes.append((v, node))
        server.subscribe_server_callback(_prewrite(), self._wrote)
        await server.start()

    def _wrote(self, event: Any, _dispatcher: Any = None) -> None:  # noqa: ANN401 -- asyncua's callback event
        if getattr(event, "is_external", False):
            self._recorder.note("opcua", "write")

    async def show(self, now: dt.datetime) -> int:
        """Put values that changed into the address space; return how many."""
        count = 0
        for v, node in self._nodes:
            value = v.read()
            if self._shown.get(v.id) == value:
                continue
            self._shown[v.id] = value
            stamped = ua.DataValue(ua.Variant(value, _TYPES[v.type]), SourceTimestamp=now, ServerTimestamp=now)
            await self._server.write_attribute_value(node.nodeid, stamped)
            count += 1
        return count

    async def stop(self) -> None:
        """Close."""
        await self._server.stop()


def _prewrite() -> Any:  # noqa: ANN401
    from asyncua.common.callback import CallbackType

    return CallbackType.PreWrite


class ModbusPlant(asyncio.Protocol):
    """A Modbus TCP server (MBAP, function codes 3 and 4; writes are accepted and recorded)."""

    def __init__(self, registers: list[int], recorder: Recorder) -> None:
        self._registers = registers
        self._recorder = recorder
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer whole requests."""
        self._buffer += data
        while len(self._buffer) >= 8:  # noqa: PLR2004 -- MBAP header and a function code
            transaction, _, length, unit = struct.unpack_from(">HHHB", self._buffer)
            if len(self._buffer) < 6 + length:
                return
            pdu, self._buffer = self._buffer[7 : 6 + length], self._buffer[6 + length :]
            answer = self._answer(pdu)
            if self._transport is not None:
                self._transport.write(struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit) + answer)

    def _answer(self, pdu: bytes) -> bytes:
        code = pdu[0]
        if code in _WRITES:
            self._recorder.note("modbus", f"function code {code}")
            return pdu[:5]
        if code not in (3, 4) or len(pdu) != 5:  # noqa: PLR2004
            return bytes([code | 0x80, 1])
        start, count = struct.unpack_from(">HH", pdu, 1)
        if not 1 <= count <= 125 or start + count > len(self._registers):  # noqa: PLR2004 -- Modbus application protocol 6.3
            return bytes([code | 0x80, 2])
        return bytes([code, 2 * count]) + struct.pack(f">{count}H", *self._registers[start : start + count])


def fill_registers(variables: list[Variable], registers: list[int]) -> None:
    """Put the meters' values into their registers, float32 as ABCD."""
    for v in variables:
        if v.modbus is None:
            continue
        value = v.read()
        if v.type == "uint16":
            registers[v.modbus] = int(value) & 0xFFFF
        else:
            registers[v.modbus : v.modbus + 2] = struct.unpack(">HH", struct.pack(">f", float(value)))


def tag_rows(variables: list[Variable]) -> list[TagRow]:
    """Return the rows of tags.csv that describe the plant."""
    rows = []
    for v in variables:
        opcua = v.modbus is None
        states = tuple((int(a), b) for a, _, b in (x.partition("=") for x in v.states.split("|"))) if v.states else ()
        rows.append(
            TagRow(
                id=v.id,
                path=v.path,
                source="plc" if opcua else "meters",
                address=f"plant:{v.id}" if opcua else f"hr:{v.modbus}",
                type="" if opcua else v.type,
                unit=v.unit,
                low=v.low,
                high=v.high,
                every_ns=parse_duration_ns(v.every),
                heartbeat_ns=600 * 10**9,
                states=states,
                description=v.description,
            )
        )
    return rows


async def main(state: Path, seed: int) -> None:
    """Run the plant until cancelled."""
    plant = Plant(seed)
    recorder = Recorder(state / "plant-writes.jsonl")
    certificate, key = state / "plant.der", state / "plant.pem"
    if not certificate.exists():
        create_application_certificate(certificate, key, NAMESPACE, "127.0.0.1", dt.datetime.now(dt.UTC))
    registers = [0] * 256
    fill_registers(plant.variables, registers)
    loop = asyncio.get_running_loop()
    modbus = await loop.create_server(lambda: ModbusPlant(registers, recorder), "127.0.0.1", 0)
    modbus_port = modbus.sockets[0].getsockname()[1]
    opcua = OpcUaPlant(plant.variables, recorder)
    opcua_port = _free_port()
    await opcua.start(opcua_port, certificate, key)
    (state / "tags.csv").write_bytes(write_tags(tag_rows(plant.variables)))
    print(json.dumps({"opcua": opcua_port, "modbus": modbus_port, "tags": len(plant.variables)}), flush=True)  # noqa: T201 -- the READY line
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    while not stop.is_set():
        plant.step(STEP_S)
        fill_registers(plant.variables, registers)
        await opcua.show(dt.datetime.now(dt.UTC))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), STEP_S)
    modbus.close()
    await opcua.stop()


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    end_with_parent(signal.SIGTERM)
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    asyncio.run(main(given.state, given.seed))
