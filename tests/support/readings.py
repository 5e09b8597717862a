"""Readings for tests: a Hypothesis strategy over every kind and every bit, and equality that looks at what a reading means."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from buffer.types import Columns, Kind, make_columns

INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 1, 10**18, 1_760_000_000_123_000_000, -(2**63), 2**63 - 1]))
DOUBLE_BITS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.floats(allow_nan=True, allow_infinity=True).map(lambda x: int(np.float64(x).view(np.uint64))),
    st.integers(-(10**6), 10**6).map(lambda m: int(np.float64(m / 100).view(np.uint64))),
    st.floats(width=32).map(lambda x: int(np.float64(x).view(np.uint64))),
    st.sampled_from([0x8000_0000_0000_0000, 0x7FF8_0000_0000_0BAD, 0x7FF0_0000_0000_0001, 0xFFF0_0000_0000_0000, 1, 0x7FEF_FFFF_FFFF_FFFF]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_BITS = {
    Kind.DOUBLE: DOUBLE_BITS,
    Kind.INT64: INT64.map(lambda x: x % 2**64),
    Kind.UINT64: st.integers(0, 2**64 - 1),
    Kind.BOOL: st.integers(0, 1),
    Kind.NULL: st.just(0),
}


def build(rows, texts) -> Columns:
    """Rows of (tag, ts, kind, value, quality, flags, ts_source) to columns; value of TEXT, BYTES: an index into texts."""
    cells = list(zip(*rows, strict=True)) if rows else [()] * 7
    source = np.asarray([ts if s is None else s for ts, s in zip(cells[1], cells[6], strict=True)], np.int64)
    return Columns(
        np.asarray(cells[0], np.uint32),
        np.asarray(cells[1], np.int64),
        np.asarray(cells[2], np.uint8),
        np.asarray(cells[3], np.uint64),
        np.asarray(cells[4], np.uint32),
        np.asarray(cells[5], np.uint16),
        source if any(s is not None for s in cells[6]) else None,
        tuple(texts),
    )


@st.composite
def columns(draw, min_size=0, max_size=40, tag=st.one_of(st.integers(0, 20), st.integers(0, 1_000_000))):
    """Any columns a source may hand over: mixed kinds within a tag, any bits, any times, repeated texts."""
    texts = draw(st.lists(TEXT, max_size=6))
    kinds = list(_BITS) + ([Kind.TEXT, Kind.BYTES] if texts else [])
    rows = []
    for _ in range(draw(st.integers(min_size, max_size))):
        kind = draw(st.sampled_from(kinds))
        value = draw(_BITS[kind]) if kind in _BITS else draw(st.integers(0, len(texts) - 1))
        rows.append(
            (
                draw(tag),
                draw(INT64),
                int(kind),
                value,
                draw(st.one_of(st.just(0), st.integers(0, 2**32 - 1))),
                draw(st.one_of(st.just(0), st.integers(0, 2**16 - 1))),
                draw(st.one_of(st.none(), INT64)),
            )
        )
    return build(rows, texts)


def meaning(c: Columns) -> list[tuple]:
    """Per reading everything it says, bit for bit; texts instead of indexes."""
    source = c.ts_ns if c.ts_source_ns is None else c.ts_source_ns
    is_text = np.isin(c.kind, [Kind.TEXT, Kind.BYTES])
    values = [c.texts[int(v)] if text else int(v) for v, text in zip(c.values, is_text, strict=True)]
    return list(
        zip(c.tag.tolist(), c.ts_ns.tolist(), c.kind.tolist(), values, c.quality.tolist(), c.flags.tolist(), source.tolist(), strict=True)
    )


def some(first: int, n: int) -> Columns:
    """n small integers of two tags."""
    return make_columns([16 + i % 2 for i in range(n)], [10**18 + first + i for i in range(n)], [1] * n, list(range(first, first + n)), [0] * n)
