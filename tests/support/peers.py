"""PostgreSQL and Chromium for tests: real ones, started here, ended by pid. Absent: a loud skip, or a failure where they are required."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def absent(what: str) -> None:
    message = f"PEER ABSENT: {what}: run ops/ci/install-peers.sh"
    if os.environ.get("EBBGATE_REQUIRE_PEERS") == "1":
        pytest.fail(message)
    pytest.skip(message)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A temporary cluster on a loopback port; yields a DSN. PostgreSQL refuses root, so it runs as the user postgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    if not found or not shutil.which("setpriv"):
        absent("PostgreSQL")
    binaries = found[-1]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="ebbgate-pg-"))
    shutil.chown(directory, "postgres", "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    data = str(directory / "data")
    run = [*as_postgres, str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(run, check=True, capture_output=True, timeout=60, cwd="/tmp")
    arguments = [*as_postgres, str(binaries / "postgres"), "-D", data, "-p", str(port), "-c", f"unix_socket_directories={directory}"]
    arguments += ["-c", "listen_addresses=127.0.0.1"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp")
    try:
        _wait(port, process)
        yield f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    finally:
        process.send_signal(2)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    for _ in range(150):
        if process.poll() is not None:
            pytest.fail("PostgreSQL ended at once")
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("PostgreSQL did not start")


def chromium() -> list[str]:
    """The command of a headless browser that works as root and looks nothing up."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        absent("Chromium")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    return [str(path), *flags.split(), "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
