"""Segments, objects and `last` files of a ring: what is there and what it takes. Publishes and removes; decides nothing."""

from __future__ import annotations

from bisect import insort
from errno import ENOSPC
from typing import TYPE_CHECKING

from buffer import layout
from buffer.errors import CorruptError, StorageFault
from buffer.journals import remove
from buffer.last import encode_last
from buffer.recovery import read_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.last import LastState
    from buffer.layout import SegmentName
    from buffer.storage import Storage

LAST_FILES_KEPT = 2  # the newest may be torn by the disk; the one before is then good


class Holdings:
    """used_bytes: what all of it takes. segments: oldest first."""

    def __init__(self, storage: Storage, segments: Sequence[SegmentName]) -> None:
        self._storage = storage
        self._sizes: dict[str, int] = {}
        self.segments = list(segments)
        self.used_bytes = 0
        self.has_last = bool(storage.list(layout.LAST))
        paths = [path for segment in segments for path in (segment.parquet, segment.cose)]
        paths += [f"{directory}/{name}" for directory in (layout.OBJECTS, layout.LAST) for name in storage.list(directory)]
        for path in paths:
            self._note(path, storage.size(path) or 0)

    def _note(self, path: str, size: int) -> None:
        self.used_bytes += size - self._sizes.pop(path, 0)
        if size:
            self._sizes[path] = size

    def put(self, path: str, data: bytes) -> None:
        """Publish a file. Raise StorageFault."""
        self._storage.publish(path, [data])
        self._note(path, len(data))

    def forget(self, path: str) -> None:
        """Remove a file. Raise StorageFault."""
        remove(self._storage, path)
        self._note(path, 0)

    def settle(self) -> None:
        """Have what was removed so far, segments and journals, stay away whatever comes. Raise StorageFault."""
        for directory in (layout.SEGMENTS, layout.JOURNALS):
            self._storage.fsync_dir(directory)

    def has_object(self, digest: bytes) -> bool:
        """Say whether an object is there and whole."""
        try:
            return read_object(self._storage, digest) is not None
        except CorruptError:
            return False

    def add_segment(self, name: SegmentName, parquet_bytes: int, cose_bytes: int) -> None:
        """Note a published segment."""
        insort(self.segments, name)
        self._note(name.parquet, parquet_bytes)
        self._note(name.cose, cose_bytes)

    def drop_segment(self, name: SegmentName) -> None:
        """Remove a segment, its commit point first. Raise StorageFault."""
        self.forget(name.cose)
        self.forget(name.parquet)
        self.segments.remove(name)

    def segment_bytes(self, name: SegmentName) -> int:
        """Return what a segment takes."""
        return self._sizes.get(name.parquet, 0) + self._sizes.get(name.cose, 0)

    def publish_last(self, last: LastState, generation: int, seq: int, block: int) -> int:
        """Write `last` as of a place; keep the newest two; return its size. Raise StorageFault.

        On a full disk the older of the two makes room: without a new `last` no journal could be evicted, and the disk would stay full.
        """
        data, path = encode_last(last, generation, seq, block), layout.LastName(generation, seq).path
        try:
            self.put(path, data)
        except StorageFault as fault:
            if fault.errno != ENOSPC:
                raise
            self._keep_last_files(LAST_FILES_KEPT - 1)
            self.put(path, data)
        self._keep_last_files(LAST_FILES_KEPT)
        self.has_last = True
        return len(data)

    def _keep_last_files(self, count: int) -> None:
        names = sorted(n for entry in self._storage.list(layout.LAST) if (n := layout.parse_last(entry)) is not None)
        for old in names[:-count]:
            self.forget(old.path)
