"""ebbgate export, import and verify as an engineer uses them: one ring, by link into receiver A, by stick into receiver B, compared."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from buffer.errors import StorageFault
from buffer.storage import PosixReadStorage
from gateway import runtime as world
from gateway.receive import service as receive
from gateway.upload import carry_in
from gateway.upload import service as upload
from gateway.upload.folder import export_folder, folder_of
from tests.integration.test_upload_folder import carried_in, filled
from tests.integration.test_upload_receive import free_port, put, running, seal_all, until
from tests.support.site import Site


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, free_port())


def ebbgate(*arguments: object, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "gateway.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def write_configs(site: Site) -> None:
    """The two TOML files that the commands read, for the site's real keys."""
    (site.root / "tags.csv").write_text("id,path,source,address\n")
    (site.root / "gateway.toml").write_text(
        f'[gateway]\nid = "hall1"\nsite = "acme/ghent"\nstate = "state"\ntags = "tags.csv"\n[ring]\npath = "ring"\n'
        f'[receiver]\nurl = "https://receiver.test:{site.port}"\naddress = "127.0.0.1"\nca = "pki/ca.crt"\n'
    )
    (site.root / "receiver.toml").write_text(
        f'[receiver]\nname = "dmz"\nlisten = "127.0.0.1:{site.port}"\nlanding = "landing"\ndeliver = "deliver"\nmin_free = "1 MB"\n'
        '[tls]\ngateways_ca = "pki/ca.crt"\n[[gateway]]\nid = "hall1"\n[[gateway]]\nid = "stick-desk"\nstreams = ["hall1.*"]\n'
    )


def test_by_link_into_one_receiver_and_by_stick_into_another_the_same_is_held(site):
    filled(site)
    write_configs(site)
    a, b = site.site(), replace(site.site(), landing=site.root / "landing-b")

    async def by_link() -> None:
        async with running(receive.run(world.real(), a)):
            await asyncio.sleep(0.5)
            async with running(upload.run(world.real(), site.gateway())):
                await until(lambda: "seqs 0-99\n" in listed(site, a.landing))

    asyncio.run(by_link())
    stick = site.root / "stick"
    stick.mkdir()
    said = ebbgate("export", stick, "--config", site.root / "gateway.toml")
    assert "durable" in said
    site.root.joinpath("landing-a").write_text("")
    ebbgate("import-identity", "stick-desk", "--ca", site.pki, "--directory", site.root)
    (site.root / "receiver.toml").write_text((site.root / "receiver.toml").read_text().replace('"landing"', '"landing-b"'))
    server = subprocess.Popen([sys.executable, "-m", "gateway.cli", "receive", "--config", str(site.root / "receiver.toml")], stderr=subprocess.DEVNULL)
    try:
        asyncio.run(until(lambda: (b.landing / "lock").is_dir()))
        first = json.loads(retried("import", stick, "--config", site.root / "receiver.toml", "--json"))
        again = json.loads(ebbgate("import", stick, "--config", site.root / "receiver.toml", "--json"))
    finally:
        server.terminate()
        server.wait(20)
    assert first["hall1.main"]["findings"] == []
    assert again["hall1.main"]["stored"] == 0
    one, other = listed(site, a.landing), listed(site, b.landing)
    assert [x for x in one.splitlines() if " frame " not in x] == [x for x in other.splitlines() if " frame " not in x]
    assert sorted(one.splitlines()) == sorted(other.splitlines())
    assert "seqs 0-99\n" in listed(site, stick), "a stick lists what it brings"
    ring = listed(site, site.root / "ring")
    assert [x for x in ring.splitlines() if " frame " not in x] == [x for x in one.splitlines() if " frame " not in x]


