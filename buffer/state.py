"""The arithmetic of the state record: what the ring holds, what it lost. Pure.

`lost` shrinks in one way only: what falls below `low` is told by `low`. Beyond LOST_RANGES_MAX neighbours of one generation merge (the
merged range also names readings that are there: a received reading beats any statement that it is lost). Where losses of too
many generations stand apart, `low` rises over the oldest of them: the ring gives up what lies below rather than one reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buffer import limits
from buffer.intervals import Intervals
from buffer.manifest import Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buffer.manifest import LossReason

Place = tuple[int, int]  # generation, seq


def account(losses: Iterable[Loss], low: Place) -> tuple[Place, tuple[Loss, ...]]:
    """Return `low`, raised if need be, and the losses at or above it, in order, at most LOST_RANGES_MAX."""
    out = _joined(_above(losses, low))
    while len(out) > limits.LOST_RANGES_MAX:
        pairs = [i for i in range(len(out) - 1) if out[i].generation == out[i + 1].generation]
        if not pairs:
            low = (out[1].generation, out[1].first)
            out = _above(out, low)
            continue
        at = min(pairs, key=lambda i: out[i + 1].first - out[i].last)
        out[at : at + 2] = [_span(out[at], out[at + 1])]
    return low, tuple(sorted(out))


def _above(losses: Iterable[Loss], low: Place) -> list[Loss]:
    kept = [loss for loss in sorted(set(losses)) if (loss.generation, loss.last) >= low]
    return [Loss(x.generation, max(x.first, low[1]), x.last, x.reason) if x.generation == low[0] else x for x in kept]


def _joined(losses: list[Loss]) -> list[Loss]:
    """Join what overlaps, and what touches for the same reason."""
    out: list[Loss] = []
    for loss in losses:
        if out and out[-1].generation == loss.generation and loss.first <= out[-1].last + (out[-1].reason == loss.reason):
            out[-1] = _span(out[-1], loss)
        else:
            out.append(loss)
    return out


def _span(a: Loss, b: Loss) -> Loss:
    return Loss(a.generation, a.first, max(a.last, b.last), a.reason)


def missing(ends: Mapping[int, int], held: Mapping[int, Intervals], known: Iterable[Loss], low: Place, reason: LossReason) -> list[Loss]:
    """Return what should be there and is not: 0..end of each generation, from `low` on, minus what is held or known to be lost."""
    told: dict[int, Intervals] = {}
    for loss in known:
        told.setdefault(loss.generation, Intervals()).add(loss.first, loss.last)
    out: list[Loss] = []
    for generation, end in sorted(ends.items()):
        first = low[1] if generation == low[0] else 0
        if generation < low[0] or first >= end:
            continue
        covered = held.get(generation, Intervals()).copy()
        for a, b in told.get(generation, Intervals()):
            covered.add(a, b)
        out += [Loss(generation, a, b, reason) for a, b in covered.holes(first, end - 1)]
    return out
