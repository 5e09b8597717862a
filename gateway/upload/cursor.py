"""What was receipted, in blocks per generation, with the landing numbers that were in use when it was. Pure.

A piece is a run of receipted blocks with the newest `ends` of its receipts. Pieces that touch are merged up to
PIECE_BLOCKS, so that a receiver restored from yesterday's copy costs offers for what came after, not for a month. Merging keeps the
greater ends: at worst something held is offered again.

Doubt: blocks that were receipted by a landing that is no more, or perhaps were before our own state was lost. They are offered
before they are sent again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from buffer.intervals import Intervals
from gateway.wire.receipt import Ends

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BLOCKS: Final = 4_096  # about an hour of live blocks; 30 days of them are 650 pieces


class Piece(NamedTuple):
    """Blocks first..last of a generation, held by the landing when it had used the numbers below `ends`."""

    generation: int
    first: int
    last: int
    ends: Ends


@dataclass(slots=True)
class _Generation:
    firsts: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    done: Intervals = field(default_factory=Intervals)
    doubt: Intervals = field(default_factory=Intervals)


class Cursor:
    """See the module. Only a signed verdict may call `receipted`."""

    def __init__(self) -> None:
        self._generations: dict[int, _Generation] = {}

    def done(self, generation: int) -> Intervals:
        """Return the receipted blocks of a generation. Not to be changed by the caller."""
        return self._of(generation).done

    def doubt(self, generation: int) -> Intervals:
        """Return the blocks to be offered before they are sent. Not to be changed by the caller."""
        return self._of(generation).doubt

    def _of(self, generation: int) -> _Generation:
        return self._generations.setdefault(generation, _Generation())

    def receipted(self, generation: int, first: int, last: int, ends: Ends) -> None:
        """Note a verdict about blocks first..last."""
        g = self._of(generation)
        self._cut(g, first, last)
        g.done.add(first, last)
        g.doubt.remove(first, last)
        at = bisect_left(g.firsts, first)
        new = Piece(generation, first, last, ends)
        if at < len(g.pieces) and _fits(new, g.pieces[at]):
            new = _merged(new, g.pieces.pop(at))
            g.firsts.pop(at)
        if at and _fits(g.pieces[at - 1], new):
            at -= 1
            new = _merged(g.pieces.pop(at), new)
            g.firsts.pop(at)
        g.pieces.insert(at, new)
        g.firsts.insert(at, new.first)

    @staticmethod
    def _cut(g: _Generation, first: int, last: int) -> None:
        """Take first..last out of the pieces; what reaches beyond stays with its own ends."""
        lo = max(0, bisect_right(g.firsts, first) - 1)
        hi = bisect_right(g.firsts, last)
        kept: list[Piece] = []
        for piece in g.pieces[lo:hi]:
            if piece.first < first:
                kept.append(piece._replace(last=min(piece.last, first - 1)))
            if piece.last > last:
                kept.append(piece._replace(first=max(piece.first, last + 1)))
        g.pieces[lo:hi] = kept
        g.firsts[lo:hi] = [piece.first for piece in kept]

    def doubtful(self, generation: int, first: int, last: int) -> None:
        """Have what is not receipted of first..last offered before it is sent."""
        g = self._of(generation)
        for a, b in g.done.holes(first, last):
            g.doubt.add(a, b)

    def not_held(self, generation: int, first: int, last: int) -> None:
        """An offer was answered with 404: send it."""
        self._of(generation).doubt.remove(first, last)

    def forget_above(self, since: Ends) -> int:
        """Move what was receipted with ends above `since`, in any lane, to doubt; return how many blocks that were."""
        count = 0
        for generation, g in self._generations.items():
            lost = [p for p in g.pieces if p.ends.live > since.live or p.ends.backfill > since.backfill]
            if not lost:
                continue
            g.pieces = [p for p in g.pieces if p not in set(lost)]
            g.firsts = [p.first for p in g.pieces]
            for piece in lost:
                g.done.remove(piece.first, piece.last)
                self.doubtful(generation, piece.first, piece.last)
                count += piece.last - piece.first + 1
        return count

    def drop_before(self, generation: int, block: int) -> None:
        """Forget generations before this one, and its blocks before this one: the ring holds them no more."""
        for old in [g for g in self._generations if g < generation]:
            del self._generations[old]
        g = self._of(generation)
        if block > 0:
            self._cut(g, 0, block - 1)
            g.done.remove(0, block - 1)
            g.doubt.remove(0, block - 1)

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces in order."""
        for generation in sorted(self._generations):
            yield from self._generations[generation].pieces

    def doubts(self) -> Iterator[tuple[int, int, int]]:
        """Yield (generation, first, last) of what is in doubt, in order."""
        for generation in sorted(self._generations):
            for first, last in self._generations[generation].doubt:
                yield generation, first, last


def _fits(left: Piece, right: Piece) -> bool:
    return left.last + 1 == right.first and right.last - left.first < PIECE_BLOCKS


def _merged(left: Piece, right: Piece) -> Piece:
    ends = Ends(max(left.ends.live, right.ends.live), max(left.ends.backfill, right.ends.backfill))
    return Piece(left.generation, left.first, right.last, ends)
