"""python -m tests.soak.run --minutes 30 --rate 20000: real processes against Modbus devices, kills and cuts; the last line is JSON.

collect, upload, receive and deliver run as on a site, under a supervisor, over TLS and a link that is cut. In the first quarter one of them is
killed (SIGKILL) every now and then; after it the link alone is cut, and in the second half the memory of every process is followed
(tests.soak.judge). The lake is written every second, not every half minute: what a piece of work leaves behind shows thirty times as soon, and
so does the end of what a young heap takes. Every value can be told from all others (tests.soak.device): in the lake each tag must rise by one
from reading to reading; a step of more needs a kill of collect beside it. The load contract is measured at the devices.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from buffer.errors import StoreError
from gateway.demo import audit
from gateway.demo.link import Link
from gateway.demo.setup import STREAM, make_keys
from gateway.runtime import real
from gateway.supervise import Command, Supervisor
from tests.soak.judge import held, slope, steady
from tests.support.libmodbus import free_port

PROCESSES = ("receive", "deliver", "collect", "upload")
REGISTERS = 125  # of a request
REQUESTS = 10  # of a device and second
BLOCK_TAGS = REGISTERS * REQUESTS
CONTRACT = 15  # requests a second
DRAIN_S = 240.0
NEAR_S = 20.0  # a kill, the start after it, and the first poll
KILLS_UNTIL = 1 / 4  # of the time
CALM_FROM = 0.5  # memory is followed from here on
WARM_S = 300.0  # and only of processes that are that old: heaps and caches find their size
PAGE_MIB = 4096 / 2**20


class Soak:
    """One run."""

    def __init__(self, root: Path, minutes: float, rate: int, seed: int) -> None:
        self.root = root
        self.seconds = minutes * 60
        self.devices = max(1, rate // BLOCK_TAGS)
        self._rng = random.Random(seed)
        self.killed: dict[str, int] = {}
        self.collect_kills: list[float] = []  # wall clock
        self.cuts = 0
        self.memory: dict[str, list[tuple[float, float]]] = {name: [] for name in PROCESSES}  # hours, MiB that no file backs
        self.resident: dict[str, float] = {}  # the most, in MiB
        self._followed: dict[str, int | None] = {}  # pid
        self.loads: list[list[int]] = []

    # ---- the site ----

    def write_config(self, ports: list[int], link_port: int, receiver_port: int) -> None:
        rows = ["id,path,source,address,type,every"]
        sources = []
        for i, port in enumerate(ports):
            rows += [f"d{i}.r{n},soak/d{i}/r{n},d{i},hr:{n},uint16,1 s" for n in range(BLOCK_TAGS)]
            load = f"requests_per_s = {CONTRACT}, duty = 0.9"
            sources.append(f'[source.d{i}]\nkind = "modbus-tcp"\naddress = "127.0.0.1:{port}"\nload = {{ {load} }}\n')
        (self.root / "tags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (self.root / "gateway.toml").write_text(
            '[gateway]\nid = "demo"\nsite = "demo/plant"\nstate = "state"\n\n[ring]\npath = "ring"\nmax_size = "2 GB"\ncommit = "1 s"\nseal = "2 min"\n\n'
            f'[receiver]\nurl = "https://receiver.demo:{link_port}"\naddress = "127.0.0.1"\nbackfill = {{ limit = "100 Mbit/s" }}\n\n' + "\n".join(sources),
            encoding="utf-8",
        )
        (self.root / "receiver.toml").write_text(
            f'[receiver]\nname = "demo"\nlisten = "127.0.0.1:{receiver_port}"\nlanding = "landing"\ndeliver = "deliver"\nmin_free = "100 MB"\n\n'
            '[tls]\ngateways_ca = "pki/receiver-ca.crt"\n\n[[gateway]]\nid = "demo"\nsite = "demo/plant"\n\n[lake]\npath = "lake"\n'
            'every = "1 s"\n',
            encoding="utf-8",
        )

    async def run(self) -> None:
        make_keys(self.root)
        plant = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.soak.device", "--devices", str(self.devices), stdout=asyncio.subprocess.PIPE
        )
        assert plant.stdout is not None
        ports = json.loads(await plant.stdout.readline())
        follow = asyncio.create_task(self._follow(plant.stdout))
        receiver_port = free_port()
        link = Link(("127.0.0.1", receiver_port))
        self.write_config(ports, await link.start(), receiver_port)
        commands = []
        (self.root / "logs").mkdir()
        for name in PROCESSES:
            config = "gateway.toml" if name in ("collect", "upload") else "receiver.toml"
            arguments = (sys.executable, "-m", "gateway.cli", name, "--config", str(self.root / config))
            commands.append(Command(name, arguments, self.root / "logs" / f"{name}.log", (0.2, 2.0)))
        supervisor = Supervisor(real(), commands)
        supervisor.start()
        try:
            await self._trouble(supervisor, link)
            await supervisor.stop("collect")
            await self._drain()
        finally:
            await supervisor.stop_all()
            await link.stop()
            plant.send_signal(signal.SIGTERM)
            await plant.wait()
            follow.cancel()

    async def _follow(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            self.loads = json.loads(line)

    async def _trouble(self, supervisor: Supervisor, link: Link) -> None:
        began = time.monotonic()
        next_kill, next_cut, back = 10.0, 25.0, 0.0
        while (passed := time.monotonic() - began) < self.seconds:
            if passed >= next_kill and passed < self.seconds * KILLS_UNTIL:
                next_kill = passed + self._rng.uniform(10, 60)
                self._kill(supervisor)
            if passed >= next_cut and link.up:
                link.cut()
                self.cuts += 1
                back = passed + self._rng.uniform(2, 20)
            if not link.up and passed >= back:
                link.restore()
                next_cut = passed + self._rng.uniform(30, 120)
            if passed >= max(self.seconds * CALM_FROM, self.seconds * KILLS_UNTIL + WARM_S):
                self._sample(supervisor, passed)
            await asyncio.sleep(1.0)
        link.restore()

    def _kill(self, supervisor: Supervisor) -> None:
        name = self._rng.choice(PROCESSES)
        pid = supervisor.children[name].pid
        if pid is not None:
            self.killed[name] = self.killed.get(name, 0) + 1
            if name == "collect":
                self.collect_kills.append(time.time())
            os.kill(pid, signal.SIGKILL)

    def _sample(self, supervisor: Supervisor, passed: float) -> None:
        for name in PROCESSES:
            pid = supervisor.children[name].pid
            if self._followed.setdefault(name, pid) != pid:  # it ended though nobody killed it: what is followed begins anew
                self._followed[name], self.memory[name] = pid, []
            with contextlib.suppress(OSError, ValueError, IndexError):
                resident, anonymous = memory_mib(pid or 0)
                self.memory[name].append((passed / 3600, anonymous))
                self.resident[name] = max(round(resident, 1), self.resident.get(name, 0.0))

    async def _drain(self) -> None:
        end = time.monotonic() + DRAIN_S
        ends = audit.committed(self.root / "ring" / STREAM)
        while time.monotonic() < end:
            with contextlib.suppress(StoreError, OSError, pa.ArrowException):  # what is written just now is read again
                if audit.landed(self.root / "landing" / STREAM) >= ends.committed and self._in_lake() >= ends.committed:
                    return
            await asyncio.sleep(1.0)

    # ---- the account ----

    def _in_lake(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in (self.root / "lake").rglob("*.parquet"))

    def account(self) -> dict[str, Any]:
        """Return what the last line says."""
        ends = audit.committed(self.root / "ring" / STREAM)
        lake = audit.count_lake(self.root / "lake", STREAM, ends)
        doubled, holes = self._values()
        unexplained = [at for at in holes if not any(abs(at - kill) < NEAR_S for kill in self.collect_kills)]
        followed = {name: held(points) for name, points in self.memory.items()}
        slopes = {name: slope(points) for name, points in followed.items()}
        most = max((load[1] for load in self.loads), default=0)
        out: dict[str, Any] = {
            "name": "soak", "minutes": round(self.seconds / 60, 1), "devices": self.devices, "tags": self.devices * BLOCK_TAGS,
            "readings": ends.committed, "readings_per_s": round(ends.committed / self.seconds), "landed": audit.landed(self.root / "landing" / STREAM),
            "lake": lake.rows, "missing": lake.missing, "duplicates": lake.duplicates, "values_doubled": doubled, "polls_missed": len(holes),
            "polls_missed_unexplained": len(unexplained), "killed": self.killed, "link_cuts": self.cuts,
            "requests": sum(load[0] for load in self.loads), "most_requests_in_10_s": most, "allowed_in_10_s": 10 * CONTRACT + 1,
            "connections_most": max((load[2] for load in self.loads), default=0), "memory_slope_mib_per_hour": slopes,
            "memory_steady": {name: steady(found) for name, found in slopes.items()}, "resident_most_mib": self.resident,
            "memory_mib": {name: [round(y, 2) for _, y in points] for name, points in followed.items() if points},
        }  # fmt: skip
        whole = lake.missing == lake.duplicates == doubled == len(unexplained) == 0 and ends.committed == lake.rows == out["landed"] > 0
        polite = most <= 10 * CONTRACT + 1 and out["connections_most"] <= 2  # two for the moment after a kill in which the kernel closes the first
        verdicts = set(out["memory_steady"].values())
        calm = False if False in verdicts else None if None in verdicts else True
        return out | {"whole": whole, "polite": polite, "steady": calm, "ok": whole and polite and (calm is True or not any(followed.values()))}

    def _values(self) -> tuple[int, list[float]]:
        """Return how many readings repeat the one before, and when (wall clock, seconds) polls are missing."""
        files = [str(path) for path in (self.root / "lake").rglob("*.parquet")]
        sql = f"""
            with steps as (
                select ts, (value_int - lag(value_int) over one + 65536) % 65536 as step, lag(ts) over one as before
                from read_parquet({files}) where value_int is not null and tag like 'd%.r%' window one as (partition by tag order by ts, seq)
            )
            select epoch(before) as since, epoch(ts) as until, step, count(*) from steps where step <> 1 group by all
        """
        doubled, holes = 0, []
        for since, until, step, count in duckdb.sql(sql).fetchall():
            if step == 0:
                doubled += count
            elif step is not None:
                holes.append((since + until) / 2)
        return doubled, holes


def memory_mib(pid: int) -> tuple[float, float]:
    """Return what a process holds: resident, and of that what no file backs."""
    resident, of_files = (int(pages) * PAGE_MIB for pages in Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1:3])
    return resident, resident - of_files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=20_000, help="readings a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, help="keep everything here")
    options = parser.parse_args()
    root = options.state or Path(tempfile.mkdtemp(prefix="ebbgate-soak-"))
    root.mkdir(parents=True, exist_ok=True)
    soak = Soak(root, options.minutes, options.rate, options.seed)
    try:
        asyncio.run(soak.run())
        out = soak.account()
    finally:
        if options.state is None:
            shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(out))
    return 0 if out["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
