"""The law, seen from the kernel: the five real processes under strace; who connects, listens, and writes where.

G6: collect and upload never ask the kernel to bind, listen or accept, and connect to the configured addresses alone.
The one law: every process changes files of its own store only, and no process opens the store of a later one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.demo.setup import Files, make_keys, write_config
from tests.support.libmodbus import free_port
from tests.support.peers import absent

RUN_SECONDS_MAX = 90
STOP_SECONDS_MAX = 40
NETWORK = "socket,connect,bind,listen,accept,accept4"
CHANGES = "openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,truncate,ftruncate,mkdir,mkdirat,link,linkat,symlink,symlinkat"
OWN = {
    "collect": ("ring", "state/collect", "state/control"),
    "upload": ("state/upload",),
    "receive": ("landing",),
    "deliver": ("deliver", "lake"),
    "console": (),
}
LATER = {
    "collect": ("state/upload", "landing", "deliver", "lake"),
    "upload": ("landing", "deliver", "lake"),
    "receive": ("deliver", "lake"),
    "deliver": (),
    "console": (),
}
_CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\((.*)$")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass
class Trace:
    """What one process and its children asked of the kernel."""

    lines: list[str]
    calls: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls = [(found[1], found[2]) for line in self.lines if (found := _CALL.match(line))]

    def named(self, *names: str) -> list[str]:
        return [f"{name}({rest}" for name, rest in self.calls if name in names]

    def connects(self) -> set[str]:
        """address:port of every connect over IP; the whole call for any other family."""
        out = set()
        for call in self.named("connect"):
            port, address = re.search(r"htons\((\d+)\)", call), re.search(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', call)
            out.add(f"{address[1] or address[2]}:{port[1]}" if port and address else call)
        return out

    def opened(self) -> set[str]:
        return {path[1] for call in self.named("openat", "open", "creat") if (path := _PATH.search(call))}

    def changed(self) -> set[str]:
        """Every path opened for writing, created, renamed, removed or cut. Descriptors are shown with their paths (-y)."""
        out = set()
        for name, rest in self.calls:
            if name in ("openat", "open") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", rest):
                continue
            if name in ("socket", "connect", "bind", "listen", "accept", "accept4") or " = -1 " in rest:
                continue
            if name == "ftruncate":
                out |= set(re.findall(r"\d+<([^>]*)>", rest)[:1])
                continue
            base = re.search(r"\d+<([^>]*)>", rest) if name.endswith("at") or name == "renameat2" else None
            for path in _PATH.findall(rest):
                out.add(path if path.startswith("/") or base is None else f"{base[1]}/{path}")
        return out


@dataclass
class Plant:
    root: Path
    files: Files
    opcua: int
    modbus: int
    traces: dict[str, Trace]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Everything ran for a while: readings collected, sealed, uploaded, landed, delivered."""
    if not shutil.which("strace"):
        absent("strace")
    root = tmp_path_factory.mktemp("plant").resolve()
    make_keys(root)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    simulated = subprocess.Popen([sys.executable, "-m", "gateway.demo.plant", "--state", str(root)], stdout=subprocess.PIPE, env=environment)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        assert simulated.stdout is not None
        import json

        ports = json.loads(simulated.stdout.readline())
        receiver_port = free_port()
        files = write_config(root, ports, receiver_port, receiver_port, free_port())
        for name in OWN:
            config = files.gateway_toml if name in ("collect", "upload") else files.receiver_toml
            strace = ["strace", "-D", "-f", "-qq", "-y", "-s", "400", "-e", "signal=none", "-e", f"trace={NETWORK},{CHANGES}", "-o", str(root / f"{name}.trace")]
            command = [*strace, sys.executable, "-m", "gateway.cli", name, "--config", str(config)]
            with (root / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _wait_for_the_lake(root, processes)
        for name in reversed(OWN):
            processes[name].send_signal(signal.SIGTERM)
        for process in processes.values():
            process.wait(STOP_SECONDS_MAX)
    finally:
        for process in [*processes.values(), simulated]:
            if process.poll() is None:
                process.kill()
            process.wait()
    time.sleep(0.5)  # strace writes its last lines after its tracee is gone
    traces = {name: Trace((root / f"{name}.trace").read_text(encoding="utf-8", errors="replace").splitlines()) for name in OWN}
    yield Plant(root, files, ports["opcua"], ports["modbus"], traces)


def _wait_for_the_lake(root: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + RUN_SECONDS_MAX
    while time.monotonic() < deadline:
        ended = [name for name, process in processes.items() if process.poll() is not None]
        assert not ended, (ended, [(root / f"{name}.log").read_text()[-1500:] for name in ended])
        if list((root / "lake").rglob("*.parquet")) and list((root / "ring").rglob("segments/*.cose")):
            return
        time.sleep(0.5)
    pytest.fail("nothing reached the lake")


@pytest.mark.parametrize("name", ["collect", "upload"])
def test_nothing_on_the_gateway_listens(plant: Plant, name: str) -> None:
    trace = plant.traces[name]
    assert trace.named("socket"), "the trace saw no socket at all: it proves nothing"
    assert trace.named("bind", "listen", "accept", "accept4") == []


def test_connections_go_to_the_configured_addresses_alone(plant: Plant) -> None:
    assert plant.traces["collect"].connects() == {f"127.0.0.1:{plant.opcua}", f"127.0.0.1:{plant.modbus}"}
    assert plant.traces["upload"].connects() == {f"127.0.0.1:{plant.files.receiver_port}"}
    for name in ("collect", "upload"):
        families = {call.split(",")[0] for call in plant.traces[name].named("socket")}
        assert families <= {"socket(AF_INET", "socket(AF_INET6"}, families


@pytest.mark.parametrize("name", OWN)
def test_every_process_changes_its_own_store_alone(plant: Plant, name: str) -> None:
    changed = {path for path in plant.traces[name].changed() if path.startswith(str(plant.root))}
    own = tuple(str(plant.root / directory) for directory in OWN[name])
    foreign = {path for path in changed if not (own and path.startswith(own))} - {str(plant.root), str(plant.root / "state")}
    assert foreign == set()
    if own:
        assert changed, "the trace saw no change at all: it proves nothing"


@pytest.mark.parametrize("name", ["collect", "upload", "receive"])
def test_no_process_opens_the_store_of_a_later_one(plant: Plant, name: str) -> None:
    later = tuple(str(plant.root / directory) for directory in LATER[name])
    assert [path for path in plant.traces[name].opened() if path.startswith(later)] == []


def test_the_trace_would_show_a_breach() -> None:
    breach = Trace(
        [
            '12 bind(5<socket:[1]>, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16) = 0',
            '12 connect(6<socket:[2]>, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.1")}, 16) = 0',
            '12 openat(AT_FDCWD</x>, "/x/ring/durable", O_RDWR|O_CLOEXEC) = 7</x/ring/durable>',
            '12 unlinkat(9</x/landing>, "index", 0) = 0',
        ]
    )
    assert breach.named("bind", "listen")
    assert breach.connects() == {"10.0.0.1:53"}
    assert breach.changed() == {"/x/ring/durable", "/x/landing/index"}
