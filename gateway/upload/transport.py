"""Carrier over HTTPS: one PUT, at most one short answer. The only file of upload that knows aiohttp.

Mutual TLS 1.3 with the receiver's CA pinned; the address is a literal, so there is no DNS; the server's name comes from `url`. An
optional proxy is spoken to with CONNECT only. No redirects, no cookies, no content coding. An answer that is chunked, coded, without
length or longer than ANSWER_BYTES_MAX is no answer. Time and memory are bounded whatever the other side does: deadlines for
connecting, for silence and for the whole request; small limits on header lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp import payload
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from yarl import URL

from gateway.errors import ConfigError, TrustError
from gateway.trust.certs import client_context, load_certificate
from gateway.upload.carrier import Answer, CarrierError, Cause, altered, explain_status
from gateway.wire.request import ANSWER_BYTES_MAX, FRAMES_TYPE, Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp.abc import AbstractStreamWriter

    from gateway.runtime import Runtime
    from gateway.settings import Receiver

CONNECT_SECONDS: Final = 10  # a route that needs longer carries nothing
SILENCE_SECONDS: Final = 30  # after the body was sent: a receiver answers after one disk sync
CHUNK_BYTES: Final = 64 * 1024  # written at a time where there is a cap in bits/s: what it is applied to
UNCAPPED_CHUNK_BYTES: Final = 256 * 1024  # where there is none: fewer turns of the loop, and still memory of four chunks, not of four bodies
KEEPALIVE_SECONDS: Final = 30  # firewalls forget idle connections after 5 minutes
KEEPALIVE_EVERY_SECONDS: Final = 10
KEEPALIVE_PROBES: Final = 3
USER_TIMEOUT_MS: Final = 20_000  # unacknowledged bytes: the link is gone
DSCP_CS1_TOS: Final = 0x20  # lower effort (RFC 8622 names its successor; CS1 is what plant switches know)
HEADER_LINE_BYTES_MAX: Final = 2048
HEADERS_MAX: Final = 32
_PROBE_SECONDS: Final = 5.0
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, (62, 64)  # X509_V_ERR_* of OpenSSL
_TEXT_CHARS_MAX: Final = 160  # of texts that came from outside, in messages


class _Literal(AbstractResolver):
    """Answers the receiver's name with the configured address, and nothing else: no DNS on this box."""

    def __init__(self, name: str, address: str) -> None:
        self._name = name
        self._address = address

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:  # noqa: ARG002
        if host != self._name:
            message = f"{host}: no DNS here, write the proxy's address as numbers"
            raise OSError(message)
        kind = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [ResolveResult(hostname=host, host=self._address, port=port, family=kind, proto=0, flags=flags)]

    async def close(self) -> None:
        """Nothing is held."""


def _socket_maker(tos: int) -> Callable[[Any], socket.socket]:
    def make(address: Any) -> socket.socket:  # noqa: ANN401 -- aiohttp's AddrInfo
        family, kind, proto, _, _ = address
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_EVERY_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tos and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        elif tos:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        return sock

    return make


class _Body(payload.Payload):
    """The parts of a request, written in chunks, each when `pace` lets it; can be written again on a fresh connection."""

    _default_content_type = FRAMES_TYPE

    def __init__(self, parts: Sequence[bytes | memoryview], runtime: Runtime, pace: Callable[[int], float] | None) -> None:
        super().__init__(parts, content_type=FRAMES_TYPE)
        self._size = sum(len(part) for part in parts)
        self._parts = parts
        self._runtime = runtime
        self._pace = pace
        self.begun = False

    async def write(self, writer: AbstractStreamWriter) -> None:
        size = CHUNK_BYTES if self._pace else UNCAPPED_CHUNK_BYTES
        for part in self._parts:
            view = memoryview(part)
            for at in range(0, len(view), size):
                chunk = view[at : at + size]
                wait = self._pace(len(chunk)) if self._pace else 0.0
                if wait > 0:
                    await self._runtime.sleep(wait)
                self.begun = True
                await writer.write(chunk)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002 -- ours is exact
        await self.write(writer)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002
        return f"{self._size} bytes"


