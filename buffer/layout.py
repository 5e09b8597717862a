"""File names <-> what they hold. Fixed width, so that the order of names is the order of readings; nothing else builds a path.

    durable                                              see DurableMark
    lock/writer                                          0700: readers cannot open it
    objects/<sha256>                                     one frame: tag table or key statement
    last/<generation>-<seq>                              see buffer.last
    journal/<generation>-<first seq>-<serial>.journal    serial counts the journals of a generation: a block whose sync failed
                                                         goes to a new journal under the same seq
    journal/free-<n>                                     recycled, waiting
    journal/reserve                                      a small one, for the record that must precede an eviction on a full disk
    segments/<generation>-<first>-<last>.parquet, .cose  .cose (header and COSE_Sign1 of the frame) is the commit point

<generation> is the ordinal with ten digits, "-", the nonce with eight hex digits.

durable, 64 bytes, little-endian, one pwrite after each sync, never synced itself, so always a lower bound:

    0  magic "EBBD"   4  version u32   8  generation u64   16  journal serial u64   24  end offset u64   32  end seq u64
    40  end block u64 (one past the newest)   48  zero, 12 bytes   60  CRC-32 of bytes 0..59
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from buffer.errors import CorruptError

DURABLE: Final = "durable"
LOCK_DIRECTORY: Final = "lock"
LOCK: Final = "lock/writer"
OBJECTS: Final = "objects"
LAST: Final = "last"
JOURNALS: Final = "journal"
SEGMENTS: Final = "segments"
RESERVE_JOURNAL: Final = "journal/reserve"
DIRECTORIES: Final = (OBJECTS, LAST, JOURNALS, SEGMENTS)
_GENERATION: Final = r"(\d{10})-([0-9a-f]{8})"
_JOURNAL: Final = re.compile(_GENERATION + r"-(\d{16})-(\d{6})\.journal")
_SEGMENT: Final = re.compile(_GENERATION + r"-(\d{16})-(\d{16})\.(parquet|cose)")
_LAST: Final = re.compile(_GENERATION + r"-(\d{16})")
_FREE: Final = re.compile(r"free-(\d+)")
_MARK: Final = struct.Struct("<4sIQQQQQ12x")
DURABLE_BYTES: Final = 64
ORDINAL_MAX: Final = 2**31 - 2  # of a generation: it is a 64-bit signed number in Parquet. A start a second takes 68 years to come here


@dataclass(frozen=True, slots=True, order=True)
class JournalName:
    """A journal, as its name says."""

    generation: int
    first_seq: int
    serial: int

    @property
    def path(self) -> str:
        """Path relative to the ring of one stream."""
        return f"{JOURNALS}/{_generation(self.generation)}-{self.first_seq:016d}-{self.serial:06d}.journal"


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A sealed segment, as its name says. first..last are seqs, both inclusive."""

    generation: int
    first: int
    last: int

    @property
    def parquet(self) -> str:
        """Path of the payload."""
        return f"{SEGMENTS}/{_generation(self.generation)}-{self.first:016d}-{self.last:016d}.parquet"

    @property
    def cose(self) -> str:
        """Path of header and COSE_Sign1: the commit point."""
        return self.parquet.removesuffix(".parquet") + ".cose"


@dataclass(frozen=True, slots=True, order=True)
class LastName:
    """A `last` file: everything committed before `seq` of `generation`."""

    generation: int
    seq: int

    @property
    def path(self) -> str:
        """Path relative to the ring of one stream."""
        return f"{LAST}/{_generation(self.generation)}-{self.seq:016d}"


@dataclass(frozen=True, slots=True)
class DurableMark:
    """No reader reads, ships or exports beyond it."""

    generation: int
    serial: int
    end_offset: int
    end_seq: int
    end_block: int


def _generation(generation: int) -> str:
    return f"{generation >> 32:010d}-{generation & 0xFFFFFFFF:08x}"


def _match(pattern: re.Pattern[str], name: str) -> re.Match[str] | None:
    """Return how a name matches; a name beyond the last ordinal is none of ours, and must not leave the next start without a number."""
    found = pattern.fullmatch(name)
    return found if found and int(found[1]) <= ORDINAL_MAX else None


def _parsed(ordinal: str, nonce: str) -> int:
    return int(ordinal) << 32 | int(nonce, 16)


def parse_journal(name: str) -> JournalName | None:
    """Return what a file name in journal/ says, None for any other name."""
    found = _match(_JOURNAL, name)
    return JournalName(_parsed(found[1], found[2]), int(found[3]), int(found[4])) if found else None


def parse_segment(name: str) -> tuple[SegmentName, str] | None:
    """Return segment and ending ("parquet" or "cose") of a file name in segments/, None for any other name."""
    found = _match(_SEGMENT, name)
    return (SegmentName(_parsed(found[1], found[2]), int(found[3]), int(found[4])), found[5]) if found else None


def parse_last(name: str) -> LastName | None:
    """Return what a file name in last/ says, None for any other name."""
    found = _match(_LAST, name)
    return LastName(_parsed(found[1], found[2]), int(found[3])) if found else None


def free_journal(number: int) -> str:
    """Return the path of a recycled journal."""
    return f"{JOURNALS}/free-{number}"


def parse_free(name: str) -> int | None:
    """Return the number of a recycled journal, None for any other name."""
    found = _FREE.fullmatch(name)
    return int(found[1]) if found else None


def object_path(digest: bytes) -> str:
    """Return the path of an object."""
    return f"{OBJECTS}/{digest.hex()}"


def encode_durable(mark: DurableMark) -> bytes:
    """Return the 64 bytes."""
    head = _MARK.pack(b"EBBD", 1, mark.generation, mark.serial, mark.end_offset, mark.end_seq, mark.end_block)
    return head + struct.pack("<I", zlib.crc32(head))


def decode_durable(data: bytes) -> DurableMark:
    """Return the mark; raise CorruptError for a torn or foreign one (a reader then reads again)."""
    if len(data) != DURABLE_BYTES or zlib.crc32(data[:60]) != int.from_bytes(data[60:], "little"):
        raise CorruptError("durable mark is torn", source=DURABLE)
    magic, version, *fields = _MARK.unpack(data[:60])
    if magic != b"EBBD" or version != 1:
        raise CorruptError("durable mark of another format", source=DURABLE)
    return DurableMark(*fields)
