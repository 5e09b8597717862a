"""Outages of the demo's link: when they began and ended, whether nothing crossed meanwhile, how long the backlog took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.demo.link import Link

MARGIN_NS: Final = 2 * 10**9  # around an outage: commits that were under way when it began or ended


@dataclass(slots=True)
class Outage:
    """One outage, wall ns; 0: not yet."""

    began_ns: int
    bytes_out: int  # what had crossed when it began
    ended_ns: int = 0
    drained_ns: int = 0
    silent: bool = False  # nothing crossed


class Outages:
    """Cuts and restores a link, and remembers."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.all: list[Outage] = []

    def cut(self, now_ns: int) -> None:
        """Take the link down."""
        if self._link.up:
            self._link.cut()
            self.all.append(Outage(now_ns, self._link.bytes_out))

    def restore(self, now_ns: int) -> None:
        """Bring the link back."""
        if not self._link.up:
            self._link.restore()
            self.all[-1].ended_ns = now_ns
            self.all[-1].silent = self.all[-1].bytes_out == self._link.bytes_out

    def drained(self, now_ns: int) -> None:
        """Note that no backlog is left."""
        if self.all and self.all[-1].ended_ns and not self.all[-1].drained_ns:
            self.all[-1].drained_ns = now_ns

    @property
    def silent_s(self) -> float:
        """Seconds in which the link was down and nothing crossed."""
        return sum((one.ended_ns - one.began_ns) / 1e9 for one in self.all if one.silent)

    @property
    def drain_s(self) -> float | None:
        """Seconds the longest backlog took; None: none has drained."""
        return max(((one.drained_ns - one.ended_ns) / 1e9 for one in self.all if one.drained_ns), default=None)

    def quiet(self, now_ns: int) -> list[tuple[int, int]]:
        """Return when data could not be live: each outage and its drain, wall ns."""
        return [(one.began_ns - MARGIN_NS, (one.drained_ns or one.ended_ns or now_ns) + MARGIN_NS) for one in self.all]
