"""`ebbgate demo`: plant, link and the five real processes in one directory; an outage; and at the end the account of every reading."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.demo import audit
from gateway.demo.link import Link
from gateway.demo.setup import STREAM, Files, free_port, make_keys, write_config
from gateway.errors import EXIT_FINDING, EbbgateError
from gateway.supervise import Command, Supervisor

if TYPE_CHECKING:
    from gateway.runtime import Runtime

PLANT_SECONDS_MAX: Final = 40  # an OPC UA server starts in 3 s on an idle box
DRAIN_SECONDS_MAX: Final = 180
PROCESSES: Final = ("receive", "deliver", "console", "collect", "upload")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for. outage_s: 0 none."""

    seconds: float
    outage_s: float
    headless: bool
    as_json: bool
    state: Path | None
    seed: int = 1
    kills: int = 0  # of random processes, for the tests


class Demo:
    """One run."""

    def __init__(self, runtime: Runtime, options: Options, root: Path) -> None:
        self._runtime = runtime
        self._options = options
        self.root = root
        self._plant: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self.supervisor: Supervisor | None = None
        self._outage: tuple[int, int] | None = None  # wall ns
        self._silent_s = 0.0
        self._drain_s: float | None = None
        self._peaks: dict[str, int] = {}
        self._killed: dict[str, int] = {}

    # ---- start and stop ----

    async def start(self) -> Files:
        """Start plant, link and processes."""
        make_keys(self.root)
        ports = await self._start_plant()
        receiver_port = free_port()
        self._link = Link(("127.0.0.1", receiver_port))
        link_port = await self._link.start()
        files = write_config(self.root, ports["opcua"], ports["modbus"], link_port, receiver_port)
        logs = self.root / "logs"
        logs.mkdir(exist_ok=True)
        commands = []
        for name in PROCESSES:
            config = files.gateway_toml if name in ("collect", "upload") else files.receiver_toml
            arguments = (sys.executable, "-m", "gateway.cli", name, "--config", str(config))
            commands.append(Command(name, arguments, logs / f"{name}.log", (0.2, 2.0)))
        self.supervisor = Supervisor(self._runtime, commands)
        self.supervisor.start()
        return files

    async def _start_plant(self) -> dict[str, int]:
        arguments = (sys.executable, "-m", "gateway.demo.plant", "--state", str(self.root), "--seed", str(self._options.seed))
        self._plant = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
        assert self._plant.stdout is not None
        try:
            async with asyncio.timeout(PLANT_SECONDS_MAX):
                line = await self._plant.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise EbbgateError("the simulated plant did not start", "Run `python -m gateway.demo.plant --state DIR` to see why.")
        ports: dict[str, int] = json.loads(line)
        return ports

    async def stop(self) -> None:
        """Stop everything that still runs."""
        if self.supervisor is not None:
            await self.supervisor.stop_all()
        if self._link is not None:
            await self._link.stop()
        if self._plant is not None and self._plant.returncode is None:
            self._plant.send_signal(signal.SIGTERM)
            await self._plant.wait()

    # ---- the run ----

    async def play(self, show: Any) -> None:  # noqa: ANN401 -- a callable that prints
        """Run for the time asked, with the outage in the middle; then stop collect and wait until everything is delivered."""
        assert self.supervisor is not None
        assert self._link is not None
        options = self._options
        began = self._runtime.monotonic_ns()
        cut_at = min(15.0, max(5.0, (options.seconds - options.outage_s) * 0.45))
        kill_times = [options.seconds * (i + 1) / (options.kills + 1) for i in range(options.kills)]
        while (passed := (self._runtime.monotonic_ns() - began) / 1e9) < options.seconds:
            if options.outage_s:
                self._switch(passed, cut_at)
            while kill_times and passed >= kill_times[0]:
                kill_times.pop(0)
                self._kill()
            self._sample()
            show(self._progress(passed))
            await self._runtime.sleep(0.25)
        self._link.restore()
        await self._finish(show)

    def _switch(self, passed: float, cut_at: float) -> None:
        assert self._link is not None
        now = self._runtime.wall_ns()
        if self._outage is None and passed >= cut_at:
            self._link.cut()
            self._outage = (now, 0)
            self._moved = self._link.bytes_out
        elif self._outage is not None and not self._link.up and passed >= cut_at + self._options.outage_s:
            self._silent_s = (now - self._outage[0]) / 1e9 if self._link.bytes_out == self._moved else 0.0
            self._outage = (self._outage[0], now)
            self._link.restore()
        elif self._outage is not None and self._outage[1] and self._drain_s is None and self._drained():
            self._drain_s = (now - self._outage[1]) / 1e9

    def _drained(self) -> bool:
        status = self._status("upload")
        behind = status.get("live", {}).get("blocks_waiting", 1)
        return not status.get("backlog_readings", 1) and behind <= 8 and not status.get("cause")  # noqa: PLR2004 -- two seconds of commits

    def _kill(self) -> None:
        assert self.supervisor is not None
        running = [child for child in self.supervisor.children.values() if child.pid]
        if running:
            child = running[int(self._runtime.random() * len(running))]
            self._killed[child.command.name] = self._killed.get(child.command.name, 0) + 1
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)

    def _sample(self) -> None:
        assert self.supervisor is not None
        for name, child in self.supervisor.children.items():
            try:
                text = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
            except OSError:
                continue
            peak = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)
            self._peaks[name] = max(self._peaks.get(name, 0), peak)

    async def _finish(self, show: Any) -> None:  # noqa: ANN401
        assert self.supervisor is not None
        await self.supervisor.stop("collect")
        deadline = self._runtime.monotonic_ns() + DRAIN_SECONDS_MAX * 10**9
        ends = audit.committed(self._ring)
        while self._runtime.monotonic_ns() < deadline:
            landed = audit.landed(self._landing) if self._landing.exists() else 0
            delivered = self._status("deliver").get("streams", {}).get(STREAM, {}).get("lake", {}).get("rows", 0)
            show(f"draining: {ends.committed:,} committed, {landed:,} landed, {delivered:,} delivered")
            if landed >= ends.committed and delivered >= ends.committed:
                return
            await self._runtime.sleep(0.5)

    # ---- what is shown ----

    @property
    def _ring(self) -> Path:
        return self.root / "ring" / STREAM

    @property
    def _landing(self) -> Path:
        return self.root / "landing" / STREAM

    def _status(self, process: str) -> dict[str, Any]:
        place = {"collect": "state/collect", "upload": "state/upload", "receive": "landing", "deliver": "deliver"}[process]
        try:
            body: dict[str, Any] = json.loads((self.root / place / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return body

    def _progress(self, passed: float) -> str:
        assert self._link is not None
        collect, upload = self._status("collect"), self._status("upload")
        received = self._status("receive").get("streams", {}).get(STREAM, {}).get("received", 0)
        rows = self._status("deliver").get("streams", {}).get(STREAM, {}).get("lake", {}).get("rows", 0)
        link = "up" if self._link.up else "DOWN"
        waiting = upload.get("live", {}).get("blocks_waiting", 0)
        return (
            f"{passed:5.0f} s  link {link:4}  committed {collect.get('end_seq', 0):>8,}  landed {received:>8,}  lake {rows:>8,}"
            f"  waiting {waiting:>4} blocks  segments {collect.get('segments', 0)}"
        )

    def summary(self) -> dict[str, Any]:
        """Return the account, counted from the stores."""
        assert self._link is not None
        ends = audit.committed(self._ring)
        lake = audit.count_lake(self.root / "lake", STREAM, ends)
        quiet = None
        if self._outage is not None:
            end = self._outage[1] or self._runtime.wall_ns()
            quiet = (self._outage[0] - 2 * 10**9, end + int((self._drain_s or 0) * 1e9) + 2 * 10**9)
        late = audit.latencies_ms(self._landing, quiet)
        writes = (self.root / "plant-writes.jsonl").read_text(encoding="utf-8").count("\n")
        return {
            "committed": ends.committed,
            "landed": audit.landed(self._landing),
            "delivered_lake": lake.rows,
            "missing": lake.missing,
            "duplicates": lake.duplicates,
            "outage_s": round(self._silent_s, 1),
            "drain_s": round(self._drain_s, 1) if self._drain_s is not None else None,
            "live_latency_ms_p50": audit.percentile(late, 0.5),
            "live_latency_ms_p99": audit.percentile(late, 0.99),
            "generations": len(ends.by_generation),
            "segments": len(list((self._ring / "segments").glob("*.cose"))),
            "link_cuts": self._link.cuts,
            "writes_seen": writes,
            "memory_peak_mb": {name: round(kb / 1024, 1) for name, kb in sorted(self._peaks.items())},
            "killed": self._killed,
        }


def run_demo(runtime: Runtime, options: Options) -> int:
    """Run the demo; return the exit code: 0, or 1 where a reading is missing or doubled."""
    temporary = options.state is None
    root = Path(tempfile.mkdtemp(prefix="ebbgate-demo-")) if options.state is None else options.state
    root.mkdir(parents=True, exist_ok=True)
    try:
        summary = asyncio.run(_run(runtime, options, root))
    finally:
        if temporary:
            shutil.rmtree(root, ignore_errors=True)
    good = summary["missing"] == 0 and summary["duplicates"] == 0 and summary["committed"] == summary["landed"] == summary["delivered_lake"] > 0
    if options.as_json:
        click.echo(json.dumps(summary))
    else:
        for key, value in summary.items():
            click.echo(f"  {key:22} {value}")
        click.echo("every reading arrived once" if good else "something is missing or doubled: keep --state DIR and look into DIR/logs")
    return 0 if good else EXIT_FINDING


async def _run(runtime: Runtime, options: Options, root: Path) -> dict[str, Any]:
    demo = Demo(runtime, options, root)
    shown = ["", 0.0]

    def show(line: str) -> None:
        now = runtime.monotonic_ns() / 1e9
        if sys.stderr.isatty() and not options.headless:
            click.echo(f"\r{line:<118}", nl=False, err=True)
        elif now - float(shown[1]) >= 5:  # noqa: PLR2004 -- seconds between lines in a log
            shown[1] = now
            click.echo(line, err=True)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        files = await demo.start()
        click.echo(f"console: http://127.0.0.1:{files.console_port}   state: {root}   (Ctrl-C stops and counts)", err=True)
        play = asyncio.create_task(demo.play(show))
        play.add_done_callback(lambda _: stop.set())
        await stop.wait()
        if not play.done():
            play.cancel()
            await asyncio.gather(play, return_exceptions=True)
            await demo._finish(show)  # noqa: SLF001 -- the same module's class
        else:
            play.result()
    finally:
        await demo.stop()
    return demo.summary()
