"""`ebbgate check` of one OPC UA source: settings, addresses, what the server makes of them, and what its account could write."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.errors import CorruptError
from buffer.types import Kind
from gateway.collect.locks import SourceBusy
from gateway.collect.opcua import certificate, subscribe
from gateway.collect.opcua.address import parse_address, wrong_addresses
from gateway.collect.opcua.arrays import length_of, one_per_item, pick
from gateway.collect.opcua.guarded import endpoint_of
from gateway.collect.opcua.probe import TYPE_NAMES, WRITE, contact, show
from gateway.collect.opcua.security import check_files, parse_security, pinned
from gateway.collect.opcua.session import DATA_TYPE, USER_ACCESS_LEVEL, VALUE
from gateway.collect.opcua.subscribe import KEEP_ALIVE_S, LIFETIME_S, NOTIFICATIONS_MAX, QUEUE_MAX
from gateway.collect.status import describe, remedy
from gateway.errors import ConfigError, PlantError, TrustError
from gateway.findings import Finding, Level, Live
from gateway.settings import WEAK_POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.collect.opcua.answers import CreatedItem
    from gateway.collect.opcua.decode import Items
    from gateway.collect.opcua.session import Session
    from gateway.runtime import Runtime
    from gateway.settings import OpcuaSource, TagRow

TAGS_NAMED_MAX: Final = 20  # in one finding
ROWS_NAMED_MAX: Final = 50  # findings of one kind: then the server is simply another one than the tag table thinks
_BAD: Final = 31  # bit of a StatusCode
_CONCRETE: Final = frozenset(TYPE_NAMES[f"i={number}"] for number in range(1, 14))  # Boolean to DateTime
_CONCRETE_WRITTEN: Final = frozenset(name.lower() for name in _CONCRETE)


async def check(
    settings: OpcuaSource, runtime: Runtime, directory: Path, *, contact: bool = True, live: list[Live] | None = None
) -> tuple[Finding, ...]:
    """Return what is wrong with the settings of a source and (contact) what its server makes of them.

    directory: <state>/collect. With contact: connects, reads every tag and whether this account could write it, and creates the items
    once to learn what the server revises. live: takes what every tag shows. Raise SourceBusy if collect reads it now.
    """
    where = f"source.{settings.name}"
    try:
        for url in settings.urls:
            endpoint_of(url)
        check_files(settings)
    except (ConfigError, TrustError) as error:
        return (Finding(Level.REFUSED, where, error.message, error.remedy), *wrong_addresses(settings))
    findings = [*wrong_addresses(settings), *_costs(settings), *_security(settings)]
    if contact and not any(one.level is Level.REFUSED for one in findings):
        findings += await _contact(settings, runtime, directory, live)
    return tuple(findings)


async def _contact(settings: OpcuaSource, runtime: Runtime, directory: Path, live: list[Live] | None) -> list[Finding]:
    where = f"source.{settings.name}"
    try:
        async with contact(settings, runtime, directory) as session:
            return await _try_all(settings, session, live, runtime.wall_ns)
    except SourceBusy:
        raise
    except (PlantError, TrustError) as error:
        remedy = error.remedy or "Check address, firewall, and that the server is switched on."
        return [Finding(Level.REFUSED, where, error.message, remedy)]
    except CorruptError as error:
        return [Finding(Level.REFUSED, where, f"not an answer of an OPC UA server: {error}", "Check address and port; look into the server's log.")]


def _security(settings: OpcuaSource) -> list[Finding]:
    where, findings = f"source.{settings.name}", []
    policy, mode = parse_security(settings.security)
    if policy in WEAK_POLICIES:
        harm = "anybody on the wire can read and forge, the password included" if policy == "None" else "its cryptography is broken"
        what = f"security is {settings.security}: {harm}; waived: {settings.waiver or 'no reason given'}"
        findings.append(Finding(Level.WARNING, where, what, "Choose Basic256Sha256 SignAndEncrypt as soon as the server offers it."))
    elif mode == "Sign":
        findings.append(Finding(Level.INFO, where, "mode is Sign: nobody can forge, but anybody on the wire can read"))
    if policy != "None" and settings.server_certificate is None:
        findings.append(Finding(Level.INFO, where, f"any server with a certificate that {settings.trusted} vouches for is trusted; none is pinned"))
    elif policy != "None":
        known = certificate.facts(pinned(settings))
        if known.odd:
            findings.append(Finding(Level.INFO, where, f"the server's certificate is {known.odd}; its key is used all the same"))
        if known.key_bits < certificate.KEY_BITS_MIN:
            what = f"the server's key has {known.key_bits} bits, fewer than {certificate.KEY_BITS_MIN}"
            findings.append(Finding(Level.WARNING, where, what, "Have the server make a certificate with RSA 2048."))
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


async def _try_all(settings: OpcuaSource, session: Session, live: list[Live] | None, wall_ns: Callable[[], int]) -> list[Finding]:
    where, facts = f"source.{settings.name}", session.facts
    what = f"connected to {session.url}, {settings.security}; at most {facts.limits['MaxMonitoredItemsPerCall']} items a request"
    findings = [Finding(Level.INFO, where, what)]
    if facts.skew_ns is not None and abs(facts.skew_ns) > settings.clock.max_skew_ns:
        what = f"the server's clock is {facts.skew_ns / 1e9:+.1f} s off: gateway time will be used (clock.max_skew)"
        findings.append(Finding(Level.WARNING, where, what, "Set the server to UTC and let it follow NTP."))
    if len(settings.urls) > 1:
        findings.append(Finding(Level.INFO, where, f"service level {await session.service_level()} of 255; healthy is 200 and more"))
    items = one_per_item(settings.tags)
    nodes = {tag.id: parse_address(tag.address, settings.namespaces).node_id(facts.namespaces) for tag in items}
    absent = [tag for tag in items if nodes[tag.id] is None]
    for tag in absent[:ROWS_NAMED_MAX]:
        known = ", ".join(facts.namespaces[:TAGS_NAMED_MAX])
        findings.append(Finding(Level.REFUSED, _row(tag), f"{tag.address!r}: the server does not have this namespace", f"It has: {known}"))
    tags = [tag for tag in items if nodes[tag.id] is not None]
    if not tags:
        return findings
    wanted = [nodes[tag.id] or "" for tag in tags]
    values, now_ns = await session.read(wanted, VALUE), wall_ns()
    types, access = await session.read(wanted, DATA_TYPE), await session.read(wanted, USER_ACCESS_LEVEL)
    made, revised_ms = await _items(settings, session, tags, wanted)
    findings += [*_refused(tags, values, made), *_writable(tags, access, where), *_revised(settings, tags, made, revised_ms)]
    findings += [*_lengths(settings, tags, values), *_types(tags, values, types)]
    if live is not None:
        for row, tag in enumerate(tags):
            live += _live(settings, tag, wanted[row], values, types, row, _keeps(made[row]), now_ns)
    return findings


def _live(
    settings: OpcuaSource, tag: TagRow, node: str, values: Items, types: Items, row: int, keeps: tuple[float, float], now_ns: int
) -> list[Live]:  # fmt: skip
    """Return what a tag shows now, or each element of its array."""
    shown = []
    for one in [other for other in settings.tags if other.array == tag.array] if tag.array else [tag]:
        items = pick(values, np.asarray([row]), one.element) if tag.array else values
        told = show(node, items, types, 0 if tag.array else row, now_ns)
        shown.append(Live(one.id, settings.name, one.address, told.value, one.unit, describe(told.quality), told.age_s, *keeps))
    return shown


def _lengths(settings: OpcuaSource, tags: list[TagRow], values: Items) -> list[Finding]:
    """Say which arrays are shorter or longer than declared."""
    declared = Counter(tag.array for tag in settings.tags if tag.array)
    findings = []
    for row, tag in enumerate(tags):
        found, wanted = length_of(values, row), declared[tag.array]
        if not tag.array or found == wanted or (found is None and int(values.quality[row]) >> _BAD):
            continue
        what = "is no array now" if found is None else f"has {found} elements"
        lost = "what is beyond is not kept" if (found or 0) > wanted else "those that are not there will be Bad"
        findings.append(Finding(Level.WARNING, _row(tag), f"{tag.address} {what}, expand says {wanted}: {lost}", "Correct the cell expand."))
    return findings[:ROWS_NAMED_MAX]


def _types(tags: list[TagRow], values: Items, types: Items) -> list[Finding]:
    """Say which tags are of another type than the table says, as far as it says one; of UInt64 also where it says none."""
    findings = []
    for row, tag in enumerate(tags):
        kind = Kind(int(values.kind[row]))
        found = TYPE_NAMES.get(str(types.value(row)), "")
        unsigned = found == "UInt64" or kind is Kind.UINT64
        if (tag.scale, tag.offset) == (1.0, 0.0) and unsigned and not tag.unsigned:
            harm = "values from 2^63 on become Doubles, and lose digits"
            findings.append(Finding(Level.WARNING, _row(tag), f"{tag.address} is UInt64, type says {tag.type or 'nothing'}: {harm}", "Write UInt64."))
        elif found in _CONCRETE and tag.type.lower() in _CONCRETE_WRITTEN and tag.type.lower() != found.lower():
            what = f"{tag.address} is {found}, type says {tag.type}: it is kept as {found}"
            findings.append(Finding(Level.WARNING, _row(tag), what, f"Write {found}, or correct the address."))
    return findings[:ROWS_NAMED_MAX]


def _refused(tags: list[TagRow], values: Items, made: list[CreatedItem]) -> list[Finding]:
    """Name tags that cannot be read or watched; a tag whose device is away is a warning, one that does not exist is a mistake."""
    findings = []
    for row, tag in enumerate(tags):
        quality = int(values.quality[row])
        if made[row].status >> _BAD:
            status = made[row].status
            findings.append(Finding(Level.REFUSED, _row(tag), f"{tag.address}: the server refuses to watch it: {describe(status)}", remedy(status)))
        elif quality >> _BAD:
            findings.append(Finding(Level.WARNING, _row(tag), f"{tag.address}: reads {describe(quality)}", remedy(quality)))
    if len(findings) > ROWS_NAMED_MAX:
        more = Finding(Level.REFUSED, "tags", f"and {len(findings) - ROWS_NAMED_MAX} more", "Is it the right server? Compare with ebbgate browse.")
        return [*findings[:ROWS_NAMED_MAX], more]
    return findings


def _writable(tags: list[TagRow], access: Items, where: str) -> list[Finding]:
    levels = [access.value(row) for row in range(len(tags))]
    unknown = sum(type(level) is not int for level in levels)
    writable = [tag.id for tag, level in zip(tags, levels, strict=True) if type(level) is int and level & WRITE]
    silent = f"; of {unknown} the server does not say" if unknown else ""
    if writable:
        named = ", ".join(writable[:TAGS_NAMED_MAX]) + (" ..." if len(writable) > TAGS_NAMED_MAX else "")
        what = f"this account could write {len(writable)} of {len(tags)} tags: {named}{silent}"
        return [Finding(Level.WARNING, where, what, "Ask for a read-only account or role: only the server can enforce that.")]
    return [Finding(Level.INFO, where, f"this account could write 0 of {len(tags)} tags{silent}")]


async def _items(settings: OpcuaSource, session: Session, tags: list[TagRow], nodes: list[str]) -> tuple[list[CreatedItem], float]:
    """Create the items once, in a subscription that is deleted again; return what the server made of them and its publishing interval in ms."""
    number, revised_ms, _ = await session.create_subscription(settings.publish_ns / 1e6, KEEP_ALIVE_S, LIFETIME_S, NOTIFICATIONS_MAX)
    try:
        wishes = [subscribe.wish_of(tag, node, settings.publish_ns) for tag, node in zip(tags, nodes, strict=True)]
        return await session.create_items(number, wishes), revised_ms
    finally:
        await session.delete_subscription(number)


def _keeps(made: CreatedItem) -> tuple[float, float]:
    """Return seconds between samples, and seconds of an outage that the server's queue bridges if every sample differs."""
    if made.status >> _BAD:
        return 0.0, 0.0
    sampling_ms = made.sampling_ms if 0 <= made.sampling_ms < math.inf else 0.0  # what no time can be
    return sampling_ms / 1000, made.queue * max(sampling_ms, 1.0) / 1000