class HttpsCarrier:
    """PUTs to one receiver. Used inside one running loop; `close` when done. Raise ConfigError, TrustError where it cannot be made."""

    def __init__(self, runtime: Runtime, settings: Receiver) -> None:
        self._runtime = runtime
        self._base = settings.url.rstrip("/")
        split = urlsplit(settings.url)
        self._name, self._address, self._port = split.hostname or "", settings.address, split.port or 443
        if split.scheme != "https" or not self._name:
            raise ConfigError(f"receiver url {settings.url!r} is not https://name:port", "Correct `url` under [receiver].")
        if _is_ip(self._name) and self._name != self._address:
            raise ConfigError(f"receiver url names {self._name}, address says {self._address}", "Write the same address in both, or a name in `url`.")
        if not _is_ip(self._address):
            raise ConfigError(f"receiver address {self._address!r} is not a number", "There is no DNS on this box: write an IP address.")
        self._proxy = settings.proxy or None
        self._certificate = settings.certificate
        self._context = client_context(settings.certificate, settings.private_key, settings.ca, check_time=_clock_is_possible(runtime, settings))
        self._connections = {Lane.LIVE: 2, Lane.BACKFILL: settings.backfill.in_flight}
        self._sessions: dict[Lane, aiohttp.ClientSession] = {}

    def _session(self, lane: Lane) -> aiohttp.ClientSession:
        """Each lane has its own connections: backfill's carry DSCP CS1, and never make live data wait for a free one."""
        session = self._sessions.get(lane)
        if session is None:
            connector = aiohttp.TCPConnector(
                ssl=self._context,
                resolver=_Literal(self._name, self._address),
                limit=self._connections[lane],
                socket_factory=_socket_maker(DSCP_CS1_TOS if lane == Lane.BACKFILL else 0),
            )
            session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": "ebbgate"},
                max_line_size=HEADER_LINE_BYTES_MAX,
                max_field_size=HEADER_LINE_BYTES_MAX,
                max_headers=HEADERS_MAX,
            )
            self._sessions[lane] = session
        return session

    async def put(
        self, target: str, parts: Sequence[bytes | memoryview], lane: Lane, deadline_s: float, pace: Callable[[int], float] | None
    ) -> Answer:
        """Return the answer; raise CarrierError with the likely cause and the remedy."""
        url = URL(self._base + target, encoded=True)
        body = _Body(parts, self._runtime, pace)
        try:
            async with asyncio.timeout(deadline_s):
                async with self._session(lane).put(url, data=body, allow_redirects=False, proxy=self._proxy) as response:
                    return await self._read(response)
        except TrustError:
            raise
        except aiohttp.ClientConnectorCertificateError as error:
            raise await self._not_our_receiver(error.certificate_error) from error
        except (aiohttp.ClientError, OSError, ssl.SSLError, TimeoutError, ValueError) as error:
            raise self._explain(error, begun=body.begun) from error

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        length = response.content_length
        if "Content-Encoding" in response.headers or "Transfer-Encoding" in response.headers:
            response.close()
            raise altered("it is compressed or chunked")
        if response.status == 204:  # noqa: PLR2004 -- No Content: has no length
            return Answer(response.status, b"")
        if length is None or length > ANSWER_BYTES_MAX:
            response.close()
            raise altered("it has no length") if length is None else _too_long(response.status, length)
        return Answer(response.status, await response.content.readexactly(length))

    def _explain(self, error: Exception, *, begun: bool) -> CarrierError:
        number = getattr(error, "errno", None) or getattr(getattr(error, "os_error", None), "errno", None)
        text = str(error)[:_TEXT_CHARS_MAX]
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return explain_status(407) if error.status == 407 else CarrierError(  # noqa: PLR2004
                Cause.PROXY, f"the proxy answers {error.status} to CONNECT", f"Ask IT to allow CONNECT to {self._name}:{self._port}.", reached=True
            )  # fmt: skip
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            return CarrierError(Cause.PROXY, f"the proxy does not answer: {text}", "Check `proxy` under [receiver].", reached=False)
        if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
            remedy = "The receiver speaks TLS 1.3 only. Ask IT which device answers at this address, and whether it inspects TLS."
            return CarrierError(Cause.TLS, f"no TLS with {self._address}: {text}", remedy, reached=True)
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionResetError):
            remedy = "A balancer without a receiver behind it does so, a device that refuses TLS 1.3, or another service at this port."
            return CarrierError(Cause.TLS, f"{self._address}:{self._port} hangs up during the TLS handshake", remedy, reached=False)
        if isinstance(error, aiohttp.ServerDisconnectedError) or number in (errno.ECONNRESET, errno.EPIPE):
            return self._reset()
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError) or (number is not None and not begun):
            message = f"{self._address}:{self._port} cannot be reached: {text or 'no answer'}"
            remedy = "The link or the receiver is down; nothing is lost, it is tried again by itself."
            return CarrierError(Cause.UNREACHABLE, message, remedy, reached=False)
        if isinstance(error, TimeoutError) or number == errno.ETIMEDOUT:
            message = f"{self._address} went silent in the middle of a request"
            return CarrierError(Cause.SILENT, message, "The link is slow or was cut; requests become smaller by themselves.", reached=True)
        return altered(f"not HTTP ({type(error).__name__})")

    def _reset(self) -> CarrierError:
        """Under TLS 1.3 a refused client certificate shows as a reset after the handshake."""
        remedy = (
            f"If this lasts, the receiver or a device before it refuses our certificate: check the end date of {self._certificate} "
            "and that the receiver's `gateways_ca` signed it."
        )
        return CarrierError(Cause.CERTIFICATE_REFUSED, f"{self._address} closes the connection after the handshake", remedy, reached=True)

    async def _not_our_receiver(self, why: Exception) -> CarrierError:
        if told := _wrong_time_or_name(why, self._name, self._address):
            return told
        issuer = await self._issuer()
        shown = f"issued by {issuer!r}" if issuer else str(why)[:_TEXT_CHARS_MAX]
        remedy = f"If a device inspects TLS, ask IT to exempt {self._name}:{self._port}; if the receiver got a new CA, install it as `ca`."
        return CarrierError(Cause.TLS_INSPECTION, f"the certificate at {self._address} is not our receiver's: {shown}", remedy, reached=True)

    async def _issuer(self) -> str:
        """Shake hands once more, without our certificate and without belief, to name who issued what is shown. Nothing is sent."""
        if self._proxy:
            return ""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(_PROBE_SECONDS):
                _, writer = await asyncio.open_connection(self._address, self._port, ssl=context, server_hostname=self._name)
                der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                writer.close()
            return x509.load_der_x509_certificate(der or b"").issuer.rfc4514_string()[:_TEXT_CHARS_MAX]
        return ""

    async def close(self) -> None:
        """Give connections back."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()


def _wrong_time_or_name(why: Exception, name: str, address: str) -> CarrierError | None:
    """Return what to say of a certificate that our CA signed and that still does not hold, None for any other."""
    code = getattr(why, "verify_code", 0)
    if code == _NOT_YET_VALID:
        message = f"the receiver's certificate at {address} begins later than this box's clock says it is now"
        return CarrierError(Cause.CLOCK, message, "Set the clock of this box (or the receiver's, when it was enrolled).", reached=True)
    if code == _EXPIRED:
        message = f"the receiver's certificate at {address} has expired"
        remedy = "On the receiver: ebbgate identity renew. If it has not expired there, set the clock of this box."
        return CarrierError(Cause.CLOCK, message, remedy, reached=True)
    if code in _WRONG_NAME:
        message = f"the receiver at {address} has a certificate for another name than {name}"
        remedy = "Correct `url` under [receiver], or give the receiver this name: ebbgate identity renew --host."
        return CarrierError(Cause.TLS, message, remedy, reached=True)
    return None


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _clock_is_possible(runtime: Runtime, settings: Receiver) -> bool:
    """Say whether this box's clock is later than the beginning of its own certificate; if not, no date can be judged by it."""
    begin = load_certificate(settings.certificate).not_valid_before_utc if settings.certificate.exists() else None
    return begin is None or runtime.wall_ns() >= begin.timestamp() * 1e9


def _too_long(status: int, length: int) -> CarrierError:
    """Return: an answer of a proxy or a firewall, most often a page for people."""
    if status == 200:  # noqa: PLR2004
        return altered(f"it is {length} bytes long")
    return explain_status(status)
