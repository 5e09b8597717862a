"""`ebbgate browse`: what an OPC UA server has, as rows of a tag table. Bounded in nodes, depth and requests, whatever the server answers.

Breadth first along hierarchical references, each node once (address spaces are graphs, often with cycles). Variables become rows, their
properties the columns: EngineeringUnits, EURange, EnumStrings, EnumValues, TrueState and FalseState (OPC 10000-8), those of enumerated
data types too (OPC 10000-3, 5.8.3), Description, MinimumSamplingInterval, ArrayDimensions where they are fixed. A variable that this
account cannot read is left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.collect.opcua.address import parse_address
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.probe import TYPE_NAMES, contact, no_namespace, show
from gateway.collect.opcua.session import DATA_TYPE, USER_ACCESS_LEVEL, VALUE
from gateway.collect.status import describe
from gateway.errors import PlantError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gateway.collect.opcua.answers import Reference
    from gateway.collect.opcua.decode import Items
    from gateway.collect.opcua.session import Session
    from gateway.runtime import Runtime
    from gateway.settings import OpcuaSource

NODES_MAX: Final = 10_000  # variables listed by one browse unless more are asked for
NODES_LIMIT: Final = 200_000  # at the most: more is another start node
DEPTH_MAX: Final = 20
SEEN_PER_NODE: Final = 10  # references followed for each variable wanted: folders, properties, methods
PAGES_MAX: Final = 10_000  # BrowseNext for one node; then it gives no end
NAME_CHARS_MAX: Final = 200  # of one step of a path
_NODE_CLASS, _BROWSE_NAME, _DESCRIPTION, _ARRAY_DIMENSIONS, _MINIMUM_SAMPLING = 2, 3, 5, 16, 19  # attribute ids (OPC 10000-6, A.1)
ATTRIBUTES: Final = (VALUE, DATA_TYPE, USER_ACCESS_LEVEL, _DESCRIPTION, _MINIMUM_SAMPLING, _ARRAY_DIMENSIONS)  # read of each variable
_BAD: Final = 31  # bit of a StatusCode that means Bad
_READ: Final = 0b01  # CurrentRead bit of UserAccessLevel
_OBJECT, _VARIABLE = 1, 2
_HAS_PROPERTY: Final = "i=46"
_OBJECTS_FOLDER, _SERVER_NODE = "i=85", "i=2253"
_NO_CONTINUATION_POINTS: Final = 0x804B_0000
_CONTEXT: Final = ("EngineeringUnits", "EURange", "EnumStrings", "EnumValues", "TrueState", "FalseState")


@dataclass(slots=True)
class Variable:
    """One variable found. Texts are the server's own: hostile until encoded. context: values of its properties of OPC 10000-8, by name."""

    node: str
    path: tuple[str, ...]
    type: str = ""
    value: str = ""
    description: str = ""
    sampling_ms: float = 0.0
    dimensions: str = ""  # of an array, JSON text; 0: it varies
    readable: bool = True
    context: dict[str, object] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Found:
    """What a browse found. stopped: why it did not see everything, "" if it did."""

    namespaces: tuple[str, ...] = ()
    variables: list[Variable] = field(default_factory=list)
    seen: int = 0
    hidden: int = 0  # variables this account cannot read
    stopped: str = ""


Thing = TypeVar("Thing")


