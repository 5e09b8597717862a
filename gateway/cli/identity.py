"""ebbgate enroll, identity: the keys and certificates of this machine, gateway or receiver."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import emit
from gateway.cli.authority import PORT
from gateway.cli.processes import config_gateway
from gateway.errors import ConfigError, TrustError

if TYPE_CHECKING:
    from gateway.trust.enrolment import Identity, ReceiverIdentity

config_either = click.option(
    "--config", "config", type=click.Path(path_type=Path), default=Path("/etc/ebbgate/gateway.toml"), show_default=True,
    help="gateway.toml or receiver.toml",
)  # fmt: skip


@click.command("enroll")
@config_gateway
@click.option("--ca", "ca", default="", help=f"Where `ebbgate ca serve` listens; default: the receiver's address, port {PORT}.")
@click.option("--code", prompt="Code", hide_input=False, help="As `ebbgate ca code` printed it; asked for if not given.")
def enroll_command(config: Path, ca: str, code: str) -> None:
    """Enrol this gateway with a one-time code: asks the CA for its TLS certificate and for the statement of its data key.

    The only command of a gateway that takes something from the IT side over the network. Without a network: identity install.
    """
    import asyncio

    from buffer.storage import publish_file
    from gateway.config import receiver_address
    from gateway.enroll.client import enrol
    from gateway.trust import enrolment

    me = _gateway(config)
    host, _, port = (ca or f"{receiver_address(config)}:{PORT}").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--ca {ca}", f"Write ADDRESS:PORT, as 10.20.0.5:{PORT}.")
    request = enrolment.make_request(me)
    publish_file(me.request, request)
    answer = asyncio.run(enrol(host.strip("[]"), int(port), code, request))
    enrolment.install_answer(me, answer, request)
    _installed(me, config)


def _gateway(config: Path) -> Identity:
    from gateway.config import load_identity
    from gateway.trust.enrolment import Identity

    me = load_identity(config)
    if not isinstance(me, Identity):
        raise ConfigError(f"{config} is a receiver's", "Name the gateway's: --config gateway.toml.")
    return me


def _installed(me: Identity | ReceiverIdentity, config: Path) -> None:
    from gateway.trust import certs

    left = certs.days_left(me.certificate, dt.datetime.now(dt.UTC))
    click.echo(f"installed: {me.certificate}, {left} days. If upload or receive is running, restart it.")
    click.echo(f"next: ebbgate check --config {config}")


@click.group("identity")
def identity_command() -> None:
    """Keys and certificates of this machine."""


@identity_command.command("install")
@click.argument("answer", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@config_either
@click.option("--yes", is_flag=True, help="Do not ask whether the CA's fingerprint is right.")
def identity_install(answer: Path, config: Path, yes: bool) -> None:
    """Install what the CA answered to this machine's newest request, after checking it against the keys here."""
    from buffer.errors import CorruptError
    from gateway.config import load_identity
    from gateway.trust import certs, enrolment

    me = load_identity(config)
    with answer.open("rb") as file:
        message = file.read(enrolment.MESSAGE_BYTES_MAX + 1)
    try:
        authority = enrolment.answer_authority(message)
        found = enrolment.fingerprint(certs.authority_der(authority))
        held = me.receiver_ca if isinstance(me, enrolment.Identity) else me.gateways_ca
        if not held.exists() or held.read_bytes() != authority:
            known = "another CA than the one installed here" if held.exists() else "a CA this machine does not know yet"
            click.echo(f"from {known}: fingerprint {found}")
            if not yes and not click.confirm("Is that the fingerprint that `ebbgate ca list` shows?"):
                raise click.Abort
        _install(me, message)
    except CorruptError as error:
        raise TrustError(f"{answer}: {error}", "Carry the file over again.") from None
    _installed(me, config)


def _install(me: Identity | ReceiverIdentity, message: bytes) -> None:
    from gateway.trust import enrolment

    try:
        request = me.request.read_bytes()
    except OSError as error:
        raise TrustError(f"{me.request}: {error.strerror}", "Make a request: ebbgate identity renew.") from None
    if isinstance(me, enrolment.Identity):
        enrolment.install_answer(me, message, request)
    else:
        enrolment.install_receiver_answer(me, message, request)


