"""asyncua behind a guard: subclasses that let only reads out, keep to our limits and wait for the load contract.

asyncua 2.1 connects, secures and encodes requests; it never reconnects, publishes or decodes data here. Three layers of the guard:
the request object (GuardedProtocol._send_request), its bytes before encryption (GuardedConnection.message_to_binary) and the socket
(GuardedTransport). Only this file, security.py and session.py import asyncua; the private names they lean on are listed by
tests/unit/test_opcua_session.py, which fails when their signatures move.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import math
import secrets
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlparse

import asyncua.ua
from asyncua import Client
from asyncua.client.ua_client import UaClient, UASocketProtocol
from asyncua.common.connection import SecureConnection, TransportLimits
from asyncua.common.utils import Buffer
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import InvalidSignature
from asyncua.ua.ua_binary import from_binary, nodeid_from_binary, nodeid_to_binary, struct_to_binary, uatcp_to_binary

from buffer.errors import CorruptError, StoreError
from gateway.collect import guard
from gateway.collect.opcua.answers import ServiceFault, open_answer
from gateway.collect.opcua.certificate import fingerprint, first_certificate, public_key
from gateway.collect.opcua.endpoints import parse_created_session, tokens_of
from gateway.collect.opcua.security import choose_token, make_policy, read_password, user_pair
from gateway.collect.opcua.variant import plain_float
from gateway.errors import ConfigError, EbbgateError, PlantError, TrustError, WriteRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.collect.opcua.endpoints import Token
    from gateway.collect.opcua.throttle import Throttle
    from gateway.settings import OpcuaSource

ua: Any = asyncua.ua  # its generated types do not fit their own annotations

CHUNK_BYTES_MAX: Final = 65_536  # what we announce in the Hello; a peer that sends more is cut off
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024  # 500,000 Doubles; bounds what a hostile server can make us hold
REQUEST_TIMEOUT_S: Final = 10.0  # a PLC may take seconds to create a thousand items
CONNECT_TIMEOUT_S: Final = 5.0  # for the socket, and again for the answer to Hello
SESSION_TIMEOUT_S: Final = 60.0  # a session nobody uses is gone after this: small PLCs have four
PORT_DEFAULT: Final = 4840
_CHANNEL_OPENED: Final = 449  # OpenSecureChannelResponse

_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _USER_TIMEOUT_MS = 30, 10, 20_000  # stateful firewalls forget after 5 minutes


# ---- the guard's three layers ----


class Blessed(bytes):
    """Wire bytes made by GuardedConnection from a request the guard has seen."""

    __slots__ = ()


class GuardedConnection(SecureConnection):
    """Layer 2: looks at the encoded request before it is cut into chunks and encrypted. Also keeps to our own size limits."""

    def message_to_binary(self, message: bytes, message_type: Any = ua.MessageType.SecureMessage, request_id: int = 0) -> bytes:
        """Return wire bytes of an allowed request."""
        guard.check_opcua_body(message)
        return Blessed(super().message_to_binary(message, message_type, request_id))

    def set_channel(self, params: Any, request_type: Any, client_nonce: bytes) -> None:
        """Take new keys. Their age is measured by our clock: a server's that stands in 1970 made every renewal refuse what was on its way."""
        params.SecurityToken.CreatedAt = datetime.datetime.now(datetime.UTC)
        super().set_channel(params, request_type, client_nonce)

    def receive_from_header_and_body(self, header: Any, body: Any) -> Any:
        """Take one chunk; a server's Acknowledge may lower our limits, never lift them (asyncua swaps and lifts them)."""
        got = super().receive_from_header_and_body(header, body)
        if isinstance(got, ua.Acknowledge):
            self._limits.max_recv_buffer = CHUNK_BYTES_MAX
            self._limits.max_send_buffer = min(CHUNK_BYTES_MAX, got.ReceiveBufferSize or CHUNK_BYTES_MAX)
            self._limits.max_message_size = MESSAGE_BYTES_MAX
            self._limits.max_chunk_count = MESSAGE_BYTES_MAX // 1024
        return got


class GuardedTransport:
    """Layer 3: what reaches the socket is one Hello or blessed bytes."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        """Send blessed bytes or a Hello."""
        if type(data) is not Blessed:
            guard.check_opcua_hello(data)
        self._transport.write(data)

    def writelines(self, _parts: object) -> None:
        """Refuse: asyncua never uses it."""
        raise WriteRefused("writelines on a guarded socket")

    def close(self) -> None:
        """Close after what was written has left."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Say whether the socket is going."""
        return self._transport.is_closing()


