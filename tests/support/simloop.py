"""Virtual time for asyncio: a loop without selector, threads or sockets. The same seed gives the same trace in every process.

Time moves only when nothing is ready, straight to the next timer. A loop with nothing scheduled at all has deadlocked, and says so.
What would bring the outside world in (descriptors, executors, signals) raises.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

T = TypeVar("T")
EPOCH_NS = 1_790_000_000 * 10**9  # virtual wall clock at start: September 2026


class Deadlock(RuntimeError):
    """Nothing is ready and nothing is scheduled: the code under test waits for ever."""


def _on_grid(seconds: float) -> float:
    """Return the nearest whole nanosecond: equal moments are equal floats, whatever else is scheduled."""
    return round(seconds * 1e9) / 1e9


class _Timer(asyncio.TimerHandle):
    """Timers of one moment fire in the order in which they were set: a heap alone would let unrelated timers change it."""

    __slots__ = ("number",)
    number: int

    def __lt__(self, other: Any) -> bool:
        return (self._when, self.number) < (other._when, other.number)  # type: ignore[attr-defined]


class _NoDescriptors(selectors.BaseSelector):
    """Advances the clock instead of waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise RuntimeError("simulation: no file descriptors")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise RuntimeError("simulation: no file descriptors")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("simulation: nothing is scheduled, the code waits for ever")
        self.now = _on_grid(self.now + max(0.0, timeout))
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class SimLoop(asyncio.SelectorEventLoop):
    """The loop. `loop.time()` is virtual seconds since its start."""

    def __init__(self) -> None:
        self._virtual = _NoDescriptors()
        super().__init__(self._virtual)
        self._clock_resolution = 0.5e-9  # half the grid: what is due now and nothing else
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._virtual.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = _Timer(_on_grid(when), callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise RuntimeError("simulation: threads are injected through Runtime.offload, not spawned")


async def _inline(work: Callable[[], Any]) -> Any:
    return work()


def virtual_runtime(loop: SimLoop, seed: int, skew_ns: int = 0) -> Runtime:
    """Return a Runtime on the loop's time: clocks, sleep, and randomness from `seed`; offloaded work runs inline."""
    rng = random.Random(seed)

    def now_ns() -> int:
        return round(loop.time() * 1e9)

    def wall_ns() -> int:
        return EPOCH_NS + skew_ns + now_ns()

    def sleep(seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)

    return Runtime(
        wall_ns=wall_ns,
        monotonic_ns=now_ns,
        sleep=sleep,
        random=rng.random,
        offload=_inline,
        nonce32=lambda: rng.getrandbits(32),
        nonce64=lambda: rng.getrandbits(64),
        boot_id=rng.randbytes(16),
    )


def run(main: Callable[[SimLoop], Coroutine[Any, Any, T]]) -> T:
    """Run `main(loop)` to its end on a new loop; what it left running is cancelled."""
    loop = SimLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        rest = asyncio.all_tasks(loop)
        for task in sorted(rest, key=lambda t: t.get_name()):
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
