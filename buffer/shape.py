"""What a block says of its tags and kinds: their order, and how the columns that follow it are packed.

Where a source is polled in one order, a block says of them what the block before said, and nothing of it is done again: a third of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from buffer.packing import Packed, pack_floats, pack_numbers, pack_places, pack_plain, pack_runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from buffer.types import Columns

_U16_MAX: Final = 2**16 - 1


class Packer:
    """How the columns of one block are packed: fast or small, and whether readings of one tag follow each other."""

    def __init__(self, fast: bool, consecutive: bool) -> None:
        self.fast = fast
        self.order = int(consecutive)

    def numbers(self, data: NDArray[Any], order: int | None) -> Packed:
        return pack_plain(data) if self.fast else pack_numbers(data, order)

    def floats(self, data: NDArray[Any], *, search: bool = True) -> Packed:
        return pack_plain(data) if self.fast else pack_floats(data, self.order, search=search)

    def places(self, data: NDArray[Any]) -> Packed:
        return pack_plain(data) if self.fast else pack_places(data)

    def runs(self, data: NDArray[Any]) -> Packed:
        return pack_plain(data) if self.fast else pack_runs(data, self.order)


class Shape(NamedTuple):
    """What a block says of its tags and kinds, and the columns `raw` it was made from."""

    raw: tuple[bytes, bytes, bool]
    order: NDArray[np.intp]
    pack: Packer
    kind: NDArray[np.uint8]  # in tag order
    tags: Packed
    kinds: Packed


_shapes: Final[list[Shape]] = []  # of the block before, if any: replaced in one step, so any thread may


def shape_of(columns: Columns, fast: bool) -> Shape:
    """Return the shape; a source that is polled in one order has that of the block before, and a quarter of the work is done already."""
    raw = (columns.tag.tobytes(), columns.kind.tobytes(), fast)
    for before in _shapes:
        if before.raw == raw:
            return before
    order = tag_order(columns.tag)
    pack = Packer(fast, _is_consecutive(columns.tag.take(order)))
    kind = columns.kind.take(order)
    shape = Shape(raw, order, pack, kind, pack.places(columns.tag), pack.runs(kind))
    _shapes[:] = [shape]
    return shape


def tag_order(tag: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Return the stable argsort; of 16 bits, where they suffice, because that is a radix sort."""
    return (tag.astype(np.uint16) if tag.max() <= _U16_MAX else tag).argsort(kind="stable")


def _is_consecutive(sorted_tag: NDArray[np.uint32]) -> bool:
    """Say whether most readings follow one of the same tag: then a value is best told by its difference."""
    return 2 * int(np.count_nonzero(sorted_tag[1:] == sorted_tag[:-1])) >= len(sorted_tag)
