"""The libmodbus C server as a peer: built on first use, one process per test, everything it was asked on record."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.peers import absent

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("libmodbus_server.c")


@cache
def _built() -> Path | None:
    if not (shutil.which("gcc") and shutil.which("pkg-config")):
        return None
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libmodbus"], capture_output=True, text=True, check=False)
    if flags.returncode:
        return None
    target = Path(tempfile.mkdtemp(prefix="ebbgate-libmodbus-")) / "server"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(target), str(SOURCE), *flags.stdout.split()], check=True, timeout=120)
    return target


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """One running server."""

    def __init__(self, kind: str, where: str) -> None:
        program = _built()
        if program is None:
            absent("libmodbus server")
        self._process = subprocess.Popen([str(program), kind, where], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> list[tuple[int, int, int, int]]:
        """Kill it; return what it was asked: function, unit, start, count."""
        self._process.kill()
        output, _ = self._process.communicate(timeout=10)
        rows = [tuple(map(int, line.split())) for line in output.splitlines() if line.count(" ") == 3]
        return [(row[0], row[1], row[2], row[3]) for row in rows]


@contextmanager
def pty_pair(folder: Path) -> Iterator[tuple[str, str]]:
    """Give two serial devices that are one line (socat)."""
    if shutil.which("socat") is None:
        absent("socat")
    ends = [folder / "line-a", folder / "line-b"]
    process = subprocess.Popen(["socat", "-d", "-d", *(f"pty,rawer,link={end}" for end in ends)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        while "starting data transfer" not in (line := process.stderr.readline()):
            assert line, "socat ended"
        yield str(ends[0]), str(ends[1])
    finally:
        process.kill()
        process.wait(timeout=10)
