"""Rows of tags.csv whose cell `expand` declares an array of n elements -> n tags, `<id>.0` to `<id>.<n-1>`, at `<path>[0]` and so on. Pure.

The length is declared, never learned from the device: ids, and with them the numbers of tags, stay the same whatever a program download
does to the array. Elements of a matrix count on through its rows, the last index running fastest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.settings import TagRow

EXPAND_MAX: Final = 1_000  # elements of one array: more is a recording of a signal, not a set of tags
SUFFIX_CHARS_MAX: Final = 5  # ".999", "[999]"


def expand_rows(rows: Iterable[TagRow]) -> Iterator[TagRow]:
    """Yield one row per tag: those of arrays as their elements, all others as they are."""
    for row in rows:
        if not row.expand:
            yield row
        for k in range(row.expand):
            yield replace(row, id=element_id(row.id, k), path=f"{row.path}[{k}]", array=row.id, element=k, expand=0)


def element_id(array: str, k: int) -> str:
    """Return the id of one element."""
    return f"{array}.{k}"


def place_of(row: TagRow) -> str:
    """Return what a tag reads at its source, in words: two tags of one array share an address and read different elements."""
    return f"{row.address} element {row.element}" if row.array else row.address
