"""Frames on a stick: the same bytes as on the wire, in files that FAT32 takes. Written on the OT side; gateway.upload.carry_in reads them.

Specification. <folder>/ebbgate-<stream>-frames/ holds

    objects.frames                                 tag tables and key statements, whole frames one after the other
    <generation>-<first block>.frames              segments and blocks in order of block, whole frames, at most PART_BYTES_MAX
    SHA256SUMS                                     "<64 hex>  <name>" a line, as sha256sum -c reads it; covers what is complete

<generation> is ten digits, "-", eight hex digits; <first block> sixteen digits. All names are lower case without characters that FAT
refuses. Each file is published by rename, SHA256SUMS after each of them: a stick pulled out early holds whole files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.manifest import FrameKind
from buffer.storage import PosixStorage, make_directory
from gateway.upload.catalogue import Catalogue
from gateway.upload.cursor import Cursor
from gateway.upload.jobs import Job
from gateway.upload.plan import Plan
from gateway.wire.receipt import Ends
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buffer.storage import ReadStorage
    from gateway.upload.jobs import Loaded
    from gateway.upload.plan import Pick

PART_BYTES_MAX: Final = 1024**3  # FAT32 ends at 4 GiB; a part that cannot be copied costs a gibibyte, not the stick
RUN_BYTES_MAX: Final = 2 * 1024 * 1024  # read at a time
SUMS: Final = "SHA256SUMS"
SUMS_BYTES_MAX: Final = 1024 * 1024
OBJECTS: Final = "objects.frames"
NAME: Final = re.compile(r"objects\.frames|\d{10}-[0-9a-f]{8}-\d{16}\.frames")
_SUM_LINE: Final = re.compile(r"([0-9a-f]{64})  (" + NAME.pattern + r")")


@dataclass(slots=True)
class Exported:
    """What was written. unreadable: pieces of the ring that could not be read; the scrub of the ring names them."""

    files: int = 0
    frames_bytes: int = 0
    blocks: int = 0
    unreadable: int = 0


def folder_of(folder: Path, stream: str) -> Path:
    """Return the directory of one stream on a stick."""
    return folder / f"ebbgate-{stream}-frames"


def parse_sums(text: str) -> dict[str, str]:
    """Return name -> SHA-256 of the lines that are ours; others are left out."""
    return {found[2]: found[1] for line in text.splitlines() if (found := _SUM_LINE.fullmatch(line))}


def export_folder(ring: ReadStorage, stream: str, folder: Path) -> Exported:
    """Write everything the ring holds; return when it is durable and the stick may be removed. Raise StorageFault (a full stick)."""
    return _Export(ring, folder_of(folder, stream)).run()


class _Export:
    def __init__(self, ring: ReadStorage, directory: Path) -> None:
        make_directory(directory)
        self._catalogue = Catalogue(ring)
        self._ring = ring
        self._stick = PosixStorage(directory)
        self._plan = Plan()
        self._cursor = Cursor()
        self._next: tuple[Pick, Loaded] | None = None
        self.done = Exported()
        old = self._stick.read(SUMS, 0, SUMS_BYTES_MAX) or b""
        present = set(self._stick.list(""))
        self._sums = {name: digest for name, digest in parse_sums(old.decode("ascii", errors="replace")).items() if name in present}

    def run(self) -> Exported:
        view, statements = self._catalogue.look()
        while not view.complete:
            view, statements = self._catalogue.look()
        self._plan.update(view)
        self._write(OBJECTS, self._objects(statements))
        self._next = self._read()
        while self._next is not None:
            pick, _ = self._next
            name = f"{pick.generation >> 32:010d}-{pick.generation & 0xFFFFFFFF:08x}-{pick.first:016d}.frames"
            self._write(name, self._part(pick.generation))
        return self.done

    def _write(self, name: str, chunks: Iterator[bytes]) -> None:
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            for chunk in chunks:
                digest.update(chunk)
                self.done.frames_bytes += len(chunk)
                yield chunk

        self._stick.publish(name, hashed())
        self._sums[name] = digest.hexdigest()
        lines = "".join(f"{value}  {key}\n" for key, value in sorted(self._sums.items()))
        self._stick.publish(SUMS, [lines.encode()])
        self.done.files += 1

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
        while self._next is not None and self._next[0].generation == generation and size < PART_BYTES_MAX - 2 * RUN_BYTES_MAX * 4:
            pick, loaded = self._next
            self.done.blocks += loaded.last - pick.first + 1
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
