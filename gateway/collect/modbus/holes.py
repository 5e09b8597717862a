"""What a device refuses: which blocks to split, which single values to leave alone for a while. Pure.

A refused block of several values is split (plan.Cuts) and asked for again at once, until only the refused values are alone. A value that
is refused alone rests: a minute, five, an hour. If in the end not one block can be read, nothing was learned (a PLC in STOP refuses
everything): the splits are taken back, the blocks are tried once a minute as they are, and split again after an hour at the earliest.
A block that is silent while others answer counts as refused the second time; one that was read before, the sixth: answers get lost on a noisy
line, and what was read has no hole. Else a day of noise would leave one request per value.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from gateway.collect.modbus.plan import Cuts, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.collect.modbus.plan import Block

REST_NS: Final = (60 * 10**9, 300 * 10**9, 3_600 * 10**9)
HOPELESS_NS: Final = 3_600 * 10**9  # between two searches that may find nothing
SILENCE_TOLERATED: Final = 1  # of one block, while others answer
SILENCE_OF_READ_TOLERATED: Final = 5  # of one that was read before


class Verdict(Enum):
    """What to do about a block that was not read."""

    SPLIT = auto()  # smaller blocks will be tried at once: say nothing about its tags yet
    RESTS = auto()  # its values are Bad; it is left alone for a while. New: tell people
    STILL_RESTS = auto()  # the same, again
    BAD = auto()  # its values are Bad this time


@dataclass(slots=True)
class _Rest:
    until_ns: int
    step: int = 0


class Holes:
    """The learned facts of one source. `cuts` go into every plan."""

    def __init__(self, cuts: Cuts) -> None:
        self.cuts = cuts
        self._before: Cuts | None = None  # as the cuts were when the present search began
        self._split_in_round = False
        self._rests: dict[Span, _Rest] = {}
        self._silent: dict[Span, int] = {}
        self._read: set[Span] = set()  # blocks that were read the last time they were asked for
        self._whole: set[Span] = set()  # blocks that were read at some time, and not refused since
        self._hopeless: dict[Span, int] = {}  # not split before this time

    def order(self, blocks: Sequence[Block], now_ns: int) -> list[int]:
        """Return places of the blocks to ask for: not those at rest; first those that were read before, last those that were silent."""
        self._split_in_round = False
        awake = [i for i, block in enumerate(blocks) if block.span not in self._rests or self._rests[block.span].until_ns <= now_ns]
        return sorted(awake, key=lambda i: (self._silent.get(blocks[i].span, 0), blocks[i].span not in self._read))

    def proven(self, block: Block) -> bool:
        """Say whether this block was read the last time: if it is silent now, the device is."""
        return block.span in self._read

    def rests(self, block: Block) -> bool:
        """Say whether this block was refused the last time it was asked for."""
        return block.span in self._rests

    def accepted(self, block: Block) -> bool:
        """Note that a block was read; return whether it had been resting."""
        self._silent.pop(block.span, None)
        self._hopeless.pop(block.span, None)
        self._read.add(block.span)
        self._whole.add(block.span)
        return self._rests.pop(block.span, None) is not None

    def refused(self, block: Block, now_ns: int) -> Verdict:
        """Note that a block was refused as one that is not there."""
        self._read.discard(block.span)
        self._whole.discard(block.span)
        before = self.cuts.copy()
        if self._hopeless.get(block.span, now_ns) > now_ns:
            self._rests[block.span] = _Rest(now_ns + REST_NS[0])
            return Verdict.STILL_RESTS
        if self.cuts.split(block):
            if self._before is None:  # an empty one is one too
                self._before = before
            self._split_in_round = True
            self._silent.pop(block.span, None)
            return Verdict.SPLIT
        return self._rest(block.span, now_ns)

    def silent(self, block: Block, now_ns: int) -> Verdict:
        """Note that a block was silent while others answered."""
        self._silent[block.span] = self._silent.get(block.span, 0) + 1
        self._read.discard(block.span)
        tolerated = SILENCE_OF_READ_TOLERATED if block.span in self._whole else SILENCE_TOLERATED
        return self.refused(block, now_ns) if self._silent[block.span] > tolerated else Verdict.BAD

    def wake(self, now_ns: int) -> None:
        """The device came back, perhaps changed: try what rests at the next poll."""
        for rest in self._rests.values():
            rest.until_ns = now_ns

    @property
    def again(self) -> bool:
        """Whether a block was split in this round: plan anew and ask again at once."""
        return self._split_in_round

    def finish(self, good_blocks: int, refused_all: bool) -> bool:
        """End the search after a round without splits; return whether it was all for nothing (plan anew, then `rest_all`).

        refused_all: every block of the round was asked for and refused by the device itself. Silence proves nothing.
        """
        before = self._before
        if before is None or not (good_blocks or refused_all):
            return False
        self._before = None
        if good_blocks:
            return False
        self.cuts = before
        return True

    def rest_all(self, blocks: Iterable[Block], now_ns: int) -> None:
        """The device refuses everything: try these blocks once a minute, and do not split them for an hour."""
        for block in blocks:
            self._rests[block.span] = _Rest(now_ns + REST_NS[0])
            self._hopeless[block.span] = now_ns + HOPELESS_NS

    def _rest(self, span: Span, now_ns: int) -> Verdict:
        old = self._rests.get(span)
        step = min(old.step + 1, len(REST_NS) - 1) if old else 0
        self._rests[span] = _Rest(now_ns + REST_NS[step], step)
        return Verdict.STILL_RESTS if old else Verdict.RESTS