@dataclasses.dataclass(slots=True)
class Encoded:
    """A request whose parameters are bytes already: what is asked again and again is encoded once (asyncua takes 6 us a node)."""

    TypeId: Any
    parameters: bytes
    RequestHeader: Any = dataclasses.field(default_factory=ua.RequestHeader)


class GuardedProtocol(UASocketProtocol):
    """Layer 1: looks at the request object."""

    def __init__(self, timeout: float, security_policy: Any) -> None:
        limits = TransportLimits(CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, MESSAGE_BYTES_MAX // 1024, MESSAGE_BYTES_MAX)
        super().__init__(timeout, security_policy, limits)
        self._connection = GuardedConnection(security_policy, self._connection._limits)

    def connection_made(self, transport: Any) -> None:
        """Put layer 3 between asyncua and the socket."""
        super().connection_made(cast("asyncio.Transport", GuardedTransport(transport)))

    def data_received(self, data: bytes) -> None:
        """Take bytes; cut off a peer whose chunk is larger than we said we take."""
        super().data_received(data)
        if self.receive_buffer is not None and len(self.receive_buffer) > CHUNK_BYTES_MAX and self.transport is not None:
            self.transport.abort()

    def _call_callback(self, request_id: int, body: Any) -> None:
        """Give an answer to who waits for it; a refusal to open the channel as what it is (asyncua asserts)."""
        if isinstance(body, Buffer) and not self._connection.is_open():
            try:
                open_answer(plain_bytes(body), _CHANNEL_OPENED, "OpenSecureChannel")
            except (ServiceFault, CorruptError) as fault:
                waiting = self._callbackmap.pop(request_id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(fault)
                return
        super()._call_callback(request_id, body)

    async def send_hello(self, url: str, max_messagesize: int = 0, max_chunkcount: int = 0) -> Any:
        """Say Hello with our real limits (asyncua announces 2 GiB)."""
        hello = ua.Hello(0, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, max_messagesize, max_chunkcount, url)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._callbackmap[0] = answer
        if self.transport is None:
            raise ConnectionError("connection lost before Hello")
        self.transport.write(uatcp_to_binary(ua.MessageType.Hello, hello))
        return await asyncio.wait_for(answer, CONNECT_TIMEOUT_S)

    def _send_request(self, request: Any, timeout: float = 1, message_type: Any = ua.MessageType.SecureMessage) -> asyncio.Future[Any]:
        kind: Any = getattr(request, "TypeId", None)
        numeric = getattr(kind, "NamespaceIndex", None) == 0 and isinstance(kind.Identifier, int)
        guard.check_opcua_service(kind.Identifier if numeric else -1)
        if isinstance(request, Encoded):
            return self._send_encoded(request, timeout, message_type)
        future: asyncio.Future[Any] = super()._send_request(request, timeout, message_type)
        return future

    def _send_encoded(self, request: Encoded, timeout: float, message_type: Any) -> asyncio.Future[Any]:
        """Do what the method of asyncua does after encoding; layers 2 and 3 see the bytes like any other."""
        if self.transport is None:
            raise ConnectionError("connection lost")
        self._setup_request_header(request.RequestHeader, timeout)
        self.revolve_security_token()
        body = b"".join((nodeid_to_binary(request.TypeId), struct_to_binary(request.RequestHeader), request.parameters))
        wire = self._connection.message_to_binary(body, message_type, self._request_id + 1)
        self._request_id += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._callbackmap[self._request_id] = future
        self.transport.write(wire)
        return future


class GuardedUaClient(UaClient):
    """Builds guarded protocols, binds sockets to an interface, and waits for the load contract before every request."""

    def __init__(self, throttle: Throttle, interface: str) -> None:
        super().__init__(REQUEST_TIMEOUT_S)
        self.throttle = throttle
        self._interface = interface
        self.leaving = False  # saying goodbye waits for no budget

    def _make_protocol(self) -> GuardedProtocol:
        self.protocol = GuardedProtocol(self._timeout, self.security_policy)
        self.protocol.on_connection_lost = self._on_transport_lost
        self.protocol.is_session_closing = self._is_session_closing
        return self.protocol

    async def connect_socket(self, host: str, port: int) -> None:
        """Connect to a literal address: no name is resolved on this box."""
        loop = asyncio.get_running_loop()
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
        sock = socket.socket(family, kind)
        try:
            sock.setblocking(False)
            if self._interface:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode() + b"\0")
                except OSError as error:
                    remedy = "Correct `interface`: ip link shows what this box has."
                    raise PlantError(f"interface {self._interface}: {error.strerror}", remedy) from error
            for level, option, value in (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS),
            ):
                sock.setsockopt(level, option, value)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, address)
                await loop.create_connection(self._make_protocol, sock=sock)
        except BaseException:
            sock.close()
            raise

    async def _send_request(self, request: Any, timeout: float | None = None, message_type: Any = ua.MessageType.SecureMessage) -> Any:
        began = None if self.leaving else await self.throttle.begin()
        try:
            data = await super()._send_request(request, timeout, message_type)
        except (TimeoutError, ConnectionError):
            self.throttle.spent(began, 0, failed=True)
            raise
        except ua.UaError:
            self.throttle.spent(began, 0)
            raise
        self.throttle.spent(began, len(data))
        return data


