"""Runs the scrub of the ring (buffer.scrub) slowly beside everything else, and has the ring declare what it finds.

Progress is kept in state/collect/_scrub.json: a restart goes on where it was. An object that rotted and that this process knows (the
present tag table, the key statement) is written again. Once a day a notice says how far back the ring reaches and what it writes.
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError, StorageFault
from buffer.manifest import FrameKind, ObjectType
from buffer.notice import NoticeKind
from buffer.reader import RingReader
from buffer.scrub import Scrub, decode_progress, encode_progress, fresh
from buffer.storage import PosixReadStorage, publish_file
from buffer.tagtable import encode_table
from gateway import footprint
from gateway.errors import TrustError
from gateway.trust.certs import load_certificate_key
from gateway.trust.keys import KeyRing, load_signer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buffer.ring import Instant, Ring
    from buffer.scrub import Checked
    from buffer.tagtable import TagTable
    from gateway.collect.writer import Writer
    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings

LOOK_S: Final = 60.0  # between two looks whether a round is due
BYTES_PER_S: Final = 4 * 1024 * 1024  # 25 GB in under two hours, 1 % of a small core
PAUSE_S_MIN: Final = 0.05  # after a small file
FORECAST_NS: Final = 86_400 * 10**9
AGAIN_S: Final = 30.0  # after a disk that refused

log = logging.getLogger(__name__)


class Scrubber:
    """One loop; never ends by itself."""

    def __init__(
        self, runtime: Runtime, settings: GatewaySettings, ring: Ring, writer: Writer, instant: Callable[[], Instant], table: Callable[[], TagTable]
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._ring = ring
        self._writer = writer
        self._instant = instant
        self._table = table
        self._storage = PosixReadStorage(settings.ring.path / settings.stream)
        self._path: Path = settings.scrub_progress
        try:
            kept: bytes | None = self._path.read_bytes()
        except OSError:
            kept = None
        self.scrub = Scrub(self._storage, believed(self._storage, settings), decode_progress(kept))

    async def run(self) -> None:
        """Scrub whenever a round is due; forecast once a day."""
        told_ns = self._runtime.monotonic_ns()
        while True:
            await self._runtime.sleep(LOOK_S)
            await self.round()
            if self._runtime.monotonic_ns() - told_ns >= FORECAST_NS:
                told_ns = self._runtime.monotonic_ns()
                self.forecast()

    def forecast(self) -> None:
        """Say how the ring fares."""
        info = self._ring.info(self._instant())
        self._writer.notice(
            NoticeKind.HEALTH, "", event="ring forecast", used_bytes=info.used_bytes, max_bytes=info.max_bytes, readings=info.readings,
            horizon_days=round(info.horizon_ns / 86_400e9, 1), written_bytes_per_day=info.written_bytes_per_day,
        )  # fmt: skip

    async def round(self) -> None:
        """Go on with the round that is due, to its end; return at once where none is."""
        while True:
            began = self.scrub.progress.position
            try:
                checked = await self._runtime.offload(partial(self.scrub.step, self._runtime.wall_ns()))
            except StorageFault as fault:
                log.warning("scrub waits", extra={"data": {"why": str(fault)}})
                return
            if checked is None:
                if began:
                    self._keep()
                    p = self.scrub.progress
                    self._writer.notice(NoticeKind.STORAGE, "", event="scrub ended", files=p.files, bytes=p.size_bytes, damaged=p.damaged)
                    footprint.give_back()  # segments were read whole
                return
            if checked.problem:
                await self._declare(checked)
            self._keep()
            await self._runtime.sleep(max(PAUSE_S_MIN, checked.size_bytes / BYTES_PER_S))

    def _keep(self) -> None:
        with contextlib.suppress(StorageFault):  # then a restart checks a few files twice
            publish_file(self._path, encode_progress(self.scrub.progress), durable=False)

    async def _declare(self, checked: Checked) -> None:
        known = self._ring.state.lost if self._ring.state is not None else ()
        losses = fresh(checked.losses, known)
        if checked.losses and not losses:
            return  # told in an earlier round
        readings = sum(loss.last - loss.first + 1 for loss in losses)
        self._writer.notice(NoticeKind.STORAGE, "", event="scrub found damage", file=checked.path, why=checked.problem, readings_lost=readings)
        log.error("scrub found damage", extra={"data": {"file": checked.path, "why": checked.problem, "readings_lost": readings}})
        while losses:
            try:
                await self._writer.exclusively(partial(self._ring.declare_lost, losses, self._instant()))
                break
            except StorageFault:
                await self._runtime.sleep(AGAIN_S)
        if checked.path.startswith("objects/"):
            with contextlib.suppress(StorageFault):
                await self._writer.exclusively(self._restore)

    def _restore(self) -> None:
        self._ring.add_object(ObjectType.TAG_TABLE, encode_table(self._table()))
        statement = self._settings.data_key.with_suffix(".statement")
        if statement.exists():
            self._ring.add_object(ObjectType.KEY_STATEMENT, statement.read_bytes())


def believed(storage: PosixReadStorage, settings: GatewaySettings) -> KeyRing:
    """Return the keys whose signatures can be judged here: the present one, and those that statements in the ring introduce."""
    try:
        keys = KeyRing([load_certificate_key(settings.receiver.ca)])
    except TrustError:
        keys = KeyRing()  # not enrolled yet
    keys.trust(load_signer(settings.data_key).public)
    reader = RingReader(storage)
    for digest in reader.objects():
        with contextlib.suppress(CorruptError):
            frame = reader.object_frame(digest)
            if frame is not None and frame.manifest.kind == FrameKind.OBJECT and frame.manifest.object_type == ObjectType.KEY_STATEMENT:
                keys.introduce(bytes(frame.payload), settings.stream)
    return keys
