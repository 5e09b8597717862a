"""Monitored items of one subscription: which are wanted, created sorted by type, each refused one alone, tried again later."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.collect.opcua import events
from gateway.collect.opcua.address import parse_address
from gateway.collect.opcua.events import is_event
from gateway.collect.opcua.items import Wish
from gateway.collect.opcua.session import DATA_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.collect.opcua.session import Session
    from gateway.settings import OpcuaSource, TagRow

KEEP_ALIVE_S: Final = 10.0  # a subscription that says nothing for longer is dead; less where a heartbeat needs proof of life more often
LIFETIME_S: Final = 600.0  # how long it waits for us over a cut
OUTAGE_S: Final = 60.0  # of values in the server's queue per item
QUEUE_MAX: Final = 1_000  # values per item: memory of the server
NOTIFICATIONS_MAX: Final = 10_000  # values per message: one block, and far below MESSAGE_BYTES_MAX
NO_SUCH_NAMESPACE: Final = 0x8034_0000  # BadNodeIdUnknown: said by us, before the server is asked

FILTER_REFUSED: Final = frozenset({0x8043_0000, 0x8044_0000, 0x8045_0000, 0x8047_0000, 0x808E_0000})  # MonitoredItemFilter*, Event, Deadband


def digest_of(settings: OpcuaSource) -> str:
    """Return a digest of everything that shapes the items: a subscription made for another one is not ours to keep."""
    tags = sorted(settings.tags, key=lambda tag: tag.number)
    rows = [(tag.number, tag.address, tag.every_ns, tag.deadband, tag.scale, *(_event_shape(tag) if is_event(tag) else [])) for tag in tags]
    shape = [settings.publish_ns, keep_alive_s(settings), sorted(settings.namespaces.items()), rows]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:32]


def _event_shape(tag: TagRow) -> list[object]:
    return [tag.type, [one.name for one in events.FIELDS]]


def keep_alive_s(settings: OpcuaSource) -> float:
    """Return how long a subscription may say nothing: half the shortest heartbeat, for each heartbeat waits for a proof of life."""
    shortest = min((tag.heartbeat_ns for tag in settings.tags if tag.heartbeat_ns > 0), default=0)
    return min(KEEP_ALIVE_S, max(settings.publish_ns, shortest // 2) / 1e9) if shortest else KEEP_ALIVE_S


def revised_keep_alive_s(interval_ms: float, count: int) -> float:
    """Return how long the server says it may say nothing; what no time can be is taken as KEEP_ALIVE_S."""
    said_s = interval_ms * count / 1000
    return said_s if 0 < said_s < math.inf else KEEP_ALIVE_S


def wish_of(tag: TagRow, node: str, publish_ns: int) -> Wish:
    """Return the monitored item of a tag: sampled as often as the tag says, with a queue that bridges an outage."""
    if is_event(tag):
        return Wish(tag.number, node, 0, events.QUEUE, 0.0, events.FIELDS, tag.type == "alarm")
    sampling_ms = tag.every_ns / 1e6
    queue = min(QUEUE_MAX, 2 * math.ceil(max(publish_ns, 10**6) / max(tag.every_ns, 10**6)) + math.ceil(OUTAGE_S * 1000 / max(sampling_ms, 1)))
    return Wish(tag.number, node, sampling_ms, queue, tag.deadband / abs(tag.scale) if tag.scale else 0.0)


async def create(session: Session, settings: OpcuaSource, subscription: int, tags: Sequence[TagRow]) -> tuple[list[int], dict[int, int], list[str]]:
    """Create the items of these tags; return the numbers of accepted tags, refused number -> status, ids that got no deadband."""
    nodes = {tag.number: parse_address(tag.address, settings.namespaces).node_id(session.facts.namespaces) for tag in tags}
    refused = {number: NO_SUCH_NAMESPACE for number, node in nodes.items() if node is None}
    known = [tag for tag in tags if tag.number not in refused]
    wishes = {tag.number: wish_of(tag, nodes[tag.number] or "", settings.publish_ns) for tag in known}
    if len(known) > 1:
        known = await _by_type(session, known, wishes)
    bare: list[str] = []
    made = await session.create_items(subscription, [wishes[tag.number] for tag in known])
    results = {tag.number: result.status for tag, result in zip(known, made, strict=True)}
    plain = {tag.number: plainer(wishes[tag.number]) for tag in known}
    again = [tag for tag in known if results[tag.number] in FILTER_REFUSED and plain[tag.number] != wishes[tag.number]]
    if again:
        made = await session.create_items(subscription, [plain[tag.number] for tag in again])
        results |= {tag.number: result.status for tag, result in zip(again, made, strict=True)}
        bare = [tag.id for tag in again if not results[tag.number] >> 31 and not is_event(tag)]
    refused |= {number: status for number, status in results.items() if status >> 31}
    return [number for number, status in results.items() if not status >> 31], refused, bare


def plainer(wish: Wish) -> Wish:
    """Return what to ask for where the filter was refused: every change, or the fields that every event has."""
    return replace(wish, events=events.BASE_FIELDS, conditions=False) if wish.events else replace(wish, deadband=0.0)


async def _by_type(session: Session, tags: Sequence[TagRow], wishes: dict[int, Wish]) -> list[TagRow]:
    """Sort by data type: servers report in the order of creation, and long runs of one type decode fastest."""
    listed = [tag for tag in tags if not is_event(tag)]
    last = [tag for tag in tags if is_event(tag)]
    types = await session.read([wishes[tag.number].node for tag in listed], DATA_TYPE)
    names = [str(types.value(row)) for row in range(len(listed))]
    return [tag for _, _, tag in sorted(zip(names, range(len(listed)), listed, strict=True))] + last
