"""The arithmetic of the state record: what the ring holds, what it lost. Pure.

`lost` never shrinks but in two ways: what falls below `low` is told by `low`, and beyond LOST_RANGES_MAX neighbours merge
(a merged range also names readings that are there: a received reading beats any statement that it is lost).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buffer import limits
from buffer.manifest import Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def merge_losses(losses: Iterable[Loss], low: tuple[int, int]) -> tuple[Loss, ...]:
    """Return the losses at or above `low`, in order, at most LOST_RANGES_MAX."""
    out: list[Loss] = []
    for loss in sorted(set(losses)):
        if (loss.generation, loss.last) < low:
            continue
        first = max(loss.first, low[1]) if loss.generation == low[0] else loss.first
        out.append(Loss(loss.generation, first, loss.last, loss.reason))
    while len(out) > limits.LOST_RANGES_MAX:
        at = min(range(len(out) - 1), key=lambda i: _distance(out, i))
        a, b = out[at], out[at + 1]
        out[at : at + 2] = [Loss(a.generation, a.first, max(a.last, b.last), a.reason)]
    return tuple(sorted(out))


def _distance(losses: Sequence[Loss], at: int) -> int:
    a, b = losses[at], losses[at + 1]
    return b.first - a.last if a.generation == b.generation else 2**62
