"""python -m tests.crash.run --states N: crash enumeration of the ring; the last line is JSON with `states` and `violations`."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time

from tests.crash.ring import states


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=int, default=20_000)
    wanted = parser.parse_args().states
    began, count, violations = time.monotonic(), 0, 0
    for seed in itertools.count(1):
        for broken in states(seed, 12):
            count += 1
            violations += bool(broken)
            for what in broken:
                print(f"seed {seed} state {count}: {what}", flush=True)
            if count >= wanted or violations >= 20:
                break
        if count >= wanted or violations >= 20:
            break
    print(json.dumps({"states": count, "violations": violations, "seconds": round(time.monotonic() - began, 1)}))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
