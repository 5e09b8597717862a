"""Census: every request asyncua can make, through every door it has, against a socket that counts. Outside the list: zero bytes.

Then each of the three layers is taken away in turn: the test of that layer must notice, so that no layer hides that another is dead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asyncua import Client, ua
from asyncua.client.ua_session import UaSession
from asyncua.common.connection import SecureConnection
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256, SecurityPolicyNone
from asyncua.ua.ua_binary import struct_to_binary, uatcp_to_binary
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.collect import guard
from gateway.collect.load import Budget
from gateway.collect.opcua import guarded
from gateway.collect.opcua.guarded import Blessed, GuardedClient, GuardedConnection, GuardedProtocol, GuardedTransport
from gateway.collect.opcua.throttle import Throttle
from gateway.errors import WriteRefused
from gateway.runtime import real
from gateway.settings import Load, OpcuaSource

REQUESTS = sorted(
    (
        kind
        for name, kind in vars(ua).items()
        if name.endswith("Request") and dataclasses.is_dataclass(kind) and isinstance(getattr(kind(), "TypeId", None), ua.NodeId)
    ),
    key=lambda kind: kind.__name__,
)
ALLOWED = [kind for kind in REQUESTS if kind().TypeId.Identifier in guard.OPCUA_SERVICES]
REFUSED = [kind for kind in REQUESTS if kind not in ALLOWED]


class Socket(asyncio.Transport):
    """Counts what reaches the wire."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False


def certificate(name: str) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    return builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256()), key


@pytest.fixture(scope="module")
def encrypted() -> Any:
    server, _ = certificate("server")
    ours, key = certificate("ours")
    private = serialization.load_pem_private_key(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()), None
    )

    def make() -> Any:
        policy = SecurityPolicyBasic256Sha256(server, ours, private, ua.MessageSecurityMode.SignAndEncrypt)
        policy.make_local_symmetric_key(b"s" * 32, b"c" * 32)
        policy.make_remote_symmetric_key(b"c" * 32, b"s" * 32, 3_600_000)
        return policy

    return make


@pytest.fixture(params=["plain", "SignAndEncrypt"])
async def wire(request: pytest.FixtureRequest, encrypted: Any) -> tuple[GuardedClient, Socket]:
    """A guarded client whose channel is open, over a counting socket."""
    throttle = Throttle(Budget(Load(requests_per_s=1e6, duty=1.0), 0), real())
    client = GuardedClient(OpcuaSource("plc", ("opc.tcp://127.0.0.1:4840",), security="None"), "opc.tcp://127.0.0.1:4840", throttle)
    client.uaclient.set_security(SecurityPolicyNone() if request.param == "plain" else encrypted())
    protocol = client.uaclient._make_protocol()
    socket = Socket()
    protocol.connection_made(socket)
    protocol.timeout = client.uaclient._timeout = 0.01
    return client, socket


def test_the_census_sees_all_services() -> None:
    assert len(ALLOWED) == 23
    assert {"WriteRequest", "CallRequest", "HistoryUpdateRequest", "AddNodesRequest", "DeleteNodesRequest"} <= {kind.__name__ for kind in REFUSED}
    assert len(REFUSED) >= 16


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
async def test_refused_through_every_door(wire: tuple[GuardedClient, Socket], kind: type) -> None:
    client, socket = wire
    protocol = client.uaclient.protocol
    request_id = protocol._request_id
    for message_type in (ua.MessageType.SecureMessage, ua.MessageType.SecureClose, ua.MessageType.SecureOpen):
        with pytest.raises(WriteRefused):
            protocol._send_request(kind(), message_type=message_type)
    for send in (protocol.send_request, client.uaclient._send_request, client.uaclient.session._send_request):
        with pytest.raises(WriteRefused):
            await send(kind())
    encoded = guarded.Encoded(kind().TypeId, struct_to_binary(kind().Parameters) if hasattr(kind(), "Parameters") else b"")
    for refused in (lambda: protocol._send_request(encoded), lambda: protocol._send_encoded(encoded, 1, ua.MessageType.SecureMessage)):
        with pytest.raises(WriteRefused):
            refused()
    with pytest.raises(WriteRefused):
        super(GuardedProtocol, protocol)._send_request(kind())  # around layer 1
    with pytest.raises(WriteRefused):
        protocol._connection.message_to_binary(struct_to_binary(kind()))
    stock = SecureConnection.message_to_binary(protocol._connection, struct_to_binary(kind()))  # around layers 1 and 2
    for raw in (stock, bytes(stock), bytearray(stock), b"HELF" + stock[4:]):
        with pytest.raises(WriteRefused):
            protocol.transport.write(raw)
    with pytest.raises(WriteRefused):
        protocol.transport.writelines([stock])
    assert (bytes(socket.sent), protocol._request_id) == (b"", request_id)


SERVICE_METHODS = [
    name
    for name, method in inspect.getmembers(UaSession, inspect.iscoroutinefunction)
    if not name.startswith("_") and name not in {"inform_subscriptions", "publish"}
]


