"""ebbgate check, pause, resume: are the sources as the tag table says, and the daily handles."""

from __future__ import annotations

import asyncio
import getpass
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli import emit, printable, printable_lines
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.findings import Live

VALUE_CHARS_MAX: Final = 40  # of a value in a table; --json has all of it


@click.command("check")
@config_gateway
@click.option("--offline", is_flag=True, help="Contact no source.")
@click.option("--values", is_flag=True, help="Show every tag live: value, quality, age, sampling as the source revised it.")
@click.option("--json", "as_json", is_flag=True)
def check_command(config: Path, offline: bool, values: bool, as_json: bool) -> None:
    """Read configuration, tag table, keys and certificates, and ask every source for every tag; say what is wrong.

    Obeys the load contract of each source. A source that collect is reading is not asked twice. Exit code 1 if something must be
    mended, 2 if the configuration cannot be read.
    """
    from gateway.checks import check_all
    from gateway.cli.owner import as_owner
    from gateway.config import load_gateway
    from gateway.findings import Level
    from gateway.runtime import quiet, real

    settings = load_gateway(config)
    live: list[Live] | None = [] if values and not offline else None
    quiet()
    findings = asyncio.run(check_all(settings, real(), contact=not offline, live=live, as_owner=as_owner(settings)))
    data = [{"level": str(f.level), "where": f.where, "what": f.what, "remedy": f.remedy} for f in findings]
    tags = sum(len(source.tags) for source in settings.sources)
    shown = [printable_lines(str(f)) for f in findings] or [f"good: {len(settings.sources)} sources, {tags} tags"]
    body = {"findings": data, "sources": len(settings.sources), "tags": tags}
    if live is not None:
        order = {tag.id: row for row, tag in enumerate(tag for source in settings.sources for tag in source.tags)}
        live.sort(key=lambda one: order.get(one.id, len(order)))
        body["values"] = [asdict(one) for one in live]
        shown = [*_table(live), *shown]
    emit(body, as_json, shown)
    if any(f.level == Level.REFUSED for f in findings):
        raise SystemExit(EXIT_FINDING)


def _table(live: Sequence[Live]) -> list[str]:
    """Return one line per tag, for people who stand before the display of the machine."""
    head = f"{'TAG':32} {'VALUE':>16} {'UNIT':8} {'QUALITY':14} {'AGE':>8}  SAMPLED"
    return [head, *(_line(one) for one in live)]


def _line(one: Live) -> str:
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
