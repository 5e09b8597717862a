"""The load contract of one source, awaited: every request of an OPC UA source passes here (G10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.collect.load import Budget
    from gateway.runtime import Runtime


class Throttle:
    """Lets requests begin one after another, in the order of asking, when the budget says so."""

    def __init__(self, budget: Budget, runtime: Runtime) -> None:
        self.budget = budget
        self._runtime = runtime
        self._turn = asyncio.Lock()

    async def begin(self) -> int:
        """Wait for the next slot and take it; return when it began (monotonic ns)."""
        async with self._turn:
            now = self._runtime.monotonic_ns()
            wait = self.budget.ready_ns(now) - now
            if wait > 0:
                await self._runtime.sleep(wait / 1e9)
                now = self._runtime.monotonic_ns()
            self.budget.begin(now)
            return now

    def spent(self, began_ns: int | None, size_bytes: int, *, failed: bool = False) -> None:
        """Count a request that ended now. began_ns None: it was parked at the server (Publish) and kept it busy for nothing."""
        now = self._runtime.monotonic_ns()
        self.budget.spent(now, 0 if began_ns is None else now - began_ns, size_bytes, failed=failed)
