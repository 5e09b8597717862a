"""Readings one at a time: in the ring they are what the same readings in columns are."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest

from benchmarks.peers import python_values
from benchmarks.workload import Workload
from buffer import limits
from buffer.codec import encode
from buffer.errors import MisuseError
from buffer.singly import Singly
from buffer.types import Flag, Kind
from tests.support.readings import meaning


def test_a_plant_one_reading_at_a_time_is_the_same_plant() -> None:
    columns, singly = Workload().scans(3), Singly()
    values = [value == 1 if kind == Kind.BOOL else value for kind, value in zip(columns.kind.tolist(), python_values(columns), strict=True)]
    for row in zip(columns.tag.tolist(), columns.ts_ns.tolist(), values, columns.quality.tolist(), strict=True):
        singly.add(*row)
    got = singly.take()
    assert meaning(got) == meaning(columns)
    assert encode(got)
    assert not singly


@pytest.mark.parametrize(
    ("value", "kind", "bits"),
    [
        (-0.0, Kind.DOUBLE, 1 << 63), (math.inf, Kind.DOUBLE, 0x7FF0 << 48), (np.float64(1.0), Kind.DOUBLE, 0x3FF0 << 48),
        (-1, Kind.INT64, 2**64 - 1), (2**63 - 1, Kind.INT64, 2**63 - 1), (2**63, Kind.UINT64, 2**63), (True, Kind.BOOL, 1), (None, Kind.NULL, 0),
    ],
)  # fmt: skip
def test_every_kind_keeps_its_bits(value, kind, bits) -> None:
    singly = Singly()
    singly.add(16, -5, value, 0x8000_0000, int(Flag.REPEATED))
    got = singly.take()
    assert (got.kind.tolist(), got.values.tolist(), got.ts_ns.tolist()) == ([kind], [bits], [-5])
    assert (got.quality.tolist(), got.flags.tolist()) == ([0x8000_0000], [Flag.REPEATED])


def test_texts_are_kept_once_and_bytes_are_base64() -> None:
    singly = Singly()
    for value in ("RUN", "STOP", "RUN", b"\0\1"):
        singly.add(16, 0, value)
    got = singly.take()
    assert got.texts == ("RUN", "STOP", base64.b64encode(b"\0\1").decode())
    assert (got.values.tolist(), got.kind.tolist()) == ([0, 1, 0, 2], [Kind.TEXT] * 3 + [Kind.BYTES])


@pytest.mark.parametrize(
    ("tag", "ts", "value", "quality"),
    [(-1, 0, 1.0, 0), (2**32, 0, 1.0, 0), (16, 2**63, 1.0, 0), (16, 0, 2**64, 0), (16, 0, -(2**63) - 1, 0), (16, 0, 1.0, 2**32),
     (16, 0, [1], 0), (16, 0, "x" * (limits.TEXT_BYTES_MAX + 1), 0), (16, 0.5, 1, 0)],
)  # fmt: skip
def test_what_no_column_holds_is_refused_and_leaves_nothing(tag, ts, value, quality) -> None:
    singly = Singly()
    with pytest.raises(MisuseError):
        singly.add(tag, ts, value, quality)
    assert not singly
