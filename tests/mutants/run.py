"""python -m tests.mutants.run [--share K/N] [--only WORDS] [--jobs J] [--save]: plant every defect of the table, one process each; JSON last.

A mutant is caught when its harness, clean without it, turns red. `survived` names those that were not: the harness or the mutant
is worth nothing then, and the exit status is 1. `--save` keeps the table in docs/mutants.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from tests.mutants.plant import ROOT, Mutant, plant
from tests.mutants.table import EQUIVALENT, MUTANTS, UNSEEN

CRASH_STATES = 3_000
CRASH_SHARE = 0.4  # of the moments of each life: breadth before depth
ALL_MOMENTS = 0.999
ROT_STATES = 900
WHOLE_SEEDS = 12
TIMEOUT_S = 900
CAUGHT = 10  # exit status: everything else is a defect of this program


def found(mutant: Mutant) -> str:
    """Run the harness of a planted mutant in this process; return what it saw first, "" for nothing."""
    if mutant.harness.startswith("whole"):
        return _seeds(int(mutant.harness.partition(" ")[2] or 1))
    if mutant.harness.partition(" ")[0] not in ("crash", "rot"):
        import pytest

        return "" if pytest.main(["-x", "-q", "-p", "no:cacheprovider", *mutant.harness.split()]) == 0 else f"{mutant.harness} is red"
    try:
        for name, broken in _states(mutant.harness):
            if broken:
                return f"{name}: {broken}"
    except Exception as error:  # noqa: BLE001 -- not even the life itself works
        return f"{type(error).__name__}: {error}"
    return ""


def _seeds(first: int) -> str:
    from tests.simulation.whole import run_seed

    for seed in range(first, first + WHOLE_SEEDS):
        try:
            run_seed(seed)
        except Exception as error:  # noqa: BLE001 -- as above
            return f"seed {seed}: {type(error).__name__}: {error}"
    return ""


def _states(harness: str) -> Iterator[tuple[str, str]]:
    from tests.crash.toys import install

    install()
    if harness == "rot":
        from tests.crash.rot import all_states

        return all_states(ROT_STATES)
    from tests.crash.states import states

    life = harness.partition(" ")[2]
    if life:  # one life by hand: every moment, few subsets
        return itertools.islice(states(int(life), ALL_MOMENTS), CRASH_STATES)
    return itertools.islice(itertools.chain.from_iterable(states(seed, CRASH_SHARE) for seed in itertools.count()), CRASH_STATES)


def _apart(mutant: Mutant) -> tuple[Mutant, bool, str]:
    out = subprocess.run(
        [sys.executable, "-m", "tests.mutants.run", "--one", mutant.name], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if out.returncode not in (0, CAUGHT):
        raise RuntimeError(f"{mutant.name}: {out.stderr[-2000:]}")
    return mutant, out.returncode == CAUGHT, out.stdout.strip().rpartition("\n")[2][:150]


def table(rows: dict[str, tuple[Mutant, bool, str]], seconds: float) -> str:
    """Return docs/mutants.md: every mutant in the order of the table."""
    caught = sum(row[1] for row in rows.values())
    out = [
        "# Planted defects",
        "",
        "Each line is a deliberate defect of the product, planted alone, and what the harness that must notice it saw first. Written by",
        "`make mutants MUTANTS_ARGS=--save`; the defects themselves stand in `tests/mutants/table.py`.",
        "",
        f"One complete run: {len(rows)} mutants, {caught} caught, {len(rows) - caught} survived, {seconds:.0f} s.",
        "",
        "| mutant | module | harness | | seen first |",
        "|---|---|---|---|---|",
    ]
    for mutant in MUTANTS:
        _, yes, saw = rows[mutant.name]
        cells = (mutant.name, f"`{mutant.module}`", mutant.harness, "caught" if yes else "SURVIVED", saw.replace("|", "/").replace("<", "("))
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "## Not defects", "", "Changes that look like one, and why nothing can turn red for them:", ""]
    out += [f"* **{name}**: {why}." for name, why in EQUIVALENT]
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="plant this one here and run its harness")
    parser.add_argument("--only", default="", help="mutants whose name or harness has these words")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--share", default="1/1", help="K/N: every N-th mutant, beginning with the K-th")
    parser.add_argument("--save", action="store_true", help="keep the table of a complete run in docs/mutants.md")
    arguments = parser.parse_args()
    if arguments.one:
        mutant = next(m for m in MUTANTS if m.name == arguments.one)
        plant(mutant)
        saw = found(mutant)
        print(saw)
        return CAUGHT if saw else 0
    place, step = map(int, arguments.share.split("/"))
    chosen = [m for m in MUTANTS[place - 1 :: step] if arguments.only in m.name or arguments.only in m.harness]
    survived, rows, began = [], {}, time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in as_completed([pool.submit(_apart, mutant) for mutant in chosen]):
            mutant, caught, saw = done.result()
            print(f"{'caught' if caught else 'SURVIVED':9} {mutant.harness[-20:]:20} {mutant.name:58} {saw}", flush=True)
            survived += [] if caught else [mutant.name]
            rows[mutant.name] = done.result()
    if arguments.save and len(rows) == len(MUTANTS):
        (ROOT / "docs" / "mutants.md").write_text(table(rows, time.monotonic() - began), encoding="utf-8")
    print(json.dumps({"mutants": len(chosen), "caught": len(chosen) - len(survived), "survived": survived}))
    return 1 if set(survived) - UNSEEN else 0


if __name__ == "__main__":
    sys.exit(main())
