"""python -m tests.faults.inject --runs N: the kernel refuses a system call of a ring at work; the last line is JSON.

strace lets the Nth call of a kind fail (EIO, ENOSPC, EDQUOT, EMFILE), be delayed, or kill the process. Where each call stands is
learned from a run without faults. What the process may do: go on, or end with one StorageFault that names path and reason. What
must be true afterwards: tests.faults.ring_work.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from buffer.errors import StorageFault
from gateway.trust.keys import create_signer, load_signer
from tests.faults import ring_work

MAX_BYTES = 12 * ring_work.JOURNAL_BYTES
COMMITS = 25
CALLS = ("fdatasync", "fsync", "pwrite64", "write", "rename", "unlink", "ftruncate", "openat")
FAULTS = ("error=EIO", "error=ENOSPC", "error=EDQUOT", "signal=SIGKILL", "delay_enter=200000")
GAVE_UP = 3  # exit code: the disk refused for good, and the process said so
ACK = struct.Struct(">q")
RUN_SECONDS_MAX = 120


def worker(root: Path, key: Path, acks: Path, seed: int) -> int:
    """Work; acknowledgements go through shared memory: no system call of them can be the one that is refused."""
    with acks.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), ACK.size)
    try:
        ring_work.work(root, load_signer(key), MAX_BYTES, COMMITS, lambda n: ACK.pack_into(shared, 0, n), seed)
    except StorageFault as fault:
        print(f"storage: {fault}", file=sys.stderr)
        return GAVE_UP
    return 0


def told(acks: Path) -> int:
    last: int = ACK.unpack(acks.read_bytes())[0]
    return last


def strace(root: Path, key: Path, seed: int, log: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    acks = root.parent / "acks"
    acks.write_bytes(ACK.pack(-1))
    command = ["strace", "-f", "-qq", "-y", "-s", "0", "-o", str(log), *options]
    command += [sys.executable, "-m", "tests.faults.inject", "--work", str(root), str(key), str(acks), str(seed)]
    return subprocess.run(command, capture_output=True, timeout=RUN_SECONDS_MAX, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def places(log: str, root: str) -> dict[str, list[int]]:
    """Return, per system call, the numbers of those calls that touch the ring."""
    counts: Counter[str] = Counter()
    out: dict[str, list[int]] = {call: [] for call in CALLS}
    for line in log.splitlines():
        found = re.match(r"\d+ +(\w+)\(", line)
        if found and found[1] in out:
            counts[found[1]] += 1
            if root in line:
                out[found[1]].append(counts[found[1]])
    return out


def campaign(runs: int, seed: int) -> dict[str, object]:
    rng, began, violations = random.Random(seed), time.monotonic(), 0
    ends: Counter[str] = Counter()
    top = Path(tempfile.mkdtemp(prefix="ebbgate-inject-")).resolve()
    signer, key = create_signer(top / "data.key"), top / "data.key"
    try:
        (top / "dry").mkdir()
        strace(top / "dry", key, seed, top / "log", "-e", f"trace={','.join(CALLS)}")
        where = {call: numbers for call, numbers in places((top / "log").read_text(errors="replace"), str(top / "dry")).items() if numbers}
        combinations = [(call, fault) for call in where for fault in FAULTS] + [("openat", "error=EMFILE")] * ("openat" in where)
        rng.shuffle(combinations)
        for n in range(runs):
            call, fault = combinations[n % len(combinations)]
            root, nth = top / f"run{n}", rng.choice(where[call])
            root.mkdir()
            lasting = "+" if fault.startswith("error") and rng.random() < 0.25 else ""  # every call from the Nth on
            done = strace(root, key, seed, top / "log", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={nth}{lasting}")
            broken = judge(done, fault, lasting)
            broken += ring_work.faults(root, signer, MAX_BYTES, told(top / "acks"))
            ends[f"{fault.partition('=')[2]}: exit {done.returncode}"] += 1
            violations += bool(broken)
            for what in broken:
                print(f"run {n}, {call} {fault} when={nth}{lasting}: {what}", flush=True)
            shutil.rmtree(root)
            if violations >= 10:
                break
    finally:
        shutil.rmtree(top, ignore_errors=True)
    calls = {call: len(numbers) for call, numbers in where.items()}
    return {
        "name": "inject", "runs": sum(ends.values()), "violations": violations, "calls_of_a_run": calls, "ends": dict(ends.most_common()),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def judge(done: subprocess.CompletedProcess[bytes], fault: str, lasting: str) -> list[str]:
    """Return what is wrong with how the process ended."""
    killed = fault == "signal=SIGKILL" and done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if done.returncode == 0 or killed:
        return []
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == GAVE_UP and len(said) == 1 and said[0].startswith("storage: "):
        return []
    return [f"ended with {done.returncode}: {said[-1:]}"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", nargs=4, metavar=("ROOT", "KEY", "ACKS", "SEED"), help="be the process under test")
    options = parser.parse_args()
    if options.work:
        root, key, acks, seed = options.work
        return worker(Path(root), Path(key), Path(acks), int(seed))
    if not shutil.which("strace"):
        print("missing here: strace")
        return 3
    line = campaign(options.runs, options.seed)
    print(json.dumps(line))
    return 1 if line["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