def _revised(settings: OpcuaSource, tags: list[TagRow], made: list[CreatedItem], revised_ms: float) -> list[Finding]:
    where, findings = f"source.{settings.name}", []
    if revised_ms > settings.publish_ns / 1e6:
        findings.append(Finding(Level.INFO, where, f"the server publishes every {revised_ms:g} ms, not every {settings.publish_ns / 1e6:g} ms"))
    slower = [(tag, one) for tag, one in zip(tags, made, strict=True) if not one.status >> _BAD and one.sampling_ms > tag.every_ns / 1e6]
    for tag, one in slower[:TAGS_NAMED_MAX]:
        findings.append(Finding(Level.INFO, _row(tag), f"sampled every {one.sampling_ms:g} ms, asked for {tag.every_ns / 1e6:g} ms"))
    if len(slower) > TAGS_NAMED_MAX:
        findings.append(Finding(Level.INFO, where, f"and {len(slower) - TAGS_NAMED_MAX} more are sampled more slowly than asked for"))
    keeps = [_keeps(one)[1] for one in made if not one.status >> _BAD]
    if keeps:
        what = f"this server keeps {min(keeps):.0f} s of an outage in its queues (asked for up to {QUEUE_MAX} values each)"
        findings.append(Finding(Level.INFO, where, what))
    return findings
