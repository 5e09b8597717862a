"""Which alarms are active, from nodes: all or nothing, bounded, and markers that a later outage replaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from buffer.types import GOOD, Flag, Kind
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.active import BAD_WAITING_FOR_INITIAL_DATA, NODES_MAX, read_conditions
from gateway.collect.opcua.answers import Reference, ServiceFault
from gateway.collect.opcua.decode import Items
from gateway.collect.opcua.facts import Facts
from gateway.collect.opcua.readings import TagStates
from tests.support.sinks import rows_of
from tests.unit.test_opcua_readings import doubles, known, tag

SOURCE, CONDITION = "i=36", "i=9006"


class Server:
    """Stands in for a session. children: (node, along) -> (name, node); values: node -> number."""

    def __init__(self, children: dict[tuple[str, str], list[tuple[str, str]]], values: dict[str, float]) -> None:
        self.children, self.values, self.requests = children, values, 0
        self.facts = Facts((), 0, 0, {"MaxNodesPerBrowse": 2})

    async def browse(self, nodes: Sequence[str], along: str) -> list[tuple[int, bytes, list[Reference]]]:
        self.requests += 1
        assert len(nodes) <= 2
        return [(0, b"", [Reference(node, name, 2, "i=47") for name, node in self.children.get((one, along), [])]) for one in nodes]

    async def read(self, nodes: Sequence[str], attribute: int) -> Items:
        self.requests += 1
        return doubles(*((0, self.values.get(node, 0.0), 0) for node in nodes))


def plant(*conditions: str, **more: list[tuple[str, str]]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    out = {("server", SOURCE): [("area", "area")], ("area", SOURCE): [("area", "area"), ("server", "server"), ("press", "press")]}
    out["press", CONDITION] = [(one, one) for one in conditions]
    for one in conditions:
        out[one, ""] = more.get(one, [("Retain", f"{one}.r"), ("Severity", f"{one}.s"), ("ActiveState", f"{one}.a"), ("Other", "x")])
        out[f"{one}.a", ""] = [("Id", f"{one}.a.id"), ("Name", "x")]
    return out


async def test_conditions_under_notifiers_that_hold_each_other() -> None:
    server = Server(plant("c1", "c2"), {"c1.s": 700.0, "c1.a.id": 1.0})
    found = await read_conditions(server, "server")  # type: ignore[arg-type]
    assert found is not None
    assert [(one.node, one.fields) for one in found] == [
        ("c1", {"severity": 700.0, "retain": 0.0, "active": 1.0}),
        ("c2", {"severity": 0.0, "retain": 0.0, "active": 0.0}),
    ]
    assert not found[0].active, "only a Boolean true is"


async def test_a_time_never_set_and_numbers_that_are_no_json() -> None:
    """DateTime 0 is of 1601, which no ns of 64 bits hold; "maximum" is of 9999."""
    has = {"c1": [("Retain", "c1.r"), ("Severity", "c1.s"), ("Time", "c1.t")], "c2": [("Retain", "c2.r"), ("Severity", "c2.s"), ("Time", "c2.t")]}
    at = {"c1.t": -11_644_473_600_000_000, "c2.t": 910_692_730_085_477_580}

    class Times(Server):
        async def read(self, nodes: Sequence[str], attribute: int) -> Items:
            items = doubles(*((0, float("inf") if node.endswith(".s") else 1.0, 0) for node in nodes))
            for row, node in enumerate(nodes):
                items.kind[row] = Kind.INT64 if node.endswith(".t") else Kind.BOOL if node.endswith(".r") else Kind.DOUBLE
                items.values[row] = items.values[row] if node.endswith(".s") else np.uint64(at.get(node, 1) & (2**64 - 1))
            return items

    found = await read_conditions(Times(plant("c1", "c2", **has), {}), "server")  # type: ignore[arg-type]
    assert found is not None
    assert [(one.active, one.time_ns, one.text) for one in found] == [(True, NO_TIME, '{"retain":true}')] * 2


async def test_none_and_not_all_are_not_known() -> None:
    assert await read_conditions(Server({}, {}), "server") is None  # type: ignore[arg-type]
    half = Server(plant("c1", "c2", c2=[("Severity", "c2.s")]), {})
    assert await read_conditions(half, "server") is None, "a condition that does not say whether it is retained"  # type: ignore[arg-type]
    endless = Server({(f"n{n}", SOURCE): [("m", f"n{m}") for m in range(4 * n + 1, 4 * n + 5)] for n in range(100_000)}, {})
    assert await read_conditions(endless, "n0") is None  # type: ignore[arg-type]
    assert endless.requests < 2 * NODES_MAX + 20


async def test_a_server_that_refuses_is_not_known() -> None:
    class Refuses(Server):
        async def read(self, nodes: Sequence[str], attribute: int) -> Items:
            raise ServiceFault(0x8001_0000, "Read")

    assert await read_conditions(Refuses(plant("c1"), {}), "server") is None  # type: ignore[arg-type]


def test_a_marker_that_tells_gives_way_to_the_next_outage() -> None:
    states = TagStates([tag(17), tag(18)], {17: known(1.0, 5)})
    assert len(states.mark(1, 10)) == 1
    told = list(rows_of(states.tell([17, 18], BAD_WAITING_FOR_INITIAL_DATA, 20)))
    assert [(row.tag, row.ts_ns, row.value, row.quality, row.flags) for row in told] == [
        (number, 20, None, BAD_WAITING_FOR_INITIAL_DATA, Flag.MARKER) for number in (17, 18)
    ]
    assert len(states.mark(1, 30)) == 1, "marked once more"
    assert np.all(states.tell([17], GOOD, 40).quality == 0)
