"""ebbgate trust, browse, read: first contact with one source."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import emit, printable
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING, ConfigError

if TYPE_CHECKING:
    from gateway.collect.opcua.browse import Found
    from gateway.collect.opcua.probe import Offer
    from gateway.settings import GatewaySettings, ModbusSource, OpcuaSource, TagRow

PROGRESS_S: Final = 1.0
LEFT_OUT_SHOWN_MAX: Final = 20


def _source(config: Path, name: str) -> tuple[GatewaySettings, OpcuaSource | ModbusSource]:
    from gateway.config import load_gateway

    settings = load_gateway(config, pinned=False)
    for one in settings.sources:
        if one.name == name:
            return settings, one
    names = ", ".join(one.name for one in settings.sources) or "none"
    raise ConfigError(f"no source {name!r} in {config}", f"Sources here: {names}.")


def _opcua(config: Path, name: str) -> tuple[GatewaySettings, OpcuaSource]:
    from gateway.settings import OpcuaSource

    settings, source = _source(config, name)
    if not isinstance(source, OpcuaSource):
        raise ConfigError(f"{name} is a Modbus source: it has nothing to browse and no certificate", "Read single addresses: ebbgate read.")
    return settings, source


# ---- trust ----


@click.command("trust")
@click.argument("source")
@config_gateway
@click.option("--yes", is_flag=True, help="Pin it without asking.")
@click.option("--json", "as_json", is_flag=True, help="Show only, in JSON; pins nothing unless --yes.")
def trust_command(source: str, config: Path, yes: bool, as_json: bool) -> None:
    """Show the certificate of an OPC UA server and pin it: collect then speaks to no other.

    Compare the fingerprint with the one the server's own tool shows. Then the server is asked with our certificate; where it does not
    trust us, ours is shown, and where to accept it. No login, nothing is read. Exit code 1 if the server refuses us.
    """
    import asyncio

    from gateway.cli.owner import as_owner
    from gateway.collect.opcua.probe import offer
    from gateway.runtime import quiet, real

    settings, wanted = _opcua(config, source)
    quiet()
    ours = wanted.certificate is not None and wanted.certificate.exists()
    with as_owner(settings):
        got = asyncio.run(offer(wanted, real(), settings.state / "collect", ask_with_ours=ours))
    path = wanted.server_certificate or config.resolve().parent / "pki" / "trusted" / f"{source}.der"
    body, lines = _describe(wanted, got, path)
    if not as_json:
        emit(body, False, lines)
    if got.chosen:
        body["pinned"] = _pin(wanted, got, path, config, yes, as_json)
    if as_json:
        emit(body, True, [])
    if got.refusal is not None or not got.chosen:
        raise SystemExit(EXIT_FINDING)


def _describe(settings: OpcuaSource, got: Offer, path: Path) -> tuple[dict[str, Any], list[str]]:
    from gateway.collect.opcua import certificate

    body: dict[str, Any] = {"url": got.url, "wanted": settings.security, "offers": [], "server": None, "ours": None, "refused": None}
    lines = [f"server   {got.url}"]
    for one in got.endpoints:
        ways = sorted({token.name for token in one.tokens})
        shown = certificate.fingerprint(one.certificate) if one.chain else ""
        body["offers"].append({"security": one.security, "url": one.url, "login": ways, "sha256": shown, "server_uri": one.server_uri})
        lines.append(f"offers   {printable(one.security):34} login: {', '.join(ways)}")
    names = {one.url for one in got.endpoints} - {got.url}
    if names:
        lines.append(f"note     it calls itself {printable(', '.join(sorted(names))[:200])}; the configured URL is used as written")
    if settings.security.strip().startswith("None"):
        return body, [*lines, "nothing  security is None: no certificate is shown that could be pinned"]
    if not got.chosen:
        lines.append(f"wrong    it does not offer {settings.security}: set source.{settings.name}.security to one of those above")
        return body, lines
    facts = certificate.facts(got.chosen)
    body["server"] = asdict(facts)
    lines += _certificate_lines(facts)
    if path.exists() and certificate.load(path) != got.chosen:
        before = certificate.fingerprint(certificate.load(path))
        body["pinned_sha256"] = before
        lines += ["CHANGED  the pinned certificate is another one:", f"         SHA-256 {before}"]
        lines.append("         Was the server replaced or its certificate renewed on purpose? If not, somebody is between.")
    if settings.certificate is not None and settings.certificate.exists():
        ours = certificate.load(settings.certificate)
        body["ours"] = asdict(certificate.facts(ours)) | {"path": str(settings.certificate)}
        lines += _our_lines(settings, ours, got, body)
    else:
        lines.append("ours     no application certificate yet: `ebbgate init gateway` makes it")
    return body, lines


def _certificate_lines(facts: Any) -> list[str]:  # noqa: ANN401 -- certificate.Facts, imported late
    lines = [f"SHA-1    {facts.sha1}   (what most servers show)", f"SHA-256  {facts.sha256}"]
    if facts.odd:
        return [*lines, f"note     {printable(facts.odd)}"]
    lines.append(f"subject  {printable(facts.subject)}" + ("" if facts.subject == facts.issuer else f", issued by {printable(facts.issuer)}"))
    lines.append(f"uri      {printable(facts.uri) or 'none: other clients may refuse it'}")
    lines.append(f"valid    {facts.not_before:%Y-%m-%d} to {facts.not_after:%Y-%m-%d}, RSA {facts.key_bits}")
    return lines


def _our_lines(settings: OpcuaSource, ours: bytes, got: Offer, body: dict[str, Any]) -> list[str]:
    from gateway.cli.vendors import MENUS
    from gateway.collect.opcua import certificate

    if got.refusal is None:
        return ["accepted the server takes our certificate"]
    body["refused"] = {"message": got.refusal.message, "remedy": got.refusal.remedy}
    lines = [f"REFUSED  {printable(got.refusal.message)}", "         Our certificate, to be accepted in the server:"]
    lines.append(f"         SHA-1   {certificate.fingerprint(ours, 'sha1')}")
    lines.append(f"         SHA-256 {certificate.fingerprint(ours)}")
    lines.append(f"         URI     {certificate.facts(ours).uri}; file {settings.certificate}")
    return lines + [f"         {vendor}: {menu}" for vendor, menu in MENUS]


def _pin(settings: OpcuaSource, got: Offer, path: Path, config: Path, yes: bool, as_json: bool) -> bool:
    """Write the certificate where collect looks, if it is not there already and the person says so."""
    from buffer.storage import make_directory, publish_file
    from gateway.collect.opcua import certificate

    if path.exists() and certificate.load(path) == got.chosen:
        if not as_json:
            click.echo(f"pinned   already, {path}")
        return True
    if not yes and (as_json or not click.confirm("Is this the fingerprint the server itself shows?")):
        return False
    make_directory(path.parent)
    publish_file(path, got.chosen)
    if not as_json:
        click.echo(f"pinned   {path}")
        if settings.server_certificate is None:
            click.echo(f'add to [source.{settings.name}]: server_certificate = "{path.relative_to(config.resolve().parent)}"')
    return True


# ---- browse ----


@click.command("browse")
@click.argument("source")
@config_gateway
@click.option("--root", default="", help="Node to begin at, as in tags.csv; default: Objects, without the server's own.")
@click.option("--depth", type=click.IntRange(1, 20), default=20, show_default=True, help="Levels to go down.")
@click.option("--most", type=click.IntRange(1, 200_000), default=10_000, show_default=True, help="Variables to list.")
@click.option("--dry-run", is_flag=True, help="Count only: what would be listed, and what it costs the server.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write a tag table; rows already in it stay as they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def browse_command(
    source: str, config: Path, root: str, depth: int, most: int, dry_run: bool, output: Path | None, as_json: bool
) -> None:
    """List what an OPC UA server has: address, type, value; with -o as a tag table that `check` accepts as it is.

    Within the load contract of the source. What this account cannot read is left out and counted. An array of fixed dimensions is proposed as
    tags of its elements (`expand`); empty the cell to keep it as one tag.
    """
    import asyncio

    from gateway.cli.owner import as_owner
    from gateway.collect.opcua import browse
    from gateway.collect.opcua.rows import make_rows
    from gateway.runtime import quiet, real

    settings, wanted = _opcua(config, source)
    quiet()
    taken, dialect = _table_before(output, settings)
    with as_owner(settings):
        found = asyncio.run(
            browse.browse(
                wanted, real(), settings.state / "collect", root=root, depth=depth, most=most, attributes=not dry_run, progress=_progress()
            )
        )
    if dry_run:
        _say_cost(wanted, found, as_json)
        return
    others = [tag for one in settings.sources for tag in one.tags] if output is None else []
    rows, left_out = make_rows(source, found.variables, found.namespaces, wanted.namespaces, taken or others)
    if output is not None:
        _write(output, [*taken, *rows], dialect)
    _say(source, found, rows, left_out, output, as_json)


def _progress() -> Any:  # noqa: ANN401 -- a function of (str, int, int)
    last = [time.monotonic()]

    def say(what: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] >= PROGRESS_S:
            last[0] = time.monotonic()
            click.echo(f"{what} {done:,}" + (f" of {total:,}" if total else " nodes"), err=True)

    return say


def _table_before(output: Path | None, settings: GatewaySettings) -> tuple[list[TagRow], Any]:
    """Return rows and dialect of the file to be written, where it is there."""
    from gateway.tagcells import Dialect
    from gateway.tagfile import read_tags

    if output is None or not output.exists() or not output.read_bytes().strip():
        return [], Dialect()
    rows, dialect = read_tags(output.read_bytes(), {one.name for one in settings.sources}, str(output))
    return list(rows), dialect


def _write(output: Path, rows: list[TagRow], dialect: Any) -> None:  # noqa: ANN401 -- tagcells.Dialect
    from buffer.storage import publish_file
    from gateway.tagfile import write_tags

    publish_file(output.resolve(), write_tags(rows, dialect), mode=0o644)


def _say_cost(settings: OpcuaSource, found: Found, as_json: bool) -> None:
    from math import ceil

    from gateway.collect.opcua.browse import ATTRIBUTES

    requests = 7 + (len(ATTRIBUTES) + 1) * ceil(len(found.variables) / settings.load.items)  # and once for their properties
    seconds = requests / settings.load.requests_per_s
    body = {"variables": len(found.variables), "nodes": found.seen, "seconds": round(seconds, 1), "stopped": found.stopped}
    line = f"{len(found.variables):,} variables among {found.seen:,} nodes; to describe them takes about {seconds:.0f} s"
    line += f" at {settings.load.requests_per_s:g} requests/s, longer if the server takes fewer nodes a request"
    emit(body, as_json, [line, *([found.stopped + ": begin lower with --root, or raise --most"] if found.stopped else [])])


def _say(
    source: str, found: Found, rows: list[TagRow], left_out: list[tuple[str, str]], output: Path | None, as_json: bool
) -> None:
    known = len(found.variables) - len(rows) - len(left_out)
    if as_json:
        body = {
            "source": source,
            "rows": [asdict(row) for row in rows],
            "left_out": [{"path": path, "why": why} for path, why in left_out],
            "not_readable": found.hidden,
            "already_in_table": known,
            "stopped": found.stopped,
            "written": str(output) if output else None,
        }
        emit(body, True, [])
        return
    if output is None:
        for row in rows:
            elements = f"  (expand = {row.expand})" if row.expand else ""
            click.echo(f"{printable(row.address):48} {printable(row.type):12} {printable(row.unit):8} {row.path}{elements}")
    for path, why in left_out[:LEFT_OUT_SHOWN_MAX]:
        click.echo(f"left out {printable(path)}: {printable(why)}", err=True)
    notes = [f"{len(rows):,} variables"]
    notes += [f"{known:,} in the table already"] if known else []
    notes += [f"{len(left_out):,} that a table cannot hold"] if left_out else []
    notes += [f"{found.hidden:,} that this account cannot read"] if found.hidden else []
    notes += [f"{found.stopped}: begin lower with --root, or raise --most"] if found.stopped else []
    click.echo("; ".join(notes), err=True)
    if output is not None:
        click.echo(f"written to {output}. Look through it in a spreadsheet, then: ebbgate check --values", err=True)


# ---- read ----


@click.command("read")
@click.argument("source")
@click.argument("address")
@config_gateway
@click.option("--type", "type_", default="", help="Modbus: as in tags.csv; empty: every type that fits.")
@click.option("--all-orders", is_flag=True, help="Modbus: every byte order.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def read_command(source: str, address: str, config: Path, type_: str, all_orders: bool, as_json: bool) -> None:
    """Read one address once and show how it can be understood. Obeys the load contract; not while collect reads the source.

    OPC UA: ns=2;s=Temp, nsu=URI;s=Temp or alias:Temp. Modbus: 40001, hr:0, ir:52, co:3, di:7.
    """
    from gateway.cli.owner import as_owner
    from gateway.runtime import quiet
    from gateway.settings import ModbusSource

    settings, wanted = _source(config, source)
    quiet()
    with as_owner(settings):
        if isinstance(wanted, ModbusSource):
            body, lines = _read_modbus(settings, wanted, address, type_, all_orders)
        elif type_ or all_orders:
            raise ConfigError("--type and --all-orders are for Modbus", "Leave them out: an OPC UA server says what type a value has.")
        else:
            body, lines = _read_opcua(settings, wanted, address)
    emit(body, as_json, lines)


def _read_modbus(settings: GatewaySettings, wanted: ModbusSource, address: str, type_: str, all_orders: bool) -> tuple[Any, list[str]]:
    import asyncio

    from gateway.collect.modbus.probe import read
    from gateway.runtime import real
    from gateway.settings import ModbusSource

    line = [one for one in settings.sources if isinstance(one, ModbusSource)]
    shown = asyncio.run(read(wanted, real(), settings.state / "collect", address, type_, all_orders=all_orders, line=line))
    lines = [f"{one.address:10} {one.type:10} {one.order:5} {printable(one.value) or '-':24} {one.raw}" for one in shown]
    return [asdict(one) for one in shown], lines


def _read_opcua(settings: GatewaySettings, wanted: OpcuaSource, address: str) -> tuple[Any, list[str]]:
    import asyncio

    from gateway.collect.opcua.probe import quality_text, read
    from gateway.runtime import real

    one = asyncio.run(read(wanted, real(), settings.state / "collect", address))
    quality = quality_text(one.quality)
    age = "no source time" if one.age_s is None else f"{one.age_s:.1f} s old by the source's clock"
    access = {None: "the server does not say whether this account could write it", True: "THIS ACCOUNT COULD WRITE IT", False: "read-only for us"}
    lines = [f"{printable(one.value) or '-'}", f"{one.type}, {quality}, {age}; {access[one.writable]}", f"node {printable(one.node)}"]
    return asdict(one) | {"quality_text": quality}, lines
