"""Frames on a stick, written on the OT side in the form of gateway.wire.carry; gateway.upload.carry_in reads them on the IT side.

Resumable: what is on the stick and whole is kept, by reading it; what is missing is added. The uploader's cursor is not touched and not
asked: nobody receipted anything by being copied.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.cose import parse_sign1
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, parse_header
from buffer.manifest import FrameKind, decode_manifest
from buffer.storage import PosixStorage, make_directory
from gateway.upload.catalogue import Catalogue
from gateway.upload.cursor import Cursor
from gateway.upload.jobs import Job
from gateway.upload.plan import Plan
from gateway.wire.carry import OBJECTS, PART_BYTES_MAX, SUMS, SUMS_BYTES_MAX, directory_name, format_sums, parse_sums, part_name
from gateway.wire.receipt import Ends
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from buffer.storage import ReadStorage
    from gateway.upload.jobs import Loaded
    from gateway.upload.plan import Pick

RUN_BYTES_MAX: Final = 2 * 1024 * 1024  # read at a time
_CHUNK: Final = 1024 * 1024


@dataclass(slots=True)
class Exported:
    """What was written. unreadable: pieces of the ring that could not be read; the scrub of the ring names them."""

    files: int = 0
    frames_bytes: int = 0
    blocks: int = 0
    unreadable: int = 0
    kept_files: int = 0  # whole already, from an earlier export
    place: tuple[int, int] = (0, 0)  # generation and first block that is in no finished file: where another stick must begin


def folder_of(folder: Path, stream: str) -> Path:
    """Return the directory of one stream on a stick."""
    return folder / directory_name(stream)


def export_folder(
    ring: ReadStorage, stream: str, folder: Path, *, begin: tuple[int, int] = (0, 0), progress: Callable[[Exported], None] | None = None
) -> Exported:
    """Write what the ring holds from (generation, block) on; return when it is durable and the stick may be removed.

    progress: called after each file. Raise StorageFault (a full stick, one pulled out): what was finished stays; run it again.
    """
    return _Export(ring, folder_of(folder, stream), begin, progress).run()


class _Export:
    def __init__(self, ring: ReadStorage, directory: Path, begin: tuple[int, int], progress: Callable[[Exported], None] | None) -> None:
        make_directory(directory)
        self._catalogue = Catalogue(ring)
        self._ring = ring
        self._stick = PosixStorage(directory, file_mode=None)
        self._plan = Plan()
        self._cursor = Cursor()  # what was read, or need not be
        self._finished = Cursor()  # what stands in a whole file, or need not
        self._under_way: list[tuple[int, int, int]] = []
        self._begin = begin
        self._progress = progress
        self._next: tuple[Pick, Loaded] | None = None
        self.done = Exported()
        self._sums = self._whole()

    def _whole(self) -> dict[str, str]:
        """Return the files of an earlier export that are what SHA256SUMS says; their blocks need not be written again."""
        listed = parse_sums((self._stick.read(SUMS, 0, SUMS_BYTES_MAX) or b"").decode("ascii", errors="replace"))
        return {name: digest for name, digest in listed.items() if self._is_whole(name, digest)}

    def _is_whole(self, name: str, wanted: str) -> bool:
        digest, at = hashlib.sha256(), 0
        while chunk := self._stick.read(name, at, _CHUNK):
            digest.update(chunk)
            at += len(chunk)
        if digest.hexdigest() != wanted:
            return False
        if name != OBJECTS:
            self._note(name, at)
            self.done.kept_files += 1
        return True

    def _note(self, name: str, size: int) -> None:
        """Book the blocks of a file, by headers and manifests alone: its sum is right."""
        at = 0
        while at < size:
            head = self._stick.read(name, at, HEADER_BYTES + COSE_BYTES_MAX) or b""
            header = parse_header(head)
            m = decode_manifest(parse_sign1(head[HEADER_BYTES : HEADER_BYTES + header.cose_bytes]).payload)
            self._cursor.receipted(m.generation, m.first_block, m.last_block, Ends())
            self._finished.receipted(m.generation, m.first_block, m.last_block, Ends())
            at += header.frame_bytes

    def _place(self) -> tuple[int, int]:
        place = self._begin
        for generation, first, last in self._plan.ranges():
            holes = self._finished.done(generation).holes(first, last)
            if holes:
                return generation, holes[0][0]
            place = max(place, (generation, last + 1))
        return place

    def run(self) -> Exported:
        view, statements = self._catalogue.look()
        while not view.complete:
            view, statements = self._catalogue.look()
        self._plan.update(view)
        for generation, first, last in self._plan.ranges():
            end = last if generation < self._begin[0] else self._begin[1] - 1 if generation == self._begin[0] else -1
            if first <= end:
                self._cursor.receipted(generation, first, min(last, end), Ends())
                self._finished.receipted(generation, first, min(last, end), Ends())
        self._write(OBJECTS, self._objects(statements))
        self._next = self._read()
        while self._next is not None:
            pick, _ = self._next
            self._write(part_name(pick.generation, pick.first), self._part(pick.generation))
        return self.done

    def _write(self, name: str, chunks: Iterator[bytes]) -> None:
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            for chunk in chunks:
                digest.update(chunk)
                self.done.frames_bytes += len(chunk)
                yield chunk

        if self._sums.pop(name, None) is not None:  # it is about to be replaced: until it is, nothing vouches for it
            self._stick.publish(SUMS, [format_sums(self._sums)])
        self._stick.publish(name, hashed())
        self._sums[name] = digest.hexdigest()
        self._stick.publish(SUMS, [format_sums(self._sums)])
        self.done.files += 1
        for generation, first, last in self._under_way:
            self._finished.receipted(generation, first, last, Ends())
        self._under_way = []
        self.done.place = self._place()
        if self._progress is not None:
            self._progress(self.done)

    def _objects(self, statements: tuple[bytes, ...]) -> Iterator[bytes]:
        """Yield all objects, key statements first: a tag table is signed by a key that one of them introduces."""
        names = [name for name in self._ring.list(layout.OBJECTS) if re.fullmatch(r"[0-9a-f]{64}", name)]
        for digest in dict.fromkeys([*statements, *(bytes.fromhex(name) for name in names)]):
            loaded = self._catalogue.load(Job(0, Lane.BACKFILL, FrameKind.OBJECT, digest=digest))
            if loaded is None:
                self.done.unreadable += 1
            else:
                yield from (bytes(part) for part in loaded.parts)

    def _part(self, generation: int) -> Iterator[bytes]:
        size = 0
        while self._next is not None and self._next[0].generation == generation and size < PART_BYTES_MAX - limits.PUT_BYTES_MAX:
            pick, loaded = self._next
            self.done.blocks += loaded.last - pick.first + 1
            self._under_way.append((pick.generation, pick.first, loaded.last))
            for part in loaded.parts:
                size += len(part)
                yield bytes(part)
            self._next = self._read()

    def _read(self) -> tuple[Pick, Loaded] | None:
        """Return the next piece, oldest first. The cursor here is only a book of what is on the stick: nobody receipted it."""
        while (pick := self._plan.backfill((0, 0), self._cursor, {}, newest_first=False)) is not None:
            kind = FrameKind.SEGMENT if pick.segment else FrameKind.BLOCK
            job = Job(0, Lane.BACKFILL, kind, pick.generation, pick.first, pick.last, max_bytes=RUN_BYTES_MAX, segment=pick.segment)
            loaded = self._catalogue.load(job)
            if loaded is not None and loaded.first == pick.first:
                self._cursor.receipted(pick.generation, pick.first, loaded.last, Ends())
                return pick, loaded
            self.done.unreadable += 1
            if pick.segment is not None:
                self._plan.give_up(pick.segment)
            else:
                self._cursor.receipted(pick.generation, pick.first, pick.last if loaded is None else loaded.first - 1, Ends())
        return None