@identity_command.command("renew")
@config_either
@click.option("--host", "hosts", multiple=True, help="Of a receiver: other names and addresses than before.")
def identity_renew(config: Path, hosts: tuple[str, ...]) -> None:
    """Write a new request, for the keys that are here, and go on with the old certificate until the answer is installed.

    A key that is no longer here is made anew: move a TLS key away that others may have seen, and have its certificate revoked.
    """
    from buffer.storage import publish_file
    from gateway.config import load_identity
    from gateway.trust import certs, enrolment

    me = load_identity(config)
    if isinstance(me, enrolment.Identity):
        request = enrolment.make_request(me)
    else:
        before = enrolment.parse_any_request(me.request.read_bytes()) if me.request.exists() else None
        names = list(hosts) or (certs.request_hosts(before.csr) if before else [])
        if not names:
            raise ConfigError("how is this receiver reached?", "Say --host NAME, and --host ADDRESS.")
        request = enrolment.make_receiver_request(me, names)
    publish_file(me.request, request)
    click.echo(f"request: {me.request}   fingerprint {enrolment.fingerprint(request)}")
    click.echo("Carry it to the CA: ebbgate ca sign; then here: ebbgate identity install ANSWER"
               + (", or all at once with a code: ebbgate enroll" if isinstance(me, enrolment.Identity) else ""))  # fmt: skip


@identity_command.command("rotate")
@config_gateway
def identity_rotate(config: Path) -> None:
    """Replace the data key: the old key introduces the new one, no CA is needed. Collect signs with it from its next start on.

    Safe to run again after an interruption. The public half of the old key stays, for what it signed. Not the cure for a key that was
    stolen, for a thief could do the same: enrol again (ebbgate enroll) and have the old key revoked.
    """
    from gateway.trust.rotation import rotate

    for stream, path in _gateway(config).data_keys.items():
        old, new = rotate(path, stream)
        click.echo(f"{stream}: data key {old} -> {new}")


@identity_command.command("show")
@config_either
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def identity_show(config: Path, as_json: bool) -> None:
    """Names and fingerprints of keys, and how long certificates live."""
    from gateway.config import load_identity
    from gateway.trust import enrolment

    me = load_identity(config)
    data: dict[str, Any] = _gateway_facts(me) if isinstance(me, enrolment.Identity) else _receiver_facts(me)
    if me.request.exists():
        data["request"] = enrolment.fingerprint(me.request.read_bytes())
    data |= _certificate_facts(me)
    emit(data, as_json, [f"{name.replace('_', ' '):20} {value}" for name, value in data.items()])


def _gateway_facts(me: Identity) -> dict[str, Any]:
    import hashlib

    from gateway.trust import keys

    data: dict[str, Any] = {"gateway": me.gateway}
    for stream, path in me.data_keys.items():
        data[f"data_key_{stream}"] = keys.load_signer(path).key_id.hex()
    opcua = me.request.parent / "opcua.der"
    if opcua.exists():
        data["opcua_sha1"] = hashlib.sha1(opcua.read_bytes(), usedforsecurity=False).hexdigest()  # what servers show
    return data


def _receiver_facts(me: ReceiverIdentity) -> dict[str, Any]:
    from gateway.trust import keys

    return {"receiver": me.name, "receipt_key": keys.load_signer(me.receipt_key).key_id.hex()}


def _certificate_facts(me: Identity | ReceiverIdentity) -> dict[str, Any]:
    from gateway.trust import certs, enrolment

    if not me.certificate.exists():
        return {"tls_certificate": "none yet; have the request signed"}
    authority = me.receiver_ca if isinstance(me, enrolment.Identity) else me.gateways_ca
    return {
        "tls_days_left": certs.days_left(me.certificate, dt.datetime.now(dt.UTC)),
        "tls_serial": f"{certs.serial(me.certificate):x}",
        "ca": enrolment.fingerprint(certs.authority_der(authority.read_bytes())),
    }
