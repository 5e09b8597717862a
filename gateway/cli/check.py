"""ebbgate check: every mistake that can be found before it hurts, with what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import emit, printable
from gateway.cli.identity import config_either
from gateway.errors import EXIT_FINDING, ConfigError

if TYPE_CHECKING:
    from gateway.findings import Finding


@click.command("check")
@config_either
@click.option("--offline", is_flag=True, help="Contact no source and no receiver.")
@click.option("--renamed", "renamed", multiple=True, metavar="OLD=NEW", help="A tag's id changed on purpose; may be repeated.")
@click.option("--retire", "retired", multiple=True, metavar="ID", help="A tag is given up on purpose; may be repeated.")
@click.option("--json", "as_json", is_flag=True)
def check_command(config: Path, offline: bool, renamed: tuple[str, ...], retired: tuple[str, ...], as_json: bool) -> None:
    """Read configuration, tag table, keys, certificates, disks and clock, and ask every source and the receiver; say what is wrong.

    Obeys the load contract of each source. Exit code 0: good (warnings may remain), 1: something must be mended, 2: the configuration
    cannot be read, 3: the environment does not allow to look.
    """
    from gateway.checks import check_gateway, check_site
    from gateway.config import is_gateway_file, load_gateway, load_site
    from gateway.findings import Level
    from gateway.runtime import real

    if is_gateway_file(config):
        pairs = [one.partition("=") for one in renamed]
        if not all(old and new for old, _, new in pairs):
            raise ConfigError(f"--renamed {', '.join(renamed)}", "Write OLD=NEW.")
        box = load_gateway(config)
        names = {old: new for old, _, new in pairs}
        findings = asyncio.run(check_gateway(box, real(), contact=not offline, renamed=names, retired=retired))
        counts = {"sources": len(box.sources), "tags": sum(len(source.tags) for source in box.sources)}
    else:
        site = load_site(config)
        findings = check_site(site, real())
        counts = {"gateways": len(site.gateways), "sinks": len(site.sinks) + (site.lake is not None)}
    data = [{"level": str(f.level), "where": f.where, "what": f.what, "remedy": f.remedy} for f in findings]
    emit({"findings": data, **counts}, as_json, [*map(_line, findings), _sum(findings, counts)])
    if any(f.level == Level.REFUSED for f in findings):
        raise SystemExit(EXIT_FINDING)


_SHOWN = {"refused": "ERROR", "warning": "WARN", "info": "ok"}


def _line(one: Finding) -> str:
    text = f"{_SHOWN[one.level]:6} {one.where}: {one.what}" + (f"\n       {one.remedy}" if one.remedy else "")
    return "\n".join(printable(part) for part in text.split("\n"))


def _sum(findings: list[Finding], counts: dict[str, int]) -> str:
    errors, warnings = (sum(f.level == level for f in findings) for level in ("refused", "warning"))
    said = ", ".join(f"{number} {name}" for name, number in counts.items())
    return f"{said}: {errors} errors, {warnings} warnings" if errors or warnings else f"{said}: good"
