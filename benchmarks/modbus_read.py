"""Our Modbus client against libmodbus in C on the same libmodbus server; register decode against pymodbus (make bench NAME=modbus-read).

Reads: holding registers, 125 a request, one connection, one request in flight, with both guards, deadline and every check of the answer; the answer's
bytes as they came (the C client's are numbers already, ours become numbers in the decoder, measured below). Clients take turns. A read is two
wake-ups, the server's and the client's: on a busy machine they wait for a processor, so what a read costs the client in CPU stands beside.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop
from pymodbus.client.mixin import ModbusClientMixin

from benchmarks.harness import Report, Sample, interleave, main, median, ratio
from gateway.collect.modbus.client import connect
from gateway.collect.modbus.decode import Decoder, Field, Type
from gateway.collect.modbus.frame import Framing, read_pdu

TURNS: Final = 4  # turns of the clients for a round of other benchmarks: short ones, so that what else the machine does meets all of them alike
SECONDS: Final = 0.5
WARM: Final = 200  # reads before it counts
REGISTERS: Final = 125
FLOATS: Final = 3_100  # 50 answers of 62


def build(folder: Path) -> Path:
    """Compile the peer; exit where libmodbus or gcc is missing."""
    if not (shutil.which("gcc") and shutil.which("pkg-config")):
        sys.exit("gcc or pkg-config is missing: run ops/ci/install-peers.sh")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libmodbus"], capture_output=True, text=True, check=False)
    if flags.returncode:
        sys.exit("libmodbus is missing: run ops/ci/install-peers.sh")
    target = folder / "modbus-peer"
    source = Path(__file__).with_name("modbus_peer.c")
    subprocess.run(["gcc", "-O2", "-o", str(target), str(source), *flags.stdout.split()], check=True)
    return target


async def ours(port: int) -> Sample:
    """Read for SECONDS with our client."""
    connection = await connect(f"127.0.0.1:{port}", Framing.MBAP, False, "", 5.0)
    pdu, reads = read_pdu(3, 0, REGISTERS), 0
    wanted = bytes([3, 2 * REGISTERS]) + struct.pack(f">{REGISTERS}H", *range(REGISTERS))
    for _ in range(WARM):
        await connection.request(1, pdu, 5.0)
    cpu, began = time.process_time(), time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        if await connection.request(1, pdu, 5.0) != wanted:
            sys.exit("a wrong value")
        reads += 1
    spent = time.process_time() - cpu
    connection.close()
    return Sample(reads, passed, spent)


def on(loop: Callable[[], asyncio.AbstractEventLoop], port: int) -> Sample:
    """Run our client on a loop."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(ours(port))


def theirs(peer: Path, port: int) -> Sample:
    """Read for SECONDS with the C client; its CPU holds its start, which is a millisecond."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([peer, "client", str(port), str(SECONDS), str(REGISTERS)], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(round(float(done.stdout) * SECONDS), SECONDS, cpu)


def reads(report: Report) -> None:
    """Compare clients, taking turns; a ratio is the median of those within a turn."""
    peer = build(report.options.work)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen([peer, "server", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        contestants = {
            "libmodbus": lambda: theirs(peer, port), "stock": lambda: on(asyncio.new_event_loop, port), "uvloop": lambda: on(uvloop.new_event_loop, port),
        }  # fmt: skip
        found = interleave(report.options.size(TURNS * report.options.rounds, 1), contestants)
    finally:
        server.kill()
        server.wait()
    c = found["libmodbus"]
    for name, goal in (("stock", 0.7), ("uvloop", 0.85)):
        mine = found[name]
        report.add(
            f"reads.{name}", median(mine, lambda s: s.per_s), "reads/s", peer="libmodbus C client", peer_value=median(c, lambda s: s.per_s),
            ratio=ratio(mine, c, lambda s: s.per_s), goal=f"ratio >= {goal:g}", registers=REGISTERS, turns=len(c), seconds=SECONDS,
            cpu_us=median(mine, lambda s: s.cpu_us), peer_cpu_us=median(c, lambda s: s.cpu_us), best=max(s.per_s for s in mine),
            peer_best=max(s.per_s for s in c),
        )  # fmt: skip


def decode(report: Report) -> None:
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

    def timed(call: Callable[[], object], times: int) -> Sample:
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(times):
            call()
        return Sample(times * FLOATS, time.perf_counter() - began, time.process_time() - cpu)

    assert decoder.decode(data).values.view("f8").tolist() == single() == at_once()
    found = interleave(
        report.options.size(TURNS * report.options.rounds, 1),
        {"ours": lambda: timed(lambda: decoder.decode(data), 200), "single": lambda: timed(single, 2), "at once": lambda: timed(at_once, 4)},
    )
    mine = found["ours"]
    for name, peer in (("single", "pymodbus, a value a call"), ("at once", "pymodbus, one call for all")):
        other = found[name]
        report.add(
            f"decode.{name.replace(' ', '_')}", 1000 * median(mine, lambda s: s.cpu_us), "ns CPU/value", peer=peer,
            peer_value=1000 * median(other, lambda s: s.cpu_us), ratio=ratio(other, mine, lambda s: s.cpu_us), goal="ratio >= 50",
            type="float32", values=FLOATS, turns=len(mine), ours="quality, kind and flags of each value too",
        )  # fmt: skip


def run(report: Report) -> None:
    """Reads, then the decoder."""
    reads(report)
    decode(report)


if __name__ == "__main__":
    main("modbus_read", run)