class GuardedClient(Client):
    """asyncua's client over guarded parts, with the policy made from pinned files instead of discovery."""

    def __init__(self, settings: OpcuaSource, url: str, throttle: Throttle, server: bytes | None = None) -> None:
        """server: the server's certificate in DER, where it is not pinned."""
        super().__init__(url, REQUEST_TIMEOUT_S)
        self.uaclient = self.guarded = GuardedUaClient(throttle, settings.interface)
        self.name = self.description = "Ebbgate"
        self.application_uri = settings.application_uri
        self.product_uri = "urn:ebbgate"
        self.session_timeout = int(SESSION_TIMEOUT_S * 1000)
        self.max_messagesize, self.max_chunkcount = MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX // 1024
        self.security_policy = make_policy(settings, server)
        self.uaclient.set_security(self.security_policy)
        self.tokens: tuple[Token, ...] = ()
        self.greeted = False  # it answered our Hello: it speaks OPC UA
        self._waived = bool(settings.waiver)
        self._url = url
        if settings.user:
            self.set_user(settings.user)
            self.set_password(read_password(settings))
        pair = user_pair(settings)
        if pair is not None:
            self.user_certificate, self.user_private_key = pair

    async def create_session(self) -> Any:
        """Ask for a session with the URL as configured; what the server answers chooses the kind of login and nothing else."""
        nonce, policy = secrets.token_bytes(32), self.security_policy
        request = ua.CreateSessionRequest()
        wanted = request.Parameters
        wanted.ClientDescription = ua.ApplicationDescription(
            self.application_uri, self.product_uri, ua.LocalizedText(self.name), ua.ApplicationType.Client
        )
        wanted.EndpointUrl, wanted.SessionName = self._url, "Ebbgate"
        wanted.ClientNonce, wanted.ClientCertificate = nonce, policy.host_certificate or None
        wanted.RequestedSessionTimeout, wanted.MaxResponseMessageSize = self.session_timeout, MESSAGE_BYTES_MAX
        made = parse_created_session(plain_bytes(await self.uaclient._send_request(request)))
        self.uaclient.session.restore_authentication_token(nodeid_from_binary(Buffer(made.token)))
        verify: Any = policy.asymmetric_cryptography.verify
        verify((policy.host_certificate or b"") + nonce, made.signature)
        shown = first_certificate(made.certificate)
        if not policy.peer_certificate:
            policy.peer_certificate = shown or None
        elif shown and shown != policy.peer_certificate:
            raise TrustError(f"the session's certificate SHA-256 {fingerprint(shown)} is not that of the channel", _COMPARE)
        self._server_nonce = cast("Any", made.nonce)
        self.tokens = tokens_of(made.endpoints, int(policy.Mode), policy.URI)
        self.session_timeout = int(made.timeout_ms) if math.isfinite(made.timeout_ms) else self.session_timeout

    def server_policy(self, token_type: Any) -> Any:
        """Return how to log in, as asyncua wants it; raise TrustError rather than send a password readable."""
        token = choose_token(self.tokens, int(token_type), self.security_policy, waived=self._waived)
        return ua.UserTokenPolicy(PolicyId=token.policy_id or None, TokenType=token_type, SecurityPolicyUri=token.policy_uri)

    def _encrypt_password(self, password: str, policy_uri: str) -> tuple[bytes, str]:
        """Encrypt for the server's key (OPC 10000-4, 7.40.2.2), also where its certificate is an odd one."""
        secret = password.encode() + bytes(self._server_nonce or b"")
        key = public_key(self.security_policy.peer_certificate or b"")
        encrypt: Any = security_policies.encrypt_asymmetric
        data, uri = encrypt(key, len(secret).to_bytes(4, "little") + secret, policy_uri)
        return data, uri


