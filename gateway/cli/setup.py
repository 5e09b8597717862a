"""ebbgate init, ca, identity: keys, certificates and first configuration files. Enrolment is by files, without any network."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import click

from gateway.errors import ConfigError, TrustError

ANSWER_BYTES_MAX = 64 * 1024
directory_argument = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))

GATEWAY_TEMPLATE = """[gateway]
id       = "{id}"                    # for ever; a replaced box keeps it; its ring starts a new generation
site     = "{site}"
timezone = "UTC"                     # for screens; everything stored is UTC
state    = "state"                   # collect/, upload/, control/
tags     = "tags.csv"

[ring]
path     = "ring"                    # a local disk of its own
max_size = "25 GB"                   # no age limit: the ring forgets by size only
commit   = "1 s"                     # not yet committed is at most this; 250 ms on an SSD
seal     = "15 min"                  # a segment at least this often

[receiver]
url      = "{url}"                   # the name is checked in the certificate
address  = "{address}"               # where to connect: no DNS on this box
live     = "1 s"                     # at most one live request per second
backfill = {{ limit = "5 Mbit/s", window = "always" }}

# [source.press7]
# kind     = "opcua"
# urls     = ["opc.tcp://192.168.10.7:4840"]
# security = "Basic256Sha256 SignAndEncrypt"
# server_certificate = "pki/press7.der"       # ebbgate trust press7 writes it
# user     = "ebbgate_ro"
# password_file = "pki/press7.password"

# [source.mdb1]
# kind     = "modbus-tcp"
# address  = "192.168.10.40:502"
# unit     = 1
"""

SITE_TEMPLATE = """[receiver]
name     = "{name}"
listen   = "{listen}"
landing  = "landing"                 # back this up together with its index
deliver  = "deliver"
min_free = "10 GB"                   # below: gateways wait

[tls]
gateways_ca = "pki/ca.crt"

[[gateway]]
id   = "{gateway}"
site = "{site}"

[lake]
path  = "lake"
every = "60 s"

[console]
listen = "127.0.0.1:8080"
"""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise ConfigError(f"{path}: there is one already", "Move it away first; init overwrites nothing.")
    path.write_text(text, encoding="utf-8")


# ---- init ----


@click.group("init")
def init_command() -> None:
    """Write a configuration and keys."""


@init_command.command("gateway")
@directory_argument
@click.option("--id", "identity", required=True, help="Of this gateway, for ever: a-z 0-9 _ . -")
@click.option("--site", required=True, help="As acme/ghent.")
@click.option("--receiver", "url", required=True, help="As https://ebbgate.acme.example:8443")
@click.option("--address", required=True, help="The receiver's IP address.")
def init_gateway(directory: Path, identity: str, site: str, url: str, address: str) -> None:
    """gateway.toml, an empty tags.csv, the keys, and pki/ID.request for the site's CA."""
    from buffer.storage import make_directory
    from gateway.tagfile import COLUMNS
    from gateway.trust import certs, keys

    pki = directory / "pki"
    make_directory(pki)
    _write(directory / "gateway.toml", GATEWAY_TEMPLATE.format(id=identity, site=site, url=url, address=address))
    _write(directory / "tags.csv", ",".join(COLUMNS) + "\n")
    data = keys.create_signer(pki / "data.key")
    request = certs.make_request(pki / "tls.key", identity)
    certs.create_application_certificate(pki / "opcua.der", pki / "opcua.key", f"urn:ebbgate:gateway:{identity}", identity, _now())
    proposal = keys.propose_statement(data, f"{identity}.main")
    body = {"gateway": identity, "request": request.decode(), "proposal": proposal.hex()}
    _write(pki / f"{identity}.request", json.dumps(body, indent=1))
    click.echo(f"written: {directory}/gateway.toml, tags.csv, pki/")
    click.echo(f"next: carry {pki}/{identity}.request to the CA: ebbgate ca sign, then: ebbgate identity install ANSWER --directory {directory}")


@init_command.command("receiver")
@directory_argument
@click.option("--name", required=True, help="Of this receiver.")
@click.option("--listen", required=True, help="As 10.20.0.5:8443")
@click.option("--host", "hosts", multiple=True, required=True, help="Names and addresses in the certificate; may be repeated.")
@click.option("--gateway", required=True, help="Id of the first gateway.")
@click.option("--site", default="", help="Of that gateway.")
@click.option("--ca", "ca", type=click.Path(path_type=Path), required=True, help="Directory of the CA (ebbgate ca init).")
def init_receiver(directory: Path, name: str, listen: str, hosts: tuple[str, ...], gateway: str, site: str, ca: Path) -> None:
    """receiver.toml, the receipt key, and a TLS certificate signed by the site's CA."""
    from buffer.storage import make_directory, publish_file
    from gateway.trust import certs, keys

    authority = certs.load_authority(ca / "ca.crt", ca / "ca.key")
    pki = directory / "pki"
    make_directory(pki)
    _write(directory / "receiver.toml", SITE_TEMPLATE.format(name=name, listen=listen, gateway=gateway, site=site or gateway))
    keys.create_signer(pki / "receipt.key")
    certs.create_server_certificate(authority, pki / "receiver.crt", pki / "receiver.key", list(hosts), _now())
    publish_file(pki / "ca.crt", (ca / "ca.crt").read_bytes())
    click.echo(f"written: {directory}/receiver.toml, pki/. Give {pki}/receipt.pub to `ebbgate ca sign`.")


