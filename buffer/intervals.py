"""Sets of integers as sorted, disjoint, non-touching ranges: the one interval arithmetic of the product.

Used for seqs and block numbers of one generation, and for landing numbers. No numpy: the network side imports it.
Ranges are (first, last), both inclusive, everywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buffer.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Readings first..last inclusive of one generation, not empty. seq counts from 0, no holes."""

    generation: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            message = f"span {self.first}..{self.last} is empty or negative"
            raise MisuseError(message)

    def __len__(self) -> int:
        return self.last - self.first + 1


class Intervals:
    """A mutable set of integers. add, remove: O(log n + touched ranges)."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Add first..last; ranges that touch become one."""
        if first > last:
            message = f"range {first}..{last} is empty"
            raise MisuseError(message)
        lo = bisect_left(self._lasts, first - 1)
        hi = bisect_right(self._firsts, last + 1)
        if lo < hi:
            first, last = min(first, self._firsts[lo]), max(last, self._lasts[hi - 1])
        self._firsts[lo:hi] = [first]
        self._lasts[lo:hi] = [last]

    def remove(self, first: int, last: int) -> None:
        """Take first..last out, whether held or not."""
        lo = bisect_left(self._lasts, first)
        hi = bisect_right(self._firsts, last)
        if lo >= hi:
            return
        keep: list[Range] = []
        if self._firsts[lo] < first:
            keep.append((self._firsts[lo], first - 1))
        if self._lasts[hi - 1] > last:
            keep.append((last + 1, self._lasts[hi - 1]))
        self._firsts[lo:hi] = [a for a, _ in keep]
        self._lasts[lo:hi] = [b for _, b in keep]

    def holes(self, first: int, last: int) -> list[Range]:
        """Return first..last minus this set, in order: what is missing, or what is new."""
        out: list[Range] = []
        at = first
        for a, b in self.within(first, last):
            if a > at:
                out.append((at, a - 1))
            at = b + 1
        if at <= last:
            out.append((at, last))
        return out

    def within(self, first: int, last: int) -> list[Range]:
        """Return the part of this set inside first..last, in order."""
        lo = bisect_left(self._lasts, first)
        hi = bisect_right(self._firsts, last)
        return [(max(self._firsts[i], first), min(self._lasts[i], last)) for i in range(lo, hi)]

    def covers(self, first: int, last: int) -> bool:
        """Say whether every member of first..last is held."""
        i = bisect_left(self._lasts, first)
        return i < len(self._firsts) and self._firsts[i] <= first and self._lasts[i] >= last

    def count(self) -> int:
        """Return how many integers are held."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def copy(self) -> Intervals:
        """Return an independent copy."""
        other = Intervals()
        other._firsts, other._lasts = self._firsts.copy(), self._lasts.copy()
        return other

    @property
    def top(self) -> int:
        """One past the highest member; 0 if empty."""
        return self._lasts[-1] + 1 if self._lasts else 0

    def __contains__(self, value: int) -> bool:
        return self.covers(value, value)

    def __iter__(self) -> Iterator[Range]:
        return iter(list(zip(self._firsts, self._lasts, strict=True)))

    def __len__(self) -> int:
        """Return the number of ranges (not of members: see `count`)."""
        return len(self._firsts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Intervals({list(self)})"
