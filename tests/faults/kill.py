"""python -m tests.faults.kill --cycles N: kill -9 of a process that writes a real ring on a real disk; the last line is JSON.

Half of the kills come at a random moment, half at a named point: before or after the n-th call of one storage step. The ring lives on
through all of them, so that recoveries stand on recoveries; a new one begins every RING_CYCLES. A fork server: imports cost
nothing, the killed process is a fork, and so is the one that checks.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: no thread may exist when we fork

import argparse
import json
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import buffer.segment  # noqa: F401 -- imported once, here, for every fork
from buffer.ring import Ring
from buffer.storage import PosixStorage
from gateway.trust.keys import create_signer, load_signer
from tests.faults import ring_work

RING_CYCLES = 60
POINTS = ("create", "pwrite", "fdatasync", "publish", "adopt", "truncate", "rename", "unlink", "sync_file")
MAX_BYTES = 12 * ring_work.JOURNAL_BYTES
ACK = struct.Struct(">q")


def fork(action: Callable[[int], None]) -> tuple[int, int]:
    """Run action(write end of a pipe) in a fork; return its pid and the read end."""
    r, w = os.pipe()
    pid = os.fork()
    if pid:
        os.close(w)
        return pid, r
    code = 1
    try:
        os.close(r)
        action(w)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def plant_kill(point: str, nth: int, after: bool) -> None:
    """Have this process end by SIGKILL before or after the nth call of a storage step."""
    real, calls = getattr(PosixStorage, point), [0]

    def step(self, *arguments, **named):
        calls[0] += 1
        if calls[0] == nth and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        out = real(self, *arguments, **named)
        if calls[0] == nth and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    setattr(PosixStorage, point, step)


def plant_early(w: int) -> None:
    """The planted mutant: what is appended is acknowledged before it is committed."""
    real = Ring.append

    def append(self, columns, source=None, position=None, **more):
        os.write(w, position or b"")
        real(self, columns, source, position, **more)

    Ring.append = append


def read_acks(fd: int, until: float | None, pid: int) -> int:
    """Return the last value acknowledged; kill the process at `until`."""
    import select

    data, last = b"", -1
    while True:
        wait = None if until is None else max(0.0, until - time.monotonic())
        ready, _, _ = select.select([fd], [], [], wait)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            until = None
            continue
        part = os.read(fd, 65536)
        if not part:
            return last
        data += part
        whole = len(data) // ACK.size * ACK.size
        if whole:
            last = ACK.unpack_from(data, whole - ACK.size)[0]
            data = data[whole:]


def cycle(root: Path, key: Path, rng: random.Random, told: int, early: bool = False) -> tuple[str, int, list[str]]:
    """One life and one death; return where it died, the last acknowledged value and what is broken."""
    signer = load_signer(key)
    point = rng.choice(POINTS) if rng.random() < 0.5 else ""
    nth, after, seed = rng.choice([1, 2, 3, 5, 9, 17, 30]), rng.random() < 0.5, rng.getrandbits(32)

    def life(w: int) -> None:
        if point:
            plant_kill(point, nth, after)
        if early:
            plant_early(w)
        ring_work.work(root, signer, MAX_BYTES, 60, lambda n: os.write(w, ACK.pack(n)) and None, seed)

    pid, r = fork(life)
    until = None if point else time.monotonic() + rng.uniform(0.005, 0.4)
    told = max(told, read_acks(r, until, pid))
    os.close(r)
    _, status = os.waitpid(pid, 0)
    died = f"{point}" if point else "moment"
    if not os.WIFSIGNALED(status):
        died = "lived"
        if os.WEXITSTATUS(status):
            return died, told, ["the process failed by itself"]
    pid, r = fork(lambda w: os.write(w, json.dumps(ring_work.faults(root, signer, MAX_BYTES, told)).encode()) and None)
    with os.fdopen(r, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return died, told, json.loads(said) if said else ["the check failed by itself"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutant", default="", choices=("", "early"))
    options = parser.parse_args()
    began, rng = time.monotonic(), random.Random(options.seed)
    deaths: Counter[str] = Counter()
    violations, readings, told = 0, 0, -1
    top = Path(tempfile.mkdtemp(prefix="ebbgate-kill-"))
    create_signer(top / "data.key")
    try:
        for n in range(options.cycles):
            if n % RING_CYCLES == 0:
                readings, told, root = readings + told + 1, -1, top / f"ring{n}"
                root.mkdir()
            died, told, broken = cycle(root, top / "data.key", rng, told, options.mutant == "early")
            deaths[died] += 1
            violations += bool(broken)
            for what in broken:
                print(f"cycle {n} ({died}): {what}", flush=True)
            if violations >= 10:
                break
    finally:
        shutil.rmtree(top, ignore_errors=True)
    line = {"name": "kill-ring", "cycles": sum(deaths.values()), "violations": violations, "readings": readings + told + 1}
    print(json.dumps(line | {"deaths": dict(deaths.most_common()), "seconds": round(time.monotonic() - began, 1)}))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
