"""python -m tests.mutants.run [--share K/N] [--only WORDS] [--jobs J] [--save]: plant every defect of the table, one process each; JSON last.

A mutant is caught when its harness, green without it, turns red. `survived` names those that were not: the harness or the mutant
is worth nothing then, and the exit status is 1. A run of the whole table begins with every harness without a defect, which must be
green; in a part of it (`--share`, `--only`) that is left to the tests. `--save` keeps the table of a whole run in docs/mutants.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from tests.mutants.plant import ROOT, plant
from tests.mutants.table import EQUIVALENT, MUTANTS

CRASH_STATES = 3_000
CRASH_SHARE = 0.4  # of the moments of each life: breadth before depth
ALL_MOMENTS = 0.999
ROT_STATES = 900
WHOLE_SEEDS = 4  # from the one in the table on
TIMEOUT_S = 900
CAUGHT = 10  # exit status: everything else is a defect of this program


def found(harness: str) -> str:
    """Run a harness in this process; return what it saw first, "" for nothing."""
    if harness.startswith("whole"):
        return _seeds(int(harness.partition(" ")[2] or 1))
    if harness.partition(" ")[0] not in ("crash", "rot"):
        import pytest

        return "" if pytest.main(["-x", "-q", "-p", "no:cacheprovider", *harness.split()]) == 0 else f"{harness} is red"
    try:
        for name, broken in _states(harness):
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


@dataclass(frozen=True)
class Row:
    """What became of a mutant, or of a harness without one."""

    name: str
    red: bool
    saw: str
    seconds: float


def _apart(what: str, name: str) -> Row:
    began = time.monotonic()
    out = subprocess.run([sys.executable, "-m", "tests.mutants.run", what, name], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if out.returncode not in (0, CAUGHT):
        raise RuntimeError(f"{name}: {out.stderr[-2000:]}")
    return Row(name, out.returncode == CAUGHT, out.stdout.strip().rpartition("\n")[2][:150], time.monotonic() - began)


def table(rows: dict[str, Row], seconds: float) -> str:
    """Return docs/mutants.md: every mutant in the order of the table."""
    caught = sum(row.red for row in rows.values())
    out = [
        "# Planted defects",
        "",
        "Each line is a deliberate defect of the product, planted alone, and what the harness that must notice it saw first. Written by",
        "`make mutants MUTANTS_ARGS=--save`; the defects themselves stand in `tests/mutants/table.py`.",
        "",
        f"One complete run: {len(rows)} mutants, {caught} caught, {len(rows) - caught} survived, {seconds:.0f} s. Without a defect every harness was green.",
        "`crash -N`: one life by hand (`tests/crash/directed.py`); `crash`: many lives from seeds; `rot`: bits changed at rest; `whole N`: the whole system",
        "on virtual time, from seed N on; else what pytest ran.",
        "",
        "| mutant | module | harness | | seen first |",
        "|---|---|---|---|---|",
    ]
    for mutant in MUTANTS:
        row = rows[mutant.name]
        cells = (mutant.name, f"`{mutant.module}`", mutant.harness, "caught" if row.red else "SURVIVED", row.saw.replace("|", "/").replace("<", "("))
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "## Not defects", "", "Changes that look like one, and why nothing can turn red for them:", ""]
    out += [f"* **{name}**: {why}." for name, why in EQUIVALENT]
    return "\n".join(out) + "\n"


def _all(what: str, names: Sequence[str], jobs: int) -> Iterator[Row]:
    """Run each in a process of its own; yield as they end."""
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(_apart, what, name) for name in names]):
            yield done.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="plant this one here and run its harness")
    parser.add_argument("--green", help="run this harness here, without a defect")
    parser.add_argument("--only", default="", help="mutants whose name or harness has these words")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--share", default="1/1", help="K/N: every N-th mutant, beginning with the K-th")
    parser.add_argument("--save", action="store_true", help="keep the table of a complete run in docs/mutants.md")
    arguments = parser.parse_args()
    if arguments.one or arguments.green:
        mutant = next((m for m in MUTANTS if m.name == arguments.one), None)
        if mutant is not None:
            plant(mutant)
        saw = found(mutant.harness if mutant is not None else arguments.green)
        print(saw)
        return CAUGHT if saw else 0
    place, step = map(int, arguments.share.split("/"))
    chosen = [m for m in MUTANTS[place - 1 :: step] if arguments.only in m.name or arguments.only in m.harness]
    whole, began = len(chosen) == len(MUTANTS), time.monotonic()
    for row in _all("--green", sorted({m.harness for m in chosen}) if whole else [], arguments.jobs):
        if row.red:
            parser.error(f"{row.name} is red without a defect: {row.saw}")
    rows: dict[str, Row] = {}
    for row in _all("--one", [m.name for m in chosen], arguments.jobs):
        print(f"{'caught' if row.red else 'SURVIVED':9}{row.seconds:4.0f} s  {row.name:60} {row.saw}", flush=True)
        rows[row.name] = row
    survived = [row.name for row in rows.values() if not row.red]
    if arguments.save and whole:
        (ROOT / "docs" / "mutants.md").write_text(table(rows, time.monotonic() - began), encoding="utf-8")
    print(json.dumps({"mutants": len(chosen), "caught": len(chosen) - len(survived), "survived": survived}))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
