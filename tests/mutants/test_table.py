"""Every planted defect still has its place in the code: a table that fits nothing any more catches nothing."""

from __future__ import annotations

import pytest

from tests.mutants.plant import planted_source
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_can_be_planted(mutant) -> None:
    assert planted_source(mutant)


def test_names_are_used_once() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
