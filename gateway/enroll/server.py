"""The CA's side: `ebbgate ca serve`, started by a person while gateways are enrolled, stopped afterwards. Side: IT, user of the CA."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
from typing import TYPE_CHECKING, Final

from aiohttp import web

from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from gateway.errors import TrustError
from gateway.trust.enrolment import BODY_BYTES_MAX, PATH, Invites, answer_mac, answer_request, parse_request
from gateway.trust.keys import read_private_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.runtime import Runtime
    from gateway.trust.certs import Authority

BODY_SECONDS_MAX: Final = 10
WAITING_MAX: Final = 16  # requests at a time; each costs the CA one HMAC, a right one a signature
_REFUSED: Final = 403

log = logging.getLogger(__name__)


class EnrolmentServer:
    """Answers POSTs with a right code. `receiver_ca` and `receipt_key` are what gateways will pin."""

    def __init__(self, runtime: Runtime, authority: Authority, invites: Invites, receiver_ca: bytes, receipt_key: bytes) -> None:
        self._runtime = runtime
        self._authority = authority
        self._invites = invites
        self._receiver_ca = receiver_ca
        self._receipt_key = receipt_key
        self._waiting = 0
        self.enrolled: list[str] = []

    async def serve(self, host: str, port: int, certificate: Path, key: Path) -> tuple[web.AppRunner, int]:
        """Listen with the receiver's certificate (nobody relies on it here); return what to clean up, and the port."""
        read_private_bytes(key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(certificate, key)
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post(PATH, self._handle)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2, auto_decompress=False)
        await runner.setup()
        site = web.TCPSite(runner, host, port, ssl_context=context)
        await site.start()
        return runner, site.port

    async def _handle(self, request: web.Request) -> web.Response:
        if self._waiting >= WAITING_MAX:
            return web.Response(status=503)
        self._waiting += 1
        try:
            return await self._answer(request)
        except TrustError as error:
            log.warning("enrolment refused", extra={"data": {"why": error.message, "peer": request.remote}})
            return web.Response(status=_REFUSED)
        except (CorruptError, TimeoutError, asyncio.IncompleteReadError):
            return web.Response(status=400)
        finally:
            self._waiting -= 1

    async def _answer(self, request: web.Request) -> web.Response:
        if not request.content_length or request.content_length > BODY_BYTES_MAX or "Content-Encoding" in request.headers:
            return web.Response(status=413)
        async with asyncio.timeout(BODY_SECONDS_MAX):
            body = await request.content.readexactly(request.content_length)
        match decode_cbor(body):
            case [bytes(message), bytes(mac)]:
                pass
            case _:
                raise CorruptError("not an enrolment")
        now_ns = self._runtime.wall_ns()
        key = self._invites.redeem(message, mac, now_ns)
        now = dt.datetime.fromtimestamp(now_ns / 1e9, dt.UTC)
        answer = answer_request(self._authority, message, self._receiver_ca, self._receipt_key, now)
        gateway = parse_request(message).gateway
        self.enrolled.append(gateway)
        log.info("enrolled", extra={"data": {"gateway": gateway, "peer": request.remote}})
        return web.Response(body=encode_cbor([answer, answer_mac(key, message, answer)]), content_type="application/cbor")
