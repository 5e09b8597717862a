"""Does the memory of a process rise? From samples over minutes to a slope with its uncertainty, and a verdict. Pure.

What is sampled is memory that no file backs (pages of libraries come and go with what else a machine does). Of each minute the lower quartile
counts: what is held when a piece of work is done (deliver takes a hundred MiB for each), but not the moment behind a trim, once a minute, in
which a process has given back what it takes again at once. The slope is Theil and Sen's, the median over all pairs of
minutes, with the interval of Kendall, 90 %. One step of STEP_MIN to STEP_MAX from a minute to the next (one more thread, a buffer that found its
size) is no slope: pairs across it do not count. A second one does.

Verdict: steady up to SLOPE_MAX; None (nobody can say) with fewer than MINUTES_MIN minutes, or where the interval is wider than twice the smallest
leak that must not be missed, LEAK_MIN. tests/soak/test_judge.py shows what is told apart.
"""

from __future__ import annotations

import math
import statistics
from itertools import combinations, pairwise
from typing import Final, NamedTuple

SLOPE_MAX: Final = 1.0  # MiB an hour; below it a quarter of an hour cannot tell a leak from noise
LEAK_MIN: Final = 2.0
STEP_MIN, STEP_MAX = 0.5, 4.0  # MiB
MINUTES_MIN: Final = 10
_Z: Final = 1.645  # 90 % of a normal distribution lie within

Point = tuple[float, float]  # hours, MiB


class Slope(NamedTuple):
    """MiB an hour: the estimate, and between what it lies."""

    value: float
    low: float
    high: float


def held(points: list[Point]) -> list[Point]:
    """Return the lower quartile of each minute; a minute that was cut off at either end is left out."""
    minutes: dict[int, list[Point]] = {}
    for x, y in points:
        minutes.setdefault(int(x * 60), []).append((x, y))
    whole = max((len(some) for some in minutes.values()), default=0)
    return [sorted(some, key=lambda point: point[1])[len(some) // 4] for some in minutes.values() if 2 * len(some) > whole]


def slope(points: list[Point]) -> Slope | None:
    """Return the slope through these minutes, None for too few."""
    n = len(points)
    if n < MINUTES_MIN:
        return None
    step = _step(points)
    parts = [points[:step], points[step:]] if step else [points]
    pairs = sorted((y1 - y0) / (x1 - x0) for part in parts for (x0, y0), (x1, y1) in combinations(part, 2))
    half = _Z * math.sqrt(sum(len(part) * (len(part) - 1) * (2 * len(part) + 5) for part in parts) / 18)
    low, high = max(0, math.floor((len(pairs) - half) / 2)), min(len(pairs) - 1, math.ceil((len(pairs) + half) / 2))
    return Slope(round(statistics.median(pairs), 2), round(pairs[low], 2), round(pairs[high], 2))


def _step(points: list[Point]) -> int:
    """Return the place behind the greatest rise between two minutes, 0 where that is none of STEP_MIN to STEP_MAX."""
    rise, place = max((after[1] - before[1], i + 1) for i, (before, after) in enumerate(pairwise(points)))
    return place if STEP_MIN <= rise <= STEP_MAX else 0


def steady(found: Slope | None) -> bool | None:
    """Return the verdict; None: it cannot be said."""
    if found is None:
        return None
    if found.value > SLOPE_MAX:
        return False if found.low > 0 else None
    return None if found.high - found.low > 2 * LEAK_MIN else True