# ---- ca ----


@click.group("ca")
def ca_command() -> None:
    """The site's small certificate authority: another user, better another machine."""


@ca_command.command("init")
@directory_argument
@click.option("--name", required=True, help="Of the site, for the certificate.")
def ca_init(directory: Path, name: str) -> None:
    """Make the CA: ca.crt (for everybody) and ca.key (for nobody else)."""
    from buffer.storage import make_directory
    from gateway.trust import certs

    make_directory(directory, 0o700)
    certs.create_authority(directory / "ca.crt", directory / "ca.key", name, _now())
    click.echo(f"written: {directory}/ca.crt, ca.key. Back the key up offline.")


@ca_command.command("sign")
@directory_argument
@click.argument("request", type=click.Path(path_type=Path, exists=True))
@click.option("--receipt-key", type=click.Path(path_type=Path, exists=True), required=True, help="The receiver's pki/receipt.pub")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The answer to carry back.")
@click.option("--yes", is_flag=True, help="Do not ask whether the key is the gateway's.")
def ca_sign(directory: Path, request: Path, receipt_key: Path, out: Path, yes: bool) -> None:
    """Sign a gateway's request: its TLS certificate and the statement that introduces its data key."""
    from gateway.trust import certs, keys

    authority = certs.load_authority(directory / "ca.crt", directory / "ca.key")
    body = _read_json(request)
    gateway, proposal = str(body["gateway"]), bytes.fromhex(str(body["proposal"]))
    statement = keys.parse_proposal(proposal)
    if not statement.stream.startswith(gateway + "."):
        raise TrustError(f"the request is for stream {statement.stream}, not of gateway {gateway}", "Make it again with `ebbgate init gateway`.")
    click.echo(f"gateway {gateway}, stream {statement.stream}, data key {statement.key_id.hex()}")
    if not yes and not click.confirm("Does `ebbgate identity show` on the gateway say the same key?"):
        raise click.Abort
    answer = {
        "certificate": certs.sign_request(authority, str(body["request"]).encode(), gateway, _now()).decode(),
        "statement": keys.endorse_statement(certs.authority_signer(authority), proposal).hex(),
        "ca": (directory / "ca.crt").read_text(encoding="ascii"),
        "receipt_key": receipt_key.read_text(encoding="ascii"),
    }
    _write(out, json.dumps(answer, indent=1))
    click.echo(f"written: {out}. Carry it back: ebbgate identity install {out.name}")


# ---- identity ----


@click.group("identity")
def identity_command() -> None:
    """Keys and certificates of this gateway."""


@identity_command.command("install")
@click.argument("answer", type=click.Path(path_type=Path, exists=True))
@click.option("--directory", type=click.Path(path_type=Path, exists=True), default=Path("/etc/ebbgate"), show_default=True)
def identity_install(answer: Path, directory: Path) -> None:
    """Install what the CA answered: TLS certificate, key statement, CA, receipt key."""
    from buffer.storage import publish_file
    from gateway.trust import keys

    body = _read_json(answer)
    pki = directory / "pki"
    statement = bytes.fromhex(str(body["statement"]))
    mine = keys.load_signer(pki / "data.key").key_id
    if keys.parse_statement(statement).key_id != mine:
        raise TrustError("the answer is for another data key", "Carry the request of this gateway to the CA again.")
    publish_file(pki / "tls.crt", str(body["certificate"]).encode())
    publish_file(pki / "data.statement", statement)
    publish_file(pki / "receiver-ca.crt", str(body["ca"]).encode())
    publish_file(pki / "receipt.pub", str(body["receipt_key"]).encode())
    click.echo(f"installed in {pki}. Next: ebbgate check --config {directory}/gateway.toml")


@identity_command.command("show")
@click.option("--directory", type=click.Path(path_type=Path, exists=True), default=Path("/etc/ebbgate"), show_default=True)
def identity_show(directory: Path) -> None:
    """The data key's name and the end of the TLS certificate."""
    from gateway.trust import certs, keys

    pki = directory / "pki"
    click.echo(f"data key {keys.load_signer(pki / 'data.key').key_id.hex()}")
    if (pki / "tls.crt").exists():
        click.echo(f"TLS certificate: {certs.days_left(pki / 'tls.crt', _now())} days left")
    else:
        click.echo("TLS certificate: none yet; carry the request to the CA")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        body = json.loads(data) if len(data) <= ANSWER_BYTES_MAX else None
    except (OSError, ValueError):
        body = None
    if not isinstance(body, dict):
        raise TrustError(f"{path}: not a request or answer of ours", "Carry the file over again.")
    return body
