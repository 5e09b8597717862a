"""One session with one server: connect or take up again, and the requests a source makes, as bytes in and out.

A session outlives its connection by SESSION_TIMEOUT_S: `Resume` carries what ActivateSession needs on a new channel (OPC 10000-4,
5.6.3), in memory over a cut and in the source's state file over a restart, so that neither costs the server a second session.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import nodeid_from_binary, nodeid_to_binary, struct_to_binary

from buffer.errors import CorruptError
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua import answers
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.channel import abort, open_channel
from gateway.collect.opcua.decode import join_items
from gateway.collect.opcua.endpoints import Token
from gateway.collect.opcua.facts import FACTS, LIMITS, Facts, facts_of
from gateway.collect.opcua.guarded import Encoded, plain_bytes, plant, structure, ua
from gateway.collect.opcua.items import event_filter, make_item, node_id
from gateway.errors import PlantError, TrustError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.collect.opcua.decode import Items
    from gateway.collect.opcua.guarded import GuardedClient
    from gateway.collect.opcua.items import Wish
    from gateway.collect.opcua.throttle import Throttle
    from gateway.settings import OpcuaSource

LOGIN_REFUSED: Final = frozenset({0x801F_0000, 0x8020_0000, 0x8021_0000, 0x8057_0000})  # UserAccessDenied, IdentityToken*, UserSignature
# of an answer that did not arrive whole: says nothing of the session (BadDecodingError, BadEncodingLimitsExceeded,
# BadTcpMessageTooLarge, BadRequestTooLarge, BadResponseTooLarge)
_NO_VERDICT: Final = frozenset({0x8007_0000, 0x8008_0000, 0x8080_0000, 0x80B8_0000, 0x80B9_0000})
SESSION_GONE: Final = frozenset({0x8025_0000, 0x8026_0000})  # BadSessionIdInvalid, BadSessionClosed
RENEW_MIN_S: Final = 1.0  # a server that grants keys no life would have us renew them without a pause
_TOO_MANY_OPERATIONS: Final = 0x8010_0000
HISTORY_TIMEOUT_S: Final = 4.0  # the load contract makes us rest after it, and live readings must not wait longer than the server's queues last
VALUE, DATA_TYPE, USER_ACCESS_LEVEL = 13, 14, 18  # attribute ids (OPC 10000-6, A.1)

_SERVICE_LEVEL: Final = "i=2267"
_PUBLISH: Final = ua.PublishRequest().TypeId


@dataclass(frozen=True, slots=True)
class Resume:
    """What ActivateSession needs to take a session up on another channel. Hexadecimal; a secret."""

    token: str
    nonce: str
    policy_id: str
    policy_uri: str
    certificate: str  # the server's, base64
    url: str  # of the server that has it

    def export(self) -> dict[str, str]:
        """Return JSON for the state file."""
        return asdict(self)

    @classmethod
    def parse(cls, saved: object) -> Resume | None:
        """Return what `export` gave, None for anything else."""
        if not isinstance(saved, dict) or set(saved) != set(cls.__slots__) or not all(isinstance(v, str) for v in saved.values()):
            return None
        return cls(**saved)


class Session:
    """An activated session on an open channel. Every request waits for the load contract; every failure is a PlantError or TrustError."""

    def __init__(self, client: GuardedClient, url: str, items_max: int, *, resumed: bool) -> None:
        self._client = client
        self.url = url
        self._items_max = items_max
        self.resumed = resumed
        self.facts = Facts((), 0, None, dict.fromkeys(LIMITS, items_max))
        self._last_read: tuple[object, list[tuple[bytes, int]]] = (None, [])

    # ---- life ----

    @classmethod
    async def connect(cls, settings: OpcuaSource, url: str, throttle: Throttle, resume: Resume | None, may_create: Callable[[bool], None]) -> Session:
        """Connect; take `resume` up, or make a new session.

        may_create(gone) is called before a new session is asked for and may raise; gone: the server said that the one of `resume` is no more.
        """
        client = await open_channel(settings, url, throttle)
        context = f"{settings.name} {url}"
        try:
            gone = False
            if resume is not None and resume.url == url:
                try:
                    await _take_up(client, resume, context)
                    return cls(client, url, settings.load.items, resumed=True)
                except ServiceFault as fault:
                    if fault.status in LOGIN_REFUSED or fault.status in _NO_VERDICT:
                        raise
                    gone = fault.status in SESSION_GONE
            may_create(gone)
            await _create(client, context)
            return cls(client, url, settings.load.items, resumed=False)
        except BaseException:
            abort(client)
            raise

    def resume(self) -> Resume:
        """Return what a later connection needs; valid until the next ActivateSession."""
        client = self._client
        policy = client.server_policy(_token_type(client))
        return Resume(
            nodeid_to_binary(client.uaclient.session.authentication_token).hex(),
            bytes(client._server_nonce or b"").hex(),
            policy.PolicyId or "",
            policy.SecurityPolicyUri or "",
            base64.b64encode(client.security_policy.peer_certificate or b"").decode(),
            self.url,
        )

    @property
    def renew_after_s(self) -> float:
        """When the channel's keys want renewal: three quarters of their life (OPC 10000-4, 5.5.2.1), however short the server makes it."""
        return max(RENEW_MIN_S, self._client.secure_channel_timeout * 0.75 / 1000)

    async def renew(self) -> None:
        """Renew the channel's keys."""
        with plant(f"{self.url}: renew channel"):
            await self._client.open_secure_channel(renew=True)
            self._client.uaclient.revolve_security_token()

    async def close(self) -> bool:
        """End session and subscriptions at the server; return whether it confirmed. Never raises for the plant's faults."""
        confirmed = False
        with contextlib.suppress(PlantError, TrustError):
            with plant(f"{self.url}: close"):
                self._client.guarded.leaving = True
                await self._client.uaclient.close_session(True)
                confirmed = True
                await self._client.uaclient.close_secure_channel()
        self._client.uaclient.disconnect_socket()
        return confirmed

    def drop(self) -> None:
        """Cut the connection at once; the session stays at the server until it is taken up or times out."""
        abort(self._client)

    # ---- requests ----

    async def _call(self, request: Any, context: str, timeout: float | None = None) -> bytes:
        with plant(f"{self.url}: {context}"):
            return plain_bytes(await self._client.uaclient._send_request(request, timeout))

    async def read_facts(self, wall_ns: Callable[[], int]) -> Facts:
        """Ask the server for namespaces, start time, clock and limits; keep and return them."""
        names = [f"Server_ServerCapabilities_OperationLimits_{name}" for name in LIMITS]
        nodes = [f"i={number}" for number in (*FACTS, *(getattr(ua.ObjectIds, name) for name in names))]
        before = wall_ns()
        try:
            items = await self.read(nodes, VALUE)
        except ServiceFault as fault:
            if fault.status != _TOO_MANY_OPERATIONS:
                raise
            self.facts = replace(self.facts, limits=dict(self.facts.limits, MaxNodesPerRead=1))  # less than we ask for to know how many
            before, items = wall_ns(), await self.read(nodes, VALUE)
        middle = (before + wall_ns()) // 2
        self.facts = facts_of([items.value(row) for row in range(len(nodes))], middle, self._items_max)
        return self.facts

    async def service_level(self) -> int:
        """Return how well the server says it is, 0 to 255; 255 where it does not say."""
        level = (await self.read([_SERVICE_LEVEL], VALUE)).value(0)
        return level if isinstance(level, int) and not isinstance(level, bool) else 255

    async def read(self, nodes: Sequence[str], attribute: int) -> Items:
        """Return one attribute of many nodes, in their order and in as many requests as the server's limits want."""
        parts = []
        for parameters, count in self._reads(tuple(nodes), attribute):
            request = Encoded(ua.ReadRequest().TypeId, parameters)
            items = answers.decode_read(await self._call(request, "Read"), structure)
            if len(items) != count:
                raise CorruptError(f"{self.url}: Read of {count} nodes answered with {len(items)}")
            parts.append(items)
        return join_items(parts)

    def _reads(self, nodes: tuple[str, ...], attribute: int) -> list[tuple[bytes, int]]:
        """Return the encoded parameters of each request and how many nodes it asks for; what was asked last is kept."""
        key = (nodes, attribute, self.facts.limits["MaxNodesPerRead"])
        if self._last_read[0] != key:
            packed = []
            for chunk in _chunks(nodes, self.facts.limits["MaxNodesPerRead"]):
                wanted = [ua.ReadValueId(NodeId=node_id(node), AttributeId=attribute) for node in chunk]
                parameters = ua.ReadParameters(TimestampsToReturn=ua.TimestampsToReturn.Both, NodesToRead=wanted)
                packed.append((struct_to_binary(parameters), len(chunk)))
            self._last_read = (key, packed)
        return self._last_read[1]

    async def create_subscription(self, publish_ms: float, keep_alive_s: float, lifetime_s: float, batch: int) -> tuple[int, float, int]:
        """Return id, publishing interval (ms) and keep-alive count as the server revised them."""
        request = ua.CreateSubscriptionRequest()
        wanted = request.Parameters
        wanted.RequestedPublishingInterval = publish_ms
        wanted.RequestedMaxKeepAliveCount = max(1, round(keep_alive_s * 1000 / publish_ms))
        wanted.RequestedLifetimeCount = max(3 * wanted.RequestedMaxKeepAliveCount, round(lifetime_s * 1000 / publish_ms))
        wanted.MaxNotificationsPerPublish = batch
        number, interval, _, keep_alive = answers.parse_subscription(await self._call(request, "CreateSubscription"))
        return number, interval, keep_alive

    async def create_items(self, subscription: int, wishes: Sequence[Wish]) -> list[answers.CreatedItem]:
        """Create monitored items in chunks; return one result per wish, in order."""
        made: list[answers.CreatedItem] = []
        for chunk in _chunks(wishes, self.facts.limits["MaxMonitoredItemsPerCall"]):
            request = ua.CreateMonitoredItemsRequest()
            request.Parameters.SubscriptionId = subscription
            request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Both
            request.Parameters.ItemsToCreate = [make_item(wish) for wish in chunk]
            got = answers.parse_created_items(await self._call(request, "CreateMonitoredItems"))
            if len(got) != len(chunk):
                raise CorruptError(f"{self.url}: {len(chunk)} items asked for, {len(got)} answered")
            made += got
        return made

    async def delete_subscription(self, subscription: int) -> None:
        """Delete a subscription of ours; one that is gone already is gone."""
        request = ua.DeleteSubscriptionsRequest()
        request.Parameters.SubscriptionIds = [subscription]
        with contextlib.suppress(ServiceFault):
            await self._call(request, "DeleteSubscriptions")

    async def transfer(self, subscription: int) -> bool:
        """Take over a subscription of a session that is gone; return whether the server did (an S7-1500 never does)."""
        request = ua.TransferSubscriptionsRequest()
        request.Parameters.SubscriptionIds = [subscription]
        request.Parameters.SendInitialValues = False
        try:
            results = answers.parse_transfer(await self._call(request, "TransferSubscriptions"))
        except ServiceFault:
            return False
        return len(results) == 1 and not results[0][0] >> 31

    async def republish(self, subscription: int, number: int) -> answers.Message:
        """Return a message again; raise ServiceFault if the server no longer has it."""
        request = ua.RepublishRequest()
        request.Parameters.SubscriptionId = subscription
        request.Parameters.RetransmitSequenceNumber = number
        return answers.parse_republish(await self._call(request, "Republish"))

    def publish(self, acknowledge: Iterable[tuple[int, int]]) -> asyncio.Future[Any]:
        """Send a PublishRequest with (subscription, message number) acknowledged; the answer's bytes come through `plain_bytes`.

        The caller has waited for the load contract. The request waits at the server as long as the server likes.
        """
        numbers = [number for pair in acknowledge for number in pair]
        request = Encoded(_PUBLISH, struct.pack(f"<i{len(numbers)}I", len(numbers) // 2, *numbers))
        protocol = self._client.uaclient.protocol
        with plant(f"{self.url}: Publish"):
            if protocol is None:
                raise ConnectionError("connection lost")
            return protocol._send_request(request, 0)

    async def history(self, nodes: Sequence[str], from_ns: int, to_ns: int, most: int) -> list[answers.History]:
        """Return raw history of nodes between two times, at most `most` values a node; a node with more to come has a continuation point.

        Points are given back to the server at once: the next request begins where the values ended.
        """
        details = ua.ReadRawModifiedDetails(
            IsReadModified=False, StartTime=_moment(from_ns), EndTime=_moment(to_ns + 1_000), NumValuesPerNode=most, ReturnBounds=False
        )
        results = await self._history(nodes, details, [b""] * len(nodes))
        await self._give_back([(node, one.point) for node, one in zip(nodes, results, strict=True) if one.point], details)
        return results

    async def event_history(self, wish: Wish, from_ns: int, to_ns: int, most: int) -> answers.History:
        """Return the history of one notifier's events between two times, about `most` of them, asked for as the monitored item asks.

        Continuation points are followed that far: a burst within one instant has more events than a server gives in one answer.
        """
        moments = {"StartTime": _moment(from_ns), "EndTime": _moment(to_ns + 1_000)}
        details = ua.ReadEventDetails(NumValuesPerNode=most, **moments, Filter=event_filter(wish))
        parts: list[Items] = []
        point = b""
        while True:
            (got,) = await self._history([wish.node], details, [point])
            if point and got.status >> 31:  # it forgot the point: what came is good, and there is more
                return answers.History(0, point, join_items(parts))
            parts.append(got.items)
            point = got.point
            if not point or not len(got.items) or sum(map(len, parts)) >= most:
                break
        if point:
            await self._give_back([(wish.node, point)], details)
        return got._replace(items=join_items(parts))

    async def _history(self, nodes: Sequence[str], details: Any, points: Sequence[bytes], release: bool = False) -> list[answers.History]:
        request = ua.HistoryReadRequest()
        request.Parameters.HistoryReadDetails = details
        request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Both
        request.Parameters.ReleaseContinuationPoints = release
        request.Parameters.NodesToRead = [
            ua.HistoryReadValueId(NodeId=node_id(node), ContinuationPoint=point or None) for node, point in zip(nodes, points, strict=True)
        ]
        results = answers.decode_history(await self._call(request, "HistoryRead", HISTORY_TIMEOUT_S), structure)
        if len(results) != len(nodes) and not release:
            raise CorruptError(f"{self.url}: history of {len(nodes)} nodes answered with {len(results)}")
        return results

    async def _give_back(self, held: Sequence[tuple[str, bytes]], details: Any) -> None:
        """Release continuation points."""
        if held:
            with contextlib.suppress(ServiceFault, CorruptError):
                await self._history([node for node, _ in held], details, [point for _, point in held], release=True)

    async def browse(self, nodes: Sequence[str], along: str = "") -> list[tuple[int, bytes, list[answers.Reference]]]:
        """Return the children of nodes; a continuation point is followed with `browse_next`. along: a reference type; "": hierarchical ones."""
        request = ua.BrowseRequest()
        kind = node_id(along) if along else ua.NodeId(ua.ObjectIds.HierarchicalReferences)
        request.Parameters.NodesToBrowse = [ua.BrowseDescription(NodeId=node_id(node), ReferenceTypeId=kind, ResultMask=63) for node in nodes]
        return answers.parse_browse(await self._call(request, "Browse"), False)

    async def browse_next(self, point: bytes) -> tuple[int, bytes, list[answers.Reference]]:
        """Return more children from a continuation point."""
        request = ua.BrowseNextRequest()
        request.Parameters.ReleaseContinuationPoints = False
        request.Parameters.ContinuationPoints = [point]
        results = answers.parse_browse(await self._call(request, "BrowseNext"), True)
        return results[0] if results and not results[0][0] >> 31 else (0, b"", [])


def _chunks(things: Sequence[Any], size: int) -> list[Any]:
    return [things[at : at + size] for at in range(0, len(things), size)]


def _moment(ns: int) -> datetime:
    return datetime.fromtimestamp(0 if ns == NO_TIME else ns // 10**9, UTC).replace(microsecond=ns % 10**9 // 1000)


def _token_type(client: GuardedClient) -> Any:
    return ua.UserTokenType.UserName if client._username else ua.UserTokenType.Certificate if client.user_certificate else ua.UserTokenType.Anonymous


async def _create(client: GuardedClient, context: str) -> None:
    """CreateSession and ActivateSession; a session whose login was refused is closed again."""
    with plant(f"{context}: CreateSession"):
        await client.create_session()
    try:
        with plant(f"{context}: ActivateSession"):
            await client._activate_with_credentials()
    except (PlantError, TrustError):
        with contextlib.suppress(PlantError, TrustError):
            with plant(context):
                await client.uaclient.close_session(True)
        raise


async def _take_up(client: GuardedClient, resume: Resume, context: str) -> None:
    """ActivateSession of an existing session on this channel."""
    try:
        token = nodeid_from_binary(Buffer(bytes.fromhex(resume.token)))
        client._server_nonce = bytes.fromhex(resume.nonce)  # type: ignore[assignment]
        certificate = base64.b64decode(resume.certificate, validate=True)
    except (ValueError, ua.UaError) as error:
        raise ServiceFault(min(SESSION_GONE), context) from error
    if not client.security_policy.peer_certificate:
        client.security_policy.peer_certificate = certificate or None
    client.tokens = (Token(resume.policy_id, int(_token_type(client)), resume.policy_uri),)
    client.uaclient.session.restore_authentication_token(token)
    try:
        with plant(f"{context}: ActivateSession"):
            await client._activate_with_credentials()
    except (PlantError, TrustError):
        client.uaclient.session.reset_authentication_token()
        raise
