"""Wiring of upload: ring reader -> plan -> carrier -> cursor. Two loops share one cursor: live, and backfill behind it."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from buffer.errors import CorruptError, StorageFault
from buffer.manifest import ObjectType
from buffer.reader import Inventory, RingReader
from buffer.storage import PosixReadStorage, make_directory, publish_file
from gateway.errors import PeerError
from gateway.upload.pacing import Bucket, window_open
from gateway.runtime import Runtime, full_jitter, notify
from gateway.trust.keys import KeyRing, load_public
from gateway.upload.cursor import Cursor, decode_cursor, encode_cursor
from gateway.upload.machine import InFlight, Piece, plan_blocks, plan_live, plan_segment
from gateway.upload.transport import Answer, HttpsCarrier
from gateway.wire import request as wire
from gateway.wire.receipt import Receipt, Verdict, parse_receipt
from gateway.wire.request import FramesTarget, Lane, ObjectTarget, StatusTarget, format_target

if TYPE_CHECKING:
    from pathlib import Path

    from buffer.layout import SegmentName
    from buffer.manifest import Manifest
    from gateway.settings import GatewaySettings

STATE_SECONDS: Final = 5.0  # between two writes of the cursor; a lost one costs offers
HEALTH_SECONDS: Final = 60.0
UNREACHABLE_CAP_S: Final = 15.0  # a connection that is refused costs a packet: the link is noticed soon after it is back
NO_ANSWER_CAP_S: Final = 3600.0  # frames sent and not answered cost money: up to an hour
PARK_NS: Final = 3_600 * 10**9
STATE_FILE: Final = "cursor.json"

log = logging.getLogger(__name__)


class Carrier(Protocol):
    """Carries a PUT, brings at most one bounded answer; raises PeerError."""

    async def put(self, target: str, body: bytes) -> Answer:
        """See gateway.upload.transport."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


@dataclass(slots=True)
class Progress:
    """What `status` shows."""

    sent_bytes: int = 0
    receipts: int = 0
    last_receipt_ns: int = 0
    cause: str = ""
    alarm: str = ""
    backlog_readings: int = 0
    backlog_bytes: int = 0
    live: dict[str, Any] = field(default_factory=dict)


