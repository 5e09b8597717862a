"""Monitored items: what a tag wants of a server, as asyncua's request objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.collect.opcua.events import CONDITION
from gateway.collect.opcua.guarded import plant, ua

if TYPE_CHECKING:
    from gateway.collect.opcua.events import Field

EVENT_NOTIFIER, VALUE = 12, 13  # attribute ids (OPC 10000-6, A.1)


@dataclass(frozen=True, slots=True)
class Wish:
    """One monitored item as asked for. deadband: absolute, raw units; 0: every change."""

    handle: int
    node: str
    sampling_ms: float
    queue: int
    deadband: float
    events: tuple[Field, ...] = ()  # what to tell of each event; empty: the node's value
    conditions: bool = False  # of conditions only


def node_id(text: str) -> Any:
    """Return asyncua's NodeId; raise PlantError if no such text can be one."""
    with plant(f"node {text!r}"):
        return ua.NodeId.from_string(text)


def make_item(wish: Wish) -> Any:
    """Return asyncua's MonitoredItemCreateRequest."""
    item = ua.MonitoredItemCreateRequest()
    item.ItemToMonitor = ua.ReadValueId(NodeId=node_id(wish.node), AttributeId=EVENT_NOTIFIER if wish.events else VALUE)
    item.MonitoringMode = ua.MonitoringMode.Reporting
    asked = item.RequestedParameters
    asked.ClientHandle, asked.SamplingInterval, asked.QueueSize, asked.DiscardOldest = wish.handle, wish.sampling_ms, wish.queue, True
    if wish.events:
        asked.Filter = event_filter(wish)
    elif wish.deadband > 0:
        asked.Filter = ua.DataChangeFilter(ua.DataChangeTrigger.StatusValue, int(ua.DeadbandType.Absolute), wish.deadband)
    return item


def event_filter(wish: Wish) -> Any:
    """Return asyncua's EventFilter, of a subscription and of a question for history alike."""
    clauses = [
        ua.SimpleAttributeOperand(node_id(one.type), [ua.QualifiedName(name, 0) for name in one.path], AttributeId=ua.AttributeIds.Value)
        for one in wish.events
    ]
    where = ua.ContentFilter()
    if wish.conditions:
        operand = ua.LiteralOperand(ua.Variant(node_id(CONDITION), ua.VariantType.NodeId))
        where.Elements = [ua.ContentFilterElement(ua.FilterOperator.OfType, [operand])]
    return ua.EventFilter(clauses, where)
