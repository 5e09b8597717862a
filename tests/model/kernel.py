"""Explicit-state search, breadth first: a model is an initial state, a function `steps` (every event possible next) and a function
`broken` (promises broken in this state; several drive the state to rest first: link up, everything drained).

Flags switch rules. FIXES are rules that the design took from these models; MUTANTS are rules broken on purpose. With its fixes no
model breaks a promise; without any one of them, or with any mutant, it does, and the shortest trace is shown. Storage as everywhere: a
completed sync persists; a power cut drops or keeps what was not synced; kill -9 keeps the page cache; after a failed sync it lies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

Step = tuple[str, Any]
Gen = tuple[int, int]  # (ordinal, nonce)
Id = tuple[Gen, int]  # identity of a reading within a stream: (generation, seq)


class Model(ABC):
    """Base: what to explore. `fixes` and `mutants` name the flags this model understands."""

    name = bounds = ""
    fixes: tuple[str, ...] = ()
    mutants: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def __init__(self, *flags: str) -> None:
        assert set(flags) <= set(self.fixes + self.mutants + self.other), flags
        self.flags = frozenset(flags)

    def has(self, flag: str) -> bool:
        return flag in self.flags

    @abstractmethod
    def initial(self) -> Any: ...

    @abstractmethod
    def steps(self, s: Any) -> Iterator[Step]: ...

    @abstractmethod
    def broken(self, s: Any) -> Iterator[str]: ...


class Search(NamedTuple):
    """What a search saw. found: per broken promise, the shortest trace. whole: every state there is was visited."""

    states: int
    found: dict[str, list[str]]
    depth: int
    whole: bool


def explore(model: Model, first_only: bool, depth: int = 10**9, most: int = 10**9) -> Search:
    """Visit every state that is at most `depth` events away, level by level, and begin no level beyond `most` states.

    first_only: stop at the first broken promise, or after `most` states.
    """
    start: Hashable = model.initial()
    parent: dict[Hashable, tuple[Hashable, str] | None] = {start: None}
    level: list[Hashable] = [start]
    found: dict[str, list[str]] = {}
    at = 0
    while level:
        last = at >= depth or len(parent) > most
        following: list[Hashable] = []
        for state in level:
            for what in model.broken(state):
                found.setdefault(what, trace_of(parent, state))
            if first_only and (found or len(parent) > most):
                return Search(len(parent), found, at, whole=False)
            for label, after in () if last else model.steps(state):
                if after not in parent:
                    parent[after] = (state, label)
                    following.append(after)
        if last:
            return Search(len(parent), found, at, whole=False)
        level, at = following, at + 1
    return Search(len(parent), found, at - 1, whole=True)


def trace_of(parent: dict[Hashable, tuple[Hashable, str] | None], state: Hashable) -> list[str]:
    """Return the events that lead to a state."""
    trace, at = [], parent[state]
    while at is not None:
        trace.append(at[1])
        at = parent[at[0]]
    return trace[::-1]