class Uploader:
    """One stream: its ring, its cursor, its carrier."""

    def __init__(self, runtime: Runtime, settings: GatewaySettings, reader: RingReader, carrier: Carrier, keys: KeyRing, state: Path) -> None:
        self._runtime = runtime
        self._settings = settings
        self._reader = reader
        self._carrier = carrier
        self._keys = keys
        self._state = state
        self.cursor = self._load()
        self.flight = InFlight()
        self.progress = Progress()
        self._segments: dict[SegmentName, Manifest] = {}
        self._live_from: tuple[int, int] = (0, 0)
        self._bucket = Bucket(settings.receiver.backfill.limit_bps)
        self._lock = asyncio.Lock()  # around the reader: it keeps offsets

    # ---- cursor on disk ----

    def _load(self) -> Cursor:
        path = self._state / STATE_FILE
        try:
            return decode_cursor(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return Cursor()
        except (CorruptError, ValueError) as error:
            log.warning("cursor unreadable; asking the receiver instead", extra={"data": {"file": str(path), "why": str(error)}})
            return Cursor()

    def save(self) -> None:
        """Write the cursor; raise StorageFault."""
        publish_file(self._state / STATE_FILE, json.dumps(encode_cursor(self.cursor)).encode())

    # ---- loops ----

    async def live(self) -> None:
        """At most one PUT a second and stream, always the newest."""
        attempt = 0
        while True:
            piece = await self._read(self._next_live)
            if piece is None:
                await self._runtime.sleep(self._settings.receiver.live_ns / 1e9)
                continue
            attempt = 0 if await self._send(piece, Lane.LIVE) else attempt + 1
            wait = full_jitter(self._runtime, attempt, 0.5, UNREACHABLE_CAP_S / 3) if attempt else 0.0
            await self._runtime.sleep(self._settings.receiver.live_ns / 1e9 + wait)

    async def backfill(self) -> None:
        """Oldest first, within cap and window."""
        attempt = 0
        back = self._settings.receiver.backfill
        while True:
            if not window_open(back.window, self._settings.timezone, self._runtime.wall_ns()):
                await self._runtime.sleep(30.0)
                continue
            await self._runtime.sleep(self._bucket.wait_s(self._runtime.monotonic_ns()))
            piece = await self._read(self._next_backfill)
            if piece is None:
                self.cursor.offer = False
                await self._runtime.sleep(1.0)
                continue
            good = await self._send(piece, Lane.BACKFILL, offer=self.cursor.offer)
            attempt = 0 if good else attempt + 1
            if attempt:
                cap = UNREACHABLE_CAP_S if "reachable" in self.progress.cause else NO_ANSWER_CAP_S
                await self._runtime.sleep(full_jitter(self._runtime, attempt, 1.0, cap))

    async def _read(self, action: Any) -> Piece | None:  # noqa: ANN401 -- a bound method
        async with self._lock:
            piece: Piece | None = await self._runtime.offload(action)
            return piece

    def _next_live(self) -> Piece | None:
        inventory = self._reader.inventory()
        mark = inventory.durable
        if mark is None:
            return None
        if self._live_from[0] != mark.generation:
            self._live_from = (mark.generation, max(0, mark.end_block - 64))
        now = self._runtime.wall_ns()
        frames = list(self._reader.blocks(inventory, mark.generation, self._live_from[1]))
        old = [f for f in frames if f.manifest.state is not None and now - f.manifest.state.wall_ns > 60 * 10**9]
        if old:
            self._live_from = (mark.generation, old[-1].manifest.last_block + 1)
        return plan_live(frames, self.cursor, self.flight, now)

    def _next_backfill(self) -> Piece | None:
        inventory = self._reader.inventory()
        self._learn_segments(inventory)
        now = self._runtime.wall_ns()
        names = reversed(inventory.segments) if self._settings.receiver.backfill.newest_first else inventory.segments
        pieces = (plan_segment(n, self._segments[n], self.cursor, self.flight, now) for n in names if n in self._segments)
        segment = next((piece for piece in pieces if piece is not None), None)
        self._measure(inventory)
        if segment is not None:
            return segment
        for generation in sorted({j.generation for j in inventory.journals}):
            sealed = [(m.first_block, m.last_block) for m in self._segments.values() if m.generation == generation]
            missing = self.cursor.missing(generation, 0, 2**62)
            frames = self._reader.blocks(inventory, generation, missing[0][0] if missing else 0)
            piece = plan_blocks(frames, sealed, self.cursor, self.flight, now)
            if piece is not None:
                return piece
        return None

    def _learn_segments(self, inventory: Inventory) -> None:
        self._segments = {name: m for name, m in self._segments.items() if name in set(inventory.segments)}
        for name in inventory.segments:
            if name not in self._segments:
                manifest = self._reader.segment_manifest(name)
                if manifest is not None:
                    self._segments[name] = manifest

    def _measure(self, inventory: Inventory) -> None:
        waiting = [m for m in self._segments.values() if not self.cursor.covers(m.generation, m.first_block, m.last_block)]
        self.progress.backlog_readings = sum(m.count for m in waiting)
        self.progress.backlog_bytes = sum(m.payload_length for m in waiting)
        mark = inventory.durable
        if mark is not None:
            missing = self.cursor.missing(mark.generation, 0, mark.end_block - 1) if mark.end_block else []
            self.progress.live = {"blocks_waiting": sum(b - a + 1 for a, b in missing), "end_seq": mark.end_seq}

    # ---- one PUT ----

    async def _send(self, piece: Piece, lane: Lane, *, offer: bool = False) -> bool:
        """Send one piece; say whether a signed verdict came."""
        key = (piece.generation, piece.first, piece.last)
        self.flight.ranges.add(key)
        try:
            if offer and await self._offer(piece, lane):
                return True
            body = await self._body(piece)
            if body is None:
                return True  # evicted meanwhile: the next plan knows
            return await self._put(piece, lane, body)
        except PeerError as error:
            if self.progress.cause != error.message:
                log.warning("no answer", extra={"data": {"cause": error.message, "remedy": error.remedy}})
            self.progress.cause = error.message
            return False
        finally:
            self.flight.ranges.discard(key)

    async def _body(self, piece: Piece) -> bytes | None:
        if piece.segment is None:
            return b"".join(frame.wire() for frame in piece.frames)
        async with self._lock:
            frame = await self._runtime.offload(partial(self._reader.segment_frame, piece.segment))
        return frame.wire() if frame is not None else None

    def _target(self, piece: Piece, lane: Lane, chain: bytes | None = None) -> str:
        return format_target(
            FramesTarget(self._settings.stream, piece.generation, piece.first, piece.last, self.cursor.landing, lane, chain)
        )

    async def _offer(self, piece: Piece, lane: Lane) -> bool:
        answer = await self._carrier.put(self._target(piece, lane, piece.chain), b"")
        return answer.status == wire.OK and self._believe(piece, answer.body)

    async def _put(self, piece: Piece, lane: Lane, body: bytes) -> bool:
        for _ in range(3):  # 424 makes it send objects and try again, twice at most
            self.progress.sent_bytes += len(body)
            if lane == Lane.BACKFILL:
                self._bucket.spent(len(body))
            answer = await self._carrier.put(self._target(piece, lane), body)
            if answer.status == wire.OK:
                return self._believe(piece, answer.body)
            if answer.status != wire.MISSING_OBJECTS:
                raise PeerError(f"status {answer.status} without a signed verdict", _remedy(answer))
            await self._send_objects(answer.body)
        raise PeerError("the receiver keeps asking for objects", "See the receiver's log: it refuses our tag table or key statement.")

    async def _send_objects(self, body: bytes) -> None:
        """Send the objects named, key statements first."""
        try:
            tables, keys = wire.parse_missing(body)
        except CorruptError as error:
            raise PeerError(f"424 with a body nobody signed for: {error}", "A device between alters answers.") from error
        async with self._lock:
            frames = await self._runtime.offload(partial(self._objects, tables, bool(keys)))
        for frame in frames:
            target = format_target(ObjectTarget(frame.manifest.payload_sha256, self._settings.stream, self.cursor.landing))
            await self._carrier.put(target, frame.wire())

    def _objects(self, tables: tuple[bytes, ...], statements: bool) -> list[Any]:
        found = [self._reader.object_frame(digest) for digest in self._reader.objects()] if statements else []
        frames = [f for f in found if f is not None and f.manifest.object_type == ObjectType.KEY_STATEMENT]
        return frames + [f for digest in tables if (f := self._reader.object_frame(digest)) is not None]

    def _believe(self, piece: Piece, body: bytes) -> bool:
        """Move the cursor by a verdict that is signed and is about this piece; say whether it was one."""
        try:
            receipt = parse_receipt(body, self._keys)
        except CorruptError as error:
            raise PeerError(
                f"200 without our receiver's signature: {error}", "A device between answers for it, or pki/receipt.pub is of another receiver."
            ) from error
        about = (receipt.stream, receipt.generation, receipt.first, receipt.last)
        if about != (self._settings.stream, piece.generation, piece.first, piece.last):
            raise PeerError("a receipt for something else", "A device between mixes answers up.")
        if receipt.verdict != Verdict.REFUSED and receipt.chain != piece.chain:
            raise PeerError("a receipt with another chain", "See the receiver's alarms.")
        return self._take(receipt)

    def _take(self, receipt: Receipt) -> bool:
        restored = self.cursor.take(receipt)
        if restored is None:
            return False
        now = self._runtime.wall_ns()
        if restored:
            self.progress.alarm = "the receiver was restored from an earlier state; what it lost is offered again"
            log.error(self.progress.alarm)
        if receipt.verdict == Verdict.REFUSED:
            self.cursor.park(receipt, now + PARK_NS)
            self.progress.alarm = f"the receiver refused blocks {receipt.first}-{receipt.last}: reason {int(receipt.reason or 0)}"
            log.error(self.progress.alarm)
        self.progress.cause = ""
        self.progress.receipts += 1
        self.progress.last_receipt_ns = now
        return True

    # ---- news ----

    def status(self) -> dict[str, Any]:
        """Return what `status` and the receiver's advisory show."""
        p = self.progress
        limit = self._settings.receiver.backfill.limit_bps
        return {
            "process": "upload",
            "time_ns": self._runtime.wall_ns(),
            "stream": self._settings.stream,
            "cause": p.cause,
            "alarm": p.alarm,
            "receipts": p.receipts,
            "last_receipt_ns": p.last_receipt_ns,
            "sent_bytes": p.sent_bytes,
            "backlog_readings": p.backlog_readings,
            "backlog_bytes": p.backlog_bytes,
            "drain_s": round(p.backlog_bytes * 8 / limit, 1) if limit else None,
            "live": p.live,
            "parked": len(self.cursor.parked),
            "landing": self.cursor.landing,
        }

    async def report(self) -> None:
        """Publish status every second, the cursor every 5 s, the advisory health every minute."""
        since_state = since_health = 0.0
        while True:
            status = self.status()
            publish_file(self._state / "status.json", json.dumps(status).encode(), durable=False)
            notify("WATCHDOG=1")
            if since_state >= STATE_SECONDS:
                await self._runtime.offload(self.save)
                since_state = 0.0
            if since_health >= HEALTH_SECONDS or not since_health:
                short = {k: status[k] for k in ("time_ns", "cause", "alarm", "backlog_readings", "backlog_bytes", "drain_s", "parked")}
                with suppress(PeerError):
                    await self._carrier.put(format_target(StatusTarget()), json.dumps(short).encode()[: wire.STATUS_BYTES_MAX])
                since_health = 0.0
            await self._runtime.sleep(1.0)
            since_state, since_health = since_state + 1.0, since_health + 1.0


def _remedy(answer: Answer) -> str:
    known = {
        wire.FORBIDDEN: "The receiver does not accept our certificate or gateway id: see its log.",
        wire.CANNOT_STORE: "The receiver's disk is full or refuses: it is tried again by itself.",
        wire.TOO_LARGE: "A proxy limits request bodies: 8 MiB must pass.",
    }
    return known.get(answer.status, "A device between answers for the receiver: ask IT to exempt it.")


async def run(runtime: Runtime, settings: GatewaySettings) -> None:
    """Upload until cancelled; raise EbbgateError or StorageFault where it cannot start."""
    state = settings.state / "upload"
    make_directory(state)
    keys = KeyRing()
    keys.trust(load_public(settings.receiver.receipt_key))
    carrier = HttpsCarrier(settings.receiver)
    reader = RingReader(PosixReadStorage(settings.ring.path / settings.stream))
    uploader = Uploader(runtime, settings, reader, carrier, keys, state)
    log.info("upload is ready", extra={"data": {"stream": settings.stream, "receiver": settings.receiver.url}})
    notify("READY=1")
    try:
        async with asyncio.TaskGroup() as group:
            for loop in (uploader.live, uploader.backfill, uploader.report):
                group.create_task(_for_ever(runtime, loop))
    finally:
        uploader.save()
        await carrier.close()


async def _for_ever(runtime: Runtime, loop: Any) -> None:  # noqa: ANN401 -- a bound coroutine function
    """Run a loop again after a fault of the disk: said in the log, never the end of the process."""
    while True:
        try:
            await loop()
        except (StorageFault, CorruptError) as error:
            log.error("upload cannot go on here", extra={"data": {"error": str(error)}})  # noqa: TRY400
            await runtime.sleep(5.0)
