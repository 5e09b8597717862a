"""Two receivers over one index: the number and what is new are taken under the lock of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.model.kernel import Model, Step


class T(NamedTuple):
    phase: tuple[str, str] = ("idle", "idle")
    number: tuple[int, int] = (-1, -1)
    new: tuple[bool, bool] = (True, True)
    drawn: int = 0
    index: frozenset[tuple[int, int]] = frozenset()  # committed: (number, receiver)
    cursor: int = -1
    rows: int = 0  # how often reading 0 (both receivers land it) is in the target
    seen: frozenset[int] = frozenset()


class Receivers(Model):
    """G4 when two receivers land overlapping batches: `new` and number are taken under the stream's lock."""

    name, bounds = "receivers", "2 receivers, one batch each, both holding reading 0, 1 crash each"
    mutants = ("number_by_arrival_order", "new_before_lock")

    def initial(self) -> T:
        return T()

    def steps(self, s: T) -> Iterator[Step]:
        def put(pair: tuple[Any, Any], k: int, v: Any) -> tuple[Any, Any]:
            return (v, pair[1]) if k == 0 else (pair[0], v)
        loose = self.has("number_by_arrival_order")
        for k in (0, 1):
            if s.phase[k] == "idle" and (loose or self.has("new_before_lock") or s.phase[1 - k] != "holds"):
                fresh = not s.index and not (loose and s.phase[1 - k] == "holds")
                number = s.drawn if loose else len(s.index)
                yield f"receiver {k} takes number {number}", s._replace(
                    phase=put(s.phase, k, "holds"), number=put(s.number, k, number), new=put(s.new, k, fresh), drawn=s.drawn + 1)
            if s.phase[k] == "holds":
                number = s.number[k] if not self.has("new_before_lock") else len(s.index)
                yield f"receiver {k} commits", s._replace(
                    phase=put(s.phase, k, "done"), index=s.index | {(number, k)}, number=put(s.number, k, number))
        for number, k in sorted(s.index):
            if number > s.cursor and all(m >= number or m <= s.cursor for m, _ in s.index):
                yield f"deliver number {number}", s._replace(cursor=number, rows=s.rows + s.new[k], seen=s.seen | {k})

    def broken(self, s: T) -> Iterator[str]:
        if s.rows > 1:
            yield "G4 twice in the target"
        if any(number <= s.cursor and k not in s.seen for number, k in s.index):
            yield "G4 landed behind the cursor, never in the target"

