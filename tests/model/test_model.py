"""The protocol models to a depth that takes seconds, and every rule and mutant that shows itself early; `make model` goes to the end."""

from __future__ import annotations

import pytest

from tests.model.kernel import explore
from tests.model.run import MODELS, broken, whole

DEPTH = {"commit": 8, "fill": 9, "ring": 7, "landing": 7, "receivers": 99}
MOST = 6_000  # states until a defect shows
LATE = {"generation_without_nonce", "without rolled_back_is_a_reason", "restore_not_noticed", "receipt_before_index"}  # `make model` finds them

WHOLE = [(kind, flags) for kind in MODELS for flags in whole(kind)]
BROKEN = [(kind, name, flags) for kind in MODELS for name, flags in broken(kind) if name not in LATE]


@pytest.mark.parametrize(("kind", "flags"), WHOLE, ids=lambda x: x.name if isinstance(x, type) else "-".join(x))
def test_a_whole_model_keeps_its_promises(kind, flags):
    seen = explore(kind(*flags), False, DEPTH[kind.name])
    assert seen.found == {}
    assert seen.whole or seen.depth == DEPTH[kind.name]
    assert seen.states > 10


@pytest.mark.parametrize(("kind", "name", "flags"), BROKEN, ids=[f"{kind.name}-{name}" for kind, name, _ in BROKEN])
def test_without_a_rule_a_promise_breaks(kind, name, flags):
    seen = explore(kind(*flags), True, most=MOST)
    assert seen.found, f"not seen in {seen.states} states"
