"""The hole that kill -9 and power cuts leave, made visible: one marker per tag that still shows a value. Pure.

An orderly stop writes its markers itself. After anything else the next generation writes them before its first reading: no value,
Bad_NoCommunication, one microsecond after the last moment at which this gateway is known to have been at work, so that a plot ends
there instead of drawing a line across the hole. A source that kept our subscription over the kill fills the hole from its queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.types import BAD_NO_COMMUNICATION, Columns, Flag, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buffer.last import Reading

AFTER_NS: Final = 1_000  # the finest step that every target of ours can tell apart


def markers_after(last: Mapping[int, Reading], committed_ns: int) -> Columns:
    """Return one marker per tag whose newest reading is no marker (tag number -> newest reading).

    committed_ns: when the newest block was committed. A reading newer than that (a source whose clock is ahead) is followed, never preceded.
    """
    shown = [(tag, reading) for tag, reading in sorted(last.items()) if not reading.flags & Flag.MARKER]
    n = len(shown)
    ts = np.fromiter((max(committed_ns, reading.ts_ns) for _, reading in shown), np.int64, n) + AFTER_NS
    return Columns(
        np.fromiter((tag for tag, _ in shown), np.uint32, n),
        ts,
        np.full(n, Kind.NULL, np.uint8),
        np.zeros(n, np.uint64),
        np.full(n, BAD_NO_COMMUNICATION, np.uint32),
        np.full(n, Flag.MARKER, np.uint16),
        None,
        (),
    )