def listed(site: Site, path) -> str:
    done = subprocess.run([sys.executable, "-m", "gateway.cli", "verify", str(path), "--ca", str(site.pki / "ca.crt"), "--list"], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def retried(*arguments: object) -> str:
    """Once more where the receiver is still starting."""
    done = subprocess.run([sys.executable, "-m", "gateway.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout if done.returncode == 0 else ebbgate(*arguments)


def export(site: Site, **options):
    return export_folder(PosixReadStorage(site.root / "ring" / site.stream), site.stream, site.root / "stick", **options)


def test_a_second_export_keeps_what_is_whole_and_adds_what_is_new_and_replaces_what_is_damaged(site):
    ring = site.ring()
    put(ring, 0, 50)
    seal_all(ring, site.root / "ring" / site.stream)
    first = export(site)
    put(ring, 50, 10)
    second = export(site)
    assert (first.kept_files, second.kept_files) == (0, 1)
    assert 0 < second.blocks < first.blocks + 1
    directory = folder_of(site.root / "stick", site.stream)
    part = sorted(directory.glob("0*.frames"))[0]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    third = export(site)
    assert third.kept_files == 1
    assert third.blocks == first.blocks
    assert "seqs 0-59\n" in listed(site, site.root / "stick")
    assert "confirmed" in ebbgate("verify", site.root / "stick", "--ca", site.pki / "ca.crt")
    later = export_folder(PosixReadStorage(site.root / "ring" / site.stream), site.stream, site.root / "stick2", begin=first.place)
    assert later.blocks == second.blocks


def test_the_upload_cursor_is_not_touched_by_an_export(site):
    filled(site)
    write_configs(site)
    (site.root / "stick").mkdir()
    before = {p: p.stat().st_mtime_ns for p in site.root.rglob("*") if "stick" not in p.parts}
    ebbgate("export", site.root / "stick", "--config", site.root / "gateway.toml")
    assert {p: p.stat().st_mtime_ns for p in site.root.rglob("*") if "stick" not in p.parts} == before


def test_two_sticks_that_are_each_too_small_carry_everything(site, monkeypatch):
    """The first one fails in its second file; the next begins where the first was whole."""
    from gateway.upload import folder

    ring = site.ring(journal_bytes=1 << 20)
    for i in range(30):
        put(ring, 100 * i, 100)
    monkeypatch.setattr(folder, "PART_BYTES_MAX", folder.limits.PUT_BYTES_MAX + 1)  # a file per piece
    monkeypatch.setattr(folder, "RUN_BYTES_MAX", 4_000)
    seen = []

    def full(done):
        seen[:] = [done]
        if done.files == 3:
            raise StorageFault("No space left on device", path="x", errno=errno.ENOSPC)

    with pytest.raises(StorageFault):
        export(site, progress=full)
    place = seen[0].place
    assert place > (0, 0)
    export_folder(PosixReadStorage(site.root / "ring" / site.stream), site.stream, site.root / "second", begin=place)
    one, two = listed(site, site.root / "stick"), listed(site, site.root / "second")
    first = int(next(line for line in one.splitlines() if " seqs 0-" in line and "frame" not in line).split("-")[-1])
    assert 0 < first < 2_999
    assert f" seqs {first + 1}-2999\n" in two


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_stick_is_one_clear_message_and_what_was_finished_is_whole(site):
    ring = site.ring(journal_bytes=1 << 20)
    for i in range(12):
        put(ring, 400 * i, 400)
    write_configs(site)
    stick = site.root / "stick"
    stick.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(stick)], check=False, capture_output=True).returncode:
        pytest.skip("no mounts here")
    try:
        said = ebbgate("export", stick, "--config", site.root / "gateway.toml", code=3)
        assert "the stick is full" in said
        assert not [p for p in stick.rglob("*.tmp")]
    finally:
        subprocess.run(["umount", str(stick)], check=True)


def test_a_stick_that_goes_away_in_the_middle_loses_nothing_and_the_next_run_goes_on(site):
    ring = site.ring()
    put(ring, 0, 50)

    def pulled(_):
        shutil.rmtree(site.root / "stick")

    with pytest.raises(StorageFault):
        export(site, progress=pulled)
    assert export(site).unreadable == 0
    assert "seqs 0-49\n" in listed(site, site.root / "stick")


async def test_an_import_whose_stick_fails_says_so_and_goes_on_when_run_again(site, monkeypatch):
    filled(site)
    export(site)
    real = os.pread

    def gone(fd, size, at):  # no device here refuses to be read on request: the one call is replaced
        if at > 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, at)

    async with running(receive.run(world.real(), site.site())):
        await asyncio.sleep(0.5)
        with monkeypatch.context() as patched:
            patched.setattr(carry_in.os, "pread", gone)
            with pytest.raises(StorageFault, match="put the stick back"):
                await carried_in(site)
        result = await carried_in(site)
    assert result.findings == []


