"""`ebbgate check`: everything that can be known to be wrong before it hurts, each with what to do."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Final

from buffer.storage import make_directory
from gateway.boxchecks import gateway_findings, receiver_findings, site_findings
from gateway.findings import Finding, Level
from gateway.settings import ModbusSource
from gateway.tagfile import vanished

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings, SiteSettings

ADDRESSES_BYTES_MAX: Final = 256 * 1024 * 1024


async def check_all(
    settings: GatewaySettings, runtime: Runtime, *, contact: bool, renamed: Mapping[str, str] | None = None, retired: Collection[str] = ()
) -> list[Finding]:
    """Return what was found, worst first. contact: also ask every source and the receiver. renamed, retired: as in tagfile.compare."""
    findings = gateway_findings(settings, _now(runtime)) + _tags(settings, renamed or {}, retired)
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


def _tags(settings: GatewaySettings, renamed: Mapping[str, str], retired: Collection[str]) -> list[Finding]:
    """Compare the table with the one collect used last, which lies in its state directory."""
    try:
        newest = max((settings.state / "collect").glob("addresses-*.json"), key=lambda p: p.stat().st_mtime_ns, default=None)
        if newest is None or newest.stat().st_size > ADDRESSES_BYTES_MAX:
            return []
        body = json.loads(newest.read_bytes())
        before = {str(i): (str(one["source"]), str(a)) for one in body for i, a in one["tags"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        what = "the table of the last start cannot be read: what changed since is not checked"
        return [Finding(Level.WARNING, str(settings.state / "collect"), what, "Run this as the user of collect.")]
    rows = [row for source in settings.sources for row in source.tags]
    return list(vanished(before, rows, renamed, retired))
