"""python -m tests.faults.power_cut --states N: the power fails under a real ring on a real ext4; the last line is JSON.

A ring works on a recorded block device (tests.faults.block_device). Then, for chosen points of the record: the image as the platter held
it, that is everything before the last completed flush and any part of what came after, torn at 512 bytes; mounted, so that ext4
replays its own journal; opened as the next start would, and judged by the books of tests.faults.ring_work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from buffer.storage import PosixStorage
from gateway.trust.keys import create_signer, load_signer
from tests.faults import block_device, ring_work
from tests.faults.block_device import RECORD, SECTOR, device, mounted, records

COMMITS = 45
MAX_BYTES = 12 * ring_work.JOURNAL_BYTES


MUTANTS = ("no sync", "nothing synced")  # planted: this harness must see them


def writer(root: str, key: str, log: str, seed: int, mutant: str) -> None:
    """Work, and mark every acknowledgement in the device's own log."""
    if mutant == "no sync":
        PosixStorage.fdatasync = lambda self, handle: None  # type: ignore[method-assign]
    if mutant == "nothing synced":
        os.fsync = os.fdatasync = lambda fd: None  # type: ignore[assignment]
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    ring_work.work(Path(root), load_signer(Path(key)), MAX_BYTES, COMMITS, lambda n: os.write(fd, RECORD.pack(b"A", n, 0)) and None, seed)


def platter(base: bytes, log: list[tuple[bytes, int, bytes]], at: int, rng: random.Random) -> tuple[bytearray, int]:
    """Return an image that the cut before record `at` may leave, and what was acknowledged by then (-1: nothing)."""
    flushed = max((i for i in range(at) if log[i][0] == b"F"), default=-1)
    image, told = bytearray(base), -1
    keep = rng.choice([0.0, 0.3, 0.5, 0.9, 1.0])
    for i, (kind, value, data) in enumerate(log[:at]):
        if kind == b"A":
            told = max(told, value)
        if kind != b"W":
            continue
        for start in range(0, len(data), SECTOR) if i > flushed else ():
            if rng.random() < keep:
                image[value + start : value + start + SECTOR] = data[start : start + SECTOR]
        if i <= flushed:
            image[value : value + len(data)] = data
    return image, told


def campaign(states: int, seed: int, mutant: str = "") -> dict[str, object]:
    """Record once, then cut `states` times."""
    rng, began, violations, mounts = random.Random(seed), time.monotonic(), [], 0
    top = Path(tempfile.mkdtemp(prefix="ebbgate-power-"))
    signer = create_signer(top / "data.key")
    try:
        with device(top) as disk:
            (disk.mount / "ring").mkdir()
            command = [sys.executable, "-m", "tests.faults.power_cut", "--write", str(disk.mount / "ring"), str(top / "data.key"), str(disk.log), str(seed), mutant]
            subprocess.run(command, check=True, timeout=300)
        log = records(disk.log.read_bytes())
        first = next(i for i, (kind, _, _) in enumerate(log) if kind == b"A")  # before: the ring's directory may not be there yet
        points = range(first, len(log) + 1)
        base, again = disk.base.read_bytes(), top / "again"
        again.mkdir()
        for n in range(states):
            at = points[n * len(points) // states] if states < len(points) else points[n % len(points)]
            data, told = platter(base, log, at, rng)
            image = top / f"cut-{n}.img"  # each its own: a loop device lets go of a file a little late
            image.write_bytes(data)
            with mounted(image, again):
                mounts += 1
                for what in ring_work.faults(again / "ring", signer, MAX_BYTES, told):
                    violations.append(f"cut before record {at} of {len(log)}, state {n}: {what}")
                    print(violations[-1], flush=True)
            image.unlink()
            if len(violations) >= 10:
                break
    finally:
        shutil.rmtree(top, ignore_errors=True)
    kinds = {kind.decode(): sum(one[0] == kind for one in log) for kind in (b"W", b"F", b"A")}
    return {"name": "power-cut", "states": mounts, "violations": len(violations), "recorded": kinds, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutant", default="", choices=("", *MUTANTS))
    parser.add_argument("--write", nargs=5, metavar=("ROOT", "KEY", "LOG", "SEED", "MUTANT"), help="be the process under test")
    options = parser.parse_args()
    if options.write:
        root, key, log, seed, mutant = options.write
        writer(root, key, log, int(seed), mutant)
        return 0
    if block_device.missing():
        print(f"missing here: {block_device.missing()}")
        return 3
    line = campaign(options.states, options.seed, options.mutant)
    print(json.dumps(line))
    return 1 if line["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