# ---- addresses and errors ----


def endpoint_of(url: str) -> tuple[str, int]:
    """Return host and port of an opc.tcp URL; raise ConfigError unless the host is a literal address."""
    parts = urlparse(url)
    try:
        host, port = parts.hostname or "", parts.port or PORT_DEFAULT
        socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)
    except (ValueError, OSError):
        host = ""
    if parts.scheme != "opc.tcp" or not host:
        raise ConfigError(f"{url}: not opc.tcp://ADDRESS:PORT with a literal address", "Write the IP address: this box resolves no names.")
    return host, port


_COMPARE: Final = "The server is not the one whose certificate is pinned. Compare with: ebbgate trust SOURCE"


@contextmanager
def plant(context: str) -> Iterator[None]:
    """Turn what asyncua and the network raise into errors that say whose fault it is."""
    try:
        yield
    except ua.UaStatusCodeError as error:
        raise ServiceFault(int(error.code), context) from error
    except InvalidSignature as error:
        raise TrustError(f"{context}: wrong signature in the answer", _COMPARE) from error
    except ua.UaError as error:
        if "ertificate" in str(error):
            raise TrustError(f"{context}: {error}", _COMPARE) from error
        raise PlantError(f"{context}: {error}") from error
    except ConnectionRefusedError as error:
        remedy = "Is the server's OPC UA switched on, and is the port in `urls` right?"
        raise PlantError(f"{context}: nothing listens at this port", remedy) from error
    except (TimeoutError, OSError) as error:
        remedy = "Check address, cable, routing and firewalls: this box must reach the server's port."
        raise PlantError(f"{context}: {error.strerror or str(error) or 'no answer in time'}", remedy) from error
    except (EbbgateError, StoreError):
        raise
    except Exception as error:  # hostile or broken bytes make asyncua raise anything: ValueError, struct.error, AssertionError, ...
        raise PlantError(f"{context}: not an answer of an OPC UA server: {error!r}") from error


def plain_bytes(body: Any) -> bytes:
    """Return an answer's bytes."""
    return bytes(body.copy().read(len(body)))


# ---- structures of the standard namespace, as JSON ----

# Those a variable of a plant may hold. A list, because asyncua would make a billion objects of a hostile array of an empty structure.
_STRUCTURES: Final = {
    str(node.to_string()): kind
    for node, kind in ua.extension_objects_by_typeid.items()
    if kind.__name__ in {"Range", "EUInformation", "Argument", "EnumValueType", "TimeZoneDataType", "BuildInfo", "ServerStatusDataType", "XVType"}
}


def structure(type_id: str, body: bytes) -> object:
    """Return a JSON-able object of an ExtensionObject body of a known type; None if it is not known or the body is not that."""
    if type_id not in _STRUCTURES:
        return None
    try:
        return _jsonable(from_binary(_STRUCTURES[type_id], Buffer(body)))
    except Exception:  # asyncua raises anything on hostile bytes; the bytes are then kept as they are
        return None


def _jsonable(thing: Any) -> object:
    if isinstance(thing, enum.Enum):
        return thing.value
    if isinstance(thing, float):
        return plain_float(thing)
    if isinstance(thing, datetime.datetime):
        return f"{thing:%Y-%m-%dT%H:%M:%S}.{thing.microsecond * 10:07d}Z"
    if isinstance(thing, str):
        return thing.encode(errors="replace").decode()
    if isinstance(thing, list | tuple):
        return [_jsonable(one) for one in thing]
    if isinstance(thing, ua.NodeId):
        return str(thing.to_string())
    if dataclasses.is_dataclass(thing):
        return {one.name: _jsonable(getattr(thing, one.name)) for one in dataclasses.fields(thing) if one.name != "Encoding"}
    return thing if thing is None or isinstance(thing, int) else str(thing)
