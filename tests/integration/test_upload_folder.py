"""A stick between two sides: the same frames, the same union of `new`, whatever order the carriers come in."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from buffer.storage import PosixReadStorage
from gateway import runtime as world
from gateway.receive import service as receive
from gateway.trust.keys import KeyRing, load_public
from gateway.upload import service as upload
from gateway.upload.carry_in import import_folder
from gateway.upload.folder import export_folder, folder_of
from gateway.upload.transport import HttpsCarrier
from gateway.wire.carry import NAME
from tests.integration.test_upload_receive import free_port, landed, put, running, seal_all, until
from tests.support.site import Site


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, free_port())


def filled(site: Site) -> None:
    ring = site.ring()
    put(ring, 0, 50)
    seal_all(ring, site.root / "ring" / site.stream)
    for i in range(5):
        put(ring, 50 + 10 * i, 10)


def export(site: Site):
    return export_folder(PosixReadStorage(site.root / "ring" / site.stream), site.stream, site.root / "stick")


async def carried_in(site: Site):
    settings = site.gateway().receiver
    keys = KeyRing()
    keys.trust(load_public(settings.receipt_key))
    carrier = HttpsCarrier(world.real(), settings)
    try:
        return await import_folder(world.real(), site.root / "stick", site.stream, carrier, keys)
    finally:
        await carrier.close()


async def test_a_stick_brings_everything_once_and_a_second_time_nothing(site):
    filled(site)
    done = export(site)
    assert done.unreadable == 0
    async with running(receive.run(world.real(), site.site())):
        await asyncio.sleep(0.5)
        first = await carried_in(site)
        assert landed(site) == list(range(100))
        again = await carried_in(site)
    assert (first.findings, again.findings, again.stored) == ([], [], 0)
    assert landed(site) == list(range(100))


async def test_the_link_after_the_stick_adds_nothing_twice(site):
    filled(site)
    export(site)
    async with running(receive.run(world.real(), site.site())):
        await asyncio.sleep(0.5)
        await carried_in(site)
        async with running(upload.run(world.real(), site.gateway())):
            await asyncio.sleep(1.0)
            await until(lambda: landed(site) == list(range(100)))


def test_names_are_ours_and_sha256sum_agrees(site):
    filled(site)
    export(site)
    directory = folder_of(site.root / "stick", site.stream)
    names = sorted(os.listdir(directory))
    assert all(NAME.fullmatch(n) or n == "SHA256SUMS" for n in names)
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=directory, check=False).returncode == 0


async def test_links_strangers_and_damage_are_findings_never_the_end(site):
    filled(site)
    export(site)
    directory = folder_of(site.root / "stick", site.stream)
    name = sorted(n for n in os.listdir(directory) if NAME.fullmatch(n) and n != "objects.frames")[0]
    (directory / "0000000009-00000001-0000000000000000.frames").write_bytes(b"not listed")
    data = bytearray((directory / name).read_bytes())
    data[-1] ^= 1
    (directory / name).write_bytes(data)
    async with running(receive.run(world.real(), site.site())):
        await asyncio.sleep(0.5)
        result = await carried_in(site)
        (directory / name).unlink()
        (directory / name).symlink_to("/etc/passwd")
        linked = await carried_in(site)
    assert any("damaged" in f for f in result.findings)
    assert any("not in SHA256SUMS" in f for f in result.findings)
    assert result.refused == 0
    assert any(name in f for f in linked.findings)
