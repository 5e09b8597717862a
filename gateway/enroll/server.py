"""The CA's side: `ebbgate ca serve`, started by a person while gateways are enrolled; it ends by itself. Side: IT, user of the CA.

TLS 1.3 with a certificate of a day, signed by the CA itself: the gateway knows the CA by the fingerprint in its code.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from gateway.errors import TrustError
from gateway.trust.certs import create_server_certificate
from gateway.trust.codes import BODY_BYTES_MAX, CA_PATH, PATH, SERVER_NAME, answer_mac
from gateway.trust.enrolment import parse_request

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.trust.authority import AuthorityDirectory

BODY_SECONDS_MAX: Final = 10
WAITING_MAX: Final = 16  # requests at a time; each costs the CA one HMAC, a right one a signature
CONNECTIONS_MAX: Final = 64
CERTIFICATE_DAYS: Final = 1
_REFUSED: Final = 403

log = logging.getLogger(__name__)


class EnrolmentServer:
    """Answers POSTs with a right code. receiver: whose receipt key gateways pin, "" where the CA knows one only."""

    def __init__(self, runtime: Runtime, directory: AuthorityDirectory, receiver: str = "") -> None:
        self._runtime = runtime
        self._directory = directory
        self._receiver = receiver
        self._waiting = 0
        self.enrolled: list[str] = []

    async def serve(self, host: str, port: int) -> tuple[web.AppRunner, int]:
        """Listen; return what to clean up, and the port. Raises TrustError if this CA knows no receiver."""
        self._directory.receipt_key(self._receiver)
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_get(CA_PATH, self._show)
        app.router.add_post(PATH, self._handle)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2, auto_decompress=False)
        await runner.setup()
        site = web.TCPSite(runner, host, port, ssl_context=self._context(), backlog=CONNECTIONS_MAX)
        await site.start()
        return runner, site.port

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        now = dt.datetime.fromtimestamp(self._runtime.wall_ns() / 1e9, dt.UTC)
        with tempfile.TemporaryDirectory(prefix="ebbgate-") as place:  # 0700; gone once OpenSSL has read it
            certificate, key = Path(place) / "serve.crt", Path(place) / "serve.key"
            create_server_certificate(self._directory.authority, certificate, key, [SERVER_NAME], now, CERTIFICATE_DAYS)
            context.load_cert_chain(certificate, key)
        return context

    async def _show(self, request: web.Request) -> web.Response:  # noqa: ARG002 -- aiohttp's signature
        return web.Response(body=self._directory.certificate_pem, content_type="application/x-pem-file")

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
        gateway = parse_request(message).gateway
        key, answer = self._directory.redeem(message, mac, self._runtime.wall_ns(), self._receiver)
        self.enrolled.append(gateway)
        log.info("enrolled", extra={"data": {"gateway": gateway, "peer": request.remote}})
        sealed = answer_mac(key, self._directory.certificate_der, message, answer)
        return web.Response(body=encode_cbor([answer, sealed]), content_type="application/cbor")
