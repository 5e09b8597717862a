"""A journal: a file of frames, made durable one commit at a time.

Specification. Page 0 (4 KiB) is the journal's own header; frames (buffer.frame) follow, each on a 4 KiB boundary, in order:

    0  magic "EBBJ"   4  version u32   8  salt u64   16  generation u64   24  first seq u64   32  first block u64   40  serial u64
    48  length of the stream id u16   50  stream id, 64 bytes, zero-padded   114  zero   4092  CRC-32 of bytes 0..4091

Frames carry the journal's salt in their header. A journal is made of zeros once and recycled without zeroing: a new salt tells
old frames, and frame-like bytes inside values, from this journal's own. Where page 0 itself rotted, the salt is that of the first
frame whose signed manifest fits the file's name.

Order of writing. The last block of a commit is written after all blocks before it were synced. So a block that verifies proves
that everything before it was durable once.

Reading. A frame that does not verify is the torn tail, and the end, only if no later 4 KiB boundary holds a header with this salt
and a higher number; else it is a hole: acknowledged readings that the disk lost, to be named, and the scan goes on behind it. A tail
of blocks with `more` belongs to a commit that never ended; but where `durable`, `last` or a record of a later generation states an end
behind readings in it, it was acknowledged, and the end of its commit rotted.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer import limits
from buffer.errors import CorruptError, StorageFault, invariant
from buffer.frame import HEADER_BYTES, MAGIC, Frame, Header, encode_header, parse_body, parse_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buffer.storage import ReadStorage, Storage

    Read = Callable[[int, int], bytes | None]  # offset, size -> bytes; None: the file is gone

PAGE: Final = limits.PAGE_BYTES
_MAGIC: Final = b"EBBJ"
_HEAD: Final = struct.Struct("<4sIQQQQQH64s")
READ_CHUNK_BYTES: Final = 1024 * 1024

@dataclass(frozen=True, slots=True)
class JournalHeader:
    """Page 0."""

    stream: str
    generation: int
    first_seq: int
    first_block: int
    serial: int
    salt: int


def encode_journal_header(header: JournalHeader) -> bytes:
    """Return page 0."""
    h = header
    stream = h.stream.encode()
    head = _HEAD.pack(_MAGIC, 1, h.salt, h.generation, h.first_seq, h.first_block, h.serial, len(stream), stream)
    page = head.ljust(PAGE - 4, b"\0")
    return page + struct.pack("<I", zlib.crc32(page))


def parse_journal_header(page: bytes) -> JournalHeader:
    """Return the header; raise CorruptError."""
    if len(page) < PAGE or zlib.crc32(page[: PAGE - 4]) != int.from_bytes(page[PAGE - 4 : PAGE], "little"):
        raise CorruptError("journal header does not match its CRC", offset=0)
    magic, version, salt, generation, first_seq, first_block, serial, length, stream = _HEAD.unpack_from(page)
    if magic != _MAGIC or version != 1 or length > len(stream):
        raise CorruptError("not a journal of this format", offset=0)
    return JournalHeader(stream[:length].decode(errors="replace"), generation, first_seq, first_block, serial, salt)


def padded(size: int) -> int:
    """Return size rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


class JournalWriter:
    """Appends frames to one journal. Passive: the owner decides when to sync and what a failure means."""

    def __init__(self, storage: Storage, path: str, handle: int, header: JournalHeader, size_bytes: int) -> None:
        self._storage = storage
        self._handle = handle
        self.path = path
        self.header = header
        self.size_bytes = size_bytes
        self.end = PAGE
        self.poisoned = False

    @classmethod
    def create(cls, storage: Storage, path: str, header: JournalHeader, size_bytes: int, recycled: str | None = None) -> JournalWriter:
        """Make a journal (of zeros, or from a recycled file of the same size); header and name are durable on return.

        Raise StorageFault: a file may be left under `path` or `recycled`, holding nothing, never to be written again.
        """
        if recycled is None:
            handle = storage.create(path, size_bytes)
        else:
            storage.rename(recycled, path)
            handle = storage.open(path)
        try:
            storage.pwrite(handle, 0, encode_journal_header(header))
            storage.fdatasync(handle)
            storage.fsync_dir(path.rpartition("/")[0])
        except StorageFault:
            storage.close(handle)
            raise
        return cls(storage, path, handle, header, size_bytes)

    def room(self) -> int:
        """Return how many bytes of frames still fit, the reserve not counted out."""
        return self.size_bytes - self.end

    def append(self, frame: Frame) -> int:
        """Write one frame at the next page, not synced; return its offset."""
        invariant(not self.poisoned, "append to a journal whose sync failed")
        head = encode_header(frame.manifest, frame.cose, frame.payload, self.header.salt)
        data = b"".join((head, frame.cose, frame.payload))
        size = padded(len(data))
        invariant(self.end + size <= self.size_bytes, "frame does not fit the journal")
        offset = self.end
        self._storage.pwrite(self._handle, offset, data.ljust(size, b"\0"))
        self.end += size
        return offset

    def sync(self) -> None:
        """Make every appended frame durable; after a StorageFault this journal is never written or synced again."""
        try:
            self._storage.fdatasync(self._handle)
        except BaseException:
            self.poisoned = True
            raise

    def close(self) -> None:
        """Give the handle back."""
        self._storage.close(self._handle)


