"""`ebbgate demo` as a person runs it: an outage, keys, two at once, kill -9; every reading arrives once and nothing is left behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "gateway.cli", "demo"]


def demo(*arguments: str, seconds: float = 400) -> tuple[dict, str]:
    done = subprocess.run([*COMMAND, "--headless", "--json", *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.stdout.strip(), done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def complete(summary: dict) -> bool:
    whole = summary["committed"] == summary["landed"] == summary["delivered_lake"] > 500
    return whole and summary["missing"] == 0 and summary["duplicates"] == 0 and summary["writes_seen"] == 0


def mine(directory: Path) -> list[str]:
    """Command lines of processes that name this directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in text:
            found.append(text)
    return found


def test_two_at_once_with_an_outage_lose_and_double_nothing_and_leave_nothing(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    arguments = [*COMMAND, "--headless", "--json", "--seconds", "25", "--outage", "8"]
    both = [subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, errors = process.communicate(timeout=400)
        summary = json.loads(out.strip().splitlines()[-1])
        assert complete(summary), (summary, errors[-2000:])
        assert process.returncode == 0
        assert summary["outage_s"] > 6
        assert summary["drain_s"] is not None
        assert summary["live_latency_ms_p99"] is not None
        assert summary["memory_peak_mb"]["collect"] <= 130
        assert summary["memory_peak_mb"]["upload"] <= 70
    assert list(tmp_path.iterdir()) == []
    assert mine(tmp_path) == []


def test_kill_9_of_every_process_loses_and_doubles_nothing():
    summary, stderr = demo("--seconds", "20", "--outage", "6", "--kills", "3", "--seed", "2")
    assert complete(summary), (summary, stderr[-2000:])
    assert summary["killed"] == dict.fromkeys(("receive", "deliver", "console", "collect", "upload"), 3)


def test_on_a_terminal_a_key_cuts_the_link_and_another_ends_with_the_ledger(tmp_path):
    leader, terminal = pty.openpty()
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm"}
    process = subprocess.Popen(COMMAND, env=environment, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    seen = ""

    def until(text: str, seconds: float) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while text not in seen:
            assert time.monotonic() < end, seen[-500:]
            seen += os.read(leader, 4096).decode(errors="replace")

    until("link up", 120)
    os.write(leader, b"o")
    until("link DOWN", 30)
    seen = ""
    os.write(leader, b"o")
    until("link up", 30)
    os.write(leader, b"q")
    until("draining", 60)
    while process.poll() is None:
        try:
            os.read(leader, 4096)
        except OSError:
            break
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "nothing is missing" in out
    assert "link_cuts              1" in out
    assert "every reading arrived once" in out
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_stopped_while_it_starts_leaves_nothing(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*COMMAND, "--headless"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(600):
        if any(tmp_path.glob("*/pki")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert list(tmp_path.iterdir()) == []
    assert mine(tmp_path) == []
