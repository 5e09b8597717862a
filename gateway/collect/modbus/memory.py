"""What a Modbus source must not forget over a restart: <state>/collect/<source>.json, by rename. JSON:

{"version": 1, "load": gateway.collect.load.Budget.export, "cuts": [[table, first, end]...], "cuts_wall_ns": when the first was learned}
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from buffer.errors import StorageFault
from buffer.storage import publish_file
from gateway.collect.load import Budget
from gateway.collect.modbus.holes import Holes
from gateway.collect.modbus.plan import Cuts, restore_cuts

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.runtime import Runtime
    from gateway.settings import Load

FILE_BYTES_MAX: Final = 1024 * 1024  # cuts are the largest part: 10,000 of 20 bytes
CUTS_KEPT_NS: Final = 7 * 86_400 * 10**9  # then neighbours are tried together again: the device may have been repaired

log = logging.getLogger(__name__)


class Memory:
    """Budget and holes of one source, read at the start, saved now and then."""

    def __init__(self, path: Path, load: Load, runtime: Runtime) -> None:
        self._path = path
        self._runtime = runtime
        self._load = load
        saved = self._read()
        wall = runtime.wall_ns()
        self.budget = self._budget(saved)
        since = saved.get("cuts_wall_ns")
        self._cuts_wall_ns = since if type(since) is int and 0 <= wall - since < CUTS_KEPT_NS else wall
        self.holes = Holes(restore_cuts(saved.get("cuts")) if self._cuts_wall_ns == since else Cuts())

    def _budget(self, saved: dict[str, object]) -> Budget:
        """Even without a file the first request waits one interval: the file may be the thing that was lost."""
        budget = saved.get("load")
        return Budget(self._load, self._runtime.monotonic_ns(), budget if isinstance(budget, dict) else {}, self._runtime.wall_ns())

    def reload(self) -> None:
        """Take the budget over again: another process may have asked the device during a pause."""
        self.budget = self._budget(self._read())

    def _read(self) -> dict[str, object]:
        try:
            with self._path.open("rb") as file:
                saved = json.loads(file.read(FILE_BYTES_MAX))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("budget file not readable; starting with none", extra={"data": {"path": str(self._path), "error": str(error)}})
            return {}
        return saved if isinstance(saved, dict) and saved.get("version") == 1 else {}

    async def save(self) -> None:
        """Publish the file; a disk that refuses is logged and tried again at the next call (the ring will stop collect if it matters)."""
        now, wall = self._runtime.monotonic_ns(), self._runtime.wall_ns()
        body = {"version": 1, "load": self.budget.export(now, wall), "cuts": self.holes.cuts.export(), "cuts_wall_ns": self._cuts_wall_ns}
        data = json.dumps(body).encode()
        try:
            await self._runtime.offload(lambda: publish_file(self._path, data))
        except StorageFault as fault:
            log.warning("budget file not saved", extra={"data": {"path": str(self._path), "fault": str(fault)}})
