"""ebbgate ca: the site's small certificate authority. Another user than the receiver's, better another machine."""

from __future__ import annotations

import datetime as dt
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import emit, printable
from gateway.errors import ConfigError, TrustError

if TYPE_CHECKING:
    from gateway.trust.authority import AuthorityDirectory
    from gateway.trust.keys import LastGood

PORT = 8444
SECONDS_MAX = 24 * 3600
directory_argument = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
receiver_option = click.option("--receiver", default="", help="Name of the receiver this gateway sends to, where the CA knows several.")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _fingerprint(ca: AuthorityDirectory) -> str:
    from gateway.trust.enrolment import fingerprint

    return fingerprint(ca.certificate_der)


@click.group("ca")
def ca_command() -> None:
    """The site's small certificate authority: another user, better another machine."""


@ca_command.command("init")
@directory_argument
@click.option("--name", required=True, help="Of the site, for the certificate.")
def ca_init(directory: Path, name: str) -> None:
    """Make the CA: ca.crt (for everybody) and ca.key (for nobody else)."""
    from gateway.trust.authority import AuthorityDirectory

    ca = AuthorityDirectory.create(directory, name, _now())
    click.echo(f"written: {directory}/ca.crt, ca.key   fingerprint {_fingerprint(ca)}")
    click.echo("Back the directory up, offline. Next: ebbgate init receiver")


@ca_command.command("sign")
@directory_argument
@click.argument("request", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), help="The answer to carry back; default: the request's name with .answer")
@receiver_option
@click.option("--yes", is_flag=True, help="Do not ask whether the fingerprint is right.")
def ca_sign(directory: Path, request: Path, out: Path | None, receiver: str, yes: bool) -> None:
    """Sign the request of a gateway or of a receiver: its TLS certificate, and the statements that introduce its data keys."""
    from buffer.errors import CorruptError
    from buffer.storage import publish_file
    from gateway.trust import certs, enrolment
    from gateway.trust.authority import AuthorityDirectory

    ca = AuthorityDirectory(directory)
    with request.open("rb") as file:
        message = file.read(enrolment.MESSAGE_BYTES_MAX + 1)
    try:
        wanted = enrolment.parse_any_request(message)
    except CorruptError as error:
        raise TrustError(f"{request}: {error}", "Carry over the .request file that `ebbgate init` or `ebbgate identity renew` wrote.") from None
    target = out or request.with_suffix(".answer")
    if target.exists():
        raise ConfigError(f"{target}: there is one already", "Name another with --out, or move it away.")
    if isinstance(wanted, enrolment.ReceiverRequest):
        click.echo(f"receiver {wanted.name}, reached as {printable(', '.join(certs.request_hosts(wanted.csr)))}")
    else:
        click.echo(f"gateway {wanted.gateway}, streams {', '.join(wanted.streams())}")
    click.echo(f"fingerprint {enrolment.fingerprint(message)}")
    if not yes and not click.confirm("Does `ebbgate identity show` over there say the same fingerprint?"):
        raise click.Abort
    publish_file(target, ca.sign(message, _now(), receiver))
    click.echo(f"written: {target}   fingerprint of this CA {_fingerprint(ca)}")
    click.echo(f"Carry it back: ebbgate identity install {target.name}")


@ca_command.command("code")
@directory_argument
@click.argument("gateway")
def ca_code(directory: Path, gateway: str) -> None:
    """Make a one-time code with which one gateway can enrol over the network, within a day."""
    from buffer import limits
    from gateway.trust.authority import AuthorityDirectory

    if not re.fullmatch(limits.ID_PATTERN, gateway) or ".." in gateway:
        raise ConfigError(f"{gateway!r} is no id of a gateway", "An id is 1 to 64 of a-z 0-9 _ . - and begins with a letter or digit.")
    code = AuthorityDirectory(directory).make_code(gateway, time_ns())
    click.echo(f"{code}   for gateway {gateway}, once, within 24 hours, five tries")
    click.echo(f"While it is used: ebbgate ca serve {directory} --listen ADDRESS:{PORT}")
    click.echo(f"On the gateway:   ebbgate enroll --ca ADDRESS:{PORT}")


def time_ns() -> int:
    """Return the wall clock."""
    from gateway.runtime import real

    return real().wall_ns()


