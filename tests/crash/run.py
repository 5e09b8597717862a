"""python -m tests.crash.run [--states N] [--seed S] [--jobs J]: crash enumeration of the ring; the last line is JSON.

A quarter of the states are lives searched in full (every moment, every single and every pair), three quarters the lives by hand and a
share of many more lives. The same arguments give the same states. `--replay NAME` brings one state back.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

FULL = 4  # one state in so many belongs to a life searched in full
SHARE = 0.4
VIOLATIONS_SHOWN = 20


def some(job: int, jobs: int, first_seed: int, count: int) -> tuple[int, list[tuple[str, str]]]:
    """Enumerate this job's part; return how many states, and what was broken."""
    from tests.crash.directed import DIRECTED
    from tests.crash.states import WIDE, states
    from tests.crash.toys import install

    install()

    def lives(share: float, start: int) -> Iterator[tuple[str, str]]:
        return itertools.chain.from_iterable(states(seed, share) for seed in itertools.count(start + job, jobs))

    full = itertools.islice(lives(1.0, first_seed), count // FULL)
    by_hand = itertools.chain.from_iterable(states(-i - 1, SHARE) for i in range(job, len(DIRECTED), jobs))
    wide = itertools.islice(itertools.chain(by_hand, lives(SHARE, first_seed + WIDE)), count - count // FULL)
    seen, bad = 0, []
    for name, broken in itertools.chain(full, wide):
        seen += 1
        if broken:
            bad.append((name, broken))
            if len(bad) >= VIOLATIONS_SHOWN:
                break
    return seen, bad


def main() -> int:
    """Print what is broken and the JSON; return 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", help="a name that an earlier run printed")
    arguments = parser.parse_args()
    if arguments.replay:
        from tests.crash.states import replay
        from tests.crash.toys import install

        install()
        try:
            broken = replay(arguments.replay)
        except (IndexError, StopIteration):
            parser.error("no such state: a name belongs to the code that made it, which did other things to the disk")
        print(json.dumps({"states": 1, "violations": int(bool(broken)), "broken": broken}))
        return 1 if broken else 0
    began, count, violations = time.monotonic(), 0, 0
    parts = [arguments.states // arguments.jobs + (i < arguments.states % arguments.jobs) for i in range(arguments.jobs)]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        running = [pool.submit(some, job, arguments.jobs, arguments.seed, part) for job, part in enumerate(parts)]
        for done in as_completed(running):
            seen, bad = done.result()
            count, violations = count + seen, violations + len(bad)
            for name, broken in bad:
                print(f"{broken}\n    again: python -m tests.crash.run --replay {name}", flush=True)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"states": count, "violations": violations, "seed": arguments.seed, "jobs": arguments.jobs, "seconds": seconds}))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
