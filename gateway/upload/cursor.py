"""What the receiver has signed for: pure. Only a signed verdict moves it; a lost cursor costs offers, nothing else.

Beside the blocks receipted per generation it keeps when each receipt was given, as the landing numbers it stated (`ends`): when
a receiver comes back from a backup, everything receipted above the start of its new opening, in any lane, is forgotten here
and offered again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from buffer.errors import CorruptError
from buffer.intervals import Intervals
from gateway.wire.receipt import Ends, Verdict

if TYPE_CHECKING:
    from gateway.wire.receipt import Receipt

GIVEN_MAX: Final = 2_000  # receipts remembered one by one; older neighbours merge (a merged one is offered again sooner than needed)
VERSION: Final = 1


class Given(NamedTuple):
    """One receipt, or several merged: at these landing ends, blocks first..last of a generation were signed for."""

    live: int
    backfill: int
    generation: int
    first: int
    last: int


@dataclass(slots=True)
class Parked:
    """Frames the receiver refused: tried again every hour until evicted."""

    generation: int
    first: int
    last: int
    reason: int
    retry_ns: int


@dataclass(slots=True)
class Cursor:
    """The uploader's memory of one stream."""

    landing: int = 0
    held: dict[int, Intervals] = field(default_factory=dict)
    given: list[Given] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    offer: bool = True  # ask before sending: this cursor is new, or the receiver was restored

    def covers(self, generation: int, first: int, last: int) -> bool:
        """Say whether all these blocks are signed for."""
        held = self.held.get(generation)
        return held is not None and held.covers(first, last)

    def missing(self, generation: int, first: int, last: int) -> list[tuple[int, int]]:
        """Return the blocks of first..last that are not signed for."""
        return (self.held.get(generation) or Intervals()).holes(first, last)

    def take(self, receipt: Receipt) -> bool | None:
        """Believe a verified receipt. Return None if it is no answer (it was asked of another landing), else whether the receiver was
        restored: something signed for before is to be offered again."""
        if receipt.asked != self.landing:
            return None
        restored = False
        if receipt.landing != self.landing:
            restored = self._forget(receipt.since or Ends(), self.landing != 0)
            self.landing = receipt.landing
        if receipt.verdict in (Verdict.STORED, Verdict.DUPLICATE, Verdict.CONFLICT):
            self.held.setdefault(receipt.generation, Intervals()).add(receipt.first, receipt.last)
            self._remember(Given(receipt.ends.live, receipt.ends.backfill, receipt.generation, receipt.first, receipt.last))
        return restored

    def _forget(self, since: Ends, met_before: bool) -> bool:
        gone = [g for g in self.given if g.live > since.live or g.backfill > since.backfill]
        for g in gone:
            if g.generation in self.held:
                self.held[g.generation].remove(g.first, g.last)
        self.given = [g for g in self.given if g not in gone]
        self.offer = self.offer or bool(gone)
        return bool(gone) and met_before

    def _remember(self, new: Given) -> None:
        last = self.given[-1] if self.given else None
        if last and last.generation == new.generation and last.last + 1 == new.first and (last.live, last.backfill) == (new.live, new.backfill):
            self.given[-1] = new._replace(first=last.first)
        else:
            self.given.append(new)
        if len(self.given) > GIVEN_MAX:
            self._merge()

    def _merge(self) -> None:
        """Halve the older half by joining neighbours; the joined one keeps the later ends."""
        half = len(self.given) // 2
        out: list[Given] = []
        for g in self.given[:half]:
            a = out[-1] if out else None
            if a and a.generation == g.generation and a.last + 1 == g.first:
                out[-1] = Given(max(a.live, g.live), max(a.backfill, g.backfill), g.generation, a.first, g.last)
            else:
                out.append(g)
        self.given = out + self.given[half:]

    def park(self, receipt: Receipt, retry_ns: int) -> None:
        """Remember a refusal."""
        self.parked = [p for p in self.parked if (p.generation, p.first) != (receipt.generation, receipt.first)]
        self.parked.append(Parked(receipt.generation, receipt.first, receipt.last, int(receipt.reason or 0), retry_ns))

    def is_parked(self, generation: int, first: int, last: int, now_ns: int) -> bool:
        """Say whether these blocks wait after a refusal."""
        return any(p.generation == generation and p.first <= last and first <= p.last and now_ns < p.retry_ns for p in self.parked)


def encode_cursor(c: Cursor) -> dict[str, Any]:
    """Return the cursor as JSON can write it."""
    return {
        "version": VERSION,
        "landing": c.landing,
        "held": {str(g): [list(x) for x in ranges] for g, ranges in c.held.items()},
        "given": [list(g) for g in c.given],
        "parked": [[p.generation, p.first, p.last, p.reason, p.retry_ns] for p in c.parked],
        "offer": c.offer,
    }


def decode_cursor(body: Any) -> Cursor:  # noqa: ANN401 -- parsed JSON
    """Return the cursor; raise CorruptError."""
    try:
        if body["version"] != VERSION:
            raise CorruptError("cursor of another release")
        held = {int(g): Intervals((int(a), int(b)) for a, b in ranges) for g, ranges in body["held"].items()}
        given = [Given(*map(int, g)) for g in body["given"]]
        parked = [Parked(*map(int, p)) for p in body["parked"]]
        return Cursor(int(body["landing"]), held, given, parked, bool(body["offer"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"not a cursor: {error}"
        raise CorruptError(message) from error
