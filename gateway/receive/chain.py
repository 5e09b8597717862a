"""h after each block that is held: what an offer is answered by, and what a later frame is compared with.

Not the truth, and never read by others: a file per generation that is rebuilt from the index where it is missing. What the index
parts before the newest say was synced when that part was begun; what the newest says is put here again at every start.

Specification. chain/<ordinal>-<nonce>: 36 bytes for each block number, at 36 * number: h (32 bytes), CRC-32 of h, block number and
generation (little-endian). Zeros, or a CRC that does not fit: not known.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from gateway.landing.index import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buffer.storage import Storage

DIRECTORY: Final = "chain"
NEWEST_MAX: Final = 64  # points of a stream in memory: a few requests under way
_POINT_BYTES: Final = 36
_H_BYTES: Final = 32


class ChainPoints:
    """One stream's points on disk. Reads and writes through the page cache; `sync` where an index part begins."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        storage.mkdir(DIRECTORY)
        self._dirty: set[int] = set()
        self._newest: OrderedDict[tuple[int, int], bytes] = OrderedDict()  # the next block asks for what the last one put

    def at(self, generation: int, block: int) -> bytes | None:
        """Return h after a block, None where it is not known."""
        if (generation, block) in self._newest:
            return self._newest[generation, block]
        data = self._storage.read(_path(generation), block * _POINT_BYTES, _POINT_BYTES)
        if data is None or len(data) != _POINT_BYTES or data != _point(generation, block, data[:_H_BYTES]):
            return None
        return data[:_H_BYTES]

    def put(self, records: Iterable[Record]) -> None:
        """Note the points at both ends of frames that were landed. What a held block is, is stronger than what its successor says."""
        by_generation: dict[int, list[Record]] = {}
        for record in records:
            by_generation.setdefault(record.generation, []).append(record)
        for generation, some in by_generation.items():
            path = _path(generation)
            handle = self._storage.create(path, 0) if self._storage.size(path) is None else self._storage.open(path)
            try:
                for r in some:
                    self._put(handle, generation, r.last_block, r.chain_after)
                    if r.first_block and self.at(generation, r.first_block - 1) is None:
                        self._put(handle, generation, r.first_block - 1, r.chain_before)
            finally:
                self._storage.close(handle)
            self._dirty.add(generation)

    def _put(self, handle: int, generation: int, block: int, h: bytes) -> None:
        self._storage.pwrite(handle, block * _POINT_BYTES, _point(generation, block, h))
        self._newest[generation, block] = h
        if len(self._newest) > NEWEST_MAX:
            self._newest.popitem(last=False)

    def sync(self) -> None:
        """Make every point durable: after this the index need not be read again to know it."""
        for generation in sorted(self._dirty):
            self._storage.sync_file(_path(generation))
        self._dirty.clear()


def _path(generation: int) -> str:
    return f"{DIRECTORY}/{generation >> 32:010d}-{generation & 0xFFFFFFFF:08x}"


def _point(generation: int, block: int, h: bytes) -> bytes:
    return h + struct.pack("<I", zlib.crc32(h + struct.pack("<QQ", generation, block)))
