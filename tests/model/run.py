"""python -m tests.model.run [--most STATES] [model ...]: search every model, then without each rule and with each mutant; JSON last.

Every model is searched to its end: all states there are within its bounds. `--most` ends a model at the last level that began below
that; the table says which and how deep. tests/model/test_model.py does the same to a smaller depth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator

from tests.model.commit import Commit
from tests.model.fill import Fill
from tests.model.kernel import Model, explore
from tests.model.landing import Landing
from tests.model.receivers import Receivers
from tests.model.ring import Ring

MODELS: tuple[type[Model], ...] = (Commit, Fill, Ring, Landing, Receivers)
MOST = 2_000_000  # states of a model, more than any has; a defect shows itself within as many
NEVER_RESTORED = ("no_restore", "index_has_durable")  # with the fixes on, three defects are masked: both defences must fail first


def whole(kind: type[Model]) -> Iterator[tuple[str, ...]]:
    """Yield the flags under which a model breaks no promise."""
    yield kind.fixes
    if kind is Landing:
        yield NEVER_RESTORED


def broken(kind: type[Model]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (what is wrong, flags) under which it breaks one."""
    for fix in kind.fixes:
        yield f"without {fix}", tuple(x for x in kind.fixes if x != fix)
    for mutant in kind.mutants:
        yield mutant, (*kind.fixes, mutant)
    if kind is Landing:
        yield "reads past the durable index", NEVER_RESTORED[:1]
        for mutant in Landing.other[2:]:
            yield mutant, (*NEVER_RESTORED, mutant)


def main() -> int:
    """Print the table; return 1 if a whole model breaks a promise or a broken one does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--most", type=int, default=MOST)
    arguments = parser.parse_args()
    wanted = arguments.models
    began, total, violations, mutants = time.monotonic(), 0, 0, 0
    survived: list[str] = []
    bounded: list[str] = []
    for kind in MODELS:
        if wanted and kind.name not in wanted:
            continue
        for flags in whole(kind):
            seen = explore(kind(*flags), False, most=arguments.most)
            total, violations = total + seen.states, violations + len(seen.found)
            bounded += [] if seen.whole else [f"{kind.name} to {seen.depth} events"]
            reach = "all of them" if seen.whole else f"to {seen.depth} events"
            print(f"{kind.name:9} {seen.states:8} states, {reach}, {len(seen.found)} violations   [{kind.bounds}; {', '.join(flags) or 'no flags'}]", flush=True)
            for what, trace in seen.found.items():
                print(f"  VIOLATION {what}: {' > '.join(trace)}")
        for name, flags in broken(kind):
            states, found, _, _ = explore(kind(*flags), True, most=arguments.most)
            mutants += 1
            survived += [] if found else [f"{kind.name}: {name}"]
            what, trace = next(iter(found.items()), ("SURVIVED", []))
            print(f"  {name:34} {states:8} states  {what}: {' > '.join(trace)}", flush=True)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"states": total, "violations": violations, "bounded": bounded, "mutants": mutants, "survived": survived, "seconds": seconds}))
    return 1 if violations or survived else 0


if __name__ == "__main__":
    sys.exit(main())
