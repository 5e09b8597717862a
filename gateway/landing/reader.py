"""Follows the landing of one stream that receive writes: what the index says, records by lane and number, frames verbatim."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.errors import CorruptError
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, Frame, parse_body, parse_frame, parse_header
from buffer.manifest import FrameKind
from gateway.landing.index import (
    INDEX,
    PART_HEADER_BYTES,
    LandingState,
    PartName,
    Record,
    Rot,
    parse_entries,
    parse_part_header,
    parse_part_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buffer.storage import ReadStorage
    from gateway.wire.receipt import Ends
    from gateway.wire.request import Lane

MARK_TRIES: Final = 5  # the mark is 64 bytes in one pwrite: torn twice in a row is a fault, not a race


def stream_names(root: Path) -> list[str]:
    """Return the streams a landing holds, in order."""
    return sorted(path.name for path in root.iterdir() if (path / INDEX).is_dir()) if root.is_dir() else []


class LandingReader:
    """One stream. `refresh`, then ask `state` and `records`; holds no file open."""

    def __init__(self, storage: ReadStorage) -> None:
        self._storage = storage
        self.state = LandingState()
        self.rotten = 0  # places of the newest part that do not verify: receive names them when it next starts
        self._part: PartName | None = None  # the part `state` was read from
        self._end = 0  # and how far
        self._parts: list[tuple[PartName, Ends]] = []
        self._places: dict[Lane, tuple[int, PartName, int]] = {}  # number to come -> part, offset

    def refresh(self) -> bool:
        """Follow the index up to `durable`; say whether there was anything new. Raise CorruptError, naming the file."""
        mark = self._mark()
        if mark is None:
            return False
        part = PartName(mark.serial, mark.generation)
        if part == self._part and mark.end_offset <= self._end:
            return False
        if part == self._part:
            self._follow(part, mark.end_offset)
        else:
            try:
                self._load(part, mark.end_offset)
            except CorruptError:
                again = self._mark()  # an opening may have taken an empty part away since the mark was read
                if again is None or (again.serial, again.generation) == (mark.serial, mark.generation):
                    raise
                self._load(PartName(again.serial, again.generation), again.end_offset)
        return True

    def _mark(self) -> layout.DurableMark | None:
        for _ in range(MARK_TRIES):
            data = self._storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES)
            if data is None:
                return None
            try:
                return layout.decode_durable(data)
            except CorruptError:
                continue
        raise CorruptError("durable mark of the landing stays torn", source=layout.DURABLE)

    def _follow(self, part: PartName, end: int) -> None:
        data = self._storage.read(part.path, self._end, end - self._end) or b""
        self._take(data, 0)
        self._end = end

    def _load(self, part: PartName, end: int) -> None:
        """Begin again from the summary of a part: a new one, or another history after a restore."""
        data = self._storage.read(part.path, 0, end) or b""
        try:
            parse_part_header(data)
        except CorruptError as error:
            raise error.at(part.path) from None
        first = next(iter(parse_entries(data)), None)
        if first is None or not isinstance(first[0], LandingState):
            raise CorruptError("index part has no summary", source=part.path, offset=PART_HEADER_BYTES)
        self.state, self.rotten, self._places = first[0], 0, {}
        self._take(data, first[1])
        self._part, self._end = part, end
        names = [found for name in self._storage.list(INDEX) if (found := parse_part_name(name)) is not None and found <= part]
        self._parts = [known for name in sorted(names) if (known := self._header(name)) is not None]

    def _header(self, name: PartName) -> tuple[PartName, Ends] | None:
        try:
            return parse_part_header(self._storage.read(name.path, 0, PART_HEADER_BYTES) or b"")
        except CorruptError:
            self.rotten += 1
            return None

    def _take(self, data: bytes, start: int) -> None:
        end = start
        for entry, behind in parse_entries(data, start):
            end = behind
            if isinstance(entry, Rot):
                self.rotten += 1
            elif not isinstance(entry, LandingState):
                self.state.take(entry)
        if end < len(data):  # below `durable` nothing is a torn tail
            self.rotten += 1

    # ---- records ----

    def records(self, lane: Lane, first: int, most: int) -> list[Record]:
        """Return at most `most` records of a lane in order of number, from `first` on, up to what `refresh` saw.

        A number is missing only where its index entry rotted; a later opening then begins at or below it.
        """
        out: list[Record] = []
        at = self._place(lane, first)
        while at is not None and len(out) < most:
            place, offset = at
            self._collect(lane, place, offset, first, most, out)
            at = (place + 1, PART_HEADER_BYTES) if place + 1 < len(self._parts) else None
        return out

    def back(self, lane: Lane, chunk: int) -> Iterator[list[Record]]:
        """Yield the records of a lane in chunks, the newest chunk first; within a chunk in order of number."""
        below = self.state.ends.of(lane)
        while below > 0:
            first = max(0, below - chunk)
            yield [record for record in self.records(lane, first, chunk) if record.number < below]
            below = first

    def _place(self, lane: Lane, first: int) -> tuple[int, int] | None:
        """Return (index of the part, offset) where to look for a number."""
        if first >= self.state.ends.of(lane):
            return None
        number, name, offset = self._places.get(lane, (-1, PartName(0, 0), 0))
        for place, (part, _) in enumerate(self._parts):
            if number == first and part == name:
                return place, offset
        places = [place for place, (_, ends) in enumerate(self._parts) if ends.of(lane) <= first]
        return (places[-1] if places else 0), PART_HEADER_BYTES

    def _collect(self, lane: Lane, place: int, start: int, first: int, most: int, out: list[Record]) -> None:
        name, _ = self._parts[place]
        newest = name == self._part
        size = self._end if newest else (self._storage.size(name.path) or 0)
        below = None if newest else self._parts[place + 1][1].of(lane)  # what the next part does not know was never promised
        data = self._storage.read(name.path, start, size - start) or b""
        for entry, behind in parse_entries(data, 0):
            if not isinstance(entry, Record) or entry.lane != lane or entry.number < first or (below is not None and entry.number >= below):
                continue
            out.append(entry)
            self._places[lane] = (entry.number + 1, name, start + behind)
            if len(out) >= most:
                return

    # ---- frames ----

    def frame(self, record: Record) -> Frame:
        """Return the frame of a record, verbatim, CRC and digests checked; raise CorruptError with file and offset."""
        try:
            frame = self._segment(record) if record.kind == FrameKind.SEGMENT else self._live(record)
        except CorruptError as error:
            raise error.at(record.file, record.offset) from None
        if hashlib.sha256(frame.cose).digest() != record.digest:
            raise CorruptError("not the frame that the index names", source=record.file, offset=record.offset)
        return frame

    def _live(self, record: Record) -> Frame:
        return parse_frame(self._storage.read(record.file, record.offset, record.length) or b"")

    def _segment(self, record: Record) -> Frame:
        path = record.file.removesuffix(".parquet") + ".cose"
        head = self._storage.read(path, 0, HEADER_BYTES + COSE_BYTES_MAX) or b""
        header = parse_header(head)
        payload = self._storage.read(record.file, 0, header.payload_bytes + 1) or b""
        return parse_body(header, head[HEADER_BYTES : HEADER_BYTES + header.cose_bytes], payload)

    def object_frame(self, digest: bytes) -> Frame | None:
        """Return an object (tag table, key statement), None if it is not here; raise CorruptError naming the file."""
        path = layout.object_path(digest)
        size = self._storage.size(path)
        if size is None:
            return None
        try:
            frame = parse_frame(self._storage.read(path, 0, size) or b"")
        except CorruptError as error:
            raise error.at(path) from None
        if frame.manifest.payload_sha256 != digest:
            raise CorruptError("object is not what its name says", source=path)
        return frame