@ca_command.command("serve")
@directory_argument
@click.option("--listen", required=True, help=f"As 10.20.0.5:{PORT}")
@click.option("--for", "how_long", default="1 h", show_default=True, help="Ends by itself after this time; at most 24 h.")
@receiver_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def ca_serve(directory: Path, listen: str, how_long: str, receiver: str, verbose: bool) -> None:
    """Answer gateways that have a code, for a while. Nothing else is answered, and nothing is needed for what is enrolled already."""
    import asyncio

    from gateway import runtime
    from gateway.cli.processes import serve
    from gateway.enroll.server import EnrolmentServer
    from gateway.trust.authority import AuthorityDirectory
    from gateway.units import parse_duration_ns

    host, _, port = listen.rpartition(":")
    try:
        seconds = parse_duration_ns(how_long) / 1e9
    except ValueError as error:
        raise ConfigError(f"--for {error}", "Write a time, as 1 h.") from None
    if not host or not port.isdigit() or not 0 < seconds <= SECONDS_MAX:
        raise ConfigError(f"--listen {listen} --for {how_long}", f"Write --listen ADDRESS:PORT, as 10.20.0.5:{PORT}, and at most --for '24 h'.")
    ca = AuthorityDirectory(directory)
    world = runtime.real()

    async def run() -> None:
        server = EnrolmentServer(world, ca, receiver)
        try:
            runner, at = await server.serve(host.strip("[]"), int(port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {listen}: {error.strerror}", "Give an address of this machine and a free port.") from error
        click.echo(f"enrolment at {host}:{at} for {how_long}; open codes: {', '.join(ca.open_codes(world.wall_ns())) or 'none'}")
        try:
            await asyncio.sleep(seconds)
        finally:
            await runner.cleanup()
            click.echo(f"enrolled: {', '.join(server.enrolled) or 'nobody'}")

    serve("ca", verbose, run)


@ca_command.command("revoke")
@directory_argument
@click.argument("gateway")
@click.option("--last-good", "last_good", multiple=True, metavar="STREAM=GENERATION:SEQ", help="As hall1.main=7-3fa91c02:81234; one per stream.")
@click.option("--nothing-good", is_flag=True, help="Believe nothing that its data keys ever signed.")
@click.option("--certificates-only", is_flag=True, help="The data keys stay good: what they signed may still be carried in.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the list here too, as the receiver's pki/revoked.")
def ca_revoke(directory: Path, gateway: str, last_good: tuple[str, ...], nothing_good: bool, certificates_only: bool, out: Path | None) -> None:
    """Believe a gateway no longer: a stolen box, a lost key. Says up to which reading its data keys are still believed.

    `ebbgate ledger --json` on the receiver names the generations of a stream and how far each was received.
    """
    from buffer.storage import publish_file
    from gateway.trust.authority import AuthorityDirectory

    if [bool(last_good), nothing_good, certificates_only].count(True) != 1:
        raise ConfigError(
            "which readings are still good?", "Say one of --last-good STREAM=GENERATION:SEQ, --nothing-good, --certificates-only."
        )
    ca = AuthorityDirectory(directory)
    new = ca.revoke(gateway, dict(map(_last_good, last_good)), certificates_only=certificates_only)
    for line in new:
        click.echo(f"revoked: {line}")
    if not new:
        click.echo("revoked already")
    where = directory / "revoked"
    if out is not None:
        publish_file(out, where.read_bytes())
    click.echo(f"Carry {out or where} to every receiver, where [tls] revoked names it; it counts within 30 s.")


def _last_good(text: str) -> tuple[str, LastGood]:
    from buffer.errors import CorruptError
    from buffer.manifest import parse_generation
    from gateway.trust.keys import LastGood

    stream, _, rest = text.partition("=")
    generation, _, seq = rest.partition(":")
    try:
        return stream, LastGood(parse_generation(generation), int(seq))
    except (CorruptError, ValueError):
        raise ConfigError(f"--last-good {text}", "Write STREAM=GENERATION:SEQ, as hall1.main=7-3fa91c02:81234.") from None


@ca_command.command("list")
@directory_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def ca_list(directory: Path, as_json: bool) -> None:
    """Every certificate this CA signed, what is revoked, and the open codes."""
    from gateway.trust.authority import AuthorityDirectory

    ca = AuthorityDirectory(directory)
    revoked = ca.revoked()
    now = _now().strftime("%Y-%m-%dT%H:%M:%SZ")
    data, lines = [], [f"CA fingerprint {_fingerprint(ca)}, until {ca.authority.certificate.not_valid_after_utc:%Y-%m-%d}"]
    for one in ca.issued():
        state = "revoked" if int(one.serial, 16) in revoked.certificates else "expired" if one.until < now else "good"
        keys = {s: k + (" revoked" if bytes.fromhex(k) in revoked.keys else "") for s, k in one.keys.items()}
        data.append({"kind": one.kind, "name": one.name, "at": one.at, "until": one.until, "serial": one.serial, "state": state, "keys": keys})
        named = ", ".join(f"{s} {k}" for s, k in keys.items())
        lines.append(f"{one.kind:8} {one.name:24} {state:8} {one.at[:10]} to {one.until[:10]}  {named}")
    codes = ca.open_codes(time_ns())
    for gateway, until_ns in codes.items():
        lines.append(f"code     {gateway:24} open     until {time.strftime('%Y-%m-%d %H:%M', time.gmtime(until_ns / 1e9))} UTC")
    emit({"fingerprint": _fingerprint(ca), "issued": data, "codes": codes}, as_json, lines)
