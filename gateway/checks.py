"""`ebbgate check`: everything that can be known to be wrong before it hurts, each with what to do."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.collect.locks import SourceBusy
from gateway.errors import EbbgateError
from gateway.findings import Finding, Level, Live
from gateway.settings import ModbusSource, OpcuaSource
from gateway.trust.certs import client_context, days_left
from gateway.trust.keys import load_public, load_signer

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings

WARN_DAYS: Final = 60
_REFUSED_TYPES: Final = ("tmpfs", "overlay", "nfs", "nfs4", "cifs", "smb3", "fuse", "fuseblk", "ramfs")


async def check_all(
    settings: GatewaySettings,
    runtime: Runtime,
    *,
    contact: bool,
    live: list[Live] | None = None,
    as_owner: AbstractContextManager[None] = nullcontext(),  # noqa: B008 -- does nothing
) -> list[Finding]:
    """Return what was found, worst first. live: takes what every tag shows. Sources are asked at once, those on one connection in turn.

    as_owner: entered while sources are asked, so that collect's files stay collect's; keys of other processes are read outside it.
    """
    findings = [*_keys(settings), *_certificate(settings, runtime.wall_ns()), *_ring(settings)]
    lines: dict[str, list[OpcuaSource | ModbusSource]] = {}
    for source in settings.sources:
        lines.setdefault(source.address if isinstance(source, ModbusSource) else source.name, []).append(source)
    with as_owner:
        answered = await asyncio.gather(*(_line(settings, runtime, line, contact, live) for line in lines.values()))
    findings += [one for some in answered for one in some]
    order = (Level.REFUSED, Level.WARNING, Level.INFO)
    return sorted(findings, key=lambda f: order.index(f.level))


async def _line(
    settings: GatewaySettings, runtime: Runtime, line: list[OpcuaSource | ModbusSource], contact: bool, live: list[Live] | None
) -> list[Finding]:
    findings: list[Finding] = []
    directory = settings.state / "collect"
    for source in line:
        if not source.tags:
            remedy = "Write rows for it in tags.csv" + (f": ebbgate browse {source.name} proposes them." if isinstance(source, OpcuaSource) else ".")
            findings.append(Finding(Level.WARNING, f"source.{source.name}", "has no tags", remedy))
        try:
            findings += await _source(source, runtime, directory, contact, live)
        except SourceBusy as busy:
            findings.append(_as_collect_says(source.name, directory, busy))
    return findings


async def _source(
    source: OpcuaSource | ModbusSource, runtime: Runtime, directory: Path, contact: bool, live: list[Live] | None
) -> tuple[Finding, ...]:
    if isinstance(source, ModbusSource):
        from gateway.collect.modbus import probe

        return await probe.check(source, runtime, directory, contact=contact and bool(source.tags), live=live)
    from gateway.collect.opcua.check import check

    return await check(source, runtime, directory, contact=contact, live=live)


def _as_collect_says(name: str, directory: Path, busy: SourceBusy) -> Finding:
    """Return what collect published of a source that it is reading now."""
    try:
        said = json.loads((directory / "status.json").read_bytes())["sources"][name]
        about = f"collect says it is {said.get('state')}, {said.get('tags')} tags, {said.get('refused', 0)} refused"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        about = "collect has said nothing about it yet"
    return Finding(Level.INFO, f"source.{name}", f"not asked: {busy.message}; {about}", busy.remedy)


def _keys(settings: GatewaySettings) -> list[Finding]:
    out = []
    for what, action in (
        (settings.data_key, lambda: load_signer(settings.data_key)),
        (settings.receiver.receipt_key, lambda: load_public(settings.receiver.receipt_key)),
        (settings.receiver.ca, lambda: client_context(settings.receiver.certificate, settings.receiver.private_key, settings.receiver.ca)),
    ):
        try:
            action()
        except EbbgateError as error:
            out.append(Finding(Level.REFUSED, str(what), error.message, error.remedy))
    if not settings.data_key.with_suffix(".statement").exists():
        remedy = "Carry the request to the CA, then `ebbgate identity install`."
        out.append(Finding(Level.REFUSED, str(settings.data_key), "no statement introduces this key to the receiver yet", remedy))
    return out


def _certificate(settings: GatewaySettings, wall_ns: int) -> list[Finding]:
    try:
        left = days_left(settings.receiver.certificate, dt.datetime.fromtimestamp(wall_ns / 1e9, dt.UTC))
    except EbbgateError:
        return []  # said by _keys
    if left < 0:
        return [Finding(Level.REFUSED, str(settings.receiver.certificate), f"ended {-left} days ago", "Have a new request signed by the CA.")]
    if left < WARN_DAYS:
        return [Finding(Level.WARNING, str(settings.receiver.certificate), f"ends in {left} days", "Have a new request signed by the CA.")]
    return []


def _ring(settings: GatewaySettings) -> list[Finding]:
    path = settings.ring.path
    place, kind = file_system(path)
    out = []
    if kind in _REFUSED_TYPES or kind.startswith("fuse."):
        out.append(Finding(Level.REFUSED, str(path), f"lies on {kind}, which forgets or lies", "Put the ring on a local disk: ext4 or XFS."))
    if file_system(settings.state / "upload")[0] == place and place != "":
        remedy = "Give the ring a file system of its own, so that nothing else can fill it."
        out.append(Finding(Level.WARNING, str(path), f"shares the file system {place} with upload/", remedy))
    return out


def file_system(path: Path) -> tuple[str, str]:
    """Return mount point and type of the file system a path lies (or would lie) on."""
    at = path.resolve()
    best = ("", "")
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return best
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        inside = point == "/" or str(at) == point or str(at).startswith(point + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best