@pytest.mark.parametrize(
    "name",
    [
        "write",
        "write_attributes",
        "call",
        "history_update",
        "add_nodes",
        "delete_nodes",
        "add_references",
        "delete_references",
        "register_nodes",
        "unregister_nodes",
    ],
)
async def test_asyncuas_own_methods_that_change_a_server_send_nothing(wire: tuple[GuardedClient, Socket], name: str) -> None:
    client, socket = wire
    assert name in SERVICE_METHODS
    count = len(inspect.signature(getattr(UaSession, name)).parameters) - 1
    with pytest.raises(WriteRefused):
        await getattr(client.uaclient.session, name)(*[[] for _ in range(count)][: 2 if name == "write_attributes" else count])
    assert not socket.sent


async def test_high_level_writes_and_calls_send_nothing(wire: tuple[GuardedClient, Socket]) -> None:
    client, socket = wire
    node = client.get_node("ns=1;s=Tag")
    with pytest.raises(WriteRefused):
        await node.write_value(ua.DataValue(ua.Variant(1.0)))
    with pytest.raises(WriteRefused):
        await client.write_values([node], [ua.DataValue(ua.Variant(1.0))])
    with pytest.raises(WriteRefused):
        await client.uaclient.delete_nodes(ua.DeleteNodesParameters())
    with pytest.raises(WriteRefused):
        await client.register_nodes([node])
    assert not socket.sent


@pytest.mark.parametrize("kind", ALLOWED, ids=lambda kind: kind.__name__)
async def test_every_read_passes(wire: tuple[GuardedClient, Socket], kind: type) -> None:
    client, socket = wire
    client.uaclient.protocol._send_request(kind())
    assert len(socket.sent) > 20


@pytest.mark.parametrize("details", [ua.ReadRawModifiedDetails(), ua.ReadEventDetails()], ids=lambda one: type(one).__name__)
async def test_history_of_values_and_of_events_passes_and_no_change_of_it(wire: tuple[GuardedClient, Socket], details: Any) -> None:
    client, socket = wire
    change = ua.HistoryUpdateRequest()
    change.Parameters.HistoryUpdateDetails = [ua.DeleteEventDetails()]
    with pytest.raises(WriteRefused):
        client.uaclient.protocol._send_request(change)
    assert not socket.sent
    read = ua.HistoryReadRequest()
    read.Parameters.HistoryReadDetails = details
    client.uaclient.protocol._send_request(read)
    assert len(socket.sent) > 20


async def test_hello_passes_and_only_alone(wire: tuple[GuardedClient, Socket]) -> None:
    client, socket = wire
    hello = uatcp_to_binary(ua.MessageType.Hello, ua.Hello(EndpointUrl="opc.tcp://127.0.0.1:4840"))
    with pytest.raises(WriteRefused):
        client.uaclient.protocol.transport.write(hello + b"MSGF")
    assert not socket.sent
    client.uaclient.protocol.transport.write(hello)
    assert bytes(socket.sent) == hello


async def test_type_ids_of_another_namespace_or_form_are_refused(wire: tuple[GuardedClient, Socket]) -> None:
    client, socket = wire
    for kind in (ua.NumericNodeId(631, 1), ua.StringNodeId("631", 0), None):
        request = ua.ReadRequest()
        request.TypeId = kind
        with pytest.raises(WriteRefused):
            client.uaclient.protocol._send_request(request)
    assert not socket.sent


# ---- each layer alone: take the other two away and it must hold; take it away too and the write goes out ----


def without_layer_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GuardedProtocol, "_send_request")


def without_layer_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: Any, message: bytes, message_type: Any = ua.MessageType.SecureMessage, request_id: int = 0) -> bytes:
        return Blessed(SecureConnection.message_to_binary(self, message, message_type, request_id))

    monkeypatch.setattr(GuardedConnection, "message_to_binary", unchecked)


def without_layer_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedTransport, "write", lambda self, data: self._transport.write(data))


LAYERS = {1: without_layer_1, 2: without_layer_2, 3: without_layer_3}


@pytest.mark.parametrize("alone", [1, 2])
async def test_each_layer_holds_alone_and_is_needed(wire: tuple[GuardedClient, Socket], monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    client, socket = wire
    for layer, remove in LAYERS.items():
        if layer != alone:
            remove(monkeypatch)
    with pytest.raises(WriteRefused):
        client.uaclient.protocol._send_request(ua.WriteRequest())
    assert not socket.sent
    LAYERS[alone](monkeypatch)
    client.uaclient.protocol._send_request(ua.WriteRequest())
    assert socket.sent, "with no layer left the write must reach the wire, or this test proves nothing"


async def test_the_socket_layer_holds_alone_and_is_needed(wire: tuple[GuardedClient, Socket], monkeypatch: pytest.MonkeyPatch) -> None:
    client, socket = wire
    without_layer_1(monkeypatch)
    monkeypatch.delattr(GuardedConnection, "message_to_binary")  # bytes are made, and nobody blessed them
    with pytest.raises(WriteRefused):
        client.uaclient.protocol._send_request(ua.WriteRequest())
    assert not socket.sent
    without_layer_3(monkeypatch)
    client.uaclient.protocol._send_request(ua.WriteRequest())
    assert socket.sent


def test_the_guarded_client_is_used_and_stock_client_is_not() -> None:
    assert issubclass(GuardedClient, Client)
    assert guarded.GuardedUaClient._make_protocol is not guarded.UaClient._make_protocol
