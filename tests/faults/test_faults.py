"""Real file systems that fail under a real ring: kill -9, power cuts, refused calls, a device that lies, a full disk, rot in every byte."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.trust.keys import KeySigner, create_signer
from tests.faults import block_device, ring_work
from tests.support.peers import absent

ROOMY = 2**30
SMALL_BYTES = 1400 * 1024


def campaign(name: str, *arguments: str) -> tuple[dict, str]:
    command = [sys.executable, "-m", f"tests.faults.{name}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout.strip(), done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout


@pytest.fixture
def signer(tmp_path: Path) -> KeySigner:
    return create_signer(tmp_path / "data.key")


def needs_block_device() -> None:
    if block_device.missing():
        absent(f"a block device under FUSE ({block_device.missing()})")


# ---- campaigns, short ----


def test_kill_9_at_named_points_and_random_moments() -> None:
    line, said = campaign("kill", "--cycles", "120")
    assert line["violations"] == 0, said
    assert line["cycles"] == 120
    assert line["readings"] > 1_000


def test_kills_see_an_early_acknowledgement() -> None:
    line, _ = campaign("kill", "--cycles", "60", "--mutant", "early")
    assert line["violations"] > 0


def test_power_cuts_under_a_real_file_system() -> None:
    needs_block_device()
    line, said = campaign("power_cut", "--states", "60")
    assert line["violations"] == 0, said
    assert line["recorded"]["A"] > 20
    assert line["recorded"]["F"] > 20


@pytest.mark.parametrize("mutant", ["no sync", "nothing synced"])
def test_power_cuts_see_what_is_not_synced(mutant: str) -> None:
    needs_block_device()
    line, _ = campaign("power_cut", "--states", "40", "--mutant", mutant)
    assert line["violations"] > 0


def test_the_kernel_refuses_calls() -> None:
    if not shutil.which("strace"):
        absent("strace")
    line, said = campaign("inject", "--runs", "20")
    assert line["violations"] == 0, said
    assert all(line["calls_of_a_run"][call] > 0 for call in ("fdatasync", "fsync", "pwrite64", "rename", "openat"))


# ---- a device that takes no more ----


@pytest.mark.parametrize("case", ["moves", "dies", "read-only"])
def test_a_device_that_refuses(tmp_path: Path, signer: KeySigner, case: str) -> None:
    needs_block_device()
    with block_device.device(tmp_path) as disk:
        root = disk.mount / "ring"
        root.mkdir()
        command = [sys.executable, "-m", "tests.faults.device_fault", str(root), str(tmp_path / "data.key"), str(tmp_path), case]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        disk.heal()  # a cable was put back: the failed pages are clean in the cache, and nowhere else
        if case == "dies":
            assert done.stdout == ""
            assert ring_work.faults(root, signer, ROOMY, 4) == []
            assert sorted(ring_work.held(root).values()) == [0, 1, 2, 3, 4], "a block that only the cache shows was believed"
            return
        said = json.loads(done.stdout)
        if case == "moves":
            assert said["failed_syncs"] == 1
            assert said["fault"] == ""
            assert said["told"] == 44
        else:
            assert "ead-only" in said["fault"] or "nput/output" in said["fault"], said
            disk.again()
        assert ring_work.faults(root, signer, ROOMY, said["told"]) == []


# ---- a file system that is full, or read-only ----


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0:
        absent("root, to mount a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_file_system_smaller_than_the_ring_is_written_round(small: Path, signer: KeySigner) -> None:
    """While it runs, and from start to start, though its own files hold the last byte at every other start."""
    root, told = small / "ring", []
    root.mkdir()
    ring_work.work(root, signer, ROOMY, 500, told.append)
    for seed in range(30):
        held = os.statvfs(small)
        used = (held.f_blocks - held.f_bavail) * held.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={used if seed % 2 else SMALL_BYTES}", str(small)], check=True)
        assert os.statvfs(small).f_bavail == 0 or not seed % 2
        ring_work.work(root, signer, ROOMY, seed % 4 * 25, told.append, seed)
        assert ring_work.faults(root, signer, ROOMY, told[-1]) == []
    values = [value for _, value in sorted(ring_work.held(root).items())]
    assert values[-1] == told[-1]
    kept = values[values.index(max(values[0], told[-1] - 100)) :]
    assert kept == list(range(kept[0], told[-1] + 1))
    assert values[0] > 0, "nothing was evicted: the file system was not full"


def test_a_ring_on_a_disk_that_others_filled_goes_on_in_its_own_room(small: Path, signer: KeySigner) -> None:
    root, told = small / "ring", []
    root.mkdir()
    ring_work.work(root, signer, ROOMY, 12, told.append)
    filler = small / "somebody-else"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        for _ in itertools.repeat(None, 64 * 1024):
            file.write(bytes(4096))
    for seed in range(5, 15):
        ring_work.work(root, signer, ROOMY, 30, told.append, seed)
        assert ring_work.faults(root, signer, ROOMY, told[-1]) == []
    filler.unlink()
    ring_work.work(root, signer, ROOMY, 10, told.append, seed=6)
    assert ring_work.faults(root, signer, ROOMY, told[-1]) == []
