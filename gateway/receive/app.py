"""The HTTP door: certificate -> gateway, limits, statuses; verifies before it believes, decides nothing itself, decodes no payload.

Bounded everywhere: 8 MiB a request (counted, not believed), a header of 16 KiB, one request a connection at a time, 60 s for a body,
CONNECTIONS_MAX connections. No Content-Encoding, no chunked bodies.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import fnmatch
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from buffer import limits
from buffer.errors import CorruptError, SignatureError, StorageFault
from buffer.frame import parse_frame, parse_frames
from buffer.manifest import FrameKind, ObjectType
from gateway.errors import TrustError
from gateway.receive.accept import link
from gateway.trust.certs import identify_client
from gateway.trust.keys import KeyRing, RevokedKeyError, UnknownKeyError, WrongStreamError
from gateway.wire import request as wire
from gateway.wire.receipt import NO_CHAIN, Ends, Receipt, Refusal, Verdict, encode_receipt
from gateway.wire.request import FramesTarget, ObjectTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from buffer.cose import Signer
    from buffer.frame import Frame
    from gateway.receive.landing import Landed, Landing
    from gateway.runtime import Runtime
    from gateway.settings import GatewayPolicy

BODY_SECONDS_MAX: Final = 120  # 8 MiB at 0.6 Mbit/s
CONNECTIONS_MAX: Final = 256
HEADER_BYTES_MAX: Final = 16 * 1024

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StreamDoor:
    """One stream behind its lock."""

    landing: Landing
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    advisory: dict[str, Any] = field(default_factory=dict)
    expired_certificate: bool = False


class Receiver:
    """Handlers of the three paths."""

    def __init__(
        self,
        runtime: Runtime,
        policies: tuple[GatewayPolicy, ...],
        signer: Signer,
        keys: KeyRing,
        open_landing: Callable[[str], Landing],
        free_bytes: Callable[[], int],
        min_free_bytes: int,
        revoked: Callable[[], frozenset[int]],
    ) -> None:
        self._runtime = runtime
        self._policies = {policy.id: policy for policy in policies}
        self._signer = signer
        self._open_landing = open_landing
        self._free_bytes = free_bytes
        self._min_free_bytes = min_free_bytes
        self._revoked = revoked
        self.keys = keys
        self.doors: dict[str, StreamDoor] = {}

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=limits.PUT_BYTES_MAX)
        app.router.add_put("/v1/streams/{stream}/{generation}/{blocks}", self._guarded(self._frames))
        app.router.add_put("/v1/objects/{digest}", self._guarded(self._object))
        app.router.add_put(wire.STATUS_PATH, self._guarded(self._status))
        return app

    def _guarded(self, handler: Callable[[web.Request, GatewayPolicy], Awaitable[web.Response]]) -> Callable[[web.Request], Any]:
        async def guarded(request: web.Request) -> web.Response:
            try:
                return await handler(request, self._who(request))
            except TrustError as error:
                log.warning("refused", extra={"data": {"why": error.message, "peer": request.remote}})
                return web.Response(status=403, text=error.message)
            except CorruptError as error:
                return web.Response(status=400, text=str(error))
            except StorageFault as fault:
                log.exception("the landing cannot write", extra={"data": {"fault": str(fault)}})
                return web.Response(status=503, text="the receiver's disk refuses")

        return guarded

    def _who(self, request: web.Request) -> GatewayPolicy:
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        der = tls.getpeercert(binary_form=True) if tls else None
        if not der:
            raise TrustError("no client certificate")
        now = dt.datetime.fromtimestamp(self._runtime.wall_ns() / 1e9, dt.UTC)
        identity = identify_client(der, now, self._revoked())
        policy = self._policies.get(identity.gateway)
        if policy is None:
            raise TrustError(f"gateway {identity.gateway!r} is not in receiver.toml", "Add a [[gateway]] with this id.")
        for stream, door in self.doors.items():
            if _allowed(policy, stream):
                door.expired_certificate = identity.expired
        return policy

    async def _body(self, request: web.Request) -> bytes:
        """Return the whole body; raise CorruptError if it is longer than allowed, late, chunked or encoded."""
        length = request.content_length
        if length is None or "Content-Encoding" in request.headers:
            raise CorruptError("a body needs Content-Length and no Content-Encoding")
        if length > limits.PUT_BYTES_MAX:
            raise CorruptError(f"a body has at most {limits.PUT_BYTES_MAX} bytes")
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                return await request.content.readexactly(length) if length else b""
        except (TimeoutError, asyncio.IncompleteReadError):
            raise CorruptError("the body did not come whole in time") from None

    def door(self, stream: str) -> StreamDoor:
        """Return a stream, opening its landing at the first use."""
        if stream not in self.doors:
            landing = self._open_landing(stream)
            self.doors[stream] = StreamDoor(landing)
        return self.doors[stream]

    # ---- frames ----

    async def _frames(self, request: web.Request, policy: GatewayPolicy) -> web.Response:
        wanted = wire.parse_target(request.path_qs)
        if not isinstance(wanted, FramesTarget):
            raise CorruptError("not a path of frames")
        if not _allowed(policy, wanted.stream):
            return self._refuse(wanted, Refusal.WRONG_STREAM)
        door = self.door(wanted.stream)
        if wanted.chain is not None and not request.content_length:
            return self._offer(door, wanted, wanted.chain)
        body = await self._body(request)
        if self._free_bytes() < self._min_free_bytes:
            return web.Response(status=503, text="below min_free: the receiver keeps the rest of its disk")
        async with door.lock:
            return await self._runtime_offload(lambda: self._land(door, wanted, body))

    async def _runtime_offload(self, action: Callable[[], web.Response]) -> web.Response:
        response: web.Response = await self._runtime.offload(action)
        return response

    def _land(self, door: StreamDoor, wanted: FramesTarget, body: bytes) -> web.Response:
        try:
            frames = list(parse_frames(body))
            run = link(frames)
            if (run.stream, run.generation, run.first_block, run.last_block) != (wanted.stream, wanted.generation, wanted.first, wanted.last):
                raise CorruptError("frames are not those the path names")
        except CorruptError as error:
            log.warning("refused frames", extra={"data": {"stream": wanted.stream, "why": str(error)}})
            return self._refuse(wanted, Refusal.NOT_A_FRAME)
        try:
            unknown = [frame.sign1.key_id for frame in frames if not self.keys.knows(frame.sign1.key_id)]
            tables = [table for table in run.tag_tables if not door.landing.has_object(table)]
            if unknown or tables:
                return web.Response(status=wire.MISSING_OBJECTS, body=wire.format_missing(tables, unknown[:1]))
            for frame in frames:
                self.keys.admit(frame)
        except SignatureError as error:
            log.error("refused frames", extra={"data": {"stream": wanted.stream, "why": str(error)}})  # noqa: TRY400
            return self._refuse(wanted, _refusal(error))
        landed = door.landing.land(run, frames, wanted.lane, wanted.landing, self._runtime.wall_ns())
        return self._receipt(wanted, landed, run.chain_after)

    def _offer(self, door: StreamDoor, wanted: FramesTarget, chain: bytes) -> web.Response:
        if not door.landing.offered(wanted.generation, wanted.first, wanted.last, chain):
            return web.Response(status=wire.NOT_HELD)
        return self._receipt(wanted, door.landing.answer(Verdict.DUPLICATE, wanted.landing), chain)

    def _receipt(self, wanted: FramesTarget, landed: Landed, chain: bytes) -> web.Response:
        receipt = Receipt(
            landed.verdict, wanted.stream, wanted.generation, wanted.first, wanted.last, chain, landed.landing, landed.ends, wanted.landing,
            self._runtime.wall_ns(), landed.number, landed.since,
        )  # fmt: skip
        return web.Response(body=encode_receipt(self._signer, receipt), content_type=wire.RECEIPT_TYPE)

    def _refuse(self, wanted: FramesTarget, reason: Refusal) -> web.Response:
        landing = self.doors[wanted.stream].landing.index.landing if wanted.stream in self.doors else wanted.landing
        since = None if landing == wanted.landing else Ends(2**62, 2**62)
        receipt = Receipt(
            Verdict.REFUSED, wanted.stream, wanted.generation, wanted.first, wanted.last, NO_CHAIN, landing, Ends(), wanted.landing,
            self._runtime.wall_ns(), since=since, reason=reason,
        )  # fmt: skip
        return web.Response(body=encode_receipt(self._signer, receipt), content_type=wire.RECEIPT_TYPE)

    # ---- objects and advisory status ----

    async def _object(self, request: web.Request, policy: GatewayPolicy) -> web.Response:
        target = wire.parse_target(request.path_qs)
        frame = parse_frame(await self._body(request))
        m = frame.manifest
        if not isinstance(target, ObjectTarget) or (m.kind, m.payload_sha256, m.stream) != (FrameKind.OBJECT, target.digest, target.stream):
            raise CorruptError("not the object the path names")
        if not _allowed(policy, m.stream):
            raise TrustError(f"gateway {policy.id} may not send stream {m.stream}")
        if m.object_type == ObjectType.KEY_STATEMENT:
            self.keys.introduce(bytes(frame.payload))
        self.keys.admit(frame)
        door = self.door(m.stream)
        async with door.lock:
            await self._runtime.offload(lambda: door.landing.store_object(frame))
        return web.Response(status=wire.NO_CONTENT)

    def learn_stored(self, frame: Frame) -> None:
        """Trust the key of a statement that stands in the landing already (at start)."""
        if frame.manifest.object_type == ObjectType.KEY_STATEMENT:
            self.keys.introduce(bytes(frame.payload))

    async def _status(self, request: web.Request, policy: GatewayPolicy) -> web.Response:
        body = await self._body(request)
        if len(body) > wire.STATUS_BYTES_MAX:
            raise CorruptError("status is longer than 1 KiB")
        try:
            advisory = json.loads(body)
        except ValueError:
            raise CorruptError("status is not JSON") from None
        for stream, door in self.doors.items():
            if _allowed(policy, stream) and isinstance(advisory, dict):
                door.advisory = advisory
        return web.Response(status=wire.NO_CONTENT)


def _refusal(error: SignatureError) -> Refusal:
    if isinstance(error, RevokedKeyError):
        return Refusal.REVOKED_KEY
    if isinstance(error, WrongStreamError):
        return Refusal.WRONG_STREAM
    return Refusal.UNTRUSTED_STATEMENT if isinstance(error, UnknownKeyError) else Refusal.NOT_A_FRAME


def _allowed(policy: GatewayPolicy, stream: str) -> bool:
    return any(fnmatch.fnmatchcase(stream, pattern) for pattern in policy.streams)


async def serve(app: web.Application, host: str, port: int, context: Any) -> tuple[web.AppRunner, int]:  # noqa: ANN401 -- ssl.SSLContext
    """Listen; return the runner and the port."""
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=5, max_line_size=HEADER_BYTES_MAX, max_field_size=HEADER_BYTES_MAX
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=context, backlog=CONNECTIONS_MAX)
    await site.start()
    return runner, site.port
