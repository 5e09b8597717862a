"""Starts, restarts and stops commands as processes: `ebbgate run` and the demo. Knows nothing of what they do.

A child that ends is started again after a back-off of 1 to 60 s (reset once it ran for a minute). Children die with their parent
(PR_SET_PDEATHSIG) and are ended by pid: SIGTERM, then SIGKILL after a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

from buffer.parent import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from gateway.runtime import Runtime

STOP_SECONDS_MAX: Final = 15
STEADY_SECONDS: Final = 60

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """One process to keep running. log_file: where its stderr goes; None: ours."""

    name: str
    arguments: tuple[str, ...]
    log_file: Path | None = None
    back_off_s: tuple[float, float] = (1.0, 60.0)


@dataclass(slots=True)
class Child:
    """A command and its present process."""

    command: Command
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    wanted: bool = True
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Pid of the running process, None while there is none."""
        return self.process.pid if self.process and self.process.returncode is None else None


def die_with_parent() -> None:
    """Run in a child before exec: whoever is killed takes its children along."""
    end_with_parent(signal.SIGTERM)


class Supervisor:
    """Keeps commands running until they are stopped."""

    def __init__(self, runtime: Runtime, commands: Sequence[Command]) -> None:
        self._runtime = runtime
        self.children = {command.name: Child(command) for command in commands}

    def start(self) -> None:
        """Start all; return at once."""
        for child in self.children.values():
            child.task = asyncio.get_running_loop().create_task(self._keep(child))

    async def _keep(self, child: Child) -> None:
        attempt = 0
        low, high = child.command.back_off_s
        while child.wanted:
            began = self._runtime.monotonic_ns()
            code = await self._once(child)
            if not child.wanted:
                return
            ran_s = (self._runtime.monotonic_ns() - began) / 1e9
            attempt = 0 if ran_s > STEADY_SECONDS else attempt + 1
            log.warning("process ended", extra={"data": {"name": child.command.name, "code": code, "ran_s": round(ran_s, 1)}})
            await self._runtime.sleep(min(high, low * 2.0 ** max(0, attempt - 1)))

    def send(self, names: Iterable[str], number: signal.Signals) -> None:
        """Send a signal to these children where they run."""
        for name in names:
            if self.children[name].pid is not None and (process := self.children[name].process) is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    async def _once(self, child: Child) -> int | str:
        """Run the command until it ends; return its exit code, or why it could not be started."""
        try:
            with _output(child.command.log_file) as output:
                child.process = await asyncio.create_subprocess_exec(
                    *child.command.arguments, stdin=asyncio.subprocess.DEVNULL, stderr=output, preexec_fn=die_with_parent
                )
        except OSError as error:  # no memory, no processes, no room for the log: the next try may go
            return f"not started: {error.strerror}"
        child.starts += 1
        return await child.process.wait()

    async def stop(self, name: str) -> None:
        """End one child in order: SIGTERM, then SIGKILL."""
        child = self.children[name]
        child.wanted = False
        if child.process is not None and child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await child.process.wait()
            except TimeoutError:
                log.error("process did not stop; killed", extra={"data": {"name": name}})  # noqa: TRY400
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()
                await child.process.wait()
        if child.task is not None:
            child.task.cancel()
            await asyncio.gather(child.task, return_exceptions=True)

    async def stop_all(self) -> None:
        """End all, in the order given."""
        for name in self.children:
            await self.stop(name)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[IO[bytes] | None]:
    if path is None:
        yield None
        return
    with path.open("ab") as file:
        yield file
