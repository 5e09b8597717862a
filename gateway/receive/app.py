"""The HTTPS door: mutual TLS 1.3, certificate -> gateway, bounded bodies, statuses. Decides nothing about frames.

Bounded everywhere: connections, header size, time for a header, for a pause and for a whole body, requests of one gateway at a time,
bytes of all bodies under way, bytes a second per gateway. Only PUT, only Content-Length; an encoded or chunked body is not read.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from buffer import limits
from buffer.errors import CorruptError, StorageFault
from gateway.errors import TrustError
from gateway.lanes import TokenBucket
from gateway.receive.partial import Partials
from gateway.receive.receiver import Answer, Receiver, allows
from gateway.receive.verify import Missing, Refused
from gateway.trust.certs import GRACE_DAYS
from gateway.trust.clients import identify_client
from gateway.trust.revocations import Revocations
from gateway.wire import request as wire
from gateway.wire.receipt import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.runtime import Runtime
    from gateway.settings import GatewayPolicy
    from gateway.wire.request import FramesTarget

CONNECTIONS_MAX: Final = 512  # a gateway holds up to 8; a balancer in front shares the load of more than 60 gateways
HEADER_BYTES_MAX: Final = 8 * 1024  # of one line and of one field
HANDSHAKE_SECONDS_MAX: Final = 15
IDLE_SECONDS_MAX: Final = 75  # between two requests, and for the header of one
PAUSE_SECONDS_MAX: Final = 30  # between two pieces of a body
BODY_SECONDS_MAX: Final = 600  # 8 MiB at 112 kbit/s; slower links continue segments by offset
GATEWAY_REQUESTS_MAX: Final = 8  # bodies of one gateway under way: one live, four of backlog, some of a second uploader that replaces it
BODIES_BYTES_MAX: Final = 512 * 1024 * 1024  # of all bodies under way: memory
_PATH_SHOWN_MAX: Final = 400  # characters of a request in a log line
SERVER: Final = {"Server": "ebbgate"}  # not which Python and which aiohttp
REFUSED_SHOWN_MAX: Final = 64  # of gateways turned away, in the status
REFUSED_SHOWN_NS: Final = 2 * 3_600 * 10**9  # an uploader that is turned away asks again within an hour

log = logging.getLogger(__name__)


class _NoAnswer(Exception):
    """An unsigned status: the sender tries again later."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True)
class Timing:
    """Seconds; tests use shorter ones."""

    idle: float = IDLE_SECONDS_MAX
    pause: float = PAUSE_SECONDS_MAX
    body: float = BODY_SECONDS_MAX


