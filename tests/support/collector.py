"""Collect as a process of its own over a real ring: started, killed, and its ring read back as a stranger would, with SQL."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from buffer import limits
from buffer.codec import decode
from buffer.errors import StorageFault
from buffer.frame import Frame
from buffer.notice import NoticeKind
from buffer.query import QueryOptions, run_query
from buffer.reader import RingReader
from buffer.storage import PosixReadStorage
from buffer.types import empty_columns
from gateway.settings import OpcuaSource
from tests.support.site import Site

ROWS_MAX = 2_000_000


class Collector:
    """One gateway's collect process and its ring."""

    def __init__(self, directory: Path, sources: tuple[OpcuaSource, ...], *limits: str) -> None:
        self.site = Site(directory, 0)
        self.settings = replace(self.site.gateway(1), sources=sources)
        self.root = self.settings.ring.path / self.settings.stream
        self._pickled = directory / "settings.pickle"
        self._pickled.write_bytes(pickle.dumps(self.settings))
        self._limits = limits
        self.log = directory / "collect.log"
        self._process: asyncio.subprocess.Process | None = None
        self._reader = RingReader(PosixReadStorage(self.root))
        self._seen = (0, -1)
        self.told: dict[str, list[dict[str, object]]] = collections.defaultdict(list)
        self.open_gaps = 0
        self.filling = False  # the newest block is history of a gap that is still open
        self.live = self.history = 0  # readings of each kind

    async def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.collect_child", str(self._pickled), *self._limits]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=log)

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; return the exit code."""
        assert self._process is not None
        self._process.terminate()
        return await self._process.wait()

    @property
    def died(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    # ---- what is durable, cheaply and again and again ----

    def follow(self) -> None:
        """Read the blocks committed since the last call."""
        try:
            inventory = self._reader.inventory()
            generations = sorted({journal.generation for journal in inventory.journals})
            for generation in [one for one in generations if one >= self._seen[0]]:
                first = self._seen[1] + 1 if generation == self._seen[0] else 0
                for frame in self._reader.blocks(inventory, generation, first):
                    self._take(generation, frame)
        except (StorageFault, FileNotFoundError):
            return  # nothing there yet

    def _take(self, generation: int, frame: Frame) -> None:
        manifest = frame.manifest
        self._seen = (generation, manifest.first_block)
        self.open_gaps = len(manifest.state.open_gaps) if manifest.state else 0
        self.filling = manifest.fill is not None and self.open_gaps > 0
        columns = decode(frame.payload, manifest.count) if manifest.count else empty_columns()
        self.live += 0 if manifest.fill else len(columns)
        self.history += len(columns) if manifest.fill else 0
        for row in np.flatnonzero(columns.tag < limits.TAG_NUMBER_FIRST):
            told = json.loads(columns.texts[int(columns.values[row])])
            self.told[NoticeKind(int(columns.tag[row])).name.lower()].append(told)

    def notices(self, kind: str) -> list[dict[str, object]]:
        """Return what was told, in order."""
        self.follow()
        return self.told[kind]

    # ---- as a stranger reads it ----

    def rows(self, sql: str) -> list[list[object]]:
        result = run_query(self.settings.ring.path, sql, QueryOptions(rows_max=ROWS_MAX))
        assert not result.truncated
        return result.rows
