"""Both ends of a link on loopback: CA, keys, certificates and settings as `ebbgate enroll` makes them; servers in processes of their own.

`python -m benchmarks.site receive|sync|discard DIRECTORY PORT` runs one server until it is ended: the real receiver; an aiohttp server over
the same mutual TLS 1.3 that writes and syncs each body before it answers; one that reads it and forgets it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from benchmarks.harness import process_cpu_s
from benchmarks.peers import free_port, wait_for_port
from benchmarks.rings import STREAM
from buffer.storage import make_directory
from gateway import runtime as world
from gateway import settings as s
from gateway.receive import service as receive
from gateway.trust import certs, keys
from gateway.trust.keys import KeyRing, endorse_statement, propose_statement
from gateway.upload.catalogue import Catalogue
from gateway.upload.service import Uploader
from gateway.upload.state import StateStore
from gateway.upload.transport import HttpsCarrier

if TYPE_CHECKING:
    from buffer.storage import PosixReadStorage

GATEWAY: Final = STREAM.partition(".")[0]
NAME: Final = "receiver.test"


class Site:
    """Keys and settings in one directory; `landing` and `state` may be asked for anew each round."""

    def __init__(self, root: Path, *, make: bool = True) -> None:
        self.root, self.pki = root, root / "pki"
        if not make:
            return
        make_directory(self.pki)
        now = dt.datetime.now(dt.UTC)
        authority = certs.create_authority(self.pki / "ca.crt", self.pki / "ca.key", "bench", now)
        certs.create_server_certificate(authority, self.pki / "receiver.crt", self.pki / "receiver.key", [NAME, "127.0.0.1"], now)
        request = certs.make_request(self.pki / "tls.key", GATEWAY)
        (self.pki / "tls.crt").write_bytes(certs.sign_request(authority, request, GATEWAY, now))
        keys.create_signer(self.pki / "receipt.key")
        self.data = keys.create_signer(self.pki / "data.key")
        self.statement = endorse_statement(certs.authority_signer(authority), propose_statement(self.data, STREAM))

    def gateway(self, port: int, state: Path) -> s.GatewaySettings:
        """Return the box's side; the backlog has no cap."""
        receiver = s.Receiver(
            url=f"https://{NAME}:{port}", address="127.0.0.1", ca=self.pki / "ca.crt", receipt_key=self.pki / "receipt.pub",
            certificate=self.pki / "tls.crt", private_key=self.pki / "tls.key", backfill=s.Backfill(limit_bps=0),
        )  # fmt: skip
        return s.GatewaySettings(GATEWAY, "acme/ghent", "UTC", STREAM, s.RingSettings(self.root / "ring"), receiver, (), state, self.pki / "data.key")

    def site(self, port: int, landing: Path) -> s.SiteSettings:
        """Return the receiver's side; the gateway has no rate limit."""
        return s.SiteSettings(
            name="bench", listen=("127.0.0.1", port), landing=landing, deliver=landing.parent / "deliver", lake=landing.parent / "lake",
            lake_every_ns=10**9, min_free_bytes=0, receipt_key=self.pki / "receipt.key", tls_certificate=self.pki / "receiver.crt",
            tls_key=self.pki / "receiver.key", gateways_ca=self.pki / "ca.crt", revoked=None,
            gateways=(s.GatewayPolicy(GATEWAY, "acme/ghent", (f"{GATEWAY}.*",), rate_bps=0),), sinks=(),
        )  # fmt: skip

    def uploader(self, port: int, state: Path, storage: PosixReadStorage) -> tuple[Uploader, HttpsCarrier, StateStore]:
        """Return the real uploader over real TLS; run it, then close carrier and store."""
        settings, runtime = self.gateway(port, state), world.real()
        make_directory(state / "upload")
        trusted = KeyRing()
        trusted.trust(keys.load_public(settings.receiver.receipt_key))
        carrier = HttpsCarrier(runtime, settings.receiver)
        store = StateStore(state / "upload" / "state.db", STREAM)
        return Uploader(runtime, settings, Catalogue(storage), carrier, store, trusted), carrier, store


class Server:
    """One server process."""

    def __init__(self, kind: str, root: Path, directory: Path) -> None:
        self.port = free_port()
        make_directory(directory)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.site", kind, str(root), str(self.port), str(directory)], stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port, self._process)

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return process_cpu_s(self._process.pid)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


async def _serve_plain(site: Site, port: int, directory: Path, *, sync: bool) -> None:
    async def put(request: web.Request) -> web.Response:
        if not sync:
            async for _ in request.content.iter_any():
                pass
            return web.Response()
        fd = os.open(directory / request.match_info["name"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            async for piece in request.content.iter_any():
                os.write(fd, piece)
            await asyncio.to_thread(os.fdatasync, fd)
        finally:
            os.close(fd)
        return web.Response()

    app = web.Application(client_max_size=2**30)
    app.router.add_put("/{name}", put)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = certs.server_context(site.pki / "receiver.crt", site.pki / "receiver.key", site.pki / "ca.crt")
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    await asyncio.Event().wait()


def _main() -> None:
    kind, root, port, directory = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    site = Site(root, make=False)
    if kind == "receive":
        asyncio.run(receive.run(world.real(), site.site(port, directory)))
    else:
        asyncio.run(_serve_plain(site, port, directory, sync=kind == "sync"))


if __name__ == "__main__":
    _main()