# ---- reading ----


@dataclass(frozen=True, slots=True)
class Found:
    """A frame that verified (structure, CRC, digest; not the signature) at an offset."""

    offset: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Hole:
    """Bytes between two good frames that do not verify."""

    offset: int
    end: int
    reason: str


class PastCache:
    """A file as the device holds it, by windows of a MiB; pages the device refuses to give are zeros. size_bytes: 0 if it is not there."""

    def __init__(self, storage: ReadStorage, path: str, size_bytes: int | None = None) -> None:
        self._storage = storage
        self._path = path
        self.size_bytes = (storage.size(path) or 0) if size_bytes is None else size_bytes
        self._start, self._window = 0, b""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return size_bytes from offset; fewer at the end."""
        end = min(offset + size_bytes, self.size_bytes)
        if offset >= end:
            return b""
        if not self._start <= offset < end <= self._start + len(self._window):
            self._start = offset // PAGE * PAGE
            self._window = b""  # given back before the next is read
            self._window = self._fetch(self._start, min(max(READ_CHUNK_BYTES, end - self._start), self.size_bytes - self._start))
        return self._window[offset - self._start : end - self._start]

    def _fetch(self, start: int, size: int) -> bytes:
        try:
            return self._storage.read_direct(self._path, start, size) or b""
        except StorageFault:
            return b"".join(self._page(at, min(PAGE, start + size - at)) for at in range(start, start + size, PAGE))

    def _page(self, offset: int, size: int) -> bytes:
        try:
            return (self._storage.read_direct(self._path, offset, size) or b"").ljust(size, b"\0")
        except StorageFault:
            return bytes(size)


def find_salt(read: Read, size_bytes: int, generation: int, first_seq: int, serial: int) -> int | None:
    """Return the salt of a journal with this name, None if nothing was ever committed in it (or it is gone)."""
    page = read(0, PAGE) or b""
    try:
        header = parse_journal_header(page)
    except CorruptError:
        return _salt_of_frames(read, size_bytes, generation, first_seq) if any(page) else None
    return header.salt if (header.generation, header.serial) == (generation, serial) else None  # else renamed, not yet begun


def _salt_of_frames(read: Read, size_bytes: int, generation: int, first_seq: int) -> int | None:
    for offset in range(PAGE, size_bytes, PAGE):
        try:
            salt = parse_header(read(offset, HEADER_BYTES) or b"").salt
            manifest = read_frame(read, offset, salt).manifest
        except CorruptError:
            continue
        if manifest.generation == generation and manifest.first_seq >= first_seq:
            return salt
    return None


def read_frame(read: Read, offset: int, salt: int) -> Frame:
    """Return the frame at offset; raise CorruptError (with offset) if it is not there, torn, or of an earlier use of the file."""
    try:
        head = read(offset, HEADER_BYTES) or b""
        header = parse_header(head)
        if header.salt != salt:
            raise CorruptError("frame of an earlier use of this file (salt)")
        body = read(offset + HEADER_BYTES, header.cose_bytes + header.payload_bytes) or b""
        if len(body) != header.cose_bytes + header.payload_bytes:
            raise CorruptError("frame is cut off")
        return parse_body(header, body[: header.cose_bytes], body[header.cose_bytes :])
    except CorruptError as error:
        raise error.at("journal", offset) from None


def frame_pages(frame: Frame) -> int:
    """Return how many bytes of a journal a frame takes."""
    return padded(HEADER_BYTES + len(frame.cose) + len(frame.payload))


def scan(read: Read, salt: int, size_bytes: int, *, start: int = PAGE) -> Iterator[Found | Hole]:
    """Yield frames and holes in order, up to the torn tail. Reads one frame at a time; memory is bounded by one block."""
    offset, number = start, -1
    while offset + HEADER_BYTES <= size_bytes:
        try:
            frame = read_frame(read, offset, salt)
            if frame.manifest.first_block <= number:
                raise CorruptError("frame number does not rise", source="journal", offset=offset)
        except CorruptError as error:
            resume = look_ahead(read, offset + PAGE, salt, number, size_bytes)
            if resume is None:
                return
            yield Hole(offset, resume, error.message)
            offset = resume
            continue
        yield Found(offset, frame)
        number = frame.manifest.first_block
        offset += frame_pages(frame)


def look_ahead(read: Read, start: int, salt: int, number: int, size_bytes: int) -> int | None:
    """Return the next 4 KiB boundary with a header of this salt and a higher number, None if there is none."""
    for at in range(start, size_bytes, READ_CHUNK_BYTES):
        chunk = read(at, min(READ_CHUNK_BYTES, size_bytes - at)) or b""
        for inside in range(0, len(chunk) - HEADER_BYTES + 1, PAGE):
            if not chunk.startswith(MAGIC, inside):
                continue  # nearly every page: of zeros, or the middle of a frame
            header = _header_at(chunk, inside)
            if header is not None and header.salt == salt and header.number > number:
                return at + inside
    return None


def _header_at(chunk: bytes, inside: int) -> Header | None:
    try:
        return parse_header(memoryview(chunk)[inside : inside + HEADER_BYTES])
    except CorruptError:
        return None
