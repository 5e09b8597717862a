"""Wiring of the console: facts followed in a thread, pages served on the loopback. GET only; a strict content security policy."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.configfile import is_loopback
from gateway.console.app import start
from gateway.console.facts import Facts
from gateway.console.history import History
from gateway.errors import ConfigError
from gateway.runtime import notify

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.settings import SiteSettings

BACK_SECONDS: Final = 0.25  # between two chunks of history: a fifth of a core at most

log = logging.getLogger(__name__)


async def run(runtime: Runtime, settings: SiteSettings) -> None:
    """Serve until cancelled; raise ConfigError for an address that others could reach."""
    _only_loopback(settings.console_listen[0])
    facts = Facts(settings)
    await runtime.offload(facts.refresh)
    runner, port = await start(facts, runtime, settings.console_listen)
    log.info("console is ready", extra={"data": {"url": f"http://{settings.console_listen[0]}:{port}"}})
    notify("READY=1")
    looking: dict[str, History] = {}
    done: set[str] = set()
    looked_ns = runtime.monotonic_ns()
    try:
        while True:
            await runtime.sleep(BACK_SECONDS)
            if runtime.monotonic_ns() - looked_ns >= 10**9:
                await runtime.offload(facts.refresh)
                looked_ns = runtime.monotonic_ns()
                notify("WATCHDOG=1")
            stream = next((one for one in facts.streams if one not in done), None)
            if stream is not None:
                history = looking.setdefault(stream, History(facts.streams[stream]))
                if not await runtime.offload(partial(_back, facts, history, runtime.wall_ns())):
                    done.add(stream)
                    del looking[stream]
    finally:
        await runner.cleanup()


def _back(facts: Facts, history: History, now_ns: int) -> bool:
    with facts.lock:
        return history.step(now_ns)


def _only_loopback(host: str) -> None:
    if not is_loopback(host):
        raise ConfigError(f"console.listen is {host}", "The console binds the loopback only; put a reverse proxy with TLS and users before it.")
