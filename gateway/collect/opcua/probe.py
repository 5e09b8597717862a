"""First contact with an OPC UA server, for `ebbgate trust`, `browse`, `read` and `check`. Obeys and charges the same load contract as collect.

Runs as collect's user, under collect's lock: never beside a running source of the same name. Every request passes the guard; the
session is closed at the end. What could write is found by reading UserAccessLevel, never by trying.
"""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.storage import publish_file
from buffer.types import Kind
from gateway.collect.clock import NO_TIME
from gateway.collect.load import Budget
from gateway.collect.opcua import subscribe
from gateway.collect.opcua.address import parse_address
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.guarded import SESSION_TIMEOUT_S, endpoint_of, make_policy
from gateway.collect.opcua.session import DATA_TYPE, LOGIN_REFUSED, USER_ACCESS_LEVEL, VALUE, Session, server_certificates
from gateway.collect.opcua.state import STATE_BYTES_MAX, SourceState, parse_state
from gateway.collect.opcua.subscribe import KEEP_ALIVE_S, LIFETIME_S, NOTIFICATIONS_MAX, QUEUE_MAX
from gateway.collect.opcua.throttle import Throttle
from gateway.errors import ConfigError, PlantError, TrustError
from gateway.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from gateway.collect.opcua.decode import Items
    from gateway.runtime import Runtime
    from gateway.settings import OpcuaSource, TagRow

