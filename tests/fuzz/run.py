"""A campaign: `python -m tests.fuzz.run --inputs N [--seed S]`. Prints a line per parser, then one JSON object."""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
import traceback

from tests.fuzz.targets import change, feed, targets

ADDRESS_SPACE_MAX = 4 * 1024**3


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--inputs", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MAX, ADDRESS_SPACE_MAX))
    every = targets()
    failures, taken, done, began = [], 0, 0, time.monotonic()
    for place, (name, target) in enumerate(every.items()):
        rng = random.Random(f"{options.seed} {name}")
        share = options.inputs // len(every) + (place < options.inputs % len(every))
        accepted = 0
        for _ in range(share):
            data = change(rng.choice(target.seeds), rng)
            try:
                accepted += feed(target, data)
            except Exception as error:
                failures.append({"parser": name, "error": repr(error)[:200], "input": data.hex()[:400]})
                traceback.print_exc(limit=-3)
        taken, done = taken + accepted, done + share
        print(f"{name:24} {share:>9} inputs, {accepted:>9} accepted")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "inputs": done, "parsers": len(every), "accepted": taken, "failures": len(failures), "peak_bytes": peak, "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1), "first": failures[:3],
    }  # fmt: skip
    print(json.dumps(result))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
