"""From nothing to an open secure channel with the right server, and, where none comes about, why.

A channel is asked for with the pinned certificate, or with one that the trust directory vouches for. Discovery (GetEndpoints, without
security) tells what a server offers; its URLs are never followed: the configured one is used as written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.certificate import check_trusted, split_chain
from gateway.collect.opcua.endpoints import explain_refusal, parse_endpoints
from gateway.collect.opcua.guarded import GuardedClient, endpoint_of, plain_bytes, plant, ua
from gateway.collect.opcua.security import parse_security, pinned
from gateway.errors import PlantError, TrustError

if TYPE_CHECKING:
    from gateway.collect.opcua.endpoints import Endpoint
    from gateway.collect.opcua.throttle import Throttle
    from gateway.errors import EbbgateError
    from gateway.settings import OpcuaSource

_POLICY_REJECTED: Final = 0x8055_0000  # BadSecurityPolicyRejected


def abort(client: GuardedClient) -> None:
    """Cut the connection at once."""
    protocol = client.uaclient.protocol
    if protocol is not None and protocol.transport is not None:
        protocol.transport.abort()
    client.uaclient.disconnect_socket()


async def open_channel(settings: OpcuaSource, url: str, throttle: Throttle, server: bytes | None = None) -> GuardedClient:
    """Return a client with an open secure channel; where the server refuses one, ask it why.

    server: the certificate to trust, DER; None: the pinned one, or one that the trust directory vouches for.
    """
    secured = parse_security(settings.security)[0] != "None"
    if server is None and secured and settings.server_certificate is None and settings.trusted is not None:
        server = await _vouched(settings, url, throttle)
    client = GuardedClient(settings, url, throttle, server)
    try:
        await _hello(client, url, throttle)
        began = await throttle.begin()
        try:
            with plant(url):
                await client.open_secure_channel()
        finally:
            throttle.spent(began, 0)
    except BaseException as error:
        abort(client)
        if isinstance(error, PlantError | TrustError) and secured and client.greeted:
            raise await _explain(settings, url, throttle, error, server) from error
        raise
    return client


async def _hello(client: GuardedClient, url: str, throttle: Throttle) -> None:
    host, port = endpoint_of(url)
    began = await throttle.begin()
    try:
        with plant(url):
            await client.uaclient.connect_socket(host, port)
            await client.send_hello()
            client.greeted = True
    finally:
        throttle.spent(began, 0)


async def _explain(settings: OpcuaSource, url: str, throttle: Throttle, error: PlantError | TrustError, server: bytes | None) -> EbbgateError:
    """Return what the server's endpoints say about a channel that did not come about; `error` itself where they say nothing."""
    try:
        offered = await discover(settings, url, throttle)
    except (PlantError, TrustError, CorruptError):
        return error
    known = server or (pinned(settings) if settings.server_certificate is not None else b"")
    return explain_refusal(settings.name, url, " ".join(parse_security(settings.security)), known, offered, error)


async def _vouched(settings: OpcuaSource, url: str, throttle: Throttle) -> bytes:
    """Return the certificate the server shows, checked against the trust directory; raise TrustError, PlantError."""
    offered = await discover(settings, url, throttle)
    wanted = " ".join(parse_security(settings.security))
    chains = {one.chain for one in offered if one.security == wanted and one.chain}
    if not chains:
        raise explain_refusal(settings.name, url, wanted, b"", [one for one in offered if one.security != wanted], PlantError("no certificate"))
    chain = split_chain(min(chains))
    if settings.trusted is not None:
        check_trusted(chain, settings.trusted)
    return chain[0]


async def discover(settings: OpcuaSource, url: str, throttle: Throttle) -> tuple[Endpoint, ...]:
    """Return the endpoints a server offers, asked without security; nothing is followed. Raise PlantError, CorruptError."""
    client = GuardedClient(replace(settings, security="None", user="", user_certificate=None), url, throttle)
    try:
        await _hello(client, url, throttle)
        request = ua.GetEndpointsRequest()
        request.Parameters.EndpointUrl = url
        with plant(url):
            await client.open_secure_channel()
            return parse_endpoints(plain_bytes(await client.uaclient._send_request(request)))
    except ServiceFault as fault:
        if fault.status != _POLICY_REJECTED:
            raise
        message = f"{url}: the server shows its certificate and what it offers to nobody who comes without security"
        raise PlantError(message, "Export its certificate there, as DER or PEM, and put it where server_certificate says.") from fault
    finally:
        abort(client)