async def browse(
    settings: OpcuaSource,
    runtime: Runtime,
    directory: Path,
    *,
    root: str = "",
    depth: int = DEPTH_MAX,
    most: int = NODES_MAX,
    attributes: bool = True,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> Found:
    """List the variables under a node (the Objects folder without the server's own by default); with attributes: all that a row needs.

    progress(what is done, how much of it, of how much; 0: nobody knows). Raise ConfigError, PlantError, TrustError, SourceBusy.
    """
    place = parse_address(root, settings.namespaces) if root else None
    async with contact(settings, runtime, directory) as session:
        start: str | None = _OBJECTS_FOLDER
        if place is not None:
            start = place.node_id(session.facts.namespaces)
        if start is None:
            raise no_namespace(root, session)
        said = int((await session.read([start], _NODE_CLASS)).quality[0])
        if said >> _BAD:
            raise PlantError(f"{start}: the server answered {describe(said)}", "Begin at a node that it has: without --root at Objects.")
        found = Found(session.facts.namespaces)
        await _walk(session, start, found, min(depth, DEPTH_MAX), min(most, NODES_LIMIT), progress)
        if attributes and found.variables:
            await _describe(session, found, runtime.wall_ns(), progress)
        return found


# ---- walking ----


async def _walk(session: Session, start: str, found: Found, depth: int, most: int, progress: Callable[[str, int, int], None]) -> None:
    seen = {start, _SERVER_NODE} if start != _SERVER_NODE else {start}
    level: list[tuple[str, tuple[str, ...], Variable | None]] = [(start, (), None)]
    for _ in range(depth):
        below: list[tuple[str, tuple[str, ...], Variable | None]] = []
        for chunk in _chunks(level, session.facts.limits["MaxNodesPerBrowse"]):
            for (_, path, owner), children in zip(chunk, await references(session, [node for node, _, _ in chunk]), strict=True):
                _take(found, seen, below, path, owner, children)
            progress("browsed", found.seen, 0)
            if len(found.variables) >= most:
                found.stopped = f"stopped at {most:,} variables"
                del found.variables[most:]
                return
            if len(seen) > most * SEEN_PER_NODE + 1_000:
                found.stopped = f"stopped after {len(seen):,} nodes"
                return
        level = below
        if not level:
            return
    found.stopped = f"stopped {depth} levels down"


def _take(
    found: Found,
    seen: set[str],
    below: list[tuple[str, tuple[str, ...], Variable | None]],
    path: tuple[str, ...],
    owner: Variable | None,
    children: Sequence[Reference],
) -> None:
    """Sort the children of one node into variables, properties of the variable that owns them, and what is to be browsed next."""
    for one in children:
        if owner is not None and one.kind == _HAS_PROPERTY and one.name in _CONTEXT:
            owner.properties.setdefault(one.name, one.node)
        if one.node in seen or one.node_class not in (_OBJECT, _VARIABLE) or one.node.startswith("svr="):
            continue
        seen.add(one.node)
        found.seen += 1
        if one.kind == _HAS_PROPERTY:
            continue
        step = (*path, one.name[:NAME_CHARS_MAX])
        variable = Variable(one.node, step) if one.node_class == _VARIABLE else None
        if variable is not None:
            found.variables.append(variable)
        below.append((one.node, step, variable))


async def references(session: Session, nodes: list[str], along: str = "") -> list[list[Reference]]:
    """Return the children of nodes. A server that has too few continuation points for all of them is asked one by one.

    along: a type of reference, hierarchical ones by default.
    """
    answered = await session.browse(nodes, along)
    if len(nodes) > 1 and any(status == _NO_CONTINUATION_POINTS for status, _, _ in answered):
        answered = [one for node in nodes for one in await session.browse([node], along)]
    answered += [(0, b"", [])] * (len(nodes) - len(answered))
    all_ = []
    for _, point, children in answered[: len(nodes)]:
        pages = 0
        while point and pages < PAGES_MAX:
            _, point, more = await session.browse_next(point)
            children += more
            pages += 1
        all_.append(children)
    return all_


def _chunks(things: list[Thing], size: int) -> list[list[Thing]]:
    return [things[at : at + size] for at in range(0, len(things), size)]


# ---- describing ----


async def _describe(session: Session, found: Found, now_ns: int, progress: Callable[[str, int, int], None]) -> None:
    total = len(found.variables)
    for done, chunk in enumerate(_chunks(found.variables, session.facts.limits["MaxNodesPerRead"])):
        nodes = [one.node for one in chunk]
        read = {one: await _read(session, nodes, one) for one in ATTRIBUTES}
        for row, variable in enumerate(chunk):
            _fill(variable, read, row, now_ns)
        progress("described", min((done + 1) * len(chunk), total), total)
    found.hidden = sum(not one.readable for one in found.variables)
    found.variables = [one for one in found.variables if one.readable]
    await _properties(session, [(one, one.properties) for one in found.variables])
    await _types(session, found.variables)


async def _read(session: Session, nodes: list[str], attribute: int) -> Items | None:
    """Return an attribute of nodes; None where the server refuses the request as a whole."""
    try:
        return await session.read(nodes, attribute)
    except ServiceFault:
        return None


def _fill(variable: Variable, read: dict[int, Items | None], row: int, now_ns: int) -> None:
    values, types, access = read[VALUE], read[DATA_TYPE], read[USER_ACCESS_LEVEL]
    if values is not None and types is not None:
        shown = show(variable.node, values, types, row, now_ns)
        variable.type, variable.value = shown.type, shown.value
    level = access.value(row) if access is not None else None
    variable.readable = type(level) is not int or bool(level & _READ)
    dimensions = read[_ARRAY_DIMENSIONS]
    size = dimensions.value(row) if dimensions is not None else None
    variable.dimensions = size if isinstance(size, str) else ""
    texts = read[_DESCRIPTION]
    said = texts.value(row) if texts is not None else None
    variable.description = said if isinstance(said, str) else ""
    intervals = read[_MINIMUM_SAMPLING]
    interval = intervals.value(row) if intervals is not None else None
    variable.sampling_ms = interval if isinstance(interval, float) and 0 < interval < float("inf") else 0.0


async def _properties(session: Session, owners: Sequence[tuple[Variable, dict[str, str]]]) -> None:
    wanted = [(variable, name, node) for variable, properties in owners for name, node in properties.items()]
    if not wanted:
        return
    nodes = list(dict.fromkeys(node for _, _, node in wanted))
    values = await _read(session, nodes, VALUE)
    if values is not None:
        rows = {node: row for row, node in enumerate(nodes)}
        for variable, name, node in wanted:
            variable.context.setdefault(name, values.value(rows[node]))


async def _types(session: Session, variables: Sequence[Variable]) -> None:
    """Name data types that are not of the standard, and take over the texts of enumerated ones."""
    kinds = sorted({one.type for one in variables if one.type not in TYPE_NAMES.values() and "=" in one.type})
    if not kinds:
        return
    names = await _read(session, kinds, _BROWSE_NAME)
    properties: dict[str, dict[str, str]] = {}
    for chunk in _chunks(kinds, session.facts.limits["MaxNodesPerBrowse"]):
        for kind, children in zip(chunk, await references(session, chunk), strict=True):
            properties[kind] = {one.name: one.node for one in children if one.kind == _HAS_PROPERTY and one.name in _CONTEXT}
    await _properties(session, [(one, properties[one.type]) for one in variables if one.type in properties])
    for one in variables:
        if one.type in properties:
            named = names.value(kinds.index(one.type)) if names is not None else None
            one.type = str(named).rpartition(":")[2] if named else one.type
