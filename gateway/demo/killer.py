"""kill -9 of the demo's processes at random moments, each as often as asked, and each only after it has worked since its last start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DELAY_S: Final = 2.5  # a kill comes at a random moment of so many seconds after the process was seen working
IDLE_S: Final = 20.0  # one that cannot work, since another is always away, is killed all the same


class Killer:
    """Decides who is killed when. `seen` is called every quarter of a second; `work` counts what a process has done."""

    def __init__(self, each: int, names: Iterable[str], random: Callable[[], float]) -> None:
        self._left = dict.fromkeys(names, each)
        self._random = random
        self._since: dict[str, tuple[int, float, int]] = {}  # pid, first seen (s), work then
        self._due: dict[str, float] = {}
        self.killed: dict[str, int] = {}

    @property
    def done(self) -> bool:
        """Say whether everybody was killed as often as asked."""
        return not any(self._left.values())

    def seen(self, name: str, pid: int, work: int, now_s: float) -> bool:
        """Say whether this process is to be killed now."""
        if not self._left.get(name):
            return False
        if name not in self._since or self._since[name][0] != pid:
            self._since[name] = (pid, now_s, work)
            self._due.pop(name, None)
        _, since, before = self._since[name]
        if name not in self._due and (work > before or now_s - since > IDLE_S):
            self._due[name] = now_s + self._random() * DELAY_S
        if now_s < self._due.get(name, now_s + 1):
            return False
        self._left[name] -= 1
        self.killed[name] = self.killed.get(name, 0) + 1
        return True
