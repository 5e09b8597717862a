"""python -m tests.simulation.run --seeds N [--first K] [--world parts|whole|all]: the last line is JSON; exit 1 where a seed failed.

Two worlds: `parts` (tests.simulation.world: a ring of marks, everything after it) and `whole` (tests.simulation.whole: plant, collect on its
disk, everything after it). Every REPLAY_EVERY-th seed is run twice, the second time in another process with another hash seed: the same trace,
or the simulation itself is broken. Every G8_EVERY-th seed of `whole` is run with nobody, an honest receiver and a liar behind the box. A seed
that fails is named with the command that brings it back.
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

REPLAY_EVERY = 20
G8_EVERY = 10
COUNTED = ("readings", "evicted", "restores", "crashes", "wipes", "alarms", "events")


def outcome_of(world: str, seed: int):
    """Run a seed of a world."""
    if world == "parts":
        from tests.simulation import world as parts

        return parts.run_seed(seed)
    from tests.simulation import whole

    return whole.run_seed(seed)[0]


def command(world: str, seed: int) -> list[str]:
    """Return what runs this seed alone."""
    return ["-m", "tests.simulation.run", "--world", world, "--seeds", "1", "--first", str(seed)]


def replay(world: str, seed: int) -> str:
    """Return the trace of a seed in a new process."""
    environment = os.environ | {"PYTHONHASHSEED": str(seed % 1000 + 1)}
    arguments = [sys.executable, *command(world, seed), "--trace"]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=900, check=True).stdout.strip()


def one(world: str, seed: int, total: Counter[str]) -> None:
    """Run a seed and what belongs to it; raise what is broken."""
    outcome = outcome_of(world, seed)
    if seed % REPLAY_EVERY == 0:
        total["replayed"] += 1
        again = replay(world, seed)
        if again != outcome.trace:
            raise AssertionError(f"seed {seed} has two traces: {outcome.trace} and {again}")
    if world == "whole" and seed % G8_EVERY == 0:
        from tests.simulation import whole

        total["same_bytes"] += 1
        whole.same_bytes(seed)
    for name in COUNTED:
        total[f"{world}_{name}"] += getattr(outcome, name)
    total[f"{world}_virtual_s"] += int(outcome.virtual_s)
    total.update({f"link_{name}": value for name, value in outcome.stats.items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--world", choices=("parts", "whole", "all"), default="all")
    parser.add_argument("--trace", action="store_true", help="print the trace hash only")
    options = parser.parse_args()
    worlds = ("parts", "whole") if options.world == "all" else (options.world,)
    if options.trace:
        print(outcome_of(worlds[0], options.first).trace)
        return 0
    total: Counter[str] = Counter()
    failed: list[str] = []
    began = time.monotonic()
    for seed in range(options.first, options.first + options.seeds):
        for world in worlds:
            try:
                one(world, seed, total)
            except Exception as error:
                traceback.print_exc()
                failed.append(f"python {' '.join(command(world, seed))}  # {type(error).__name__}: {str(error)[:200]}")
    line = {"name": "simulate", "ok": not failed, "seeds": options.seeds * len(worlds), "failures": len(failed), "failed": failed, "first": options.first}
    print(json.dumps(line | dict(total) | {"seconds": round(time.monotonic() - began, 1)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
