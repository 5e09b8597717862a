"""How many readings waited on the gateway, over a shift: from the landing index alone, exact once what waited has come.

A record that came late waited from its commit to its receipt. What waits while the link is away is known when the link is back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.landing import Record

STEP_NS: Final = 10 * 10**9
STEPS_MAX: Final = 3 * 2_880  # three shifts: a record may have waited long
SHORT_NS: Final = 5 * 10**9  # less is no waiting


class Waited:
    """Steps of the number waiting, in order of time."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}

    def take(self, record: Record) -> None:
        """Note one landing record."""
        readings = sum(last - first + 1 for first, last in record.new)
        if not readings or record.received_ns - record.state.wall_ns < SHORT_NS:
            return
        for at, change in ((record.state.wall_ns, readings), (record.received_ns, -readings)):
            self._steps[at // STEP_NS] = self._steps.get(at // STEP_NS, 0) + change
        if len(self._steps) > STEPS_MAX:
            for old in sorted(self._steps)[: STEPS_MAX // 4]:
                del self._steps[old]

    def points(self, since_ns: int, now_ns: int) -> list[tuple[int, float]]:
        """Return (wall ns, readings waiting), a step as two points."""
        out, waiting = [(since_ns, 0.0)], 0
        for at, change in sorted(self._steps.items()):
            if at * STEP_NS >= since_ns:
                out += [(at * STEP_NS, float(max(0, waiting))), (at * STEP_NS, float(max(0, waiting + change)))]
            waiting += change
        return [*out, (now_ns, float(max(0, waiting)))]
