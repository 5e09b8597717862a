"""What `ebbgate check` looks at on the machine itself: keys, certificates, clock, disks, secrets; and whether the receiver takes us.

Every finding says what to do. Nothing is written.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization

from buffer.errors import CorruptError, SignatureError
from gateway.errors import EbbgateError, TrustError
from gateway.findings import Finding, Level
from gateway.settings import OpcuaSource
from gateway.trust import certs
from gateway.trust.keys import KeyRing, load_public, load_signer, read_private_bytes
from gateway.trust.revocations import load_revocations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings, SiteSettings

WARN_DAYS: Final = 60
RELEASED: Final = dt.datetime(2026, 9, 1, tzinfo=dt.UTC)  # a clock before this release is wrong
_FORGETS: Final = ("tmpfs", "ramfs", "overlay", "aufs", "squashfs")
_NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "virtiofs")
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES: Final = 256


def gateway_findings(settings: GatewaySettings, now: dt.datetime) -> list[Finding]:
    """Return what was found on a gateway box, sources and receiver not asked."""
    findings = [*_clock(now, settings.receiver.certificate), *_gateway_keys(settings, now), *_ring(settings)]
    for source in settings.sources:
        if isinstance(source, OpcuaSource):
            findings += _opcua(source, now)
    return findings


def site_findings(settings: SiteSettings, now: dt.datetime) -> list[Finding]:
    """Return what was found on the IT side."""
    findings = [*_clock(now, settings.tls_certificate), *_site_keys(settings, now)]
    for path, what in ((settings.landing, "the landing"), (settings.deliver, "deliver's cursors")):
        findings += _disk(path, what)
    findings += _room(settings)
    if not settings.gateways:
        findings.append(Finding(Level.WARNING, "[[gateway]]", "no gateway may send here", "Add a [[gateway]] with the id of each."))
    for sink in settings.sinks:
        findings += _secret(sink.dsn_file, f"sink.{sink.name}.dsn_file")
    if settings.alarm is not None:
        remedy = "Watch `ebbgate status --config receiver.toml --json` from your monitoring until then: exit code 1 means trouble."
        findings.append(Finding(Level.WARNING, "[alarm]", "this release sends no alarms yet", remedy))
        if settings.alarm.webhook_file:
            findings += _secret(settings.alarm.webhook_file, "alarm.webhook_file")
    if settings.console_users != "none":
        remedy = "Keep it on the loopback, behind a reverse proxy that asks for logins."
        findings.append(Finding(Level.WARNING, "console.users", "this release's console asks for no login yet", remedy))
    return findings


# ---- keys and certificates ----


def _try(where: object, action: Callable[[], object]) -> list[Finding]:
    try:
        action()
    except EbbgateError as error:
        return [Finding(Level.REFUSED, str(where), error.message, error.remedy)]
    return []


def _gateway_keys(settings: GatewaySettings, now: dt.datetime) -> list[Finding]:
    r = settings.receiver
    out = _try(settings.data_key, lambda: load_signer(settings.data_key))
    if not r.certificate.exists():
        remedy = "Enrol: `ebbgate enroll` with a code of the CA, or carry the request to `ebbgate ca sign` and `ebbgate identity install` the answer."
        return [*out, Finding(Level.REFUSED, str(r.certificate), "this gateway is not enrolled yet: collect runs, nothing can be sent", remedy)]
    out += _try(r.receipt_key, lambda: load_public(r.receipt_key))
    out += _try(r.ca, lambda: certs.client_context(r.certificate, r.private_key, r.ca))
    out += _chain(r.certificate, r.ca)
    out += _statement(settings)
    return out + _life(r.certificate, now, "Uploading goes on for the receiver's grace of 90 days; collecting always does.")


def _statement(settings: GatewaySettings) -> list[Finding]:
    path = settings.data_key.with_suffix(".statement")
    remedy = "Enrol again: `ebbgate enroll`, or `ebbgate identity renew`, `ca sign`, `identity install`."
    try:
        payload, name = path.read_bytes(), load_signer(settings.data_key).key_id
        ring = KeyRing([certs.load_certificate_key(settings.receiver.ca)])
        statement = _introduce(ring, payload, settings)
    except OSError:
        return [Finding(Level.REFUSED, str(path), "no statement introduces the data key to the receiver", remedy)]
    except (CorruptError, SignatureError) as error:
        return [Finding(Level.REFUSED, str(path), f"does not hold: {error}", remedy)]
    except EbbgateError:
        return []  # said of the key or the CA
    if statement != name:
        return [Finding(Level.REFUSED, str(path), f"introduces key {statement.hex()}, the data key is {name.hex()}", remedy)]
    return []


def _introduce(ring: KeyRing, payload: bytes, settings: GatewaySettings) -> bytes:
    """Return the key that a statement introduces, endorsed by the CA or by a key before it."""
    from gateway.trust.rotation import retired

    for public, _ in retired(settings.data_key):
        ring.trust(public, settings.stream)
    return ring.introduce(payload, settings.stream).key_id


def _site_keys(settings: SiteSettings, now: dt.datetime) -> list[Finding]:
    out = _try(settings.receipt_key, lambda: load_signer(settings.receipt_key))
    if not settings.tls_certificate.exists():
        remedy = "Carry the request to `ebbgate ca sign`, then `ebbgate identity install ANSWER --config receiver.toml`."
        return [*out, Finding(Level.REFUSED, str(settings.tls_certificate), "this receiver has no certificate yet", remedy)]
    out += _try(settings.gateways_ca, lambda: certs.server_context(settings.tls_certificate, settings.tls_key, settings.gateways_ca))
    out += _try(settings.revoked, lambda: load_revocations(settings.revoked))
    out += _chain(settings.tls_certificate, settings.gateways_ca)
    return out + _life(settings.tls_certificate, now, "Gateways refuse an expired receiver; they keep everything until it is renewed.")


def _chain(certificate: Path, authority: Path) -> list[Finding]:
    def check() -> None:
        if not certs.is_signed_by(certificate.read_bytes(), authority.read_bytes()):
            raise TrustError(f"not signed by the CA in {authority}", "Install the answer of the site's CA again: ebbgate identity install.")

    try:
        return _try(certificate, check)
    except OSError:
        return []  # said where it was opened


def _life(certificate: Path, now: dt.datetime, meanwhile: str) -> list[Finding]:
    remedy = "Run: ebbgate identity renew, and have the request signed by the CA."
    try:
        loaded = certs.load_certificate(certificate)
    except EbbgateError:
        return []  # said where it was opened
    left = (loaded.not_valid_after_utc - now).days
    if left < 0:
        return [Finding(Level.REFUSED, str(certificate), f"expired {-left} days ago. {meanwhile}", remedy)]
    if left < WARN_DAYS:
        return [Finding(Level.WARNING, str(certificate), f"expires in {left} days. {meanwhile}", remedy)]
    return [Finding(Level.INFO, str(certificate), f"good for {left} days")]


def _secret(path: Path, key: str) -> list[Finding]:
    found = _try(path, lambda: read_private_bytes(path))
    return [Finding(one.level, f"{key} {path}", one.what.removeprefix(f"{path}: "), one.remedy) for one in found]


# ---- the box ----


def _clock(now: dt.datetime, certificate: Path) -> list[Finding]:
    remedy = "Set it, and let it follow the site's time server: timedatectl, chrony. Until then readings are flagged clock_untrusted."
    if now < RELEASED:
        return [Finding(Level.WARNING, "clock", f"says {now:%Y-%m-%d %H:%M} UTC, which is before this release", remedy)]
    if certificate.exists():
        try:
            begin = certs.load_certificate(certificate).not_valid_before_utc
        except EbbgateError:
            begin = now  # said where it was opened
        if now < begin:
            return [Finding(Level.WARNING, "clock", f"says {now:%Y-%m-%d %H:%M} UTC, before our certificate begins ({begin:%Y-%m-%d %H:%M})", remedy)]
    if not synchronised():
        return [Finding(Level.WARNING, "clock", "follows no time server, as the kernel says", "Let it follow the site's: timedatectl, chrony.")]
    return [Finding(Level.INFO, "clock", "synchronised")]


def synchronised() -> bool:
    """Say whether the kernel's clock follows a time server (adjtimex(2), asked only)."""
    return ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)) not in (_TIME_ERROR, -1)


