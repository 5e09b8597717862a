"""The newest reading of each tag, against one loop over the readings."""

from __future__ import annotations

import random

import numpy as np

from buffer import limits
from buffer.last import _ROW, LastState, encode_last
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
