"""Wiring of the console: facts followed in a thread, pages served on the loopback. GET only; a strict content security policy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gateway.console.app import start
from gateway.console.facts import Facts
from gateway.runtime import notify

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.settings import SiteSettings

log = logging.getLogger(__name__)


async def run(runtime: Runtime, settings: SiteSettings) -> None:
    """Serve until cancelled."""
    facts = Facts(settings)
    await runtime.offload(facts.refresh)
    runner, port = await start(facts, runtime.wall_ns, settings.console_listen)
    log.info("console is ready", extra={"data": {"url": f"http://{settings.console_listen[0]}:{port}"}})
    notify("READY=1")
    try:
        while True:
            await runtime.sleep(1.0)
            await runtime.offload(facts.refresh)
            notify("WATCHDOG=1")
    finally:
        await runner.cleanup()


