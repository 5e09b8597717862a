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
from gateway.demo.keyboard import keys
from gateway.demo.killer import Killer
from gateway.demo.link import Link
from gateway.demo.outage import Outages
from gateway.demo.setup import STREAM, Files, free_port, make_keys, write_config
from gateway.errors import EXIT_FINDING, EbbgateError
from gateway.supervise import Command, Supervisor, die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.runtime import Runtime

PLANT_SECONDS_MAX: Final = 90  # an OPC UA server starts in 3 s on an idle box
DRAIN_SECONDS_MAX: Final = 180
KILL_SECONDS_MAX: Final = 900  # of a campaign: it ends when everybody was killed as often as asked
START_SECONDS_MAX: Final = 60  # until the first reading stands in the lake: the clock of the run begins then
SETTLE_NS: Final = 2 * 10**9  # after it: what was committed before is not live
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
    kills: int = 0  # kill -9 of each process, for the tests


class Demo:
    """One run."""

    def __init__(self, runtime: Runtime, options: Options, root: Path) -> None:
        self._runtime = runtime
        self._options = options
        self.root = root
        self._plant: asyncio.subprocess.Process | None = None
        self._link = Link(("127.0.0.1", free_port(runtime.random)))
        self._outages = Outages(self._link)
        self._supervisor: Supervisor | None = None
        self._killer = Killer(options.kills, PROCESSES, runtime.random)
        self._peaks: dict[str, int] = {}
        self._began_ns = runtime.wall_ns()  # of the run: everybody works

    # ---- start and stop ----

    async def start(self) -> Files:
        """Start plant, link and processes."""
        make_keys(self.root)
        ports = await self._start_plant()
        files = write_config(self.root, ports, await self._link.start(), self._link.target[1], free_port(self._runtime.random))
        logs = self.root / "logs"
        logs.mkdir(exist_ok=True)
        commands = []
        for name in PROCESSES:
            config = files.gateway_toml if name in ("collect", "upload") else files.receiver_toml
            arguments = (sys.executable, "-P", "-m", "gateway.cli", name, "--config", str(config))
            commands.append(Command(name, arguments, logs / f"{name}.log", (0.2, 2.0)))
        self._supervisor = Supervisor(self._runtime, commands)
        self._supervisor.start()
        return files

    async def _start_plant(self) -> dict[str, int]:
        arguments = (sys.executable, "-P", "-m", "gateway.demo.plant", "--state", str(self.root), "--seed", str(self._options.seed))
        self._plant = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, preexec_fn=die_with_parent)
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
        if self._supervisor is not None:
            await self._supervisor.stop_all()
        await self._link.stop()
        if self._plant is not None and self._plant.returncode is None:
            self._plant.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(10):
                    await self._plant.wait()
            except TimeoutError:
                self._plant.kill()
                await self._plant.wait()

    # ---- the run ----

    def toggle_link(self) -> None:
        """Cut or restore the link: the key `o`."""
        now_ns = self._runtime.wall_ns()
        (self._outages.cut if self._link.up else self._outages.restore)(now_ns)

    async def play(self, show: Callable[[str], None]) -> None:
        """Run for the time asked, with the outage in the middle, and until everybody was killed as often as asked."""
        options = self._options
        await self._warm_up(show)
        began = self._runtime.monotonic_ns()
        cut_at = min(15.0, max(5.0, (options.seconds - options.outage_s) * 0.45))
        todo = [(cut_at, self._outages.cut), (cut_at + options.outage_s, self._outages.restore)] if options.outage_s else []
        while True:
            passed = (self._runtime.monotonic_ns() - began) / 1e9
            if passed >= options.seconds and (self._killer.done or passed > KILL_SECONDS_MAX):
                return
            while todo and passed >= todo[0][0]:
                todo.pop(0)[1](self._runtime.wall_ns())
            if self._drained():
                self._outages.drained(self._runtime.wall_ns())
            self._look(passed)
            show(self._progress(passed))
            await self._runtime.sleep(0.25)

    async def _warm_up(self, show: Callable[[str], None]) -> None:
        began = self._runtime.monotonic_ns()
        while not self._work("deliver") and (passed := (self._runtime.monotonic_ns() - began) / 1e9) < START_SECONDS_MAX:
            show(f"{passed:5.0f} s  starting: no reading has reached the lake yet")
            await self._runtime.sleep(0.25)
        self._began_ns = self._runtime.wall_ns()

    def _drained(self) -> bool:
        last = self._outages.all[-1] if self._outages.all else None
        return last is not None and last.ended_ns > 0 and not last.drained_ns and audit.drained(self._landing, last.ended_ns)

    def _look(self, passed: float) -> None:
        """Note memory peaks, and kill who is due."""
        assert self._supervisor is not None
        for name, child in self._supervisor.children.items():
            pid = child.pid
            if pid is None:
                continue
            try:
                text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            except OSError:
                continue
            peak = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)
            self._peaks[name] = max(self._peaks.get(name, 0), peak)
            if self._killer.seen(name, pid, self._work(name), passed):
                os.kill(pid, signal.SIGKILL)

    def _work(self, name: str) -> int:
        """Return a number that rises while a process does its work; the console writes nothing, its log says when it serves."""
        if name == "console":
            return (self.root / "logs/console.log").read_bytes().count(b"console is ready")
        status = self._status(name)
        streams = status.get("streams", {}).get(STREAM, {})
        numbers = {
            "collect": status.get("time_ns", 0) if status.get("end_seq") else 0,  # end_seq begins anew with each generation
            "upload": status.get("last_receipt_ns", 0),
            "receive": streams.get("received", 0),
            "deliver": streams.get("lake", {}).get("rows", 0),
        }
        return int(numbers[name] or 0)

    async def finish(self, show: Callable[[str], None]) -> None:
        """Bring the link back, stop collect, wait until everything committed has landed and is in the lake."""
        assert self._supervisor is not None
        self._outages.restore(self._runtime.wall_ns())
        await self._supervisor.stop("collect")
        deadline = self._runtime.monotonic_ns() + DRAIN_SECONDS_MAX * 10**9
        ends = audit.committed(self._ring)
        while self._runtime.monotonic_ns() < deadline:
            landed = audit.landed(self._landing) if self._landing.exists() else 0
            delivered = self._status("deliver").get("streams", {}).get(STREAM, {}).get("lake", {}).get("rows", 0)
            show(f"draining: {ends.committed:,} committed, {landed:,} landed, {delivered:,} delivered")
            if landed >= ends.committed:
                self._outages.drained(self._runtime.wall_ns())
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
        collect, upload = self._status("collect"), self._status("upload")
        received = self._status("receive").get("streams", {}).get(STREAM, {}).get("received", 0)
        rows = self._status("deliver").get("streams", {}).get(STREAM, {}).get("lake", {}).get("rows", 0)
        link = "up" if self._link.up else "DOWN"
        return (
            f"{passed:5.0f} s  link {link:4}  committed {collect.get('end_seq', 0):>8,}  landed {received:>8,}  lake {rows:>8,}"
            f"  waiting {upload.get('backlog_readings', 0):>6,}  segments {collect.get('segments', 0)}"
        )

    def summary(self) -> dict[str, Any]:
        """Return the account, counted from the stores."""
        ends = audit.committed(self._ring)
        lake = audit.count_lake(self.root / "lake", STREAM, ends)
        late = audit.latencies_ms(self._landing, self._outages.quiet(self._runtime.wall_ns()), self._began_ns + SETTLE_NS)
        writes = (self.root / "plant-writes.jsonl").read_text(encoding="utf-8").count("\n")
        return {
            "committed": ends.committed,
            "landed": audit.landed(self._landing),
            "delivered_lake": lake.rows,
            "missing": lake.missing,
            "duplicates": lake.duplicates,
            "outage_s": round(self._outages.silent_s, 1),
            "drain_s": None if self._outages.drain_s is None else round(self._outages.drain_s, 1),
            "live_latency_ms_p50": audit.percentile(late, 0.5),
            "live_latency_ms_p99": audit.percentile(late, 0.99),
            "generations": len(ends.by_generation),
            "segments": len(list((self._ring / "segments").glob("*.cose"))),
            "link_cuts": len(self._outages.all),
            "writes_seen": writes,
            "memory_peak_mb": {name: round(kb / 1024, 1) for name, kb in sorted(self._peaks.items())},
            "killed": self._killer.killed,
        }


