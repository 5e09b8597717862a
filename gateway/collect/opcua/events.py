"""Events and alarms of a server as readings: JSON text at the time of the event. Pure (OPC 10000-4 1.05, 7.25.3; OPC 10000-5, 6.4.2).

A tag of type "event" or "alarm" names an event notifier (i=2253 is the server itself); "alarm" asks for conditions only. One reading per event:

    {"id": EventId, "type": NodeId, "source": name, "message": text, "severity": 1..1000, ...}   null fields are left out

What is asked for, in this order, fields of conditions (OPC 10000-9, 5.5.2 and 5.8.2) last, so that a server without them can be asked for
the others alone. Which alarms are active when a subscription begins is read from the server's nodes (gateway.collect.opcua.active), or marked as
not known: to have them told again takes a Call, which we never send. A server whose queue of events was full says so with an event of its own
type: that reading is flagged OVERFLOW.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from buffer.errors import CorruptError
from buffer.types import Flag
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.reader import I64, Reader
from gateway.collect.opcua.variant import DATETIME, json_value, read_plain

if TYPE_CHECKING:
    from gateway.collect.opcua.decode import Items
    from gateway.settings import TagRow

BASE_EVENT, CONDITION, OVERFLOW_EVENT = "i=2041", "i=2782", "i=3035"
QUEUE: Final = 1_000  # events: a trip of a plant brings hundreds within a second


class Field(NamedTuple):
    """One select clause. path: browse names from the type down, all in namespace 0."""

    name: str
    type: str
    path: tuple[str, ...]


FIELDS: Final = (
    Field("id", BASE_EVENT, ("EventId",)),  # first: a text that is cut still begins with it
    Field("type", BASE_EVENT, ("EventType",)),
    Field("source_node", BASE_EVENT, ("SourceNode",)),
    Field("source", BASE_EVENT, ("SourceName",)),
    Field("time", BASE_EVENT, ("Time",)),
    Field("message", BASE_EVENT, ("Message",)),
    Field("severity", BASE_EVENT, ("Severity",)),
    Field("condition", CONDITION, ("ConditionName",)),
    Field("retain", CONDITION, ("Retain",)),
    Field("enabled", CONDITION, ("EnabledState", "Id")),
    Field("active", "i=2915", ("ActiveState", "Id")),
    Field("acked", "i=2881", ("AckedState", "Id")),
    Field("confirmed", "i=2881", ("ConfirmedState", "Id")),
)
BASE_FIELDS: Final = tuple(one for one in FIELDS if one.type == BASE_EVENT)
_FIELDS_MAX: Final = 256  # in one event: we ask for a dozen
_ID: Final = '{"id":"'


def is_event(tag: TagRow) -> bool:
    """Say whether a tag means events, not a value."""
    return tag.type in ("event", "alarm")


def event_id(text: str) -> str:
    """Return the EventId in the text of an event, base64; "" where the server gave none."""
    return text[len(_ID) : text.find('"', len(_ID))] if text.startswith(_ID) else ""


def is_condition(text: str) -> bool:
    """Say whether the text of an event may be that of a condition: one has at least a name and Retain (OPC 10000-9, 5.5.2)."""
    try:
        return not {"condition", "retain"}.isdisjoint(json.loads(text))
    except ValueError:
        return True  # cut


def decode_events(data: bytes, at: int, end: int, blank: Items, handles: bool = True) -> Items:
    """Return the events of one EventNotificationList body, or of a HistoryEvent, which has no handles; raise CorruptError.

    blank: as many items as `count_events` says.
    """
    reader = Reader(data, at, end)
    texts: list[str] = []
    for row in range(reader.count()):
        if handles:
            blank.handle[row] = reader.u32()
        plain: dict[str, object] = {}
        blank.source_ns[row] = _fields(reader, plain)
        value = json_value({name: said for name, said in plain.items() if said is not None}, reader)
        blank.kind[row], blank.values[row], blank.flags[row] = value.kind, len(texts), value.flags
        if plain.get("type") == OVERFLOW_EVENT:
            blank.flags[row] |= np.uint16(Flag.OVERFLOW)
        texts.append(str(value.value))
        reader.repaired = False
    return type(blank)(blank.handle, blank.kind, blank.values, blank.quality, blank.flags, blank.source_ns, tuple(texts))


def count_events(data: bytes, at: int, end: int, handles: bool = True) -> int:
    """Return how many events a body claims; not more than it has bytes for (handle and count of fields: 8)."""
    count = Reader(data, at, end).count()
    if count * (8 if handles else 4) > end - at:
        raise CorruptError("more events than bytes", offset=at)
    return count


def _fields(reader: Reader, plain: dict[str, object]) -> int:
    """Read the fields of one event into `plain`; return its time, ns."""
    time_ns = NO_TIME
    count = reader.count()
    if count > _FIELDS_MAX:
        raise CorruptError(f"an event of {count} fields", offset=reader.at)
    for place in range(count):
        start = reader.at
        said = read_plain(reader)
        if place >= len(FIELDS):
            continue
        name = FIELDS[place].name
        if name == "time":
            time_ns = _time(reader.data, start)
        else:
            plain[name] = said
    return time_ns


def _time(data: bytes, at: int) -> int:
    from gateway.collect.opcua.decode import ticks_to_ns

    return ticks_to_ns(I64.unpack_from(data, at + 1)[0]) if data[at] == DATETIME else NO_TIME
