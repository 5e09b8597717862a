"""`python -m tests.simulation.run --seeds N [--first K]`: one JSON line; exit 1 with the seed and how to replay it.

Every 20th seed is run twice, the second time in another process with another hash seed: the same trace, or the simulation itself is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter

from tests.simulation.world import run_seed

REPLAY_EVERY = 20


def replay(seed: int) -> str:
    """Return the trace of a seed in a new process."""
    environment = os.environ | {"PYTHONHASHSEED": str(seed % 1000 + 1)}
    command = [sys.executable, "-m", "tests.simulation.run", "--seeds", "1", "--first", str(seed), "--trace"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print the trace hash only")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    began = time.monotonic()
    replays = 0
    for seed in range(options.first, options.first + options.seeds):
        try:
            outcome = run_seed(seed)
        except Exception:
            traceback.print_exc()
            print(json.dumps({"name": "simulate", "ok": False, "seed": seed, "replay": f"python -m tests.simulation.run --seeds 1 --first {seed}"}))
            return 1
        if options.trace:
            print(outcome.trace)
            continue
        if seed % REPLAY_EVERY == 0:
            replays += 1
            again = replay(seed)
            if again != outcome.trace:
                print(json.dumps({"name": "simulate", "ok": False, "seed": seed, "traces": [outcome.trace, again]}))
                return 1
        for name in ("readings", "evicted", "restores", "crashes", "wipes", "alarms", "events"):
            total[name] += getattr(outcome, name)
        total["virtual_h"] += int(outcome.virtual_s / 36)
        total.update({f"link_{name}": value for name, value in outcome.stats.items()})
    if not options.trace:
        line = {"name": "simulate", "ok": True, "seeds": options.seeds, "first": options.first, "replayed": replays}
        total["virtual_h"] //= 100
        print(json.dumps(line | dict(total) | {"seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
