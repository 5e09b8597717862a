"""`verify` and `ring check` over stores that somebody brought: pipes, devices, links, sparse files. No hang, no crash: a finding, and the rest."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from buffer.check import check_ring
from buffer.errors import CorruptError, StorageFault
from buffer.plain import FILE_BYTES_MAX, PlainFiles
from buffer.storage import PosixReadStorage
from gateway import runtime as world
from gateway.proof import verify_path
from gateway.proof.objects import believed
from gateway.receive import service as receive
from gateway.trust.certs import load_certificate_key
from gateway.trust.keys import KeyRing
from gateway.upload import service as upload
from tests.integration.test_carry import export
from tests.integration.test_upload_receive import free_port, landed, put, running, seal_all, until
from tests.support.site import Site

SPARSE_BYTES = 1 << 40


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A ring with a segment and a journal, what an export of it writes, and the landing it went to."""
    one = Site(tmp_path_factory.mktemp("site"), free_port())
    ring = one.ring()
    put(ring, 0, 50)
    seal_all(ring, one.root / "ring" / one.stream)
    put(ring, 50, 10)
    export(one)

    async def carry() -> None:
        async with running(receive.run(world.real(), one.site()), upload.run(world.real(), one.gateway())):
            await until(lambda: landed(one) == list(range(60)))

    asyncio.run(carry())
    return one


def keys(site: Site) -> KeyRing:
    return KeyRing([load_certificate_key(site.pki / "ca.crt")])


def pipe(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE_BYTES)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def elsewhere(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


BAD = (pipe, sparse, Path.mkdir, loop, elsewhere, device)


def kinds(root: Path) -> list[Path]:
    """One file of each kind that a store has."""
    seen = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in ("writer", "status.json"):
            seen.setdefault((path.parent.name, path.suffix), path)
    return list(seen.values())


@pytest.mark.parametrize("name", ["landing", "ring", "stick"])
@pytest.mark.parametrize("make", BAD, ids=lambda x: x.__name__)
def test_whatever_stands_where_a_file_should_is_a_finding_and_the_rest_is_judged(site, tmp_path, name, make):
    shutil.copytree(site.root / name, tmp_path / name)
    whole = verify_path(tmp_path / name, keys(site))
    assert whole.findings == []
    found = kinds(tmp_path / name)
    assert len(found) > 1
    for path in found:
        saved = path.read_bytes()
        path.unlink()
        make(path)
        proof = verify_path(tmp_path / name, keys(site))
        assert any(path.name.partition(".")[0] in finding for finding in proof.findings), (path, proof.findings)
        one = verify_path(path, keys(site)) if make is not Path.mkdir else None
        assert one is None or one.findings
        if name == "ring":
            ring = tmp_path / name / site.stream
            report = check_ring(ring, believed(ring, site.pki / "ca.crt", ()))
            assert report.findings or path.parent.name == "last" or path.name == "reserve", path  # neither holds readings
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(saved)
    assert verify_path(tmp_path / name, keys(site)).findings == []


@pytest.mark.parametrize("name", ["durable", "x.journal", "x.frames", "part", "0000000007-3fa91c02-0000000000000000"])
@pytest.mark.parametrize("magic", [b"", b"EBBD", b"EBBI", b"EBBJ", b"EBBF"])
def test_one_file_of_a_terabyte_is_a_finding(site, tmp_path, name, magic):
    path = tmp_path / name
    path.write_bytes(magic)
    os.truncate(path, SPARSE_BYTES)
    assert len(verify_path(path, keys(site)).findings) == 1


def test_zeros_between_frames_are_skipped_in_chunks(site, tmp_path):
    source = next((site.root / "stick").rglob("objects.frames")).read_bytes()
    path = tmp_path / "x.frames"
    path.write_bytes(source)
    os.truncate(path, FILE_BYTES_MAX)
    with path.open("ab") as file:
        file.write(source)
    proof = verify_path(path, keys(site))
    assert (proof.objects, proof.findings) == (4, [])


def test_a_store_in_which_nothing_is_confirms_nothing(site, tmp_path):
    (tmp_path / "journal").mkdir()
    assert "nothing was confirmed" in verify_path(tmp_path, keys(site)).findings[0]
    deep = tmp_path / "deep"
    deep.mkdir()
    at = os.open(deep, os.O_RDONLY)
    for _ in range(900):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    (deep / "self").symlink_to(deep)
    assert "nothing of ours" in verify_path(deep, keys(site)).findings[0]


def test_names_in_a_landing_that_are_none_of_ours_are_findings(site, tmp_path):
    shutil.copytree(site.root / "landing", tmp_path / "landing")
    for directory in ("chain", "live", "index", "objects"):
        (tmp_path / "landing" / site.stream / directory / ("x" * 200)).write_bytes(b"\xff" * 100)
    findings = verify_path(tmp_path / "landing", keys(site)).findings
    assert all(any(f"/{directory}/xxx" in finding for finding in findings) for directory in ("chain", "live", "index", "objects")), findings


def test_the_command_ends_with_a_finding_on_a_pipe(site, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "gateway.cli", "verify", tmp_path / "pipe", "--ca", site.pki / "ca.crt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "not a plain file" in done.stdout) == (1, True)


def test_a_view_of_a_brought_store_stays_within_it(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    view = PlainFiles(tmp_path)
    assert (view.read("a", 1, 2**62), view.read("b", 0, 1), view.list("a"), view.list("b")) == (b"bc", None, [], [])
    for path in ("../a", "/etc/passwd", "a\0b"):
        with pytest.raises(CorruptError):
            view.read(path, 0, 1)


def test_a_pipe_in_our_own_store_is_a_fault_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "p")
    with pytest.raises(StorageFault):
        PosixReadStorage(tmp_path).read("p", 0, 1)
