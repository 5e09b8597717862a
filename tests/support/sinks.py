"""Sinks for tests of sources: what a ring promises, in memory. What was not committed when a source is killed is gone."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from buffer.last import LastState
from buffer.manifest import OpenGap
from buffer.notice import NoticeKind
from buffer.types import Columns, Flag, Kind
from gateway.collect.source import Batch, GapStep, Known

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path



@dataclass(frozen=True)
class Row:
    """One committed reading, as plain Python."""

    tag: int
    ts_ns: int
    ts_source_ns: int
    value: float | bool | str | None
    quality: int
    flags: int


def rows_of(columns: Columns) -> Iterator[Row]:
    """Yield the readings one by one."""
    source = columns.ts_ns if columns.ts_source_ns is None else columns.ts_source_ns
    for i in range(len(columns)):
        kind, bits = int(columns.kind[i]), columns.values[i]
        value: float | bool | str | None = int(bits)
        if kind == Kind.DOUBLE:
            value = float(np.uint64(bits).view(np.float64))
        elif kind == Kind.INT64:
            value = int(np.uint64(bits).view(np.int64))
        elif kind == Kind.BOOL:
            value = bool(bits)
        elif kind in (Kind.TEXT, Kind.BYTES):
            value = columns.texts[int(bits)]
        elif kind == Kind.NULL:
            value = None
        yield Row(int(columns.tag[i]), int(columns.ts_ns[i]), int(source[i]), value, int(columns.quality[i]), int(columns.flags[i]))


@dataclass
class MemorySink:
    """Commits everything that waits every `interval_s`, like the writer. `stalled`: the disk does not answer."""

    interval_s: float = 0.05
    stalled: bool = False
    batches: list[Batch] = field(default_factory=list)
    notices: list[tuple[NoticeKind, str, dict[str, object]]] = field(default_factory=list)
    commits: int = 0

    def __post_init__(self) -> None:
        self._state = LastState()
        self._positions: dict[str, bytes] = {}
        self._sources: dict[str, int] = {}
        self._open: dict[int, OpenGap] = {}
        self._tags: dict[int, int] = {}
        self._gap_id = 0
        self._waiting: list[tuple[Batch, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def commit(self, batch: Batch) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())
        await asyncio.shield(done)

    def known(self, source: str) -> Known:
        known = self._state.known(self._sources.get(source, 0))
        return Known(self._positions.get(source), known.last, known.gaps)

    def notice(self, kind: int, source: str, **detail: object) -> None:
        self.notices.append((NoticeKind(kind), source, detail))

    async def _flush(self) -> None:
        while self._waiting:
            await asyncio.sleep(self.interval_s)
            while self.stalled:
                await asyncio.sleep(0.02)
            taken, self._waiting = self._waiting, []
            for batch, _ in taken:
                self._apply(batch)
            self.commits += 1
            for _, done in taken:
                if not done.done():
                    done.set_result(None)

    def kill(self) -> None:
        """Forget what was not committed, as kill -9 does."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _apply(self, batch: Batch) -> None:
        self.batches.append(batch)
        number = self._sources.setdefault(batch.source, len(self._sources) + 1)
        gap = batch.gap
        if gap is not None and gap.step is GapStep.OPEN:
            self._gap_id += 1
            self._open[self._gap_id] = OpenGap(self._gap_id, number, gap.from_ns)
        if gap is not None and gap.step in (GapStep.FILLED, GapStep.UNFILLABLE):
            self._open.pop(gap.id, None)
        self._tags |= dict.fromkeys(batch.columns.tag.tolist(), number)
        self._state.use_sources(self._tags)
        fill = None
        if gap is not None and (gap.step is not GapStep.OPEN or gap.progress):
            fill = (gap.id or self._gap_id, gap.progress)
        self._state.take(batch.columns, tuple(self._open.values()), fill)
        if batch.position is not None:
            self._positions[batch.source] = batch.position

    # ---- for assertions ----

    def rows(self, *, live: bool = True) -> list[Row]:
        """Return what was committed, in order; live: what a source sent, neither markers, repeated readings nor history."""
        mask = Flag.MARKER | Flag.REPEATED
        found = [row for batch in self.batches if not (live and batch.gap) for row in rows_of(batch.columns)]
        return [row for row in found if not row.flags & mask] if live else found

    def told(self, kind: NoticeKind) -> list[dict[str, object]]:
        """Return the details of all notices of one kind."""
        return [detail for one, _, detail in self.notices if one is kind]


class FileSink(MemorySink):
    """A MemorySink whose commits outlive kill -9: one pickled batch after another in a file."""

    def __init__(self, path: Path, interval_s: float = 0.1) -> None:
        super().__init__(interval_s)
        self._file = path.open("ab+")
        self._file.seek(0)
        good = 0
        while True:
            try:
                batch, notices = pickle.load(self._file)
            except (EOFError, pickle.UnpicklingError):
                break
            good = self._file.tell()
            super()._apply(batch)
            self.notices += notices
        self._file.truncate(good)
        self._told = len(self.notices)

    def _apply(self, batch: Batch) -> None:
        pickle.dump((batch, self.notices[self._told :]), self._file)
        self._file.flush()
        self._told = len(self.notices)
        super()._apply(batch)
