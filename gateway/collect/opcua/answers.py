"""Answers of an OPC UA server, from bytes. Pure; never believes a length (OPC 10000-6 1.05 section 5.2, OPC 10000-4 1.05 section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from buffer.errors import CorruptError
from gateway.collect.opcua.decode import Items, blank_items, decode_items, join_items, ticks_to_ns
from gateway.collect.opcua.events import count_events, decode_events
from gateway.collect.opcua.reader import F64, I32, I64, Reader
from gateway.collect.opcua.variant import read_diagnostics, read_localized, read_node_id
from gateway.collect.status import describe, remedy
from gateway.errors import PlantError

if TYPE_CHECKING:
    from collections.abc import Callable

    Structure = Callable[[str, bytes], object] | None

PUBLISH_RESPONSE, REPUBLISH_RESPONSE, READ_RESPONSE, HISTORY_READ_RESPONSE, SERVICE_FAULT = 829, 835, 634, 667, 397
ITEMS_MAX: Final = 1_000_000  # in one message: a hundred times what is asked for (MaxNotificationsPerPublish)

_DATA_CHANGE, _STATUS_CHANGE, _EVENTS, _HISTORY_DATA = "i=811", "i=820", "i=916", "i=658"
_HISTORY_EVENT: Final = "i=661"
_BAD: Final = 0x8000_0000  # severity bit of a StatusCode (OPC 10000-4, 7.39)


class ServiceFault(PlantError):
    """The server answered a request with a bad status."""

    def __init__(self, status: int, context: str) -> None:
        super().__init__(f"{context}: the server answered {describe(status)}", remedy(status))
        self.status = status


@dataclass(frozen=True, slots=True)
class Message:
    """One NotificationMessage, its items not yet decoded. changes: where each DataChangeNotification lies; status: of a StatusChange."""

    sequence: int  # of this message; of the next one if there is no notification (keep-alive)
    publish_time_ns: int
    keep_alive: bool
    status: int | None
    changes: tuple[tuple[int, int], ...]
    data: bytes
    events: tuple[tuple[int, int], ...] = ()  # where each EventNotificationList lies


@dataclass(frozen=True, slots=True)
class PublishAnswer:
    """One PublishResponse."""

    subscription: int
    available: tuple[int, ...]  # what the server still holds for Republish
    more: bool
    message: Message
    results: tuple[int, ...]  # one StatusCode per acknowledgement sent


# ---- envelopes ----


def _response(data: bytes, wanted: int, context: str) -> Reader:
    """Return a reader behind the response header; raise ServiceFault or CorruptError."""
    reader = Reader(data, 0, len(data))
    kind = read_node_id(reader)
    reader.skip(12)  # time, request handle
    result = reader.u32()
    read_diagnostics(reader)
    for _ in range(reader.count()):
        reader.text()
    _skip_structure(reader)
    if result & _BAD or kind == f"i={SERVICE_FAULT}":
        raise ServiceFault(result, context)
    if kind != f"i={wanted}":
        message = f"{context}: answer of type {kind}"
        raise CorruptError(message)
    return reader


open_answer = _response  # for answers that are parsed elsewhere


def _skip_structure(reader: Reader) -> tuple[str, int, int]:
    """Move over an ExtensionObject; return its type and where its body lies."""
    kind = read_node_id(reader)
    if not reader.byte():
        return kind, reader.at, reader.at
    size = max(int(reader.number(I32)), 0)
    at = reader.skip(size)
    return kind, at, at + size


def _message(reader: Reader) -> Message:
    sequence = reader.u32()
    published = ticks_to_ns(int(reader.number(I64)))
    changes: list[tuple[int, int]] = []
    events: list[tuple[int, int]] = []
    status = None
    notifications = reader.count()
    for _ in range(notifications):
        kind, at, end = _skip_structure(reader)
        if kind == _DATA_CHANGE:
            changes.append((at, end))
        elif kind == _EVENTS:
            events.append((at, end))
        elif kind == _STATUS_CHANGE:
            status = Reader(reader.data, at, end).u32()
    return Message(sequence, published, notifications == 0, status, tuple(changes), reader.data, tuple(events))


def parse_publish(data: bytes) -> PublishAnswer:
    """Return a PublishResponse; raise ServiceFault or CorruptError. Items are decoded by `decode_message`."""
    reader = _response(data, PUBLISH_RESPONSE, "Publish")
    subscription = reader.u32()
    available = reader.u32s()
    more = bool(reader.byte())
    message = _message(reader)
    return PublishAnswer(subscription, available, more, message, reader.u32s())


def parse_republish(data: bytes) -> Message:
    """Return the message of a RepublishResponse; raise ServiceFault or CorruptError."""
    return _message(_response(data, REPUBLISH_RESPONSE, "Republish"))


def decode_message(message: Message, structure: Structure = None) -> Items:
    """Return the items of a message; raise CorruptError."""
    parts = []
    for at, end in message.changes:
        reader = Reader(message.data, at, end)
        count = _item_count(reader)
        parts.append(decode_items(message.data, reader.at, end, count, 4, structure)[0])
    for at, end in message.events:
        count = count_events(message.data, at, end)
        parts.append(decode_events(message.data, at, end, blank_items(count)))
    return parts[0] if len(parts) == 1 else join_items(parts)


def decode_read(data: bytes, structure: Structure = None) -> Items:
    """Return the values of a ReadResponse in the order of the request; raise ServiceFault or CorruptError."""
    reader = _response(data, READ_RESPONSE, "Read")
    count = _item_count(reader)
    return decode_items(data, reader.at, len(data), count, 0, structure)[0]


class History(NamedTuple):
    """One HistoryReadResult. point: continuation point, b"" at the end."""

    status: int
    point: bytes
    items: Items


def decode_history(data: bytes, structure: Structure = None) -> list[History]:
    """Return the results of a HistoryReadResponse in the order of the request; raise ServiceFault or CorruptError."""
    reader = _response(data, HISTORY_READ_RESPONSE, "HistoryRead")
    results = []
    for _ in range(reader.count()):
        status = reader.u32()
        point = reader.blob() or b""
        kind, at, end = _skip_structure(reader)
        if kind == _HISTORY_EVENT:
            blank = blank_items(count_events(data, at, end, handles=False))
            results.append(History(status, point, decode_events(data, at, end, blank, handles=False)))
            continue
        body = Reader(data, at, end)
        count = _item_count(body) if kind == _HISTORY_DATA else 0
        results.append(History(status, point, decode_items(data, body.at, end, count, 0, structure)[0]))
    return results


def _item_count(reader: Reader) -> int:
    count = reader.count()
    if count > ITEMS_MAX:
        message = f"{count} items in one message"
        raise CorruptError(message)
    return count


# ---- subscriptions and browsing ----


class CreatedItem(NamedTuple):
    """What the server made of one monitored item. status: StatusCode; sampling in ms."""

    status: int
    item: int
    sampling_ms: float
    queue: int


def parse_subscription(data: bytes) -> tuple[int, float, int, int]:
    """Return id, publishing interval in ms, lifetime count and keep-alive count of a CreateSubscriptionResponse."""
    reader = _response(data, 790, "CreateSubscription")
    return reader.u32(), float(reader.number(F64)), reader.u32(), reader.u32()


def parse_created_items(data: bytes) -> list[CreatedItem]:
    """Return the results of a CreateMonitoredItemsResponse in the order of the request."""
    reader = _response(data, 754, "CreateMonitoredItems")
    made = []
    for _ in range(reader.count()):
        made.append(CreatedItem(reader.u32(), reader.u32(), float(reader.number(F64)), reader.u32()))
        _skip_structure(reader)
    return made


def parse_transfer(data: bytes) -> list[tuple[int, tuple[int, ...]]]:
    """Return status and available message numbers per subscription of a TransferSubscriptionsResponse."""
    reader = _response(data, 844, "TransferSubscriptions")
    return [(reader.u32(), reader.u32s()) for _ in range(reader.count())]


class Reference(NamedTuple):
    """One reference found by Browse. node_class: 1 Object, 2 Variable, ... (OPC 10000-3, 8.29)."""

    node: str
    name: str
    node_class: int
    kind: str  # type of the reference: i=46 HasProperty, i=47 HasComponent, ...


def parse_browse(data: bytes, following: bool) -> list[tuple[int, bytes, list[Reference]]]:
    """Return status, continuation point and references per node of a BrowseResponse, or of a BrowseNextResponse."""
    reader = _response(data, 536 if following else 530, "Browse")
    results = []
    for _ in range(reader.count()):
        status, point = reader.u32(), reader.blob() or b""
        references = []
        for _ in range(reader.count()):
            kind = read_node_id(reader)
            reader.byte()  # forward
            node = read_node_id(reader)
            reader.skip(2)
            name = reader.text() or ""
            read_localized(reader)
            references.append(Reference(node, name, int(reader.number(I32)), kind))
            read_node_id(reader)  # type definition
        results.append((status, point, references))
    return results