def run_demo(runtime: Runtime, options: Options) -> int:
    """Run the demo; return the exit code: 0, or 1 where a reading is missing or doubled."""
    temporary = options.state is None
    root = Path(tempfile.mkdtemp(prefix="ebbgate-demo-")) if options.state is None else options.state
    root.mkdir(parents=True, exist_ok=True)
    if not temporary and any(root.iterdir()):
        raise EbbgateError(f"{root} is not empty", "Name a directory that does not exist yet: a demo begins with nothing.")
    try:
        summary = asyncio.run(_run(runtime, options, root))
        ledger = audit.ledger(root / "landing")
    finally:
        if temporary:
            shutil.rmtree(root, ignore_errors=True)
    good = summary["missing"] == 0 and summary["duplicates"] == 0 and summary["committed"] == summary["landed"] == summary["delivered_lake"] > 0
    if options.as_json:
        click.echo(json.dumps(summary))
    else:
        for line in ledger:
            click.echo(line)
        for key, value in summary.items():
            click.echo(f"  {key:22} {value}")
        click.echo("every reading arrived once" if good else "something is missing or doubled: keep --state DIR and look into DIR/logs")
    return 0 if good else EXIT_FINDING


def _printer(runtime: Runtime, on_terminal: bool) -> Callable[[str], None]:
    """Return what shows a line of progress: in place on a terminal, else one in 5 s."""
    shown = [float("-inf")]

    def show(line: str) -> None:
        now = runtime.monotonic_ns() / 1e9
        if on_terminal:
            click.echo(f"\r{line:<118}", nl=False, err=True)
        elif now - shown[0] >= 5:  # noqa: PLR2004 -- seconds between lines in a log
            shown[0] = now
            click.echo(line, err=True)

    return show


