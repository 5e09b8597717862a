"""Verdicts against an oracle that knows sets and whole contents; every order of arrival."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from buffer.frame import Frame
from buffer.manifest import FrameKind
from gateway.landing.index import LandingState, Record
from gateway.receive.accept import BLOCK_NUMBER_MAX, decide, linked, offered, unit_of, within_limits
from gateway.wire.receipt import Verdict
from gateway.wire.request import Lane
from tests.support.frames import Source


class Held:
    """State and chain points as the landing keeps them, without a disk."""

    def __init__(self) -> None:
        self.state = LandingState()
        self.points: dict[tuple[int, int], bytes] = {}

    def chain_at(self, generation: int, block: int) -> bytes | None:
        return self.points.get((generation, block))

    def put(self, frame: Frame, lane: Lane = Lane.LIVE):
        unit = unit_of(frame)
        decision = decide(self.state, unit, self.chain_at)
        if decision.verdict == Verdict.STORED:
            self.state.take(
                Record(lane, self.state.ends.of(lane), unit.kind, unit.generation, unit.first_block, unit.last_block, unit.first_seq, unit.count,
                       unit.chain_before, unit.chain_after, unit.digest, decision.new, "x", 0, 0, unit.tag_table, unit.state, 1)
            )  # fmt: skip
            self.points[unit.generation, unit.last_block] = unit.chain_after
            self.points.setdefault((unit.generation, unit.first_block - 1), unit.chain_before)
        return decision


COUNTS = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@st.composite
def deliveries(draw: st.DrawFn):
    """One history; its blocks and segments over it in any order, any number of times."""
    source = Source(draw(COUNTS))
    last = len(source.counts) - 1
    units = []
    for _ in range(draw(st.integers(1, 14))):
        a, b = sorted((draw(st.integers(0, last)), draw(st.integers(0, last))))
        if draw(st.booleans()) and sum(source.counts[a : b + 1]):
            units.append((a, b, source.segment(a, b, draw(st.sampled_from([b"", b"zstd 9"])))))
        else:
            units.append((a, a, source.blocks[a]))
    return source, units


@settings(max_examples=400, deadline=None)
@given(deliveries())
def test_new_is_what_was_not_held_and_nothing_of_one_history_conflicts(delivery) -> None:
    source, units = delivery
    held, seqs, blocks = Held(), set(), set()
    for a, b, frame in units:
        decision = held.put(frame)
        unit_seqs = set(range(source.firsts[a], source.firsts[a] + sum(source.counts[a : b + 1])))
        unit_blocks = set(range(a, b + 1))
        expected = Verdict.DUPLICATE if unit_blocks <= blocks else Verdict.STORED
        assert decision.verdict == expected
        assert not decision.fork and not decision.branch
        assert {x for p, q in decision.new for x in range(p, q + 1)} == (unit_seqs - seqs if expected == Verdict.STORED else set())
        seqs |= unit_seqs
        blocks |= unit_blocks
    assert held.state.seqs.get(source.generation) is None or {
        x for p, q in held.state.seqs[source.generation] for x in range(p, q + 1)
    } == seqs


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), COUNTS.filter(lambda c: sum(c) > 1))
def test_two_histories_under_one_name_never_mix(seed: int, counts: list[int]) -> None:
    """From block k on, another content: whatever comes second on held readings is a conflict, whatever the order."""
    rng = random.Random(seed)
    k = rng.randrange(len(counts))
    one, two = Source(counts), Source(counts, salt=b"other", salted_from=k)
    units = [(n, f, 1) for n, f in enumerate(one.blocks)] + [(n, f, 2) for n, f in enumerate(two.blocks) if n >= k]
    rng.shuffle(units)
    held, owner = Held(), {}
    alarmed = False
    for n, frame, life in units:
        decision = held.put(frame)
        alarmed = alarmed or decision.fork or decision.verdict == Verdict.CONFLICT
        if n in owner:
            assert decision.verdict == (Verdict.CONFLICT if owner[n] != life and n >= k else decision.verdict)
            if owner[n] != life and n >= k:
                assert not decision.new
        else:
            assert decision.verdict == Verdict.STORED
            owner[n] = life
    assert alarmed, "two histories came and nobody was told"


def test_the_same_readings_in_another_encoding_are_a_duplicate() -> None:
    source = Source([2, 2, 2])
    held = Held()
    assert held.put(source.segment(0, 2)).verdict == Verdict.STORED
    again = held.put(source.segment(0, 2, b"another zstd level"))
    assert again.verdict == Verdict.DUPLICATE
    for block in source.blocks:
        assert held.put(block).verdict == Verdict.DUPLICATE


def test_an_offer_is_answered_only_with_all_blocks_and_the_same_chain() -> None:
    source = Source([1, 0, 1, 1])
    held = Held()
    wanted = (source.generation, 0, 1)
    assert not offered(held.state, held.chain_at, wanted, source.h[1])
    held.put(source.blocks[1])
    assert not offered(held.state, held.chain_at, wanted, source.h[1])
    held.put(source.blocks[0])
    assert offered(held.state, held.chain_at, wanted, source.h[1])
    assert not offered(held.state, held.chain_at, wanted, source.h[0])
    assert not offered(held.state, held.chain_at, (source.generation, 0, 2), source.h[2])
    assert not offered(held.state, held.chain_at, (source.generation + 1, 0, 1), source.h[1])


def test_a_restored_snapshot_is_a_branch_whichever_comes_first() -> None:
    old = Source([5, 5])
    new = Source([1], generation=2 << 32 | 9, predecessor=(old.generation, 5))
    honest = Source([1], generation=2 << 32 | 9, predecessor=(old.generation, 10))
    for first, second in ((old.blocks, new.blocks), (new.blocks, old.blocks)):
        held = Held()
        decisions = [held.put(frame) for frame in (*first, *second)]
        assert all(d.verdict == Verdict.STORED for d in decisions)
        assert any(d.branch for d in decisions)
    for first, second in ((old.blocks, honest.blocks), (honest.blocks, old.blocks)):
        held = Held()
        assert not any(held.put(frame).branch for frame in (*first, *second))


def test_frames_of_one_request_must_continue_each_other() -> None:
    source, other = Source([1, 1, 1]), Source([1, 1, 1], salt=b"x")
    units = [unit_of(f) for f in source.blocks]
    assert linked(units)
    assert not linked([units[0], units[2]])
    assert not linked([units[1], units[0]])
    assert not linked([units[0], unit_of(other.blocks[1])])
    assert not linked([unit_of(source.segment(0, 0)), units[1]])
    assert linked([unit_of(source.segment(0, 2))])


def test_limits() -> None:
    held = Held()
    source = Source([1])
    unit = unit_of(source.blocks[0])
    assert within_limits(held.state, unit)
    import dataclasses

    assert not within_limits(held.state, dataclasses.replace(unit, last_block=BLOCK_NUMBER_MAX + 1))
    assert unit.kind == FrameKind.BLOCK
