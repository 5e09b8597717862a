"""Plants one defect in this process: the text of a module is changed before it is imported, the file on disk stays what it is."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """A defect: `old` stands exactly once in `module` and becomes `new`; `harness` (see tests.mutants.table) must notice.

    Tuples: several places of one module, where two defences stand behind each other and only both together are a defect.
    """

    name: str
    module: str
    old: str | tuple[str, ...]
    new: str | tuple[str, ...]
    harness: str

    def edits(self) -> list[tuple[str, str]]:
        """Return every (old, new)."""
        if isinstance(self.old, str) and isinstance(self.new, str):
            return [(self.old, self.new)]
        return list(zip(self.old, self.new, strict=True))


def source_path(mutant: Mutant) -> Path:
    """Return the file of the module."""
    return ROOT / (mutant.module.replace(".", "/") + ".py")


def planted_source(mutant: Mutant) -> str:
    """Return the module's text with the defect; raise ValueError where it does not fit (any more)."""
    source = source_path(mutant).read_text(encoding="utf-8")
    for old, new in mutant.edits():
        if source.count(old) != 1:
            message = f"mutant {mutant.name!r}: its text stands {source.count(old)} times in {mutant.module}"
            raise ValueError(message)
        source = source.replace(old, new)
    return source


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._mutant.module:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(source_path(self._mutant)))

    def exec_module(self, module: Any) -> None:
        code = compile(planted_source(self._mutant), str(source_path(self._mutant)), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 -- our own source


def plant(mutant: Mutant) -> None:
    """Plant it; nothing of the product may be imported yet."""
    assert mutant.module not in sys.modules, f"{mutant.module} is imported already"
    planted_source(mutant)
    sys.meta_path.insert(0, _Finder(mutant))
