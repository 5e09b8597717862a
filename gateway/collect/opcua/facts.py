"""What a server says of itself: its namespaces, since when it runs, its clock, how much it takes at once. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FACTS: Final = (2255, 2257, 2258)  # NamespaceArray, StartTime, CurrentTime (OPC 10000-6, A.3)
LIMITS: Final = ("MaxNodesPerRead", "MaxMonitoredItemsPerCall", "MaxNodesPerHistoryReadData", "MaxNodesPerBrowse")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself. Limits are requests' sizes, never 0. skew_ns: its clock minus ours, None if it has none."""

    namespaces: tuple[str, ...]
    start_us: int
    skew_ns: int | None
    limits: Mapping[str, int]


def facts_of(said: Sequence[object], now_ns: int, items_max: int) -> Facts:
    """Return what a server's answer for FACTS and LIMITS says. Values may be of any type: what is not of the right one is not said."""
    space, start, clock, *limits = said
    sizes = (min(limit, items_max) if isinstance(limit, int) and limit > 0 else items_max for limit in limits)
    skew = clock * 1000 - now_ns if isinstance(clock, int) else None
    return Facts(_names(space), start if isinstance(start, int) else 0, skew, dict(zip(LIMITS, sizes, strict=True)))


def _names(space: object) -> tuple[str, ...]:
    """Return the namespaces of a NamespaceArray, which comes as JSON text; none where it is no array, or longer than a text may be."""
    try:
        names = json.loads(space) if isinstance(space, str) else []
    except (ValueError, RecursionError):
        return ()
    return tuple(name if isinstance(name, str) else "" for name in names) if isinstance(names, list) else ()
