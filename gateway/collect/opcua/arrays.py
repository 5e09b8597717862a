"""Arrays whose elements are tags (`expand` in tags.csv): one item at the server, one reading for each element. Pure.

The client handle of an array's item is the number of its first element. A shorter array, an empty one and a value that is none leave the
elements that are not there without a value, Bad_IndexRangeNoData; a Bad value is Bad for all of them; a scalar is an array of one. What lies
beyond the declared length is not kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.types import Kind
from gateway.collect.opcua.decode import Items, blank_items, put_value
from gateway.collect.opcua.variant import Value, array_length, null_value, read_elements

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gateway.settings import TagRow

BAD_INDEX_RANGE_NO_DATA: Final = 0x8037_0000  # "no data exists within the range of indexes specified" (OPC 10000-4, 7.39)
_BAD: Final = 31  # bit of a StatusCode


def one_per_item(tags: Iterable[TagRow]) -> list[TagRow]:
    """Return the tags that have an item at the server: the first element stands for its array."""
    return [tag for tag in tags if not tag.array or tag.element == 0]


class Arrays:
    """The arrays among the tags of one source."""

    def __init__(self, tags: Iterable[TagRow]) -> None:
        """tags: with numbers, all elements of an array among them."""
        found: dict[str, dict[int, int]] = {}
        for tag in tags:
            if tag.array:
                found.setdefault(tag.array, {})[tag.element] = tag.number
        self._numbers = {elements[0]: [elements[k] for k in range(len(elements))] for elements in found.values()}
        self._first = np.asarray(sorted(self._numbers), np.uint32)

    def spread(self, numbers: Iterable[int]) -> list[int]:
        """Return numbers of items as numbers of tags."""
        return [number for item in numbers for number in self._numbers.get(item, (item,))]

    def expand(self, items: Items) -> tuple[Items, dict[int, int]]:
        """Return items with arrays as their elements, in order for each tag; and first element -> length of arrays that are longer than declared."""
        which = np.isin(items.handle, self._first) if len(self._first) else np.zeros(0, np.bool_)
        if not which.any():
            return items, {}
        rows = np.flatnonzero(which)
        wanted = [self._numbers[int(items.handle[row])] for row in rows]
        longer = {numbers[0]: size for row, numbers in zip(rows, wanted, strict=True) if (size := length_of(items, int(row)) or 0) > len(numbers)}
        source = np.concatenate([np.flatnonzero(~which), np.repeat(rows, [len(numbers) for numbers in wanted])])
        at = len(items) - len(rows)
        made, texts = _copied(items, source), []
        for row in np.flatnonzero(np.isin(made.kind[:at], (Kind.TEXT, Kind.BYTES))):
            texts.append(items.texts[int(made.values[row])])
            made.values[row] = len(texts) - 1
        for row, numbers in zip(rows, wanted, strict=True):
            elements = _elements(items, int(row), len(numbers))
            for number, element in zip(numbers, elements, strict=True):
                made.handle[at] = number
                put_value(made, at, element or null_value(), _quality(element, int(items.quality[row])), texts)
                at += 1
        return replace(made, texts=tuple(texts)), longer


def pick(items: Items, rows: NDArray[np.int64], k: int) -> Items:
    """Return element k of the arrays in chosen rows."""
    made = _copied(items, rows)
    texts: list[str] = []
    for at, row in enumerate(rows):
        element = _elements(items, int(row), k + 1)[k]
        put_value(made, at, element or null_value(), _quality(element, int(items.quality[row])), texts)
    return replace(made, texts=tuple(texts))


def length_of(items: Items, row: int) -> int | None:
    """Return how many elements the array in a row has, None where there is no array."""
    return array_length(items.arrays[row].variant) if row in items.arrays else None


def _elements(items: Items, row: int, count: int) -> Sequence[Value | None]:
    """Return the first `count` elements; None where there is none."""
    found: list[Value | None] = []
    if row in items.arrays:
        found += read_elements(items.arrays[row].variant, count, items.arrays[row].structure)
    elif items.kind[row] not in (Kind.NULL, Kind.TEXT, Kind.BYTES):
        found = [Value(int(items.kind[row]), int(items.values[row]), 0)]
    elif items.kind[row] != Kind.NULL:
        found = [Value(int(items.kind[row]), items.texts[int(items.values[row])], 0)]
    return found + [None] * (count - len(found))


def _quality(element: Value | None, quality: int) -> int:
    return BAD_INDEX_RANGE_NO_DATA if element is None and not quality >> _BAD else quality


def _copied(items: Items, rows: NDArray[np.int64]) -> Items:
    """Return chosen rows, texts left out."""
    made = blank_items(len(rows))
    for name in ("handle", "kind", "values", "quality", "flags", "source_ns"):
        getattr(made, name)[:] = getattr(items, name)[rows]
    return made

