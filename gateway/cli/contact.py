"""ebbgate check, pause, resume: are the sources as the tag table says, and the daily handles."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import emit, printable
from gateway.cli.identity import config_either
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.findings import Finding, Live

VALUE_CHARS_MAX: Final = 40  # of a value in a table; --json has all of it


@click.command("check")
@config_either
@click.option("--offline", is_flag=True, help="Contact no source and no receiver.")
@click.option("--values", is_flag=True, help="Show every tag live: value, quality, age, sampling as the source revised it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def check_command(config: Path, offline: bool, values: bool, as_json: bool) -> None:
    """Read configuration, tag table, keys, certificates, disks and clock, and ask every source and the receiver; say what is wrong.

    Obeys the load contract of each source; a source that collect is reading is not asked twice. Exit code 0: good (warnings may remain),
    1: something must be mended, 2: the configuration cannot be read, 3: the environment does not allow to look.
    """
    import asyncio

    from gateway.checks import check_all, check_site
    from gateway.cli.owner import as_owner
    from gateway.config import is_gateway_file, load_gateway, load_site
    from gateway.findings import Level
    from gateway.runtime import quiet, real

    live: list[Live] | None = None
    if is_gateway_file(config):
        box = load_gateway(config)
        live = [] if values and not offline else None
        quiet()
        findings = asyncio.run(check_all(box, real(), contact=not offline, live=live, as_owner=as_owner(box)))
        counts = {"sources": len(box.sources), "tags": sum(len(source.tags) for source in box.sources)}
        order = {tag.id: row for row, tag in enumerate(tag for source in box.sources for tag in source.tags)}
    else:
        site = load_site(config)
        findings, order = check_site(site, real()), {}
        counts = {"gateways": len(site.gateways), "sinks": len(site.sinks) + (site.lake is not None)}
    body: dict[str, Any] = {"findings": [{"level": str(f.level), "where": f.where, "what": f.what, "remedy": f.remedy} for f in findings], **counts}
    lines = [*map(_line, findings), _sum(findings, counts)]
    if live is not None:
        live.sort(key=lambda one: order.get(one.id, len(order)))
        body["values"] = [asdict(one) for one in live]
        lines = [*_table(live), *lines]
    emit(body, as_json, lines)
    if any(f.level == Level.REFUSED for f in findings):
        raise SystemExit(EXIT_FINDING)


_WORDS: Final = {"refused": "ERROR", "warning": "WARN", "info": "ok"}


def _line(one: Finding) -> str:
    text = f"{_WORDS[one.level]:6} {one.where}: {one.what}" + (f"\n       {one.remedy}" if one.remedy else "")
    return "\n".join(printable(part) for part in text.split("\n"))


def _sum(findings: list[Finding], counts: dict[str, int]) -> str:
    errors, warnings = (sum(f.level == level for f in findings) for level in ("refused", "warning"))
    said = ", ".join(f"{number} {name}" for name, number in counts.items())
    return f"{said}: {errors} errors, {warnings} warnings" if errors or warnings else f"{said}: good"


def _table(live: Sequence[Live]) -> list[str]:
    """Return one line per tag, for people who stand before the display of the machine."""
    head = f"{'TAG':32} {'VALUE':>16} {'UNIT':8} {'QUALITY':14} {'AGE':>8}  SAMPLED"
    return [head, *(_shown(one) for one in live)]


def _shown(one: Live) -> str:
    value, quality = printable(one.value)[:VALUE_CHARS_MAX], printable(one.quality)
    age = "" if one.age_s is None else _seconds(one.age_s)
    keeps = f", this server keeps {_seconds(one.keeps_s)}" if one.keeps_s else ""
    return f"{one.id:32} {value:>16} {printable(one.unit):8} {quality:14} {age:>8}  every {_seconds(one.sampling_s)}{keeps}"


def _seconds(seconds: float) -> str:
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if abs(seconds) < 100 else f"{seconds:,.0f} s"  # noqa: PLR2004 -- what fits the column


def _control(config: Path, source: str) -> Path:
    from gateway.config import load_gateway

    settings = load_gateway(config, pinned=False)
    if source not in {one.name for one in settings.sources}:
        names = ", ".join(one.name for one in settings.sources) or "none"
        raise ConfigError(f"no source {source!r}", f"Sources here: {names}.")
    return settings.state / "control" / "pause" / source


@click.command("pause")
@click.argument("source")
@config_gateway
@click.option("--reason", default="", help="Shown in the notices.")
def pause_command(source: str, config: Path, reason: str) -> None:
    """Leave a source alone: collect disconnects within a second, until `resume`."""
    from buffer.storage import make_directory, publish_file

    path = _control(config, source)
    make_directory(path.parent)
    publish_file(path, f"{getpass.getuser()}: {reason}\n".encode())
    click.echo(f"{source} is paused; `ebbgate resume {source}` ends it")


@click.command("resume")
@click.argument("source")
@config_gateway
def resume_command(source: str, config: Path) -> None:
    """Connect to a paused source again."""
    from buffer.storage import remove_file

    path = _control(config, source)
    if not path.exists():
        click.echo(f"{source} was not paused")
        return
    remove_file(path)
    click.echo(f"{source} is read again")
