"""ebbgate check, pause, resume: first contact with sources and the daily handles."""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import emit, printable
from gateway.cli.identity import config_either
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING, ConfigError

if TYPE_CHECKING:
    from gateway.findings import Finding


@click.command("check")
@config_either
@click.option("--offline", is_flag=True, help="Contact no source and no receiver.")
@click.option("--json", "as_json", is_flag=True)
def check_command(config: Path, offline: bool, as_json: bool) -> None:
    """Read configuration, tag table, keys, certificates, disks and clock, and ask every source and the receiver; say what is wrong.

    Obeys the load contract of each source. Exit code 0: good (warnings may remain), 1: something must be mended, 2: the configuration
    cannot be read, 3: the environment does not allow to look.
    """
    from gateway.checks import check_all, check_site
    from gateway.config import is_gateway_file, load_gateway, load_site
    from gateway.findings import Level
    from gateway.runtime import real

    if is_gateway_file(config):
        box = load_gateway(config)
        findings = asyncio.run(check_all(box, real(), contact=not offline))
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


@click.command("trust")
@click.argument("source")
@config_gateway
@click.option("--yes", is_flag=True, help="Pin it without asking.")
def trust_command(source: str, config: Path, yes: bool) -> None:
    """Show the certificate of an OPC UA server and pin it: collect then speaks to no other.

    Compare the fingerprint with the one the server's own tool shows. Asked without security; nothing but the certificate is read.
    """
    import hashlib

    from cryptography import x509

    from buffer.storage import make_directory, publish_file
    from gateway.collect.load import Budget
    from gateway.collect.opcua.session import server_certificates
    from gateway.collect.opcua.throttle import Throttle
    from gateway.config import load_gateway
    from gateway.runtime import real
    from gateway.settings import OpcuaSource

    settings = load_gateway(config, pinned=False)
    wanted = next((one for one in settings.sources if one.name == source and isinstance(one, OpcuaSource)), None)
    if not isinstance(wanted, OpcuaSource):
        raise ConfigError(f"no OPC UA source {source!r}", f"Write [source.{source}] with kind and urls in {config}.")
    world = real()
    budget = Budget(wanted.load, world.monotonic_ns(), {}, world.wall_ns())
    offered = asyncio.run(server_certificates(wanted, wanted.urls[0], Throttle(budget, world)))
    for name in sorted(offered):
        click.echo(f"offers  {name}")
    der = offered.get(wanted.security)
    if not der:
        raise ConfigError(f"{wanted.urls[0]} does not offer {wanted.security}", f"Set source.{source}.security to one of those above.")
    certificate = x509.load_der_x509_certificate(der)
    click.echo(f"subject {printable(certificate.subject.rfc4514_string())}")
    click.echo(f"until   {certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"SHA-256 {hashlib.sha256(der).hexdigest()}")
    click.echo(f"SHA-1   {hashlib.sha1(der, usedforsecurity=False).hexdigest()}   (what most servers show)")
    path = wanted.server_certificate or config.resolve().parent / "pki" / "trusted" / f"{source}.der"
    if path.exists() and path.read_bytes() == der:
        click.echo(f"pinned already: {path}")
        return
    if not yes and not click.confirm("Is this the fingerprint the server itself shows?"):
        raise click.Abort
    make_directory(path.parent)
    publish_file(path, der)
    click.echo(f"pinned: {path}")
    if wanted.server_certificate is None:
        click.echo(f'add to [source.{source}]: server_certificate = "pki/trusted/{source}.der"')


@click.command("read")
@click.argument("source")
@click.argument("address")
@config_gateway
@click.option("--type", "type_", default="", help="As in tags.csv; empty: every type that fits.")
@click.option("--all-orders", is_flag=True, help="Every byte order.")
def read_command(source: str, address: str, config: Path, type_: str, all_orders: bool) -> None:
    """Read one address of a Modbus source and show every way to understand it. Obeys the load contract; stop collect first."""
    from gateway.collect.modbus.probe import read
    from gateway.config import load_gateway
    from gateway.runtime import real
    from gateway.settings import ModbusSource

    settings = load_gateway(config, pinned=False)
    wanted = next((one for one in settings.sources if one.name == source and isinstance(one, ModbusSource)), None)
    if not isinstance(wanted, ModbusSource):
        raise ConfigError(f"no Modbus source {source!r}", f"Write [source.{source}] with kind and address in {config}.")
    shown = asyncio.run(read(wanted, real(), settings.state / "collect", address, type_, all_orders=all_orders))
    for one in shown:
        click.echo(f"{one.address:10} {one.type:10} {one.order:5} {printable(one.value) or '-':24} {one.raw}")
