"""node-opcua servers under load, and what the OPC UA benchmarks share."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Report
from gateway.settings import Load, OpcuaSource, TagRow

_HERE = Path(__file__).parent
_MODULES = (os.environ.get("NODE_PATH", ""), str(_HERE.parent / "ops/ci/opcua-server/node_modules"))
START_S = 150.0  # it makes a key first, and machines are busy


@contextmanager
def node_opcua(**settings: object) -> Iterator[int]:
    """Run benchmarks/opcua_server.js; yield its port. Exit with code 3 where node-opcua is not installed."""
    modules = next((place for place in _MODULES if place and shutil.which("node") and (Path(place) / "node-opcua").is_dir()), None)
    if modules is None:
        raise SystemExit("node-opcua is not installed: run ops/ci/install-peers.sh, or set NODE_PATH")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    with tempfile.TemporaryDirectory() as pki:
        command = ["node", str(_HERE / "opcua_server.js"), json.dumps({"port": port, "pki": pki, **settings})]
        process = subprocess.Popen(command, env={**os.environ, "NODE_PATH": modules}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ready = threading.Event()

        def listen() -> None:
            for line in process.stdout or ():
                if line.startswith("READY"):
                    ready.set()

        threading.Thread(target=listen, daemon=True).start()
        try:
            if not ready.wait(START_S):
                raise SystemExit(f"node-opcua did not start within {START_S:.0f} s")
            yield port
        finally:
            process.kill()
            process.wait()


def source_settings(name: str, port: int, tags: int, publish_ms: int) -> OpcuaSource:
    """Return a source of `tags` variables of the server, every change reported, load contract out of the way."""
    rows = tuple(TagRow(f"{name}.t{i}", f"p/{name}/t{i}", name, f"ns=1;s=Tag{i:05d}", every_ns=0, number=16 + i) for i in range(tags))
    load = Load(requests_per_s=1e4, bytes_per_s=10**10, items=10_000, duty=1.0)
    return OpcuaSource(name, (f"opc.tcp://127.0.0.1:{port}",), security="None", publish_ns=publish_ms * 10**6, load=load, tags=rows)


def cost(report: Report, name: str, ours: Sequence[float], peer: str, theirs: Sequence[float], goal: float, **settings: Any) -> None:
    """Say what a value costs in microseconds of CPU; ratio: how many times more the peer needs, median of the ratios of the rounds."""
    ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
    load = round(os.getloadavg()[0], 1)
    report.add(
        name, statistics.median(ours), "us CPU per value", peer=peer, peer_value=statistics.median(theirs), ratio=ratio, goal=f"ratio >= {goal:g}",
        rounds=len(ours), load_average=load, **settings,
    )  # fmt: skip
