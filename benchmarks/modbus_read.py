"""make bench NAME=modbus-read: our Modbus client against libmodbus in C on the same libmodbus server; register decode against pymodbus.

Reads: holding registers, 125 a request, one connection, one request in flight, with both guards, deadline and every check of the answer; the answer's
bytes as they came (the C client's are numbers already, ours become numbers in the decoder, measured below). Clients take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop
from pymodbus.client.mixin import ModbusClientMixin

from gateway.collect.modbus.client import connect
from gateway.collect.modbus.decode import Decoder, Field, Type
from gateway.collect.modbus.frame import Framing, read_pdu

ROUNDS: Final = 21
SECONDS: Final = 0.5  # short turns: what else the machine does meets all of them alike
REGISTERS: Final = 125
FLOATS: Final = 3_100  # 50 answers of 62


def say(name: str, value: float, unit: str, peer: str, peer_value: float, ratio: float, goal: float, **settings: object) -> None:
    """Print one result."""
    line = {"name": name, "value": round(value, 3), "unit": unit, "peer": peer, "peer_value": round(peer_value, 3), "ratio": round(ratio, 3)}
    print(json.dumps(line | {"goal": goal, "ok": ratio >= goal, "settings": settings}), flush=True)


def build(folder: Path) -> Path:
    """Compile the peer; exit 3 where libmodbus or gcc is missing."""
    if not (shutil.which("gcc") and shutil.which("pkg-config")):
        sys.exit("gcc or pkg-config is missing: run ops/ci/install-peers.sh")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libmodbus"], capture_output=True, text=True, check=False)
    if flags.returncode:
        sys.exit("libmodbus is missing: run ops/ci/install-peers.sh")
    target = folder / "modbus-peer"
    source = Path(__file__).with_name("modbus_peer.c")
    subprocess.run(["gcc", "-O2", "-o", str(target), str(source), *flags.stdout.split()], check=True)
    return target


async def ours(port: int) -> float:
    """Return reads per second of our client."""
    connection = await connect(f"127.0.0.1:{port}", Framing.MBAP, False, "", 5.0)
    pdu, reads, began = read_pdu(3, 0, REGISTERS), 0, time.perf_counter()
    wanted = bytes([3, 2 * REGISTERS]) + struct.pack(f">{REGISTERS}H", *range(REGISTERS))
    while (passed := time.perf_counter() - began) < SECONDS:
        if await connection.request(1, pdu, 5.0) != wanted:
            sys.exit("a wrong value")
        reads += 1
    connection.close()
    return reads / passed


def on(loop: Callable[[], asyncio.AbstractEventLoop], port: int) -> float:
    """Run our client on a loop."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(ours(port))


def reads(peer: Path) -> None:
    """Compare clients, taking turns; the ratio is the median of the ratios of neighbours."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen([peer, "server", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        rounds: list[tuple[float, float, float]] = []
        for _ in range(ROUNDS):
            done = subprocess.run([peer, "client", str(port), str(SECONDS), str(REGISTERS)], capture_output=True, text=True, check=True)
            rounds.append((float(done.stdout), on(asyncio.new_event_loop, port), on(uvloop.new_event_loop, port)))
    finally:
        server.kill()
        server.wait()
    c = statistics.median(one[0] for one in rounds)
    for name, place, goal in (("modbus-read stock loop", 1, 0.7), ("modbus-read uvloop", 2, 0.85)):
        value, ratio = statistics.median(one[place] for one in rounds), statistics.median(one[place] / one[0] for one in rounds)
        settings = {"registers": REGISTERS, "rounds": ROUNDS, "seconds": SECONDS, "cores": os.cpu_count()}
        say(name, value, "reads/s", "libmodbus C client", c, ratio, goal, **settings)


def decode() -> None:
    """Compare the decoder of one poll with pymodbus, value by value as its users do, and all at once as it can."""
    data = struct.pack(f">{FLOATS}f", *(i / 8 for i in range(FLOATS)))
    registers = list(struct.unpack(f">{2 * FLOATS}H", data))
    decoder = Decoder([Field(Type("float32"), "ABCD", 4 * i) for i in range(FLOATS)])
    kind = ModbusClientMixin.DATATYPE.FLOAT32
    convert = ModbusClientMixin.convert_from_registers

    def single() -> object:
        return [convert(registers[i : i + 2], kind) for i in range(0, 2 * FLOATS, 2)]

    def at_once() -> object:
        return convert(registers, kind)

    assert decoder.decode(data).values.view("f8").tolist() == single() == at_once()
    times: dict[str, list[float]] = {"ours": [], "single": [], "at once": []}
    for _ in range(ROUNDS):
        for name, call, repeat in (("ours", lambda: decoder.decode(data), 200), ("single", single, 2), ("at once", at_once, 4)):
            began = time.perf_counter()
            for _ in range(repeat):
                call()
            times[name].append((time.perf_counter() - began) / repeat / FLOATS * 1e9)
    mine = statistics.median(times["ours"])
    for name, peer in (("single", "pymodbus, a value a call"), ("at once", "pymodbus, one call for all")):
        theirs = statistics.median(times[name])
        settings = {"type": "float32", "values": FLOATS, "rounds": ROUNDS, "ours": "quality, kind and flags of each value too"}
        say(f"modbus-decode, {name}", mine, "ns/value", peer, theirs, theirs / mine, 50.0, **settings)


def main() -> None:
    """Run all."""
    with tempfile.TemporaryDirectory(prefix="ebbgate-bench-") as folder:
        reads(build(Path(folder)))
    decode()


if __name__ == "__main__":
    main()
