"""The newest reading of each tag, against one loop over the readings."""

from __future__ import annotations

import random

import numpy as np

from buffer import limits
from buffer.last import _ROW, LastState, encode_last
from buffer.manifest import OpenGap
from buffer.types import Columns, Flag, Kind, make_columns

TEXTS = ("a", "b", "c")


def _block(rng: random.Random) -> Columns:
    n = rng.randrange(1, 60)
    kinds = [rng.choice((Kind.DOUBLE, Kind.INT64, Kind.BOOL, Kind.TEXT, Kind.BYTES, Kind.NULL)) for _ in range(n)]
    values = [rng.randrange(3) if k in (Kind.TEXT, Kind.BYTES) else 0 if k == Kind.NULL else rng.randrange(2) for k in kinds]
    flags = [rng.choice((0, 0, 0, Flag.MARKER, Flag.REPEATED)) for _ in range(n)]
    tags = [rng.choice((0, 3, *range(limits.TAG_NUMBER_FIRST, 24))) for _ in range(n)]
    return make_columns(tags, [rng.randrange(10**18) for _ in range(n)], kinds, values, [rng.randrange(2**32) for _ in range(n)], flags, TEXTS)


def _slowly(expected: dict[int, list], c: Columns) -> None:
    for i, tag in enumerate(c.tag.tolist()):
        if tag < limits.TAG_NUMBER_FIRST:
            continue
        if c.flags[i] & Flag.MARKER:
            if tag in expected:
                expected[tag][5] |= int(Flag.MARKER)
            continue
        kind = int(c.kind[i])
        value = c.texts[int(c.values[i])] if kind in (Kind.TEXT, Kind.BYTES) else int(c.values[i])
        expected[tag] = [int(c.ts_ns[i]), int(c.ts_ns[i]), kind, value, int(c.quality[i]), int(c.flags[i])]


def test_the_newest_of_each_tag_is_what_a_loop_finds():
    rng = random.Random(5)
    for _ in range(60):
        state, expected = LastState(), {}
        for _ in range(rng.randrange(1, 8)):
            block = _block(rng)
            state.take(block, ())
            _slowly(expected, block)
        got = {tag: [r.ts_ns, r.ts_source_ns, r.kind, r.value, r.quality, r.flags] for tag, r in state.tags().items()}
        assert got == expected


def test_nothing_of_our_memory_reaches_the_file():
    """Rows are made of zeros: bytes that no field owns are the same on every run."""
    rng = random.Random(6)
    blocks = [_block(rng) for _ in range(20)]
    files = set()
    for filler in range(3):
        litter = [np.full(n * _ROW.itemsize, 255 - filler, np.uint8) for n in range(1, 64) for _ in range(4)]
        del litter  # what np.empty would find
        state = LastState()
        for block in blocks:
            state.take(block, ())
        assert not state._rows["zero"].any()
        files.add(encode_last(state, 1, 0, 0))
    assert len(files) == 1


def _all(state: LastState) -> tuple:
    known = state.known(0)
    return (
        dict(state.tags()), {tag: state.tag(tag) for tag in range(26)}, known.position, dict(known.last),
        [(g.id, g.from_ns, g.progress, dict(g.last), dict(g.first_live_ns)) for g in known.gaps], encode_last(state, 1, 0, 0),
    )  # fmt: skip


def test_readings_that_wait_are_the_same_as_readings_taken_at_once(monkeypatch):
    """Gaps open, fill and close, tables change, somebody looks: in one state after each block, in the other now and then."""
    rng = random.Random(8)
    for _ in range(40):
        waits, at_once = LastState(), LastState()
        open_gaps: tuple[OpenGap, ...] = ()
        for n in range(rng.randrange(1, 30)):
            block, fill = _block(rng), None
            match rng.randrange(8):
                case 0:
                    open_gaps = (*open_gaps, OpenGap(n, rng.randrange(2), rng.randrange(10**18)))
                case 1 if open_gaps:
                    open_gaps = open_gaps[1:]
                case 2 if open_gaps:
                    fill = (open_gaps[0].id, b"so far %d" % n)
                case 3:
                    sources = {tag: rng.randrange(2) for tag in range(limits.TAG_NUMBER_FIRST, rng.randrange(18, 26))}
                    waits.use_sources(sources)
                    at_once.use_sources(sources)
            waits.take(block, open_gaps, fill)
            at_once.take(block, open_gaps, fill)
            assert _all(at_once)
            if rng.randrange(6) == 0:
                assert _all(waits) == _all(at_once)
        assert _all(waits) == _all(at_once)


def test_what_waits_is_bounded(monkeypatch):
    rng, state = random.Random(9), LastState()
    monkeypatch.setattr("buffer.last._WAITING_MAX", 100)
    for _ in range(50):
        state.take(_block(rng), ())
        assert state._waiting_readings < 100
    monkeypatch.setattr("buffer.last._WAITING_TEXT_CHARS_MAX", 10)
    for _ in range(50):
        state.take(_block(rng), ())
        assert state._waiting_chars < 10
