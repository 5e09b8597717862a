"""`ebbgate check`: everything that can be known to be wrong before it hurts, each with what to do."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from buffer.storage import make_directory
from gateway.boxchecks import gateway_findings, receiver_findings, site_findings
from gateway.collect.locks import SourceBusy
from gateway.collect.reload import tag_changes
from gateway.collect.tables import decode_rows
from gateway.errors import ConfigError
from gateway.findings import Finding, Level, Live
from gateway.groups import collecting
from gateway.settings import ModbusSource, OpcuaSource

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings, SiteSettings

async def check_all(
    settings: GatewaySettings,
    runtime: Runtime,
    *,
    contact: bool,
    live: list[Live] | None = None,
    as_owner: AbstractContextManager[None] = nullcontext(),  # noqa: B008 -- does nothing
) -> list[Finding]:
    """Return what was found, worst first. contact: also ask every source and the receiver. live: takes what every tag shows.

    Sources are asked at once, those on one connection in turn. as_owner: entered while sources are asked, so that collect's files stay
    collect's; keys of other processes are read outside it.
    """
    findings = gateway_findings(settings, _now(runtime)) + _tags(settings) + _disagreements(settings, runtime)
    lines: dict[str, list[OpcuaSource | ModbusSource]] = {}
    for source in settings.sources:
        lines.setdefault(source.address if isinstance(source, ModbusSource) else source.name, []).append(source)
    with as_owner:
        if contact:
            make_directory(settings.state / "collect")  # budgets of sources are kept there
        answered = await asyncio.gather(*(_line(settings, runtime, line, contact, live) for line in lines.values()))
    findings += [one for some in answered for one in some]
    if contact and settings.receiver.certificate.exists():
        findings += await receiver_findings(settings, runtime)
    return _sorted(findings)


def check_site(settings: SiteSettings, runtime: Runtime) -> list[Finding]:
    """Return what was found on the IT side, worst first."""
    return _sorted(site_findings(settings, _now(runtime)))


def _now(runtime: Runtime) -> dt.datetime:
    return dt.datetime.fromtimestamp(runtime.wall_ns() / 1e9, dt.UTC)


def _sorted(findings: list[Finding]) -> list[Finding]:
    order = (Level.REFUSED, Level.WARNING, Level.INFO)
    return sorted(findings, key=lambda f: order.index(f.level))


async def _line(
    settings: GatewaySettings, runtime: Runtime, line: list[OpcuaSource | ModbusSource], contact: bool, live: list[Live] | None
) -> list[Finding]:
    findings: list[Finding] = []
    for source in line:
        if not source.tags:
            remedy = "Write rows for it in tags.csv" + (f": ebbgate browse {source.name} proposes them." if isinstance(source, OpcuaSource) else ".")
            findings.append(Finding(Level.WARNING, f"source.{source.name}", "has no tags", remedy))
        try:
            findings += await _source(source, line, runtime, settings.state / "collect", contact, live)
        except SourceBusy as busy:
            findings.append(_as_collect_says(source.name, settings, busy))
    return findings


async def _source(
    source: OpcuaSource | ModbusSource,
    line: list[OpcuaSource | ModbusSource],
    runtime: Runtime,
    directory: Path,
    contact: bool,
    live: list[Live] | None,
) -> tuple[Finding, ...]:
    if isinstance(source, ModbusSource):
        from gateway.collect.modbus import probe

        others = [one for one in line if isinstance(one, ModbusSource)]
        return await probe.check(source, runtime, directory, contact=contact and bool(source.tags), live=live, line=others)
    from gateway.collect.opcua.check import check

    return await check(source, runtime, directory, contact=contact, live=live)


def _as_collect_says(name: str, settings: GatewaySettings, busy: SourceBusy) -> Finding:
    """Return what collect published of a source that it is reading now."""
    about = "collect has said nothing about it yet"
    for one in collecting(settings):
        try:
            said = json.loads(one.collect_status.read_bytes())["sources"][name]
            about = f"collect says it is {said.get('state')}, {said.get('tags')} tags, {said.get('refused', 0)} refused"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return Finding(Level.INFO, f"source.{name}", f"not asked: {busy.message}; {about}", busy.remedy)


def _disagreements(settings: GatewaySettings, runtime: Runtime) -> list[Finding]:
    """Return where Modbus sources on one connection differ about how to talk to it: collect would not start."""
    from gateway.collect.modbus.hub import Hubs

    hubs, found = Hubs(runtime), []
    for one in settings.sources:
        try:
            if isinstance(one, ModbusSource):
                hubs.of(one)
        except ConfigError as error:
            found.append(Finding(Level.REFUSED, f"source.{one.name}", error.message, error.remedy))
    return found


def _tags(settings: GatewaySettings) -> list[Finding]:
    """Return what a restart or SIGHUP would change in the tags that collect works with now; nothing where it never ran."""
    out: list[Finding] = []
    for one in collecting(settings):
        try:
            before = decode_rows(one.tags_in_force.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            out.append(Finding(Level.WARNING, str(one.tags_in_force), f"cannot be read: {error}", "Run check as the user of collect."))
            continue
        out += tag_changes(before, [row for source in one.sources for row in source.tags], one)
    return out
