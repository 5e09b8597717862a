"""Starts tests/support/opcua_server.js: a server nobody here wrote (node-opcua), in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_MODULES = (os.environ.get("NODE_PATH", ""), str(_HERE.parents[1] / "ops/ci/opcua-server/node_modules"))
START_S = 120.0  # it makes a key first, and test machines are busy


def node_modules() -> str:
    """Return where node-opcua lies; without it skip loudly, or fail where the peers are required."""
    for place in _MODULES:
        if place and shutil.which("node") and (Path(place) / "node-opcua").is_dir():
            return place
    reason = "node-opcua is not installed: run ops/ci/install-peers.sh, or set NODE_PATH"
    if os.environ.get("EBBGATE_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class OpcuaServer:
    """One server process. Settings: see opcua_server.js."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self._modules = node_modules()
        self._settings = {"port": free_port(), "pki": str(directory / "pki"), **settings}
        self.port = int(str(self._settings["port"]))
        self.services: set[str] = set()
        self._process: subprocess.Popen[str] | None = None

    def start(self, **change: object) -> OpcuaServer:
        self._settings |= change
        command = ["node", str(_HERE / "opcua_server.js"), json.dumps(self._settings)]
        environment = {**os.environ, "NODE_PATH": self._modules}
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ready = threading.Event()
        threading.Thread(target=self._listen, args=(self._process, ready), daemon=True).start()
        if not ready.wait(START_S):
            self.stop()
            pytest.fail(f"node-opcua did not start within {START_S:.0f} s")
        return self

    def _listen(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("READY"):
                ready.set()
            elif line.startswith("SERVICE "):
                self.services.add(line.split()[1])

    def tell(self, order: str) -> None:
        """Give an order (extras.commands, see opcua_extras.js)."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Kill the server: a power cut of the PLC."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @property
    def certificate(self) -> Path:
        """The server's own certificate, DER or PEM as node-opcua wrote it."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            found = list(Path(str(self._settings["pki"])).rglob("*certificate*.pem"))
            if found:
                return found[0]
            time.sleep(0.1)
        pytest.fail("the server made no certificate")
