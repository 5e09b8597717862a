"""Which alarms are active when nobody has told us since: read from the conditions a server keeps as nodes. Browse and read; never a Call.

A new subscription brings events from now on; which alarms were active before, or went while we were away, it does not say. Where the server
shows its conditions (OPC 10000-9, 4.11: HasEventSource and HasCondition from the notifier down), each retained one is a reading:

    the fields of an event that the node has, ts: when the reading of nodes began, ts_source: its own Time, flags INITIAL and MARKER

and a marker of quality Good after them says: these, and no others. Where it shows none, or does not answer in full, the marker says
Bad_WaitingForInitialData: not known before each alarm's next change. On an outage that lost nothing the marker says Good by itself.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer import limits
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.browse import references
from gateway.collect.opcua.events import FIELDS
from gateway.collect.opcua.session import VALUE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.collect.opcua.session import Session

BAD_WAITING_FOR_INITIAL_DATA: Final = 0x8032_0000
DEPTH_MAX: Final = 10  # notifiers and sources under each other
NODES_MAX: Final = 1_000  # sources looked at, and conditions: a request for ten of them at most servers
_HAS_EVENT_SOURCE, _HAS_CONDITION = "i=36", "i=9006"
_STATES: Final = {field.path[0] for field in FIELDS if len(field.path) > 1}


@dataclass(slots=True)
class Condition:
    """One alarm as its nodes say. time_ns: of its last change, NO_TIME if it does not say."""

    node: str
    fields: dict[str, object] = field(default_factory=dict)
    time_ns: int = NO_TIME

    @property
    def active(self) -> bool:
        """Whether it is of interest now: what OPC UA calls retained."""
        return self.fields.get("retain") is True

    @property
    def text(self) -> str:
        """The reading's value, as of an event."""
        text = json.dumps(self.fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text if len(text.encode()) <= limits.TEXT_BYTES_MAX else json.dumps({"condition": self.node})


async def read_conditions(session: Session, notifier: str) -> list[Condition] | None:
    """Return every condition under a notifier; None where the server shows none, or not all. Raise PlantError, CorruptError."""
    try:
        found = await _find(session, notifier)
        if not found:
            return None
        nodes = await _field_nodes(session, found)
        values = await session.read([node for _, _, node in nodes], VALUE)
    except ServiceFault:
        return None
    conditions = {node: Condition(node) for node in found}
    for row, (node, name, _) in enumerate(nodes):
        said = values.value(row)
        if name == "time":
            conditions[node].time_ns = _moment(said)
        elif said is not None and (not isinstance(said, float) or math.isfinite(said)):  # NaN and Infinity are no JSON
            conditions[node].fields[name] = said
    known = list(conditions.values())
    return known if all("retain" in one.fields for one in known) else None


def _moment(said: object) -> int:
    """Return microseconds as ns; NO_TIME for no number, or one that 64 bits cannot hold: a Time that was never set is of 1601."""
    ns = said * 1_000 if type(said) is int else NO_TIME
    return ns if NO_TIME < ns < -NO_TIME else NO_TIME


async def _find(session: Session, notifier: str) -> list[str]:
    """Return the nodes of all conditions; empty where there are more sources or conditions than can be looked at."""
    seen, level = {notifier}, [notifier]
    found: dict[str, None] = {}
    for _ in range(DEPTH_MAX):
        for children in await _children(session, level, _HAS_CONDITION):
            found.update(dict.fromkeys(node for _, node in children))
        below = [node for children in await _children(session, level, _HAS_EVENT_SOURCE) for _, node in children]
        level = [node for node in dict.fromkeys(below) if node not in seen]
        seen.update(level)
        if len(seen) > NODES_MAX or len(found) > NODES_MAX:
            return []
        if not level:
            return list(found)
    return []


async def _field_nodes(session: Session, found: list[str]) -> list[tuple[str, str, str]]:
    """Return (condition, name of the field, node that holds its value)."""
    first = [dict(children) for children in await _children(session, found)]
    states = [(node, name, has[name]) for node, has in zip(found, first, strict=True) for name in _STATES if name in has]
    ids = await _children(session, [state for _, _, state in states])
    inner = {(node, name): dict(children).get("Id") for (node, name, _), children in zip(states, ids, strict=True)}
    out = []
    for node, has in zip(found, first, strict=True):
        for one in FIELDS:
            holds = inner.get((node, one.path[0])) if len(one.path) > 1 else has.get(one.path[0])
            if holds:
                out.append((node, one.name, holds))
    return out


async def _children(session: Session, nodes: list[str], along: str = "") -> list[Iterable[tuple[str, str]]]:
    """Return (browse name, node) of each node's children; along: a type of reference, hierarchical ones by default."""
    out: list[Iterable[tuple[str, str]]] = []
    size = session.facts.limits["MaxNodesPerBrowse"]
    for at in range(0, len(nodes), size):
        out += [[(one.name, one.node) for one in answered] for answered in await references(session, nodes[at : at + size], along)]
    return out
