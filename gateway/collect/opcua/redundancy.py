"""Which of a source's `urls` to use: in the order written, the first that answers and is healthy. Pure.

A server says how well it is with ServiceLevel (OPC 10000-4, 6.6.2.4.2): 0 maintenance, 1 no data, 2 to 199 degraded, 200 and more healthy.
One that is not healthy is left for the next; where none is healthy the best is taken, and the others are asked again after LOOK_AGAIN_NS.
A healthy server is kept though an earlier one of the list comes back: every switch costs a subscription.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HEALTHY: Final = 200
LOOK_EVERY_S: Final = 30.0  # at the level of the server in use
LOOK_AGAIN_NS: Final = 600 * 10**9  # at the others, while the best is not healthy
_NO_ANSWER: Final = -1


class Urls:
    """The choice. `current` is the URL to try or in use."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = tuple(urls)
        self._at = 0
        self._levels: dict[str, int] = {}  # of this round
        self._best = ""  # the answer of the last round in which none was healthy
        self._borne_ns: int | None = None  # since when a server that is not healthy is used

    @property
    def current(self) -> str:
        """The URL to try, or in use."""
        return self._urls[self._at]

    @property
    def several(self) -> bool:
        """Whether there is a choice."""
        return len(self._urls) > 1

    def failed(self) -> None:
        """The current one gave no connection, or was lost: the next one is tried."""
        self._levels[self.current] = _NO_ANSWER
        self._best = ""
        self._at = (self._at + 1) % len(self._urls)
        if len(self._levels) == len(self._urls) and max(self._levels.values()) == _NO_ANSWER:
            self._levels.clear()

    def keep(self, level: int, now_ns: int) -> bool:
        """Say whether to stay with the current one, which is at this level; else `current` is another."""
        if not self.several or level >= HEALTHY:
            self._levels.clear()
            self._best, self._borne_ns = "", None
            return True
        if self._borne_ns is not None and now_ns - self._borne_ns < LOOK_AGAIN_NS:
            return True
        self._levels[self.current] = level
        if self.current == self._best:
            self._levels.clear()
            self._best, self._borne_ns = "", now_ns
            return True
        self._borne_ns = None
        unknown = [url for url in self._urls if url not in self._levels]
        self._best = "" if unknown else max(self._urls, key=lambda url: self._levels[url])
        if self._best == self.current:
            return self.keep(level, now_ns)
        self._at = self._urls.index(unknown[0] if unknown else self._best)
        return False
