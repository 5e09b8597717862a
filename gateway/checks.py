"""`ebbgate check`: everything that can be known to be wrong before it hurts, each with what to do."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from buffer.storage import make_directory
from gateway.boxchecks import gateway_findings, receiver_findings, site_findings
from gateway.collect.reload import tag_changes
from gateway.collect.tables import decode_rows
from gateway.findings import Finding, Level
from gateway.groups import collecting
from gateway.settings import ModbusSource

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings, SiteSettings

async def check_all(settings: GatewaySettings, runtime: Runtime, *, contact: bool) -> list[Finding]:
    """Return what was found, worst first. contact: also ask every source and the receiver."""
    findings = gateway_findings(settings, _now(runtime)) + _tags(settings)
    if contact:
        make_directory(settings.state / "collect")  # budgets of sources are kept there
    for source in settings.sources:
        if not source.tags:
            findings.append(Finding(Level.WARNING, f"source.{source.name}", "has no tags", "Write rows for it in tags.csv."))
        elif isinstance(source, ModbusSource):
            from gateway.collect.modbus.probe import check

            findings += await check(source, runtime, settings.state / "collect", contact=contact)
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
