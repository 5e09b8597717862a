"""ebbgate export, import, import-identity: frames on a stick where there is no link. Export on the OT box, import beside the receiver."""

from __future__ import annotations

import datetime as dt
from errno import EIO, ENODEV, ENOENT, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import emit
from gateway.cli.processes import SITE_TOML, config_gateway
from gateway.errors import EXIT_FINDING, ConfigError, EbbgateError

if TYPE_CHECKING:
    from buffer.errors import StorageFault
    from gateway.settings import Receiver, SiteSettings
    from gateway.upload.carry_in import Imported
    from gateway.upload.folder import Exported

folder_argument = click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))


# ---- OT side ----


@click.command("export")
@folder_argument
@config_gateway
@click.option("--from", "begin", default="", metavar="GENERATION/BLOCK", help="Leave out what is before: where an earlier stick ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def export_command(folder: Path, config: Path, begin: str, as_json: bool) -> None:
    """Write what the ring holds onto a stick, as signed frames, for `ebbgate import` on the IT side.

    Returns when all of it is durable: then the stick may be removed. Run it again after an interruption, or later: what is on the
    stick and whole is kept, what is missing is added. The uploader is not affected: what it sends over the link it sends anyway, and
    the receiver takes each reading once.
    """
    from buffer.errors import StorageFault
    from buffer.storage import PosixReadStorage
    from gateway.config import load_gateway
    from gateway.upload.folder import export_folder, folder_of

    settings = load_gateway(config, pinned=False)
    ring = settings.ring.path / settings.stream
    if not (ring / "journal").is_dir():
        raise EbbgateError(f"{ring}: no ring here", "Start `ebbgate collect` first, or name the right --config.")
    start = _place(begin)

    latest: list[Exported] = []

    def say(done: Exported) -> None:
        latest[:] = [done]
        if not as_json:
            click.echo(f"  {done.files} files, {done.frames_bytes / 1e6:,.1f} MB", err=True)

    try:
        done = export_folder(PosixReadStorage(ring), settings.stream, folder, begin=start, progress=say)
    except StorageFault as fault:
        raise _stick_fault(fault, folder, latest) from None
    where = folder_of(folder, settings.stream)
    data = {
        "stream": settings.stream, "folder": str(where), "files": done.files, "kept_files": done.kept_files, "bytes": done.frames_bytes,
        "blocks": done.blocks, "unreadable": done.unreadable, "next": _format_place(done.place), "durable": True,
    }  # fmt: skip
    lines = [
        f"{where}: {done.blocks:,} blocks in {done.files} new files, {done.frames_bytes / 1e6:,.1f} MB; {done.kept_files} files were there",
        "everything is durable: unmount the stick, then remove it",
        f"next on the IT side: ebbgate import {folder}",
    ]
    if done.unreadable:
        lines.append(f"{done.unreadable} pieces of the ring could not be read: see `ebbgate ring check`")
    emit(data, as_json, lines)
    if done.unreadable:
        raise SystemExit(EXIT_FINDING)


def _place(text: str) -> tuple[int, int]:
    from buffer.errors import CorruptError
    from buffer.manifest import parse_generation

    if not text:
        return (0, 0)
    generation, _, block = text.partition("/")
    try:
        return parse_generation(generation), int(block)
    except (CorruptError, ValueError):
        raise ConfigError(f"--from {text!r} is not GENERATION/BLOCK", "Write it as the export before printed it, as 7-3fa91c02/1200.") from None


def _format_place(place: tuple[int, int]) -> str:
    from buffer.manifest import format_generation

    return f"{format_generation(place[0])}/{place[1]}"


def _stick_fault(fault: StorageFault, folder: Path, latest: list[Exported]) -> EbbgateError:
    if fault.errno == ENOSPC:
        return EbbgateError(
            f"{folder}: the stick is full; the files finished before are whole and durable",
            "Carry this one in. Then go on with another, or with this one emptied: ebbgate export DIR"
            + (f" --from {_format_place(latest[0].place)}" if latest and latest[0].place > (0, 0) else ""),
        )
    if fault.errno in (EIO, ENODEV, ENOENT):
        return EbbgateError(
            f"{folder}: the stick went away or cannot be written ({fault}); the files finished before are whole",
            "Put it back and run the export again: it goes on where it stopped.",
        )
    return EbbgateError(f"{folder}: {fault}", "Is the stick mounted, writable, and are you its user?")


# ---- IT side ----


@click.command("import")
@folder_argument
@click.option("--config", type=click.Path(path_type=Path), default=Path(SITE_TOML), show_default=True, help="receiver.toml.")
@click.option("--receiver", "url", default="", help="Another receiver, as https://name:8443 (the name is checked in its certificate).")
@click.option("--address", default="", help="Its IP address, with --receiver.")
@click.option("--ca", type=click.Path(path_type=Path), help="CA of the receiver's certificate.  [default: gateways_ca]")
@click.option("--receipt-key", type=click.Path(path_type=Path), help="Public receipt key.  [default: beside receipt_key, .pub]")
@click.option("--certificate", type=click.Path(path_type=Path), help="Of this client.  [default: pki/import.crt beside the config]")
@click.option("--key", type=click.Path(path_type=Path), help="Its private key.  [default: pki/import.key]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def import_command(
    folder: Path, config: Path, url: str, address: str, ca: Path | None, receipt_key: Path | None, certificate: Path | None, key: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Send the frames on a stick to the receiver, over mutual TLS like any gateway. Nothing on the stick is believed.

    Exit code 1 if a person should look: damaged files, foreign files, frames that the receiver refused. May be run again at any time:
    what the receiver holds is a duplicate and changes nothing.
    """
    from gateway.config import load_site
    from gateway.settings import Receiver
    from gateway.wire.carry import STICK

    site, base = load_site(config), config.resolve().parent
    name, where = (url, address) if url else _listening(site)
    if url and not address:
        raise ConfigError("--receiver without --address", "There is no DNS here: give the receiver's IP address too.")
    settings = Receiver(
        url=name, address=where, ca=ca or site.gateways_ca, receipt_key=receipt_key or site.receipt_key.with_suffix(".pub"),
        certificate=certificate or base / "pki/import.crt", private_key=key or base / "pki/import.key",
    )  # fmt: skip
    if not settings.certificate.exists():
        raise ConfigError(f"{settings.certificate}: this client has no identity yet", "Make one: ebbgate import-identity NAME --ca CA-DIRECTORY")
    found = [(one, match[1]) for one in (folder, *sorted(folder.iterdir())) if (match := STICK.fullmatch(one.name))]
    if not found:
        raise EbbgateError(f"{folder}: no frames of ours here", "Expected a directory ebbgate-STREAM-frames, as `ebbgate export` writes it.")
    results = {stream: _carried(settings, one.parent, stream) for one, stream in found}
    _report(results, as_json)


def _listening(site: SiteSettings) -> tuple[str, str]:
    """Return URL and address of the receiver of this configuration: the first name in its certificate, the loopback if it listens on all."""
    from gateway.trust.certs import server_names

    host, port = site.listen
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
    names = server_names(site.tls_certificate)
    return f"https://{address if address in names else names[0]}:{port}", address


def _carried(settings: Receiver, folder: Path, stream: str) -> Imported:
    import asyncio

    from gateway import runtime
    from gateway.trust.keys import KeyRing, load_public
    from gateway.upload.carry_in import import_folder
    from gateway.upload.transport import HttpsCarrier

    keys = KeyRing()
    keys.trust(load_public(settings.receipt_key))
    world = runtime.real()

    async def run() -> Imported:
        carrier = HttpsCarrier(world, settings)
        try:
            return await import_folder(world, folder, stream, carrier, keys)
        finally:
            await carrier.close()

    return asyncio.run(run())


def _report(results: dict[str, Imported], as_json: bool) -> None:
    from dataclasses import asdict

    from gateway.cli import printable

    lines = []
    for stream, r in results.items():
        lines.append(f"{stream}: {r.files} files; stored {r.stored:,}, held already {r.duplicate:,}, conflict {r.conflict:,}, refused {r.refused:,}")
        lines += [f"  {printable(finding)}" for finding in r.findings]
    emit({stream: asdict(r) for stream, r in results.items()}, as_json, lines)
    if any(r.findings or r.refused or r.conflict for r in results.values()):
        raise SystemExit(EXIT_FINDING)


@click.command("import-identity")
@click.argument("name")
@click.option("--ca", "ca", type=click.Path(path_type=Path, exists=True), required=True, help="Directory of the CA (ebbgate ca init).")
@click.option("--directory", type=click.Path(path_type=Path, exists=True), default=Path("/etc/ebbgate"), show_default=True)
@click.option("--streams", default="*", show_default=True, help="What it may carry in, as hall1.*")
def import_identity_command(name: str, ca: Path, directory: Path, streams: str) -> None:
    """Make the TLS identity that `ebbgate import` shows to the receiver: a client like a gateway, with streams of its own."""
    import re

    from buffer.limits import ID_PATTERN
    from buffer.storage import make_directory, publish_file
    from gateway.trust import certs

    if not re.fullmatch(ID_PATTERN, name):
        raise ConfigError(f"{name!r} is not an id", "Use a-z 0-9 _ . - and begin with a letter or digit, as stick-desk.")
    authority = certs.load_authority(ca / "ca.crt", ca / "ca.key")
    pki = directory / "pki"
    make_directory(pki)
    request = certs.make_request(pki / "import.key", name)
    publish_file(pki / "import.crt", certs.sign_request(authority, request, name, dt.datetime.now(dt.UTC)))
    click.echo(f"written: {pki}/import.crt, import.key. Add to receiver.toml and restart receive:")
    click.echo(f'\n[[gateway]]\nid      = "{name}"\nstreams = ["{streams}"]\n')