def _ring(settings: GatewaySettings) -> list[Finding]:
    path = settings.ring.path
    out = _disk(path, "the ring")
    if _device(path) == _device(settings.state / "upload"):
        remedy = "Give the ring a file system of its own, so that nothing else can fill it."
        out.append(Finding(Level.WARNING, str(path), "shares its file system with upload/", remedy))
    files = os.statvfs(_existing(path))
    used = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.exists() else 0
    if files.f_bavail * files.f_frsize + used < settings.ring.max_bytes:
        free = (files.f_bavail * files.f_frsize + used) / 1e9
        what = f"max_size is {settings.ring.max_bytes / 1e9:.1f} GB, the file system has room for {free:.1f} GB"
        out.append(Finding(Level.WARNING, "ring.max_size", what, f"Write less than {free:.1f} GB, or give the ring a larger disk."))
    return out


def _room(settings: SiteSettings) -> list[Finding]:
    files = os.statvfs(_existing(settings.landing))
    free = files.f_bavail * files.f_frsize
    if free >= settings.min_free_bytes:
        return []
    what = f"{free / 1e9:.1f} GB are free, min_free is {settings.min_free_bytes / 1e9:.1f} GB: every gateway is told to wait"
    return [Finding(Level.REFUSED, str(settings.landing), what, "Give the landing a larger disk, or lower receiver.min_free.")]


