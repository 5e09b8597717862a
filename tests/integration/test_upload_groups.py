"""Several collect processes, several rings, one uploader: every stream lands whole over the one link, also one whose group was given up."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import replace

from buffer.storage import PosixReadStorage
from gateway import runtime as world
from gateway import settings as s
from gateway.landing import LandingReader
from gateway.receive import service as receive
from gateway.trust import certs, keys
from gateway.upload import service as upload
from tests.integration.test_upload_receive import free_port, landed, put, running
from tests.support.site import Site


def group_of(site: Site, name: str) -> Site:
    """The same box, another stream with a key of its own."""
    other = copy.copy(site)
    other.stream = f"hall1.{name}"
    other.data = keys.create_signer(site.pki / f"data-{name}.key")
    other.statement = keys.endorse_statement(certs.authority_signer(site.authority), keys.propose_statement(other.data, other.stream))
    return other


async def test_all_streams_of_a_box_land_over_one_link(tmp_path):
    site = Site(tmp_path, free_port())
    boxes = [site, group_of(site, "press"), group_of(site, "gone")]
    rings = [box.ring(nonce=i + 1) for i, box in enumerate(boxes)]
    for i, ring in enumerate(rings):
        put(ring, 1_000 * i, 50)
    settings = replace(site.gateway(), groups=(s.Group("press", (), 2**30),))
    real = world.real()

    def whole() -> bool:
        return all((tmp_path / "landing" / box.stream).exists() and len(landed(box)) == 60 for box in boxes)

    async with running(receive.run(real, site.site()), upload.run(real, settings)) as tasks:
        for i, ring in enumerate(rings):
            put(ring, 1_000 * i + 50, 10)
        async with asyncio.timeout(60):
            while not whole():
                assert not any(task.done() for task in tasks), tasks
                await asyncio.sleep(0.1)
    for i, box in enumerate(boxes):
        assert landed(box) == list(range(1_000 * i, 1_000 * i + 60))
        reader = LandingReader(PosixReadStorage(tmp_path / "landing" / box.stream))
        reader.refresh()
        assert reader.state is not None
    said = [json.loads((settings.state / "upload" / place / "status.json").read_bytes())["stream"] for place in ("", "press", "gone")]
    assert said == ["hall1.main", "hall1.press", "hall1.gone"]
    for ring in rings:
        ring.close()
