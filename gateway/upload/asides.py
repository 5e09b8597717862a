"""Blocks that are not picked for now, and until when: parked, unreadable, unanswered, over the day's budget. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from buffer.intervals import Intervals
from gateway.upload.pathstate import BACKOFF_BASE_NS, REACHED_CAP_NS, jitter_ns

if TYPE_CHECKING:
    from collections.abc import Callable

Key = tuple[int, int, int]  # generation, first and last block


class Why(StrEnum):
    """Why a range waits."""

    PARKED = "parked"
    UNREADABLE = "unreadable"
    NO_ANSWER = "no_answer"
    BUDGET = "resend_budget"


@dataclass(frozen=True, slots=True)
class Aside:
    """One range that waits."""

    why: Why
    until_ns: int  # monotonic
    attempts: int = 0


class Asides:
    """Ranges by key; those whose time has come are no longer in the way."""

    def __init__(self) -> None:
        self._waiting: dict[Key, Aside] = {}

    def put(self, key: Key, why: Why, until_ns: int) -> None:
        """Set a range aside."""
        known = self._waiting.get(key)
        self._waiting[key] = Aside(why, until_ns, known.attempts + 1 if known else 1)

    def again_ns(self, key: Key, now_ns: int, random: Callable[[], float]) -> int:
        """Return when to try a range again that was not answered: full jitter up to an hour, by its own attempts."""
        known = self._waiting.get(key)
        return now_ns + jitter_ns(random, known.attempts if known else 0, BACKOFF_BASE_NS, REACHED_CAP_NS)

    def forget(self, key: Key) -> None:
        """It was receipted."""
        self._waiting.pop(key, None)

    def keep(self, holds: Callable[[int, int, int], bool]) -> None:
        """Forget what the ring does not hold any more."""
        self._waiting = {key: aside for key, aside in self._waiting.items() if holds(*key)}

    def busy(self, now_ns: int) -> dict[int, Intervals]:
        """Return the blocks that still wait, per generation."""
        out: dict[int, Intervals] = {}
        for (generation, first, last), aside in self._waiting.items():
            if aside.until_ns > now_ns:
                out.setdefault(generation, Intervals()).add(first, last)
        return out

    def next_due(self) -> int | None:
        """Return the earliest time at which one becomes free; it may have passed."""
        return min((aside.until_ns for aside in self._waiting.values()), default=None)

    def all_due(self) -> None:
        """Free all of them now."""
        self._waiting = {key: replace(aside, until_ns=0) for key, aside in self._waiting.items()}

    def count(self, why: Why, now_ns: int) -> int:
        """Return how many ranges wait for this reason."""
        return sum(aside.why == why and aside.until_ns > now_ns for aside in self._waiting.values())
