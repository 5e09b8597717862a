"""The readings every figure in docs/performance.md is about: synthetic, seeded, the same on every machine.

1,000 tags on 20 devices. Ten devices are polled as one block (50 tags share one timestamp), ten are like OPC UA (a timestamp per tag).
700 doubles with two decimals (500 noisy random walks, 200 that seldom move), 120 counters, 130 booleans, 50 texts out of seven.
One scan a second with jitter; devices come in varying order; quality Good but for outages of a device (1 % of minutes) and 0.03 %
Uncertain. Stamps are whole milliseconds, or whole 100 ns. Order-0 entropy of simple predictors: 0.52 and 1.26 bytes per reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from buffer import limits
from buffer.types import UNCERTAIN, Columns, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAGS: Final = 1_000
DEVICES: Final = 20
PER_DEVICE: Final = TAGS // DEVICES
SCAN_NS: Final = 10**9
MILLISECOND_NS: Final = 1_000_000
TICK_NS: Final = 100
TEXTS: Final = ("RUN", "STOP", "IDLE", "FAULT: motor overtemperature", "MAINTENANCE", "Recipe 12 / step 4", "CIP rinse")
BAD_COMMUNICATION: Final = 0x8005_0000  # Bad_CommunicationError
FIRST_S: Final = 1_760_000_000  # where the plant begins
_OUTAGE_SCANS: Final = 60


class Workload:
    """An endless plant. The same arguments give the same readings."""

    def __init__(self, seed: int = 1, resolution_ns: int = MILLISECOND_NS, first_s: int = FIRST_S) -> None:
        shape = np.random.default_rng(7)  # the plant is one; the seed is the weather
        kinds = np.repeat(np.array([Kind.DOUBLE, Kind.INT64, Kind.BOOL, Kind.TEXT], np.uint8), [700, 120, 130, 50])
        self.kind: NDArray[np.uint8] = shape.permutation(kinds)
        self._sigma = np.exp(shape.uniform(np.log(0.02), np.log(0.5), TAGS))
        self._slow = np.zeros(TAGS, np.bool_)
        self._slow[shape.choice(np.flatnonzero(self.kind == Kind.DOUBLE), 200, replace=False)] = True
        self._walk = shape.uniform(5, 900, TAGS).round(2)
        self._rate = shape.uniform(0, 20, TAGS)
        self._random = np.random.default_rng(seed)
        self._resolution_ns = resolution_ns
        self._second = first_s
        self._count = self._random.integers(0, 1 << 20, TAGS)
        self._state = self._random.integers(0, len(TEXTS), TAGS)
        self._phase = self._random.uniform(0, 0.6, DEVICES)

    def scans(self, n: int) -> Columns:
        """Return the next n scans: n * TAGS readings in order of arrival."""
        poll_s = self._phase + self._random.normal(0, 0.004, (n, DEVICES))
        order = (np.argsort(poll_s, axis=1)[:, :, None] * PER_DEVICE + np.arange(PER_DEVICE)).reshape(n, TAGS)
        ts = np.take_along_axis(self._stamps(poll_s), order, axis=1)
        values = np.take_along_axis(self._values(n), order, axis=1)
        quality = np.take_along_axis(self._quality(n), order, axis=1)
        self._second += n
        return Columns(
            (order + limits.TAG_NUMBER_FIRST).astype(np.uint32).ravel(),
            ts.ravel(),
            self.kind[order].ravel(),
            values.ravel(),
            quality.ravel(),
            np.zeros(n * TAGS, np.uint16),
            None,
            TEXTS,
        )

    def _stamps(self, poll_s: NDArray[np.float64]) -> NDArray[np.int64]:
        n = len(poll_s)
        offset_s = np.repeat(poll_s, PER_DEVICE, axis=1)
        half = TAGS // 2  # the second ten devices stamp each tag
        offset_s[:, half:] += np.cumsum(self._random.exponential(0.0002, (n, DEVICES // 2, PER_DEVICE)), axis=2).reshape(n, half)
        seconds = (self._second + np.arange(n, dtype=np.int64)) * SCAN_NS
        ts: NDArray[np.int64] = seconds[:, None] + np.rint(offset_s * 1e9).astype(np.int64)
        return ts // self._resolution_ns * self._resolution_ns

    def _values(self, n: int) -> NDArray[np.uint64]:
        random = self._random
        step = random.normal(0, 1, (n, TAGS)) * self._sigma * 0.3
        step[:, self._slow] *= random.random((n, int(self._slow.sum()))) < 0.1
        walk = self._walk + np.cumsum(step, axis=0)
        noise = random.normal(0, 1, (n, TAGS)) * self._sigma
        noise[:, self._slow] = 0
        count = self._count + np.cumsum(random.poisson(self._rate, (n, TAGS)), axis=0)
        changes = random.random((n, TAGS)) < np.where(self.kind == Kind.BOOL, 0.005, 0.002)
        state = self._state + np.cumsum(changes * random.integers(1, len(TEXTS), (n, TAGS)), axis=0)
        self._walk, self._count, self._state = walk[-1].copy(), count[-1].copy(), state[-1].copy()
        values = np.round(walk + noise, 2).view(np.uint64).copy()
        values[:, self.kind == Kind.INT64] = count[:, self.kind == Kind.INT64]
        values[:, self.kind == Kind.BOOL] = state[:, self.kind == Kind.BOOL] % 2
        values[:, self.kind == Kind.TEXT] = state[:, self.kind == Kind.TEXT] % len(TEXTS)
        return values

    def _quality(self, n: int) -> NDArray[np.uint32]:
        quality = np.zeros((n, TAGS), np.uint32)
        outage = self._random.random((n // _OUTAGE_SCANS + 1, DEVICES)) < 0.01
        quality[np.repeat(np.repeat(outage, _OUTAGE_SCANS, axis=0)[:n], PER_DEVICE, axis=1)] = BAD_COMMUNICATION
        quality[self._random.random((n, TAGS)) < 0.0003] = UNCERTAIN
        return quality
