"""Patterns over tag paths: `*` is one level, `**` any number of levels; "press/**" is everything below press. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Patterns:
    """Says whether a path matches any of the patterns."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._regex = re.compile("|".join(_translate(pattern) for pattern in patterns) or r"(?!)")
        self._known = lru_cache(maxsize=100_000)(self._match)

    def __call__(self, path: str) -> bool:
        """Return True if `path` is wanted."""
        return self._known(path)

    def _match(self, path: str) -> bool:
        return self._regex.fullmatch(path) is not None


def _translate(pattern: str) -> str:
    parts = [{"**": ".*", "*": "[^/]*"}.get(x, re.escape(x)) for x in re.split(r"(\*\*|\*)", pattern)]
    return "(?:" + "".join(parts) + ")"