class Door:
    """HTTP in, gateway.receive.receiver behind."""

    def __init__(self, runtime: Runtime, receiver: Receiver, timing: Timing | None = None) -> None:
        self._runtime = runtime
        self._receiver = receiver
        self._timing = timing or Timing()
        self._partials = Partials(receiver.keys)
        self._buckets = {policy.id: TokenBucket(policy.rate_bps) for policy in receiver.policies.values()}
        self._under_way: Counter[str] = Counter()
        self._body_bytes = 0
        self.revocations = Revocations()
        self.grace = dt.timedelta(days=GRACE_DAYS)
        self.refused: dict[str, int] = {}  # why a gateway with a certificate of our CA was turned away -> wall ns of the last time
        self.certificates: dict[str, int] = {}  # gateway -> wall ns at which the certificate it last showed ends
        self.expired: dict[str, int] = {}  # gateway -> wall ns of the last request with an expired certificate
        self._seen: dict[web.RequestHandler, int] = {}  # connection -> monotonic ns when it last did something
        self._busy: set[web.RequestHandler] = set()

    # ---- one request ----

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer; whatever is wrong is a status, never a traceback to the peer."""
        connection = request.protocol
        self._busy.add(connection)
        try:
            answer = await self._answer(request)
        except _NoAnswer as refused:
            log.warning("no answer", extra={"data": {"status": refused.status, "why": str(refused), "peer": request.remote}})
            answer = Answer(refused.status)
        except StorageFault as fault:
            log.error("the landing cannot write", extra={"data": {"fault": str(fault)}})  # noqa: TRY400 -- logged where it happened
            answer = Answer(wire.CANNOT_STORE)
        except Exception:  # ours: the sender tries again later, and the log says what happened
            log.exception("defect", extra={"data": {"peer": request.remote, "request": request.raw_path[:_PATH_SHOWN_MAX]}})
            answer = Answer(wire.DEFECT)
        finally:
            self._busy.discard(connection)
            self._seen[connection] = self._runtime.monotonic_ns()
        signed = answer.status == wire.OK
        response = web.Response(status=answer.status, body=answer.body, content_type=wire.RECEIPT_TYPE if signed else "text/plain", headers=SERVER)
        if answer.status not in (wire.OK, wire.NO_CONTENT, wire.NOT_HELD, wire.MISSING_OBJECTS):
            response.force_close()  # what may be left of the body is not read
        return response

    async def _answer(self, request: web.BaseRequest) -> Answer:
        policy = self._who(request)
        length = _length(request)
        try:
            target = wire.parse_target(request.raw_path)
        except CorruptError as error:
            raise _NoAnswer(wire.BAD_REQUEST, str(error)) from None
        most = wire.STATUS_BYTES_MAX if isinstance(target, wire.StatusTarget) else limits.PUT_BYTES_MAX
        if length > most:
            raise _NoAnswer(wire.TOO_LARGE, f"{length} bytes; at most {most}")
        memory = length
        if isinstance(target, wire.FramesTarget) and target.offset is not None:
            memory = target.length or 0  # what came before is held too
            if not 0 < memory <= limits.PUT_BYTES_MAX:
                raise _NoAnswer(wire.BAD_REQUEST, "a frame of this length does not exist")
        if self._under_way[policy.id] >= GATEWAY_REQUESTS_MAX:
            raise _NoAnswer(wire.TOO_FAST, f"more than {GATEWAY_REQUESTS_MAX} requests of {policy.id} at a time")
        if self._body_bytes + memory > BODIES_BYTES_MAX:
            raise _NoAnswer(wire.CANNOT_STORE, "too many bodies under way")
        self._under_way[policy.id] += 1
        self._body_bytes += memory
        try:
            if isinstance(target, wire.FramesTarget) and target.offset is not None:
                return await self._continued(request, policy, target, length)
            body = bytearray()  # grows with what came, not with what was announced; pieces are given back at once, and joined never
            await self._read(request, policy, length, body.extend)
            return await self._receiver.put(policy, target, memoryview(body).toreadonly())
        finally:
            self._under_way[policy.id] -= 1
            self._body_bytes -= memory

    def _who(self, request: web.BaseRequest) -> GatewayPolicy:
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        der = tls.getpeercert(binary_form=True) if tls else None
        now_ns = self._runtime.wall_ns()
        try:
            if not der:
                raise TrustError("no client certificate")
            identity = identify_client(der, dt.datetime.fromtimestamp(now_ns / 1e9, dt.UTC), self.revocations.certificates, self.grace)
        except TrustError as error:
            raise self._turned_away(error.message, now_ns) from None
        policy = self._receiver.policies.get(identity.gateway)
        if policy is None:
            raise self._turned_away(f"gateway {identity.gateway!r} is not in receiver.toml: add a [[gateway]] with this id", now_ns)
        if self.refused:
            self.refused = {said: at for said, at in self.refused.items() if not said.startswith(f"gateway {policy.id}:")}
        self.certificates[policy.id] = identity.ends_ns
        if identity.expired:
            self.expired[policy.id] = now_ns
        else:
            self.expired.pop(policy.id, None)
        return policy

    def _turned_away(self, why: str, now_ns: int) -> _NoAnswer:
        """Remember for the status: TLS has shown that our CA signed this certificate, so there are no more of them than it signed."""
        self.refused = {said: at for said, at in [*self.refused.items(), (why, now_ns)][-REFUSED_SHOWN_MAX:] if now_ns - at < REFUSED_SHOWN_NS}
        return _NoAnswer(wire.FORBIDDEN, why)

    async def _read(self, request: web.BaseRequest, policy: GatewayPolicy, length: int, take: Callable[[bytes], None]) -> None:
        """Hand the body to `take` as it comes, counted here and paced to the gateway's rate."""
        loop, bucket, got = asyncio.get_running_loop(), self._buckets[policy.id], 0
        until = loop.time() + self._timing.body
        try:
            async with asyncio.timeout(None) as timer:  # one for all pieces: making one costs as much as deciphering a piece
                while got < length:
                    timer.reschedule(min(until, loop.time() + self._timing.pause))
                    piece = await request.content.readany()
                    if not piece:
                        raise _NoAnswer(wire.BAD_REQUEST, f"the body ends after {got} of {length} bytes")
                    got += len(piece)
                    wait_ns = bucket.take(len(piece), self._runtime.monotonic_ns())
                    if wait_ns > 0:
                        timer.reschedule(None)
                        await self._runtime.sleep(wait_ns / 1e9)
                    take(piece)
        except TimeoutError:
            raise _NoAnswer(wire.BAD_REQUEST, f"the body came too slowly: {got} of {length} bytes") from None
        except (ConnectionError, web.RequestPayloadError) as error:
            raise _NoAnswer(wire.BAD_REQUEST, f"the connection broke after {got} of {length} bytes") from error

    async def _continued(self, request: web.BaseRequest, policy: GatewayPolicy, target: FramesTarget, length: int) -> Answer:
        """Take bytes of a segment from `offset` on; they stay if the link breaks in the middle, or the disk is full at the end.

        What is not taken is read all the same: an answer before the end of a body may be lost with the connection.
        """
        receiver, offset, now_ns = self._receiver, target.offset or 0, self._runtime.wall_ns()
        if not allows(policy, target.stream):
            return receiver.refusal(target, Refusal.WRONG_STREAM)
        held = self._partials.held(target, now_ns)
        if offset > held or not length:
            await self._read(request, policy, length, lambda _: None)
            return receiver.partly(target, held)
        with self._partials.sending(target, now_ns) as one:
            refused: Missing | Refused | None = None

            def take(piece: bytes) -> None:
                nonlocal offset, refused
                try:
                    if refused is None:
                        one.add(offset, piece)
                except (Missing, Refused) as error:
                    refused = error
                    self._partials.forget(one)
                    log.warning("a piece is not taken", extra={"data": {"gateway": policy.id, "stream": target.stream, "why": str(error)}})
                offset += len(piece)

            await self._read(request, policy, length, take)
            if isinstance(refused, Missing):
                return Answer(wire.MISSING_OBJECTS, wire.format_missing(refused.objects, refused.keys))
            if refused is not None:
                return receiver.refusal(target, refused.reason, refused.last)
            if not one.whole:
                return receiver.partly(target, len(one.data))
            answer = await receiver.put(policy, target, memoryview(one.data).toreadonly())
            if answer.status == wire.OK:  # else an object is missing, or the disk is full: the bytes stay
                self._partials.forget(one)
            return answer

    # ---- connections ----

    async def serve(self, host: str, port: int, context: ssl.SSLContext) -> Listening:
        """Listen; return what to close."""
        loop = asyncio.get_running_loop()
        server: web.Server = web.Server(self.handle)

        context.sslobject_class = _Handshake

        def connection() -> asyncio.Protocol:
            if len(server.connections) >= CONNECTIONS_MAX:
                log.warning("more than CONNECTIONS_MAX connections: one refused")
                return _Refusing()
            return _Connection(
                server,
                loop=loop,
                access_log=None,  # type: ignore[arg-type]  # no log of requests: said here what is worth a line
                keepalive_timeout=self._timing.idle,
                max_line_size=HEADER_BYTES_MAX,
                max_field_size=HEADER_BYTES_MAX,
                auto_decompress=False,
                lingering_time=0,
            )

        listener = await loop.create_server(
            connection, host, port, ssl=context, backlog=128, ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX, ssl_shutdown_timeout=2
        )
        return Listening(listener, server)

    def sweep(self, server: web.Server) -> None:
        """Close connections that have sent no whole header for too long. Call every second."""
        now = self._runtime.monotonic_ns()
        self._seen = {one: self._seen.get(one, now) for one in server.connections}
        for connection, since in self._seen.items():
            if connection not in self._busy and now - since > self._timing.idle * 1e9:
                connection.force_close()