def _disk(path: Path, what: str) -> list[Finding]:
    point, kind = file_system(path)
    remedy = f"Put {what} on a local disk: ext4 or XFS."
    if kind in _FORGETS:
        return [Finding(Level.REFUSED, str(path), f"lies on {kind} ({point}), which forgets", remedy)]
    if kind in _NETWORK or kind.startswith("fuse"):
        return [Finding(Level.REFUSED, str(path), f"lies on {kind} ({point}): its syncs may not be what they say", remedy)]
    return [Finding(Level.INFO, str(path), f"lies on {kind or 'an unknown file system'} ({point})")]


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.resolve().parents) if one.exists())


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def file_system(path: Path, mounts: str | None = None) -> tuple[str, str]:
    """Return mount point and type of the file system a path lies (or would lie) on, ("", "") where that cannot be known."""
    best = ("", "")
    try:
        text = mounts if mounts is not None else Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return best
    at = str(path.resolve())
    for line in text.splitlines():
        _, escaped, kind, *_ = line.split(" ")
        point = escaped.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = point == "/" or at == point or at.startswith(point + "/")
        if inside and len(point) >= len(best[0]):  # the last of two mounts on one point is the one that is seen
            best = (point, kind)
    return best


# ---- sources and receiver ----


def _opcua(source: OpcuaSource, now: dt.datetime) -> Iterator[Finding]:
    where = f"source.{source.name}"
    if source.password_file:
        yield from _secret(source.password_file, f"{where}.password_file")
    if source.security != "None":  # what that means, collect.opcua.check says
        yield from _opcua_pair(source, where, now)


def _opcua_pair(source: OpcuaSource, where: str, now: dt.datetime) -> Iterator[Finding]:
    if source.certificate and source.private_key:
        try:
            ours = certs.load_certificate(source.certificate)
            key = serialization.load_pem_private_key(read_private_bytes(source.private_key), None)
            fits = ours.public_key() == key.public_key()
        except EbbgateError as error:
            yield Finding(Level.REFUSED, where, error.message, error.remedy)
        except (ValueError, TypeError) as error:
            yield Finding(Level.REFUSED, where, f"{source.private_key}: {error}", "Restore it from the backup, or make a new pair: ebbgate init.")
        else:
            if not fits:
                what = f"{source.certificate} is not for the key {source.private_key}"
                yield Finding(Level.REFUSED, where, what, "Restore the pair from the backup.")
            elif ours.not_valid_after_utc < now:
                yield Finding(Level.WARNING, where, f"our certificate {source.certificate} has expired: servers may refuse it", "Make a new pair.")
    if source.server_certificate:
        found = _try(where, lambda: certs.load_certificate(source.server_certificate or Path()))
        yield from (Finding(one.level, where, one.what, f"Pin it: ebbgate trust {source.name}") for one in found)


async def receiver_findings(settings: GatewaySettings, runtime: Runtime) -> list[Finding]:
    """Ask the receiver, with our certificate, for something it does not have: return whether it is ours and takes us."""
    from gateway.upload.carrier import explain_status
    from gateway.upload.transport import HttpsCarrier
    from gateway.wire.request import BAD_REQUEST, Lane

    r = settings.receiver
    where = f"receiver {r.address}"
    try:
        carrier = HttpsCarrier(runtime, r)
    except EbbgateError as error:
        return [Finding(Level.REFUSED, where, error.message, error.remedy)]
    try:
        answer = await carrier.put("/v1/check", (), Lane.LIVE, 20.0, None)
    except EbbgateError as error:
        return [Finding(Level.REFUSED, where, error.message, error.remedy)]
    finally:
        await carrier.close()
    if answer.status != BAD_REQUEST:  # a receiver knows no such target, and says so only to a gateway it accepts
        told = explain_status(answer.status)
        return [Finding(Level.REFUSED, where, told.message, told.remedy)]
    return [Finding(Level.INFO, where, f"reached as {r.url}; it accepts this gateway's certificate")]
