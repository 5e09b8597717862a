"""Follows a ring that another process writes: frames verbatim, never beyond `durable`, never decoded, never written.

A file that is not there any more, or was recycled, is a fact: it comes back as None or ends an iteration, and the caller asks for
a new inventory. Files are opened and closed per read: nothing is pinned. Journals of a dead generation are read past the page cache,
as its successor's recovery did, and up to the end that the successor states: what only the cache shows was never committed.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.cose import parse_sign1
from buffer.errors import CorruptError
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, MAGIC, Frame, parse_body, parse_frame, parse_header
from buffer.journal import PAGE, Found, find_salt, padded, scan
from buffer.layout import DurableMark, JournalName, SegmentName, parse_journal, parse_segment
from buffer.manifest import Manifest, StateRecord, decode_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buffer.journal import Read
    from buffer.storage import ReadStorage

DURABLE_TRIES: Final = 5  # a torn `durable` is being written right now
REMEMBERED_BLOCKS: Final = 64  # one place in so many is kept, so that a month of blocks costs no memory
SEGMENTS_ASKED_MAX: Final = 4  # of a generation, for what its predecessor was
_HEX_DIGITS: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the ring held at one moment, oldest first."""

    segments: tuple[SegmentName, ...]
    journals: tuple[JournalName, ...]
    durable: DurableMark | None


@dataclass(slots=True)
class _Places:
    """What is known of one journal: its salt, and where some of its blocks begin."""

    salt: int
    blocks: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def before(self, block: int) -> int:
        at = bisect_right(self.blocks, block) - 1
        return self.offsets[at] if at >= 0 else PAGE

    def remember(self, block: int, offset: int) -> None:
        if not self.blocks or block >= self.blocks[-1] + REMEMBERED_BLOCKS:
            self.blocks.append(block)
            self.offsets.append(offset)


