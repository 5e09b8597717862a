"""All of it twice: on asyncio's loop, and on uvloop's, which collect takes where it is installed; their transports are not the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop

from gateway.cli.processes import fast_loop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": fast_loop}


def pytest_sessionstart() -> None:
    loop = fast_loop()
    assert isinstance(loop, uvloop.Loop), "the second half would be the first again"
    loop.close()