async def test_a_damaged_frame_in_the_middle_costs_itself_alone(site):
    filled(site)
    export(site)
    directory = folder_of(site.root / "stick", site.stream)
    part = sorted(directory.glob("0*.frames"))[0]
    data = bytearray(part.read_bytes())
    data[300] ^= 1  # in the manifest of the first frame
    part.write_bytes(data)
    async with running(receive.run(world.real(), site.site())):
        await asyncio.sleep(0.5)
        result = await carried_in(site)
    assert any("at byte 0" in finding for finding in result.findings)
    assert result.stored > 4
    assert result.refused == 0


def flips(path, step):
    whole = path.read_bytes()
    for at in range(0, len(whole), step):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        yield at
    path.write_bytes(whole)


def test_one_flipped_byte_anywhere_in_a_ring_or_stick_or_file_is_named(site):
    from gateway.proof import verify_path
    from gateway.trust.certs import load_certificate_key
    from gateway.trust.keys import KeyRing

    filled(site)
    export(site)
    ring = site.root / "ring" / site.stream

    def findings(path):
        return verify_path(path, KeyRing([load_certificate_key(site.pki / "ca.crt")])).findings

    assert findings(ring) == findings(site.root / "stick") == findings(site.root / "ring") == []
    journals = sorted(ring.glob("journal/*.journal"))
    files = [p for p in ring.rglob("*") if p.is_file() and p.stat().st_size and p not in journals]
    for path in [*files, *(site.root / "stick").rglob("*.frames"), *(site.root / "stick").rglob("SHA256SUMS")]:
        store = ring if ring in path.parents else site.root / "stick"
        for at in flips(path, max(1, path.stat().st_size // 15)):
            found = findings(store)
            assert any(path.stem in f or path.name in f for f in found), f"{path.name}: byte {at} flipped, and nobody noticed: {found}"
    from buffer.reader import RingReader

    mark = RingReader(PosixReadStorage(ring)).durable()
    newest = next(p for p in journals if p.name.endswith(f"{mark.serial:06d}.journal"))
    whole = newest.read_bytes()
    for at in range(0, mark.end_offset, 307):
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert any(newest.name in f for f in findings(ring)), f"byte {at} of the journal flipped, and nobody noticed"
    newest.write_bytes(whole)
    segment = next(ring.glob("segments/*.cose"))
    for path in (segment, segment.with_suffix(".parquet"), newest, next(ring.glob("objects/*")), ring / "durable", next((site.root / "stick").rglob("0*.frames"))):
        assert findings(path) == [], path
        for at in flips(path, max(1, min(path.stat().st_size, mark.end_offset) // 7)):
            if path != newest or at < mark.end_offset:
                assert findings(path), f"{path.name} alone: byte {at} flipped, and nobody noticed"


def test_verify_of_something_else_says_what_it_is_not(site, tmp_path):
    (tmp_path / "foreign").mkdir()
    assert "neither a landing, a ring, a stick" in ebbgate("verify", tmp_path / "foreign", "--ca", site.pki / "ca.crt", code=1)
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a file of ours" in ebbgate("verify", tmp_path / "notes.txt", "--ca", site.pki / "ca.crt", code=1)
