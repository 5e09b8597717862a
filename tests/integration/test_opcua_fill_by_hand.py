"""`ebbgate fill` as a person types it, beside a real collect, against node-opcua: a hole that no fill closed, paid over a kill -9.

The ledger is the server's own log of every value it ever held. Afterwards no value of it is missing in the ring, and none is there twice.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buffer.query import QueryOptions, run_query
from buffer.types import Flag
from tests.integration.test_cli import ebbgate, set_up
from tests.support.opcua_server import OpcuaServer

pytestmark = pytest.mark.peers

TAGS, FAST = 150, 20  # fifteen requests for history at the least
PAUSED_S = 6
SOURCE = """
[source.press7]
kind = "opcua"
urls = ["opc.tcp://127.0.0.1:{port}"]
security = "None"
security_waiver = "a test on loopback"
publish = "200 ms"
history_fill = "{fill}"
load = {{ requests_per_s = {rate}, items = 1000 }}

[source.meter]
kind = "modbus-tcp"
address = "127.0.0.1:1"
"""


class Box:
    """One gateway, its collect process, and what that says of itself."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.config = set_up(directory)
        self._base = self.config.read_text()
        rows = [f"t{i},press7/t{i},press7,ns=1;s=Tag{i:05d},,10 ms" for i in range(TAGS)]
        (self.config.parent / "tags.csv").write_text("\n".join(["id,path,source,address,type,every", *rows, "e1,m/e,meter,hr:0,uint16,1 s", ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, fill: str, rate: float) -> None:
        self.config.write_text(self._base + SOURCE.format(port=self.port, fill=fill, rate=rate))

    def start(self) -> None:
        with (self.config.parent / "collect.log").open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "gateway.cli", "collect", "--config", str(self.config)], stderr=log)

    def end(self, how: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, how)
        self._process.wait(30)

    def source(self) -> dict[str, Any]:
        path = next(self.config.parent.rglob("status.json"), None)
        body = json.loads(path.read_bytes()) if path else {}
        fresh = time.time_ns() - body.get("time_ns", 0) < 3e9
        return body | body["sources"]["press7"] if fresh and "press7" in body.get("sources", {}) else {}

    def until(self, what: str, condition: Callable[[dict[str, Any]], object], seconds: float = 150) -> dict[str, Any]:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while True:
            one = self.source()
            if one and condition(one):
                return one
            assert self._process.poll() is None, (self.config.parent / "collect.log").read_text()[-1000:]
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s: {one}"
            time.sleep(0.1)

    def up(self) -> None:
        self.until("readings flow", lambda one: one["state"] == "up" and one["open_gaps"] == 0)

    def rows(self, sql: str) -> list[list[Any]]:
        ring = next(self.config.parent.rglob("journal")).parent.parent
        return run_query(ring, sql, QueryOptions(rows_max=1_000_000)).rows

    def notices(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(detail) for (detail,) in self.rows(f"SELECT detail FROM notices WHERE kind = '{kind}' ORDER BY generation, seq")]

    def fill(self, *arguments: object, code: int = 0) -> str:
        return ebbgate("fill", *arguments, "--config", self.config, code=code)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OpcuaServer]:
    (tmp_path / "server").mkdir()
    one = OpcuaServer(tmp_path / "server", tags=TAGS, slow_from=FAST, period_ms=100, log=str(tmp_path / "held"), history=True).start()
    yield one
    one.stop()


@pytest.fixture
def box(tmp_path: Path, server: OpcuaServer) -> Iterator[Box]:
    one = Box(tmp_path, server.port)
    yield one
    with contextlib.suppress(AssertionError):
        one.end(signal.SIGKILL)


def moment(ns: int) -> str:
    return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC).isoformat()