@dataclass(slots=True)
class Listening:
    """An open door."""

    listener: asyncio.Server
    server: web.Server

    @property
    def port(self) -> int:
        """The port, also where 0 was asked for."""
        return int(self.listener.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no more connections, let requests under way end for 5 s."""
        self.listener.close()
        await self.server.shutdown(5)


class _Connection(web.RequestHandler):
    """aiohttp's connection, but what is no HTTP gets one line in the log and an answer that says nothing back."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return the answer to bytes that do not parse, or to a defect of ours."""
        if status >= wire.DEFECT:
            log.error("defect", exc_info=exc)
        else:
            why = f"not HTTP: {(message or type(exc).__name__).splitlines()[0][:100]}"
            log.warning("no answer", extra={"data": {"status": status, "why": why, "peer": request.remote}})
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        response = web.Response(status=status, headers=SERVER)
        response.force_close()
        return response


class _Handshake(ssl.SSLObject):
    """Says in the log why a peer did not get in: asyncio closes such a connection without a word."""

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or "not TLS"
            log.warning("handshake refused", extra={"data": {"why": str(why).replace("_", " ").lower()}})
            raise


class _Refusing(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _length(request: web.BaseRequest) -> int:
    """Return Content-Length; raise _NoAnswer for anything but a plain PUT of known length."""
    if request.method != "PUT":
        raise _NoAnswer(wire.BAD_REQUEST, "not PUT")
    if "Content-Encoding" in request.headers:
        raise _NoAnswer(wire.ENCODED, "encoded body")
    if "Transfer-Encoding" in request.headers or request.content_length is None:
        raise _NoAnswer(wire.LENGTH_REQUIRED, "no Content-Length")
    return request.content_length
