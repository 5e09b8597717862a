"""ebbgate check, pause, resume: first contact with sources and the daily handles."""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path

import click

from gateway.cli import emit
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING, ConfigError


@click.command("check")
@config_gateway
@click.option("--offline", is_flag=True, help="Contact no source.")
@click.option("--json", "as_json", is_flag=True)
def check_command(config: Path, offline: bool, as_json: bool) -> None:
    """Read configuration, tag table, keys and certificates, and ask every source for every tag; say what is wrong.

    Obeys the load contract of each source. Exit code 1 if something must be mended, 2 if the configuration cannot be read.
    """
    from gateway.checks import check_all
    from gateway.config import load_gateway
    from gateway.findings import Level
    from gateway.runtime import real

    settings = load_gateway(config)
    findings = asyncio.run(check_all(settings, real(), contact=not offline))
    data = [{"level": str(f.level), "where": f.where, "what": f.what, "remedy": f.remedy} for f in findings]
    tags = sum(len(source.tags) for source in settings.sources)
    lines = [str(f) for f in findings] or [f"good: {len(settings.sources)} sources, {tags} tags"]
    emit({"findings": data, "sources": len(settings.sources), "tags": tags}, as_json, lines)
    if any(f.level == Level.REFUSED for f in findings):
        raise SystemExit(EXIT_FINDING)


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