BROWSE_NODES_MAX: Final = 10_000  # variables listed by one browse: more is another start node
BROWSE_DEPTH_MAX: Final = 20
TAGS_NAMED_MAX: Final = 20  # in one finding
_WRITE: Final = 0b10  # CurrentWrite bit of UserAccessLevel (OPC 10000-3, 8.57)
_OBJECT, _VARIABLE = 1, 2
_OBJECTS_FOLDER: Final = "i=85"
_SERVER_NODE: Final = "i=2253"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What `trust` shows and, when the person says yes, writes. security: the endpoints that show it, as "Basic256Sha256 SignAndEncrypt"."""

    der: bytes
    sha1: str
    sha256: str
    security: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One value as a person reads it. age_s: since the source's time, None where it gave none."""

    address: str
    value: str
    type: str
    quality: int
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One variable found by browsing: what a row of tags.csv needs."""

    address: str
    path: str
    type: str
    value: str


@asynccontextmanager
async def _contact(settings: OpcuaSource, runtime: Runtime, directory: Path) -> AsyncIterator[Session]:
    """Give a session under the load contract, with the same rules for sessions and logins as the source itself."""
    path = directory / f"{settings.name}.json"
    state = parse_state(path.read_bytes()[:STATE_BYTES_MAX] if path.exists() else None)
    throttle = _throttle(settings, runtime, state)

    def may_create(_gone: bool) -> None:
        wait = state.wait_for_session_ns(runtime.wall_ns(), int(SESSION_TIMEOUT_S * 1e9))
        if wait:
            raise PlantError(f"the server may still hold our last session for {wait / 1e9:.0f} s", "Wait, then try again.")
        state.session_asked(runtime.wall_ns())

    session = None
    try:
        session = await Session.connect(settings, settings.urls[0], throttle, None, may_create)
        await session.read_facts(runtime.wall_ns)
        yield session
    except ServiceFault as fault:
        if fault.status in LOGIN_REFUSED:
            state.session_gone = True
        raise
    finally:
        if session is not None:
            state.session_gone = await session.close()
        state.load = dict(throttle.budget.export(runtime.monotonic_ns(), runtime.wall_ns()))
        publish_file(path, state.encode(), mode=0o600)


def _throttle(settings: OpcuaSource, runtime: Runtime, state: SourceState) -> Throttle:
    return Throttle(Budget(settings.load, runtime.monotonic_ns(), state.load, runtime.wall_ns()), runtime)


async def server_certificate(settings: OpcuaSource, runtime: Runtime) -> Certificate:
    """Return the certificate the server shows, unverified: a person compares the fingerprint. Raise PlantError, ConfigError."""
    found = await server_certificates(settings, settings.urls[0], _throttle(settings, runtime, SourceState()))
    if not found:
        raise PlantError(f"{settings.urls[0]}: no endpoint of this server has a certificate", "Switch on a security policy in the server.")
    der = found.get(settings.security) or next(iter(found.values()))
    digests = (hashlib.sha1(der, usedforsecurity=False).hexdigest(), hashlib.sha256(der).hexdigest())
    sha1, sha256 = (":".join(digest[i : i + 2] for i in range(0, len(digest), 2)).upper() for digest in digests)
    return Certificate(der, sha1, sha256, tuple(sorted(name for name, one in found.items() if one == der)))


async def read(settings: OpcuaSource, runtime: Runtime, directory: Path, address: str) -> Shown:
    """Read one value once. Raise ConfigError for an address that cannot be meant, PlantError for what the server said."""
    place = parse_address(address, settings.namespaces)
    async with _contact(settings, runtime, directory) as session:
        node = place.node_id(session.facts.namespaces)
        if node is None:
            raise ConfigError(f"the server has no namespace {place.namespace!r}", f"It has: {', '.join(session.facts.namespaces)}")
        items = await session.read([node], VALUE)
        types = await session.read([node], DATA_TYPE)
        return _shown(address, items, types, 0, runtime.wall_ns())


async def browse(settings: OpcuaSource, runtime: Runtime, directory: Path, start: str = "", *, most: int = BROWSE_NODES_MAX) -> tuple[Row, ...]:
    """List the variables under a node (the Objects folder without the server's own by default), with type and present value."""
    async with _contact(settings, runtime, directory) as session:
        root: str | None = _OBJECTS_FOLDER
        if start:
            root = parse_address(start, settings.namespaces).node_id(session.facts.namespaces)
        if root is None:
            raise ConfigError(f"{start!r}: the server does not have this namespace", f"It has: {', '.join(session.facts.namespaces)}")
        found = await _walk(session, root, min(most, BROWSE_NODES_MAX))
        nodes = [node for node, _ in found]
        values, types = await session.read(nodes, VALUE), await session.read(nodes, DATA_TYPE)
        now = runtime.wall_ns()
        shown = [_shown(node, values, types, row, now) for row, node in enumerate(nodes)]
        aliases = {uri: alias for alias, uri in settings.namespaces.items()}
        spaces = session.facts.namespaces
        return tuple(Row(_alias(node, spaces, aliases), path, one.type, one.value) for (node, path), one in zip(found, shown, strict=True))


async def _walk(session: Session, root: str, most: int) -> list[tuple[str, str]]:
    """Return (node, path) of variables, breadth first; each node once."""
    found: list[tuple[str, str]] = []
    seen = {root, _SERVER_NODE}
    level = [(root, "")]
    for _ in range(BROWSE_DEPTH_MAX):
        below: list[tuple[str, str]] = []
        size = session.facts.limits["MaxNodesPerBrowse"]
        for chunk in (level[at : at + size] for at in range(0, len(level), size)):
            for (_, path), (_, point, references) in zip(chunk, await session.browse([node for node, _ in chunk]), strict=False):
                while point:
                    _, point, more = await session.browse_next(point)
                    references += more
                for one in references:
                    if one.node in seen or one.node_class not in (_OBJECT, _VARIABLE):
                        continue
                    seen.add(one.node)
                    below.append((one.node, f"{path}/{one.name}".lstrip("/")))
                    if one.node_class == _VARIABLE:
                        found.append(below[-1])
                if len(found) >= most:
                    return found[:most]
        level = below
    return found


def _alias(node: str, spaces: Sequence[str], aliases: dict[str, str]) -> str:
    """Return a node as the tag table writes it: by alias where one is configured, else as it is."""
    head, _, identifier = node.partition(";")
    if not head.startswith("ns=") or int(head[3:]) >= len(spaces):
        return node
    alias = aliases.get(spaces[int(head[3:])])
    return f"{alias}:{identifier.removeprefix('s=')}" if alias else node


def _shown(address: str, items: Items, types: Items, row: int, now_ns: int) -> Shown:
    value, source_ns = items.value(row), int(items.source_ns[row])
    kind = Kind(int(items.kind[row])).name.lower()
    type_ = _TYPE_NAMES.get(str(types.value(row)), str(types.value(row) or kind))
    text = "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)
    return Shown(address, text, type_, int(items.quality[row]), None if source_ns == NO_TIME else (now_ns - source_ns) / 1e9)


# OPC 10000-6, table 1, and the abstract types above them (NodeIds.csv)
_TYPE_NAMES: Final = {
    f"i={number}": name
    for number, name in enumerate(
        (
            *("Null", "Boolean", "SByte", "Byte", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float", "Double"),
            *("String", "DateTime", "Guid", "ByteString", "XmlElement", "NodeId", "ExpandedNodeId", "StatusCode"),
            *("QualifiedName", "LocalizedText", "Structure", "DataValue", "Variant", "DiagnosticInfo"),
            *("Number", "Integer", "UInteger", "Enumeration"),
        )
    )
}


# ---- check ----


async def check(settings: OpcuaSource, runtime: Runtime, directory: Path, *, contact: bool = True) -> tuple[Finding, ...]:
    """Return what is wrong with the settings of a source and (contact) what its server makes of them.

    directory: <state>/collect. With contact: connects, reads every tag, its type and whether this account could write it, and creates
    the items once to learn what the server revises.
    """
    where = f"source.{settings.name}"
    try:
        for url in settings.urls:
            endpoint_of(url)
        make_policy(settings)
    except (ConfigError, TrustError) as error:
        return (Finding(Level.REFUSED, where, error.message, error.remedy),)
    findings = [*_wrong_addresses(settings), *_costs(settings)]
    if settings.security == "None":
        remedy = "Choose Basic256Sha256 SignAndEncrypt as soon as the server offers it."
        findings.append(Finding(Level.WARNING, where, "security is None: anybody on the wire can read and forge, the password included", remedy))
    if contact and not any(one.level is Level.REFUSED for one in findings):
        try:
            async with _contact(settings, runtime, directory) as session:
                findings += await _try_all(settings, session)
        except (PlantError, TrustError) as error:
            findings.append(
                Finding(Level.REFUSED, where, error.message, error.remedy or "Check address, firewall, and the server's list of trusted clients.")
            )
        except CorruptError as error:
            findings.append(Finding(Level.REFUSED, where, f"not an OPC UA server as we know them: {error}"))
    return tuple(findings)


def _wrong_addresses(settings: OpcuaSource) -> list[Finding]:
    findings = []
    for tag in settings.tags:
        try:
            parse_address(tag.address, settings.namespaces)
        except ConfigError as error:
            findings.append(Finding(Level.REFUSED, _row(tag), error.message, error.remedy))
    return findings


def _row(tag: TagRow) -> str:
    return f"row {tag.line}, {tag.id}" if tag.line else tag.id


def _costs(settings: OpcuaSource) -> list[Finding]:
    """Say what the settings will ask of the server."""
    where, wanted = f"source.{settings.name}", 1e9 / settings.publish_ns
    if wanted > settings.load.requests_per_s:
        allowed = settings.load.requests_per_s
        what = f"publish needs {wanted:.1f} requests/s, load.requests_per_s allows {allowed:g}: the server's queues will overflow"
        return [Finding(Level.WARNING, where, what, "Publish less often, or raise load.requests_per_s after asking the machine's owner.")]
    return []


async def _try_all(settings: OpcuaSource, session: Session) -> list[Finding]:
    where, facts = f"source.{settings.name}", session.facts
    findings = [Finding(Level.INFO, where, f"connected, {settings.security}; at most {facts.limits['MaxMonitoredItemsPerCall']} items a request")]
    if facts.skew_ns is not None and abs(facts.skew_ns) > settings.clock.max_skew_ns:
        what = f"the server's clock is {facts.skew_ns / 1e9:+.1f} s off: gateway time will be used (clock.max_skew)"
        findings.append(Finding(Level.WARNING, where, what, "Set the server to UTC and let it follow NTP."))
    nodes = {tag.id: parse_address(tag.address, settings.namespaces).node_id(facts.namespaces) for tag in settings.tags}
    for tag in settings.tags:
        if nodes[tag.id] is None:
            findings.append(Finding(Level.REFUSED, _row(tag), "the server does not have this namespace", f"It has: {', '.join(facts.namespaces)}"))
    tags = [tag for tag in settings.tags if nodes[tag.id] is not None]
    if tags:
        findings += await _read_all(session, tags, [nodes[tag.id] or "" for tag in tags], where)
        findings += await _items(settings, session, tags, [nodes[tag.id] or "" for tag in tags])
    return findings


async def _read_all(session: Session, tags: list[TagRow], nodes: list[str], where: str) -> list[Finding]:
    values, access = await session.read(nodes, VALUE), await session.read(nodes, USER_ACCESS_LEVEL)
    findings, writable = [], []
    for row, tag in enumerate(tags):
        quality = int(values.quality[row])
        if quality >> 31:
            findings.append(Finding(Level.WARNING, _row(tag), f"read gave status 0x{quality:08X}", "Compare the address with `ebbgate browse`."))
        level = access.value(row)
        if isinstance(level, int) and level & _WRITE:
            writable.append(tag.id)
    if writable:
        named = ", ".join(writable[:TAGS_NAMED_MAX]) + (" ..." if len(writable) > TAGS_NAMED_MAX else "")
        what = f"this account could write {len(writable)} of {len(tags)} tags: {named}"
        findings.append(Finding(Level.WARNING, where, what, "Ask for a read-only account or role: only the server can enforce that."))
    else:
        findings.append(Finding(Level.INFO, where, f"this account can write none of {len(tags)} tags"))
    return findings


async def _items(settings: OpcuaSource, session: Session, tags: list[TagRow], nodes: list[str]) -> list[Finding]:
    """Create the items once, in a subscription that is deleted again, to learn what the server makes of sampling and queue."""
    where = f"source.{settings.name}"
    number, revised_ms, _ = await session.create_subscription(settings.publish_ns / 1e6, KEEP_ALIVE_S, LIFETIME_S, NOTIFICATIONS_MAX)
    try:
        wishes = [subscribe.wish_of(tag, node, settings.publish_ns) for tag, node in zip(tags, nodes, strict=True)]
        made = await session.create_items(number, wishes)
    finally:
        await session.delete_subscription(number)
    findings = []
    if revised_ms > settings.publish_ns / 1e6:
        findings.append(Finding(Level.INFO, where, f"the server publishes every {revised_ms:g} ms, not every {settings.publish_ns / 1e6:g} ms"))
    bridged = []
    for tag, wish, one in zip(tags, wishes, made, strict=True):
        if one.status >> 31:
            findings.append(Finding(Level.WARNING, _row(tag), f"the server refuses to watch it: 0x{one.status:08X}"))
            continue
        if one.sampling_ms > wish.sampling_ms:
            findings.append(Finding(Level.INFO, _row(tag), f"sampled every {one.sampling_ms:g} ms, asked for {wish.sampling_ms:g} ms"))
        bridged.append(one.queue * max(one.sampling_ms, 1.0) / 1000)
    if bridged:
        findings.append(
            Finding(Level.INFO, where, f"the server's queues bridge {min(bridged):.0f} s of an outage (asked for up to {QUEUE_MAX} values each)")
        )
    return findings