async def _run(runtime: Runtime, options: Options, root: Path) -> dict[str, Any]:
    demo = Demo(runtime, options, root)
    on_terminal = sys.stderr.isatty() and not options.headless
    show = _printer(runtime, on_terminal)
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.ask)
    try:
        starting = asyncio.create_task(demo.start())
        if not await stop.during(starting):
            raise EbbgateError("stopped before it had started", "Start it again.")
        click.echo(f"console: http://127.0.0.1:{starting.result().console_port}   state: {root}", err=True)
        with keys({"o": demo.toggle_link, "q": stop.ask}, wanted=on_terminal) as heard:
            click.echo("keys: o cuts and restores the link, q stops and counts" if heard else "Ctrl-C stops and counts", err=True)
            await stop.during(asyncio.create_task(demo.play(show)))
        await demo.finish(show)
        if on_terminal:
            click.echo("", err=True)
    finally:
        await demo.stop()
    return demo.summary()


class _Stop:
    """Somebody wants the demo to end: a signal or a key."""

    def __init__(self) -> None:
        self.asked = False
        self._event = asyncio.Event()

    def ask(self) -> None:
        """End what runs under `during`, and whatever comes after."""
        self.asked = True
        self._event.set()

    async def during(self, task: asyncio.Task[Any]) -> bool:
        """Wait for the task or for `ask`, which cancels it. Raise what it raised; say whether it ended by itself."""
        task.add_done_callback(lambda _: self._event.set())
        if not self.asked:
            await self._event.wait()
            self._event.clear()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
