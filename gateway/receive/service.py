"""Wiring of receive: door -> accept -> landing -> receipt. Runs until cancelled."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from buffer import layout
from buffer.errors import CorruptError
from buffer.frame import parse_frame
from buffer.storage import PosixReadStorage, PosixStorage, make_directory, publish_file
from gateway.errors import TrustError
from gateway.landing import stream_names
from gateway.receive.app import Receiver, serve
from gateway.receive.landing import Landing
from gateway.runtime import notify
from gateway.trust.certs import load_certificate_key, server_context
from gateway.trust.keys import KeyRing, load_signer

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.settings import SiteSettings

log = logging.getLogger(__name__)


async def run(runtime: Runtime, settings: SiteSettings) -> None:
    """Serve until cancelled; raise EbbgateError or StorageFault where it cannot start."""
    make_directory(settings.landing)
    lock = PosixStorage(settings.landing)
    lock.mkdir(layout.LOCK_DIRECTORY, 0o700)
    handle = lock.lock(layout.LOCK)
    receiver = make_receiver(runtime, settings)
    for stream in stream_names(settings.landing):
        door = receiver.door(stream)
        _learn_keys(receiver, settings, stream, door.landing)
    context = server_context(settings.tls_certificate, settings.tls_key, settings.gateways_ca)
    runner, port = await serve(receiver.application(), settings.listen[0], settings.listen[1], context)
    log.info("receive is ready", extra={"data": {"listen": f"{settings.listen[0]}:{port}", "streams": sorted(receiver.doors)}})
    notify("READY=1")
    try:
        while True:
            status = json.dumps(_status(receiver, settings, runtime.wall_ns()), default=str).encode()
            publish_file(settings.landing / "status.json", status, durable=False)
            notify("WATCHDOG=1")
            await runtime.sleep(1.0)
    finally:
        await runner.cleanup()
        for door in receiver.doors.values():
            door.landing.close()
        lock.close(handle)


def make_receiver(runtime: Runtime, settings: SiteSettings) -> Receiver:
    """Return the handlers over the landing directory."""

    def open_landing(stream: str) -> Landing:
        make_directory(settings.landing / stream)
        return Landing(PosixStorage(settings.landing / stream), stream, runtime.nonce32(), runtime.nonce64)

    def revoked() -> frozenset[int]:
        if settings.revoked is None or not settings.revoked.exists():
            return frozenset()
        lines = settings.revoked.read_text(encoding="ascii").split()
        try:
            return frozenset(int(line, 16) for line in lines)
        except ValueError:
            raise TrustError(f"{settings.revoked}: not a list of serial numbers", "One hexadecimal serial number a line.") from None

    storage = PosixReadStorage(settings.landing)
    return Receiver(
        runtime,
        settings.gateways,
        load_signer(settings.receipt_key),
        KeyRing([load_certificate_key(settings.gateways_ca)]),
        open_landing,
        storage.free_bytes,
        settings.min_free_bytes,
        revoked,
    )


def _learn_keys(receiver: Receiver, settings: SiteSettings, stream: str, landing: Landing) -> None:
    storage = PosixReadStorage(settings.landing / stream)
    for name in storage.list(layout.OBJECTS):
        path = f"{layout.OBJECTS}/{name}"
        try:
            receiver.learn_stored(parse_frame(storage.read(path, 0, storage.size(path) or 0) or b""))
        except CorruptError as error:
            landing.alarms.events.append(f"{path}: {error}")


def _status(receiver: Receiver, settings: SiteSettings, now_ns: int) -> dict[str, Any]:
    sites = {policy.id: policy for policy in settings.gateways}
    streams = {}
    for stream, door in sorted(receiver.doors.items()):
        landing, newest = door.landing, door.landing.newest
        policy = sites.get(stream.partition(".")[0])
        silence = policy.silence_ns if policy else 0
        age = now_ns - newest.received_ns if newest else None
        streams[stream] = {
            "received": sum(seqs.count() for seqs in landing.held.seqs.values()),
            "highest": landing.index.highest(),
            "landing": landing.index.landing,
            "newest_commit_ns": newest.state.wall_ns if newest else None,
            "newest_received_ns": newest.received_ns if newest else None,
            "silent": bool(age is not None and silence and age > silence),
            "conflicts": landing.alarms.conflicts,
            "branches": landing.alarms.branches,
            "events": landing.alarms.events[-20:],
            "expired_certificate": door.expired_certificate,
            "uploader": door.advisory,
        }
    return {"process": "receive", "time_ns": now_ns, "name": settings.name, "streams": streams}
