"""Carrier over HTTPS: one PUT, one bounded answer. The only file of upload that knows aiohttp.

Mutual TLS 1.3, the receiver's CA pinned, the address literal (no DNS), no redirects, no content coding. An answer that is chunked,
encoded or longer than 512 bytes is no answer; every failure names its likely cause and what to do.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.errors import PeerError
from gateway.trust.certs import client_context
from gateway.wire.request import ANSWER_BYTES_MAX, FRAMES_TYPE

if TYPE_CHECKING:
    from gateway.settings import Receiver

CONNECT_SECONDS: Final = 10
ANSWER_SECONDS_MAX: Final = 120  # sending 8 MiB on a thin link; sock_read below finds a dead peer sooner
SILENCE_SECONDS_MAX: Final = 30
CONNECTIONS_MAX: Final = 8
KEEPALIVE_SECONDS: Final = 30
USER_TIMEOUT_MS: Final = 20_000


class Answer(NamedTuple):
    """What came back, bounded; nothing in it is believed before its signature is."""

    status: int
    body: bytes


class _Literal(AbstractResolver):
    """Answers every name with the one configured address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:  # noqa: ARG002
        kind = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return [
            ResolveResult(hostname=host, host=self._address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
        ]

    async def close(self) -> None:
        """Nothing is held."""


def _socket(address: Any) -> socket.socket:  # noqa: ANN401 -- aiohttp's AddrInfo
    family, kind, proto, _, _ = address
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class HttpsCarrier:
    """PUTs to one receiver. Make inside a running loop; `close` when done."""

    def __init__(self, settings: Receiver) -> None:
        self._base = settings.url.rstrip("/")
        self._name = urlsplit(settings.url).hostname or ""
        self._proxy = settings.proxy or None
        self._context = client_context(settings.certificate, settings.private_key, settings.ca)
        self._resolver = _Literal(settings.address)
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(ssl=self._context, resolver=self._resolver, limit=CONNECTIONS_MAX, socket_factory=_socket)
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS_MAX)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def put(self, target: str, body: bytes) -> Answer:
        """Return the answer; raise PeerError with the likely cause."""
        headers = {"Content-Type": FRAMES_TYPE}
        try:
            url = URL(self._base + target, encoded=True)
            async with self._open().put(url, data=body, headers=headers, allow_redirects=False, proxy=self._proxy) as response:
                return await self._read(response)
        except aiohttp.ClientConnectorCertificateError as error:
            issuer = str(error.certificate_error)[:200]
            raise PeerError(
                f"the certificate at {self._base} is not our receiver's: {issuer}",
                f"If a device inspects TLS, ask IT to exempt {self._name}; else compare the receiver's CA with pki/receiver-ca.crt.",
            ) from error
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            raise _unreachable(self._base, error) from error
        except TimeoutError as error:
            raise PeerError(f"{self._base} did not answer in time", "The link is slow or dead; it is tried again by itself.") from error
        except aiohttp.ClientError as error:
            raise PeerError(
                f"{self._base} answered no HTTP we know: {type(error).__name__}", "Ask IT what stands between this box and the receiver."
            ) from error

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        coded = "Content-Encoding" in response.headers or "Transfer-Encoding" in response.headers
        length = response.content_length
        if coded or (length is None and response.status not in (204, 304)) or (length or 0) > ANSWER_BYTES_MAX:
            response.close()
            raise PeerError(
                f"the answer (status {response.status}) was altered by a device between, or is not our receiver's",
                f"Ask IT to exempt {self._name} from inspection and rewriting.",
            )
        return Answer(response.status, await response.content.readexactly(length) if length else b"")

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)


def _unreachable(base: str, error: Exception) -> PeerError:
    reset = isinstance(error, ConnectionResetError) or getattr(error, "errno", None) == 104  # noqa: PLR2004 -- ECONNRESET
    if reset or isinstance(error, aiohttp.ServerDisconnectedError):
        return PeerError(
            f"{base} closed the connection", "If this repeats, our certificate may be refused: compare `ebbgate identity show` with the receiver."
        )
    return PeerError(f"{base} is not reachable: {str(error)[:160]}", "Nothing is lost; it is tried again by itself.")