class RingReader:
    """Reads the ring of one stream."""

    def __init__(self, storage: ReadStorage) -> None:
        self._storage = storage
        self._places: dict[JournalName, _Places] = {}
        self._predecessors: dict[int, tuple[int, int]] = {}  # of a generation: the one before with readings, and its end

    def durable(self) -> DurableMark | None:
        """Return the mark; None where there is none, or where a crash tore it and nobody has written it since."""
        for _ in range(DURABLE_TRIES):
            data = self._storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES)
            try:
                return layout.decode_durable(data) if data is not None else None
            except CorruptError:
                continue
        return None

    def inventory(self) -> Inventory:
        """Return what is there now, from names alone."""
        segments = [s for entry in self._storage.list(layout.SEGMENTS) if (s := parse_segment(entry)) and s[1] == "cose"]
        journals = [j for entry in self._storage.list(layout.JOURNALS) if (j := parse_journal(entry)) is not None]
        present = set(journals)
        self._places = {name: places for name, places in self._places.items() if name in present}
        return Inventory(tuple(sorted(s for s, _ in segments)), tuple(sorted(journals)), self.durable())

    # ---- blocks ----

    def blocks(self, inventory: Inventory, generation: int, first_block: int) -> Iterator[Frame]:
        """Yield the durable blocks of one generation from first_block on, in order, each once. Raise StorageFault."""
        mark = inventory.durable
        if mark is None or generation > mark.generation:
            return
        wanted = first_block
        end = None if generation == mark.generation else self.end_of(inventory, generation)
        for name in inventory.journals:
            if name.generation != generation:
                continue
            frames = self._acknowledged(name, mark, wanted) if generation == mark.generation else self._recovered(name, wanted, end)
            for frame in frames:
                if end is not None and frame.manifest.end_seq > end:
                    return
                wanted = frame.manifest.first_block + 1
                yield frame

    def end_of(self, inventory: Inventory, generation: int) -> int | None:
        """Return where a dead generation ended, as a later one states it; None if none that can is left to ask."""
        generations = {name.generation for name in inventory.journals} | {name.generation for name in inventory.segments}
        for later in sorted(g for g in generations if g > generation):
            if later not in self._predecessors:
                state = next((state for state in self._states(inventory, later) if state.generation == later), None)
                if state is None:
                    continue
                self._predecessors[later] = state.predecessor or (0, 0)
            before, end = self._predecessors[later]
            if before <= generation:
                return end if before == generation else 0
        return None

    def _states(self, inventory: Inventory, generation: int) -> Iterator[StateRecord]:
        """Yield records that blocks and segments of a generation carry, until one says what is asked."""
        mark = inventory.durable
        for name in inventory.journals:
            if name.generation == generation and mark is not None:
                live = generation == mark.generation
                for frame in self._acknowledged(name, mark, 0) if live else self._recovered(name, 0):
                    if frame.manifest.state is not None:
                        yield frame.manifest.state
                        break
        for segment in [s for s in inventory.segments if s.generation == generation][:SEGMENTS_ASKED_MAX]:
            manifest = self.segment_manifest(segment)
            if manifest is not None and manifest.state is not None:
                yield manifest.state

    def _acknowledged(self, name: JournalName, mark: DurableMark, first_block: int) -> Iterator[Frame]:
        """Of the generation being written: up to the mark."""
        if name.serial > mark.serial:
            return
        size = mark.end_offset if name.serial == mark.serial else self._storage.size(name.path) or 0
        for frame in self._frames(name, lambda at, n: self._storage.read(name.path, at, n), size, first_block):
            if frame.manifest.first_block < mark.end_block:
                yield frame

    def _recovered(self, name: JournalName, first_block: int, end: int | None = None) -> Iterator[Frame]:
        """Of a dead generation: what verifies, without a commit that never ended.

        end: where its successor says that it ended. Readings below it were committed, though the end of their commit rotted since.
        """
        held: list[Frame] = []
        size = self._storage.size(name.path) or 0
        for frame in self._frames(name, lambda at, n: self._storage.read_direct(name.path, at, n), size, first_block):
            held.append(frame)
            if not frame.manifest.more:
                yield from held
                held = []
        while held and (end is None or not held[-1].manifest.count or held[-1].manifest.end_seq > end):
            held.pop()
        yield from held

    def _frames(self, name: JournalName, read: Read, size: int, first_block: int) -> Iterator[Frame]:
        places = self._places.get(name)
        if places is None:
            salt = find_salt(read, size, name.generation, name.first_seq, name.serial)
            if salt is None:
                return  # gone, or not yet begun
            places = self._places[name] = _Places(salt)
        start = _hop(read, places, first_block)
        for found in scan(read, places.salt, size, start=start):
            if not isinstance(found, Found):
                continue
            manifest = found.frame.manifest
            places.remember(manifest.first_block, found.offset)
            if manifest.first_block >= first_block and manifest.generation == name.generation:
                yield found.frame

    # ---- segments and objects ----

    def segment_manifest(self, name: SegmentName) -> Manifest | None:
        """Return the signed manifest of a segment, None if it was evicted; raise CorruptError. Verifies no signature."""
        data = self._storage.read(name.cose, 0, HEADER_BYTES + COSE_BYTES_MAX)
        if not data:
            return None
        try:
            header = parse_header(data)
            return decode_manifest(parse_sign1(data[HEADER_BYTES : HEADER_BYTES + header.cose_bytes]).payload)
        except CorruptError as error:
            raise error.at(name.cose) from None

    def segment_frame(self, name: SegmentName) -> Frame | None:
        """Return a whole segment as a frame, digest checked, None if it was evicted; raise CorruptError."""
        head = self._storage.read(name.cose, 0, HEADER_BYTES + COSE_BYTES_MAX)
        if not head:
            return None
        try:
            header = parse_header(head)
            payload = self._storage.read(name.parquet, 0, header.payload_bytes + 1)
            if payload is None or len(payload) < header.payload_bytes:
                return None  # being evicted: truncated before it is unlinked
            return parse_body(header, head[HEADER_BYTES : HEADER_BYTES + header.cose_bytes], payload)
        except CorruptError as error:
            raise error.at(name.parquet) from None

    def objects(self) -> list[bytes]:
        """Return the digests of all objects."""
        names = self._storage.list(layout.OBJECTS)
        return [bytes.fromhex(name) for name in names if len(name) == 64 and _HEX_DIGITS.issuperset(name)]  # noqa: PLR2004 -- SHA-256

    def object_frame(self, digest: bytes) -> Frame | None:
        """Return an object as a frame, None if it is not there; raise CorruptError."""
        path = layout.object_path(digest)
        size = self._storage.size(path)
        data = self._storage.read(path, 0, size) if size else None
        if not data:
            return None
        try:
            return parse_frame(data)
        except CorruptError as error:
            raise error.at(path) from None

    def begun(self, inventory: Inventory) -> bool:
        """Say whether anything was ever committed here, as files other than `durable` tell."""
        return bool(inventory.segments) or any(self._storage.read(name.path, PAGE, len(MAGIC)) == MAGIC for name in inventory.journals)

    def newest(self, inventory: Inventory) -> Manifest | None:
        """Return the manifest of the newest durable block: its state record is what the ring has to say. None where there is none."""
        mark = inventory.durable
        if mark is None:
            return None
        frames = list(self.blocks(inventory, mark.generation, max(0, mark.end_block - 1)))
        return frames[-1].manifest if frames else None


def _hop(read: Read, places: _Places, block: int) -> int:
    """Return an offset at or before `block`: known places first, then headers alone. Stops at anything odd: the scan judges it."""
    offset = places.before(block)
    while True:
        try:
            header = parse_header(read(offset, HEADER_BYTES) or b"")
        except CorruptError:
            return offset
        if header.salt != places.salt or header.number >= block:
            return offset
        places.remember(header.number, offset)
        offset += padded(header.frame_bytes)
