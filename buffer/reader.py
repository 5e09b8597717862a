"""Follows a ring that another process writes: frames verbatim, never beyond `durable`, never decoded, never written.

A file that is not there any more, or was recycled, is a fact: it comes back as None or ends an iteration, and the caller asks for
a new inventory. Files are opened and closed per read: nothing is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.cose import parse_sign1
from buffer.errors import CorruptError, StorageFault
from buffer.frame import HEADER_BYTES, Frame, parse_body, parse_frame, parse_header
from buffer.journal import PAGE, parse_journal_header, read_frame
from buffer.layout import DurableMark, JournalName, SegmentName, parse_journal, parse_segment
from buffer.manifest import Manifest, decode_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buffer.storage import ReadStorage

_TRIES: Final = 5  # a torn `durable` is being written right now


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the ring held at one moment, oldest first."""

    segments: tuple[SegmentName, ...]
    journals: tuple[JournalName, ...]
    durable: DurableMark | None


class RingReader:
    """Reads the ring of one stream."""

    def __init__(self, storage: ReadStorage) -> None:
        self._storage = storage
        self._places: dict[JournalName, list[tuple[int, int, int]]] = {}  # (block, end seq, offset) already found
        self._ends: dict[int, int | None] = {}

    def durable(self) -> DurableMark | None:
        """Return the mark, None on an empty ring; raise CorruptError if it stays torn."""
        for attempt in range(_TRIES):
            data = self._storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES)
            if data is None:
                return None
            try:
                return layout.decode_durable(data)
            except CorruptError:
                if attempt == _TRIES - 1:
                    raise
        return None

    def inventory(self) -> Inventory:
        """Return what is there now, from names alone."""
        segments = [s for entry in self._storage.list(layout.SEGMENTS) if (s := parse_segment(entry)) and s[1] == "cose"]
        journals = [j for entry in self._storage.list(layout.JOURNALS) if (j := parse_journal(entry)) is not None]
        self._places = {j: places for j, places in self._places.items() if j in journals}
        return Inventory(tuple(sorted(s for s, _ in segments)), tuple(sorted(journals)), self.durable())

    def blocks(self, inventory: Inventory, generation: int, first_block: int) -> Iterator[Frame]:
        """Yield the durable blocks of one generation from first_block on, in order, each once."""
        mark = inventory.durable
        if mark is None or generation > mark.generation:
            return
        wanted = first_block
        end_seq = mark.end_seq if generation == mark.generation else self.end_of(inventory, generation)
        for name in inventory.journals:
            if name.generation != generation:
                continue
            for frame in self._journal(name, wanted):
                m = frame.manifest
                beyond = m.first_block >= mark.end_block if generation == mark.generation else end_seq is not None and m.end_seq > end_seq
                if beyond:
                    break
                if m.first_block >= wanted:
                    wanted = m.first_block + 1
                    yield frame

    def end_of(self, inventory: Inventory, generation: int) -> int | None:
        """Return where a finished generation ended, as its successor states it; None if no successor is left to ask."""
        if generation not in self._ends:
            later = sorted({j.generation for j in inventory.journals} | {s.generation for s in inventory.segments})
            following = [g for g in later if g > generation]
            self._ends[generation] = self._predecessor_end(inventory, following[0], generation) if following else None
        return self._ends[generation]

    def _predecessor_end(self, inventory: Inventory, successor: int, generation: int) -> int | None:
        manifests = [self.segment_manifest(s) for s in inventory.segments if s.generation == successor][:1]
        for name in [j for j in inventory.journals if j.generation == successor][:1]:
            manifests += [frame.manifest for frame in self._journal(name, 0)][:1]
        for manifest in manifests:
            state = manifest.state if manifest else None
            if state and state.generation == successor and state.predecessor and state.predecessor[0] == generation:
                return state.predecessor[1]
        return None

    def _journal(self, name: JournalName, first_block: int) -> Iterator[Frame]:
        """Yield frames of one journal from first_block on, up to the first that does not verify."""

        def read(offset: int, size: int) -> bytes | None:
            return self._storage.read(name.path, offset, size)

        page = read(0, PAGE)
        try:
            header = parse_journal_header(page or b"")
        except CorruptError:
            return  # gone, or being recycled: a fact
        if (header.generation, header.serial) != (name.generation, name.serial):
            return
        yield from self._frames(name, read, header.salt, first_block)

    def _frames(self, name: JournalName, read: Callable[[int, int], bytes | None], salt: int, first_block: int) -> Iterator[Frame]:
        places = self._places.setdefault(name, [])
        known = [at for block, _, at in places if block >= first_block]
        offset = known[0] if known else (places[-1][2] if places else PAGE)
        while True:
            try:
                frame = read_frame(read, offset, salt)
            except CorruptError:
                return
            m = frame.manifest
            if not places or places[-1][0] < m.first_block:
                places.append((m.first_block, m.end_seq, offset))
            if m.first_block >= first_block:
                yield frame
            size = HEADER_BYTES + len(frame.cose) + len(frame.payload)
            offset += -(-size // PAGE) * PAGE

    def segment_manifest(self, name: SegmentName) -> Manifest | None:
        """Return the signed manifest of a segment, None if it was evicted; raise CorruptError. Verifies no signature."""
        data = self._storage.read(name.cose, 0, HEADER_BYTES + 16 * 1024)
        if data is None or not data:
            return None
        header = parse_header(data)
        return decode_manifest(parse_sign1(data[HEADER_BYTES : HEADER_BYTES + header.cose_bytes]).payload)

    def segment_frame(self, name: SegmentName) -> Frame | None:
        """Return a whole segment as a frame, digest checked, None if it was evicted; raise CorruptError."""
        head = self._storage.read(name.cose, 0, HEADER_BYTES + 16 * 1024)
        if not head:
            return None
        header = parse_header(head)
        payload = self._storage.read(name.parquet, 0, header.payload_bytes + 1)
        if not payload:
            return None
        try:
            return parse_body(header, head[HEADER_BYTES : HEADER_BYTES + header.cose_bytes], payload)
        except CorruptError as error:
            raise error.at(name.parquet) from None

    def objects(self) -> list[bytes]:
        """Return the digests of all objects."""
        return [bytes.fromhex(name) for name in self._storage.list(layout.OBJECTS) if len(name) == 64 and not name.startswith(".")]  # noqa: PLR2004

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

    def newest(self, inventory: Inventory) -> Manifest | None:
        """Return the manifest of the newest durable block: its state record is what the ring has to say. None on an empty ring."""
        mark = inventory.durable
        if mark is None:
            return None
        try:
            frames = list(self.blocks(inventory, mark.generation, max(0, mark.end_block - 1)))
        except StorageFault:
            return None
        return frames[-1].manifest if frames else None
