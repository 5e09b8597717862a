"""Contract with asyncua 2.1: every private name and signature gateway.collect.opcua leans on. A release that moves one fails here first."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import asyncua
import pytest
from asyncua import Client, ua
from asyncua.client.ua_client import UaClient, UASocketProtocol
from asyncua.client.ua_session import UaSession
from asyncua.common.connection import SecureConnection, TransportLimits
from asyncua.ua.ua_binary import nodeid_to_binary

from buffer.types import Kind
from gateway.cli import discover
from gateway.collect.clock import GatewayClock
from gateway.collect.control import Control
from gateway.collect.opcua import check, guarded, probe
from gateway.collect.opcua.answers import READ_RESPONSE, CreatedItem, ServiceFault
from gateway.collect.opcua.certificate import first_certificate
from gateway.collect.opcua.decode import blank_items
from gateway.collect.opcua.endpoints import Endpoint
from gateway.collect.opcua.facts import LIMITS, Facts, facts_of
from gateway.collect.opcua.guarded import Encoded, endpoint_of, structure
from gateway.collect.opcua.probe import Offer
from gateway.collect.opcua.security import NONE_URI, make_policy
from gateway.collect.opcua.session import RENEW_MIN_S, Session
from gateway.collect.sources import Maker
from gateway.errors import ConfigError, PlantError, TrustError
from gateway.runtime import real
from gateway.settings import OpcuaSource, TagRow

SIGNATURES = {
    (UASocketProtocol, "__init__"): ["self", "timeout", "security_policy", "limits"],
    (UASocketProtocol, "_send_request"): ["self", "request", "timeout", "message_type"],
    (UASocketProtocol, "connection_made"): ["self", "transport"],
    (UASocketProtocol, "data_received"): ["self", "data"],
    (UASocketProtocol, "_call_callback"): ["self", "request_id", "body"],
    (UASocketProtocol, "send_hello"): ["self", "url", "max_messagesize", "max_chunkcount"],
    (SecureConnection, "__init__"): ["self", "security_policy", "limits"],
    (SecureConnection, "set_channel"): ["self", "params", "request_type", "client_nonce"],
    (SecureConnection, "_check_sym_header"): ["self", "security_hdr"],
    (SecureConnection, "message_to_binary"): ["self", "message", "message_type", "request_id"],
    (SecureConnection, "receive_from_header_and_body"): ["self", "header", "body"],
    (UaClient, "__init__"): ["self", "timeout"],
    (UaClient, "_make_protocol"): ["self"],
    (UaClient, "_send_request"): ["self", "request", "timeout", "message_type"],
    (UaClient, "connect_socket"): ["self", "host", "port"],
    (UaClient, "close_session"): ["self", "delete_subscriptions"],
    (UaClient, "close_secure_channel"): ["self"],
    (UaClient, "disconnect_socket"): ["self"],
    (UaClient, "revolve_security_token"): ["self"],
    (UaClient, "_on_transport_lost"): ["self", "_exc"],
    (UaClient, "_is_session_closing"): ["self"],
    (UaSession, "restore_authentication_token"): ["self", "token"],
    (UaSession, "reset_authentication_token"): ["self"],
    (Client, "create_session"): ["self"],
    (Client, "_activate_with_credentials"): ["self"],
    (Client, "open_secure_channel"): ["self", "renew"],
    (Client, "send_hello"): ["self"],
    (Client, "server_policy"): ["self", "token_type"],
}


@pytest.mark.parametrize(("owner", "name"), list(SIGNATURES), ids=lambda one: getattr(one, "__name__", one))
def test_signature_has_not_moved(owner: type, name: str) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == SIGNATURES[owner, name]


def test_attributes_set_and_read_from_outside() -> None:
    client = Client("opc.tcp://127.0.0.1:1")
    assert {"_server_nonce", "_username", "secure_channel_timeout", "session_timeout", "security_policy", "uaclient"} <= vars(
        client
    ).keys()
    protocol = UASocketProtocol(1)
    assert {"_connection", "_callbackmap", "receive_buffer", "transport", "on_connection_lost", "is_session_closing"} <= vars(protocol).keys()
    assert isinstance(protocol._connection._limits, TransportLimits)
    assert {"max_recv_buffer", "max_send_buffer", "max_chunk_count", "max_message_size"} <= vars(TransportLimits()).keys()
    assert list(inspect.signature(ua.Hello).parameters) == [
        "ProtocolVersion",
        "ReceiveBufferSize",
        "SendBufferSize",
        "MaxMessageSize",
        "MaxChunkCount",
        "EndpointUrl",
    ]


def test_the_transport_asyncua_writes_to_offers_all_it_calls() -> None:
    """Layer 3 stands in for asyncio.Transport: what asyncua calls on it must exist there."""
    source = Path(asyncua.__file__).parent.joinpath("client", "ua_client.py").read_text()
    called = {line.split("transport.")[1].split("(")[0] for line in source.splitlines() if "self.transport." in line and "(" in line}
    assert called <= set(dir(guarded.GuardedTransport)), called


def test_only_three_modules_of_collect_import_asyncua() -> None:
    root = Path(guarded.__file__).parents[1]
    importers = {path.name for path in root.rglob("*.py") if "import asyncua" in path.read_text() or "from asyncua" in path.read_text()}
    assert importers == {"guarded.py", "security.py", "session.py"}


def settings(**more: object) -> OpcuaSource:
    return OpcuaSource("plc", ("opc.tcp://127.0.0.1:4840",), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["opc.tcp://plc.example:4840", "http://10.0.0.1:4840", "opc.tcp://", "opc.tcp://10.0.0.1:99999", "10.0.0.1:4840"])
def test_names_and_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="literal address"):
        endpoint_of(url)


def test_literal_addresses_and_the_usual_port() -> None:
    assert endpoint_of("opc.tcp://10.0.0.1") == ("10.0.0.1", 4840)
    assert endpoint_of("opc.tcp://[fe80::1]:4841/path") == ("fe80::1", 4841)


@pytest.mark.parametrize("security", ["Basic512 SignAndEncrypt", "Basic256Sha256", "Basic256Sha256 None", "none", ""])
def test_old_policies_and_half_words_are_refused(security: str) -> None:
    with pytest.raises(ConfigError, match="not offered"):
        make_policy(settings(security=security))


def test_security_without_a_pinned_certificate_is_refused() -> None:
    with pytest.raises(TrustError, match="no pinned server certificate"):
        make_policy(settings())


def test_a_chain_is_cut_to_its_first_certificate() -> None:
    one = b"\x30\x82\x00\x05abcde"
    assert first_certificate(one + b"\x30\x82rest") == one


def test_structures_of_the_standard_become_json_and_noise_does_not() -> None:
    body = b"\0\0\0\0\0\0\xf0?\0\0\0\0\0\0\0@"
    assert structure("i=886", body) == {"Low": 1.0, "High": 2.0}
    assert structure("i=886", b"\0\0\0\0\0\0\xf8\x7f\0\0\0\0\0\0\xf0\xff") == {"Low": "NaN", "High": "-Infinity"}, "as in docs/format.md"
    assert structure("i=886", body[:5]) is None
    assert structure("ns=4;i=886", body) is None


def repr_short(thing: object) -> str:
    return repr(thing)[:9]


@pytest.mark.parametrize("space", ["urn:plant", "5", '["a"', "{}", "[" * 100_000, 7, 1.5, True, None], ids=repr_short)
def test_a_namespace_array_that_is_none_ends_no_process(space: object) -> None:
    facts = facts_of([space, "x", None, 0, -1, 10, "many"], 0, 1000)
    assert (facts.namespaces, facts.start_us, facts.skew_ns) == ((), 0, None)
    assert list(facts.limits.values()) == [1000, 1000, 10, 1000]


async def test_a_server_that_answers_for_fewer_nodes_than_we_ask_to_know_how_many_is_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(SimpleNamespace(), "opc.tcp://127.0.0.1:1", 1000, resumed=False)  # type: ignore[arg-type]
    asked: list[int] = []

    async def answer(request: Encoded, context: str) -> bytes:
        count = int.from_bytes(request.parameters[12:16], "little")
        asked.append(count)
        if count > 1:
            raise ServiceFault(0x8010_0000, context)
        header = nodeid_to_binary(ua.NodeId(READ_RESPONSE)) + bytes(8 + 4 + 4 + 1 + 4 + 3)
        return header + (1).to_bytes(4, "little") + bytes([1, 7]) + (1).to_bytes(4, "little")  # one UInt32

    monkeypatch.setattr(session, "_call", answer)
    facts = await session.read_facts(lambda: 0)
    assert asked == [7, *[1] * 7]
    assert facts.limits["MaxNodesPerRead"] == 1


def test_a_connection_that_nobody_answers_says_so() -> None:
    with pytest.raises(PlantError, match="opc.tcp://127.0.0.1:1: no answer in time"), guarded.plant("opc.tcp://127.0.0.1:1"):
        raise TimeoutError


@pytest.mark.parametrize(("type_", "text"), [("i=11", "57927921.25"), ("i=10", "5.792792e+07")])
def test_a_double_is_shown_to_its_last_digit(type_: str, text: str) -> None:
    value, types = blank_items(1), blank_items(1)
    value.kind[0], value.values.view("f8")[0] = Kind.DOUBLE, 57_927_921.25
    types.kind[0] = Kind.TEXT
    assert probe.show("i=1", value, replace(types, texts=(type_,)), 0, 0).value == text


@pytest.mark.parametrize("sampling_ms", [float("nan"), float("inf"), -1.0])
def test_a_sampling_interval_that_is_no_time_is_no_number_of_ours(sampling_ms: float) -> None:
    assert check._keeps(CreatedItem(0, 1, sampling_ms, 5)) == (0.0, 0.005)


def test_a_source_without_security_has_nothing_to_pin() -> None:
    offered = Offer("opc.tcp://127.0.0.1:1", (Endpoint("", "", "", b"", 1, NONE_URI, ()),), b"", None)
    lines = discover._describe(settings(security="None"), offered, Path("plc.der"))[1]
    assert not any("does not offer" in line for line in lines)
    assert "no certificate" in lines[-1]


def test_a_source_with_an_address_that_is_none_is_not_made(tmp_path: Path) -> None:
    rows = (TagRow("ok", "p/ok", "plc", "ns=2;s=a", line=2), TagRow("bad", "p/bad", "plc", "s8:Temp", line=3), TagRow("x", "p/x", "plc", "i=x", line=4))
    maker = Maker(real(), tmp_path, GatewayClock(0, 0, 0, 0), Control(tmp_path))
    plc = OpcuaSource("plc", ("opc.tcp://127.0.0.1:1",), security="None", waiver="test", tags=rows)
    with pytest.raises(ConfigError, match="(?s)row 3, bad: address 's8:Temp'.*row 4, x: address 'i=x'"):
        maker.rehearse([plc])


def test_a_namespace_without_a_name_keeps_its_place() -> None:
    assert facts_of(['["x",null,3,"y"]', 5, 2, 1, 1, 1, 1], 1000, 9) == Facts(("x", "", "", "y"), 5, 1000, dict.fromkeys(LIMITS, 1))


@pytest.mark.parametrize("life_ms", [0, 1, 3_600_000])
def test_keys_without_a_life_are_not_renewed_without_a_pause(life_ms: int) -> None:
    client = SimpleNamespace(secure_channel_timeout=life_ms)
    assert Session(client, "", 1, resumed=False).renew_after_s == max(RENEW_MIN_S, life_ms * 0.00075)  # type: ignore[arg-type]


@pytest.mark.parametrize("year", [1970, 2012, 2106])
def test_what_is_on_its_way_under_the_old_keys_is_taken_whatever_the_servers_clock_says(year: int) -> None:
    connection = guarded.GuardedConnection(guarded.security_policies.SecurityPolicyNone(), TransportLimits())
    for number, kind in ((1, ua.SecurityTokenRequestType.Issue), (2, ua.SecurityTokenRequestType.Renew)):
        made = ua.OpenSecureChannelResult()
        made.SecurityToken = ua.ChannelSecurityToken(9, number, datetime(year, 1, 1, tzinfo=UTC), 3_600_000)
        made.ServerNonce = b""
        connection.set_channel(made, kind, b"")
    connection.revolve_tokens()
    connection._check_sym_header(ua.SymmetricAlgorithmHeader(TokenId=1))
    with pytest.raises(ua.UaError):
        connection._check_sym_header(ua.SymmetricAlgorithmHeader(TokenId=7))
