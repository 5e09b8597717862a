"""ebbgate init: configuration files with every default and its reason, and keys. Enrolment comes after: gateway.cli.identity."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from gateway.errors import ConfigError

PKI_MODE = 0o755  # public halves and certificates are for the other users of this box; keys in it are 0600
SYSTEM_DIRECTORY = Path("/etc/ebbgate")
SYSTEM_STATE = Path("/var/lib/ebbgate")
directory_argument = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))


def _places(directory: Path, *names: str) -> list[str]:
    """Return where stores lie: beside the configuration, but below /var/lib for a system's own."""
    return [str(SYSTEM_STATE / name) if directory.resolve() == SYSTEM_DIRECTORY else name for name in names]


def _fresh(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: there is one already", "Move it away first; init overwrites nothing.")


@click.group("init")
def init_command() -> None:
    """Write a configuration and keys."""


@init_command.command("gateway")
@directory_argument
@click.option("--id", "identity", required=True, help="Of this gateway, for ever: a-z 0-9 _ . -")
@click.option("--site", required=True, help="As acme/ghent.")
@click.option("--receiver", "url", required=True, help="As https://ebbgate.acme.example:8443")
@click.option("--address", required=True, help="The receiver's IP address.")
@click.option("--timezone", default="UTC", show_default=True, help="Of the people, as Europe/Brussels.")
def init_gateway(directory: Path, identity: str, site: str, url: str, address: str, timezone: str) -> None:
    """gateway.toml, an empty tags.csv, the keys, and pki/ID.request for the site's CA."""
    from buffer.storage import make_directory, publish_file
    from gateway import templates
    from gateway.config import load_identity
    from gateway.configfile import GatewayFile, parse_text
    from gateway.tagfile import COLUMNS
    from gateway.trust import certs, enrolment

    config, tags, pki = directory / "gateway.toml", directory / "tags.csv", directory / "pki"
    ring, state = _places(directory, "ring", "state")
    words = {"ID": identity, "SITE": site, "URL": url, "ADDRESS": address, "TIMEZONE": timezone, "RING": ring, "STATE": state}
    text = templates.fill(templates.GATEWAY, **words)
    parse_text(GatewayFile, text, config)
    _fresh(config, tags, pki / "data.key", pki / "tls.key", pki / "opcua.key")
    make_directory(pki, PKI_MODE)
    make_directory(directory / "secrets", 0o700)
    publish_file(tags, (",".join(COLUMNS) + "\r\n").encode())
    publish_file(config, text.encode())
    me = load_identity(config)
    if not isinstance(me, enrolment.Identity):
        raise ConfigError(f"{config}: not a gateway's", "This is a defect of ebbgate init.")
    now = dt.datetime.now(dt.UTC)
    certs.create_application_certificate(pki / "opcua.der", pki / "opcua.key", f"urn:ebbgate:gateway:{identity}", identity, now)
    request = enrolment.make_request(me)
    publish_file(me.request, request)
    click.echo(f"written: {config}, {tags}, {pki}/")
    click.echo(f"request: {me.request}   fingerprint {enrolment.fingerprint(request)}")
    click.echo("next, one of the two:")
    click.echo(f"  by code:  on the CA `ebbgate ca code`, here `ebbgate enroll --config {config}`")
    click.echo(f"  by files: carry the request to the CA, `ebbgate ca sign`; here `ebbgate identity install ANSWER --config {config}`")


@init_command.command("receiver")
@directory_argument
@click.option("--name", required=True, help="Of this receiver.")
@click.option("--listen", required=True, help="As 10.20.0.5:8443")
@click.option("--host", "hosts", multiple=True, required=True, help="Names and addresses in the certificate; may be repeated.")
@click.option("--gateway", "gateways", multiple=True, help="Id of a gateway that may send here; may be repeated.")
@click.option("--site", default="", help="Of those gateways, as acme/ghent.")
@click.option("--ca", "ca", type=click.Path(path_type=Path), help="Directory of the CA, if it is on this machine: signs at once.")
def init_receiver(directory: Path, name: str, listen: str, hosts: tuple[str, ...], gateways: tuple[str, ...], site: str, ca: Path | None) -> None:
    """receiver.toml, the receipt key, the TLS key, and pki/NAME.request for the site's CA."""
    from buffer.storage import make_directory, publish_file
    from gateway import templates
    from gateway.config import load_identity
    from gateway.configfile import SiteFile, parse_text
    from gateway.trust import enrolment
    from gateway.trust.authority import AuthorityDirectory

    authority = AuthorityDirectory(ca) if ca else None
    config, pki = directory / "receiver.toml", directory / "pki"
    landing, deliver, lake = _places(directory, "landing", "deliver", "lake")
    text = templates.site_text(gateways, NAME=name, LISTEN=listen, LANDING=landing, DELIVER=deliver, LAKE=lake, SITE=site)
    parse_text(SiteFile, text, config)
    _fresh(config, pki / "receipt.key", pki / "receiver.key")
    make_directory(pki, PKI_MODE)
    make_directory(directory / "secrets", 0o700)
    publish_file(config, text.encode())
    publish_file(pki / "revoked", b"# ebbgate ca revoke writes this list; carried over from the CA\n")
    me = load_identity(config)
    if not isinstance(me, enrolment.ReceiverIdentity):
        raise ConfigError(f"{config}: not a receiver's", "This is a defect of ebbgate init.")
    request = enrolment.make_receiver_request(me, list(hosts))
    publish_file(me.request, request)
    click.echo(f"written: {config}, {pki}/")
    if authority is not None:
        answer = authority.sign(request, dt.datetime.now(dt.UTC))
        enrolment.install_receiver_answer(me, answer, request)
        click.echo(f"signed by the CA in {ca}. Next: ebbgate check --config {config}")
        return
    click.echo(f"request: {me.request}   fingerprint {enrolment.fingerprint(request)}")
    click.echo(f"next: carry it to the CA, `ebbgate ca sign`; here `ebbgate identity install ANSWER --config {config}`")
