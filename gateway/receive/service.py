"""Wiring of receive: door -> receiver -> landing. Runs until cancelled; then finishes what is under way and closes."""

from __future__ import annotations

import datetime as dt
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from buffer import layout
from buffer.errors import StorageFault
from buffer.storage import PosixReadStorage, PosixStorage, make_directory, publish_file
from buffer.together import at_once
from gateway import footprint
from gateway.errors import TrustError
from gateway.landing import stream_names
from gateway.receive.app import Door
from gateway.receive.receiver import Receiver
from gateway.runtime import notify
from gateway.trust.certs import load_certificate_key, server_context
from gateway.trust.keys import KeyRing, load_signer
from gateway.trust.revocations import load_revocations

if TYPE_CHECKING:
    from gateway.receive.app import Listening, Timing
    from gateway.runtime import Runtime
    from gateway.settings import SiteSettings

STATUS_SECONDS: Final = 1.0
SWEEP_TICKS: Final = 60
REVOCATIONS_SECONDS: Final = 30  # how soon a changed list counts
SYNCS_AT_ONCE: Final = 8  # of segments of one request each, two files a segment: what one gateway has under way in its backlog

log = logging.getLogger(__name__)


async def run(runtime: Runtime, settings: SiteSettings, timing: Timing | None = None) -> None:
    """Serve until cancelled; raise TrustError or StorageFault where it cannot start."""
    make_directory(settings.landing)
    root = PosixStorage(settings.landing)
    root.mkdir(layout.LOCK_DIRECTORY, 0o700)
    lock = root.lock(layout.LOCK)
    receiver = make_receiver(runtime, settings)
    door = Door(runtime, receiver, timing)
    door.grace = dt.timedelta(microseconds=settings.grace_ns // 1000)
    door.revocations = load_revocations(settings.revoked)
    receiver.keys.revoke(door.revocations.keys)
    for stream in stream_names(settings.landing):
        await runtime.offload(partial(receiver.open_stream, stream))
    context = server_context(settings.tls_certificate, settings.tls_key, settings.gateways_ca)
    listening = await door.serve(settings.listen[0], settings.listen[1], context)
    log.info("receive is ready", extra={"data": {"listen": f"{settings.listen[0]}:{listening.port}", "streams": sorted(receiver.doors)}})
    notify("READY=1")
    footprint.give_back()
    try:
        await _tick(runtime, settings, receiver, door, listening)
    finally:
        await listening.close()
        await receiver.close()
        root.close(lock)


async def _tick(runtime: Runtime, settings: SiteSettings, receiver: Receiver, door: Door, listening: Listening) -> None:
    ticks = 0
    alarms: list[str] = []
    while True:
        if ticks % REVOCATIONS_SECONDS == 0:
            alarms = _reload(settings, receiver, door)
        door.sweep(listening.server)
        _publish(settings, receiver_status(receiver, door, settings, runtime.wall_ns(), [*alarms, *door.refused]))
        notify("WATCHDOG=1")
        ticks += 1
        if ticks % SWEEP_TICKS == 0:
            footprint.sweep()
        await runtime.sleep(STATUS_SECONDS)


def _publish(settings: SiteSettings, status: dict[str, Any]) -> None:
    """Show the status. A full disk must not stop the receiver: it goes on saying 503."""
    try:
        publish_file(settings.landing / "status.json", json.dumps(status, default=str).encode(), durable=False)
    except StorageFault as fault:
        log.error("status", extra={"data": {"fault": str(fault)}})  # noqa: TRY400


def _reload(settings: SiteSettings, receiver: Receiver, door: Door) -> list[str]:
    """Read the revocations again. A list that cannot be read leaves the last one in force, with an alarm."""
    try:
        door.revocations = load_revocations(settings.revoked)
        receiver.keys.revoke(door.revocations.keys)
    except TrustError as error:
        log.error("revocations", extra={"data": {"fault": error.message}})  # noqa: TRY400
        return [f"{error.message}; the list read before stays in force"]
    return []


def make_receiver(runtime: Runtime, settings: SiteSettings) -> Receiver:
    """Return the receiver over the landing directory."""
    root = PosixReadStorage(settings.landing)
    each = at_once(SYNCS_AT_ONCE)

    def storage_of(stream: str) -> PosixStorage:
        make_directory(settings.landing / stream)
        return PosixStorage(settings.landing / stream, each=each)

    return Receiver(
        runtime,
        settings.gateways,
        load_signer(settings.receipt_key),
        KeyRing([load_certificate_key(settings.gateways_ca)]),
        storage_of,
        lambda: root.free_bytes() >= settings.min_free_bytes,
    )


def receiver_status(receiver: Receiver, door: Door, settings: SiteSettings, now_ns: int, alarms: list[str]) -> dict[str, Any]:
    """Return what status and console show."""
    policies = {policy.id: policy for policy in settings.gateways}
    streams: dict[str, Any] = {}
    for stream, one in sorted(receiver.doors.items()):
        state, policy = one.landing.state, policies.get(one.gateway)
        newest = max(list(state.states.values()), key=lambda x: x.generation, default=None)  # list(): a thread may be landing
        age_ns = now_ns - state.received_ns if state.received_ns else None
        streams[stream] = {
            "gateway": one.gateway,
            "received": sum(seqs.count() for seqs in list(state.seqs.values())),
            "ends": state.ends,
            "landing": state.landing,
            "generation": newest.generation if newest else None,
            "block": newest.block if newest else None,
            "end": newest.end if newest else None,
            "newest_commit_ns": newest.wall_ns if newest else None,
            "clock_trusted": newest.clock_trusted if newest else None,
            "open_gaps": len(newest.open_gaps) if newest else 0,
            "newest_received_ns": state.received_ns or None,
            "silent": bool(policy and age_ns is not None and age_ns > policy.silence_ns),
            "conflicts": len(state.conflicts),
            "alarms": list(one.landing.events),
            "writable": not one.landing.broken,
        }
    return {
        "process": "receive",
        "time_ns": now_ns,
        "name": settings.name,
        "room": PosixReadStorage(settings.landing).free_bytes() >= settings.min_free_bytes,
        "alarms": alarms,
        "expired_certificates": dict(door.expired),
        "certificates": dict(door.certificates),
        "uploaders": dict(receiver.advisory),
        "streams": streams,
    }