def test_a_hole_that_nobody_filled_is_filled_by_hand_over_a_kill_and_nothing_is_there_twice(box: Box, tmp_path: Path) -> None:
    box.write("0 s", 50)
    box.start()
    box.up()
    time.sleep(1)
    began = time.time_ns()
    ebbgate("pause", "press7", "--config", box.config)
    box.until("paused", lambda one: one["state"] == "paused")
    time.sleep(PAUSED_S)
    ebbgate("resume", "press7", "--config", box.config)
    box.up()
    assert box.notices("gap")[-1]["reason"] == "history_fill is 0"
    ended = time.time_ns()
    window = ("--from", moment(began - 10**9), "--to", moment(ended), "--longer-than", "2 s")
    assert "history_fill = 0" in box.fill("press7", *window, code=2)
    mistakes(box, window)
    box.write("1 h", 4)
    assert "collect does not run" in again(box, window)
    box.start()
    box.up()
    asked = json.loads(box.fill("press7", *window, "--json"))
    assert (asked["tags"], asked["holes"] >= TAGS, asked["longest_s"] > PAUSED_S - 1) == (TAGS, True, True), asked
    box.until("the middle of the fill", lambda one: 0 < one.get("fill", {}).get("asked", 0) < asked["holes"] / 2)
    assert "being filled" in box.fill("press7", *window, code=3)
    box.end(signal.SIGKILL)
    box.start()
    result = box.until("the result", lambda one: one.get("fill", {}).get("state") in ("filled", "unfillable"))["fill"]
    assert (result["id"], result["state"]) == (asked["id"], "filled"), result
    assert "fill by hand of" in ebbgate("status", "--config", box.config, code=1)
    box.up()
    box.end(signal.SIGKILL)  # a finished order lies there still: a start begins nothing
    box.start()
    box.up()
    time.sleep(2)
    assert box.until("what became of the order", lambda one: "fill" in one)["fill"]["id"] == asked["id"]
    assert [one["event"] for one in box.notices("operator") if "fill" in one["event"]] == ["fill begun"]
    assert "no such hole" in box.fill("press7", *window)
    box.end(signal.SIGTERM)
    judge(box, tmp_path / "held", began, ended - 10**9)


def again(box: Box, window: tuple[str, ...]) -> str:
    box.end(signal.SIGTERM)
    path = next(box.config.parent.rglob("status.json"))
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"time_ns": time.time_ns() - 60 * 10**9}))  # as if it had ended a minute ago
    return box.fill("press7", *window, code=3)


def mistakes(box: Box, window: tuple[str, ...]) -> None:
    """Each says whose fault it is; none writes an order."""
    assert "Sources here: press7, meter" in box.fill("press8", *window, code=2)
    assert "keeps no history" in box.fill("meter", *window, code=2)
    box.write("1 h", 4)
    assert "in the future" in box.fill("press7", *window[:3], moment(time.time_ns() + 10**12), code=2)
    assert "longer than history_fill = 1h" in box.fill("press7", "--from", "2026-01-01", *window[2:], code=2)
    assert "not before" in box.fill("press7", "--from", window[3], "--to", window[1], code=2)
    assert "is not a time" in box.fill("press7", "--from", "yesterday", *window[2:], code=2)
    assert "nothing was asked" in box.fill("press7", *window, "--dry-run")
    assert not list(box.config.parent.rglob("control/fill/*"))


def judge(box: Box, log: Path, began: int, ended: int) -> None:
    """Compare the server's log of a time with the ring, value by value. Outside of it a busy machine's sampling may skip values."""
    held = [(int(tick), int(ms)) for tick, ms in (line.split() for line in log.read_text().splitlines())]
    mask = int(Flag.MARKER | Flag.REPEATED)
    found: dict[str, collections.Counter[tuple[int, int]]] = collections.defaultdict(collections.Counter)
    for tag, value, ms in box.rows(f"SELECT tag, value_double, epoch_ms(coalesce(ts_source, ts)) FROM readings WHERE tag LIKE 't%' AND flags & {mask} = 0"):
        found[str(tag)][int(value), int(ms)] += 1
    assert len(found) == TAGS
    missing = doubled = 0
    for tag, seen in found.items():
        own = {one for one in held if began < one[1] * 10**6 < ended and (int(tag[1:]) < FAST or one[0] % 5 == 0)}
        missing += len(own - seen.keys())
        doubled += sum(times - 1 for times in seen.values())
    print({"values": sum(map(len, found.values())), "missing": missing, "doubled": doubled})
    assert missing == doubled == 0
