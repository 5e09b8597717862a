"""What a source learns from refusals and silences: holes of the device, not noise on the way to it."""

from __future__ import annotations

import random

import pytest

from gateway.collect.modbus.holes import Holes
from gateway.collect.modbus.plan import Block, Cuts, Rules, Span, Table, plan

SECOND = 10**9
SPANS = [Span(Table.HOLDING, 200 * block + i, 200 * block + i + 1) for block in range(4) for i in range(25)]


def poll(holes: Holes, blocks: tuple[Block, ...], now_ns: int, lost: float, dice: random.Random) -> tuple[Block, ...]:
    """Ask as a source does: a silence ends the round, and one before any answer is the device's; return the blocks of the next poll."""
    read = 0
    for index in holes.order(blocks, now_ns):
        if dice.random() < lost:
            if read:
                holes.silent(blocks[index], now_ns)
            break
        holes.accepted(blocks[index])
        read += 1
    holes.finish(read, refused_all=False)
    return plan(SPANS, Rules(), holes.cuts)


@pytest.mark.parametrize("lost", [0.01, 0.05])
def test_eight_hours_of_lost_answers_leave_the_plan_as_it_was(lost: float) -> None:
    holes, dice = Holes(Cuts()), random.Random(7)
    blocks = plan(SPANS, Rules(), holes.cuts)
    for second in range(8 * 3_600):
        blocks = poll(holes, blocks, second * SECOND, lost, dice)
    assert len(blocks) == 4
    assert len(holes.order(blocks, 8 * 3_600 * SECOND)) == 4  # nothing rests


def test_a_block_that_falls_silent_for_good_is_narrowed_down_to_its_hole() -> None:
    holes, hole = Holes(Cuts()), SPANS[7]
    blocks = plan(SPANS, Rules(), holes.cuts)
    for second in range(200):
        for index in holes.order(blocks, second * SECOND):
            if second > 10 and hole in blocks[index].values:
                holes.silent(blocks[index], second * SECOND)
            else:
                holes.accepted(blocks[index])
        holes.finish(1, refused_all=False)
        blocks = plan(SPANS, Rules(), holes.cuts)
    resting = set(range(len(blocks))) - set(holes.order(blocks, 200 * SECOND))
    assert [blocks[index].values for index in resting] == [(hole,)]
    assert len(blocks) <= 10
