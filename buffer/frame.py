"""THE format: one grammar on disk, over HTTPS, in a folder, over UDP.

Specification. frame = header | COSE_Sign1 (buffer.cose) over a manifest (buffer.manifest) | payload.

    header, 40 bytes, little-endian
    offset  size  field
         0     4  magic "EBBF"
         4     1  version, 1
         5     1  kind: 1 block, 2 segment, 3 object
         6     2  zero
         8     8  salt: random per journal, so that bytes of an earlier use, or inside a value, are never taken for a
                  block; 0 on the wire and in files that hold one frame
        16     8  number: of the (first) block; 0 for an object
        24     4  length of the COSE_Sign1, at most 8 KiB + 256
        28     4  length of the payload
        32     4  CRC-32 (zlib) of COSE_Sign1 and payload
        36     4  CRC-32 of bytes 0..35

The header belongs to the file: it is written anew by each journal and stands outside every digest; the manifest repeats
what matters. Payloads: block: buffer.codec; segment: a Parquet file; object: a tag table (buffer.tagtable) or a key
statement (gateway.trust.keys).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer import limits
from buffer.cose import Sign1, Signer, Verifier, parse_sign1, signed
from buffer.errors import CorruptError
from buffer.manifest import FrameKind, Manifest, decode_manifest, encode_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = b"EBBF"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBBHQQIII")
HEADER_BYTES: Final = _HEADER.size + 4
COSE_BYTES_MAX: Final = limits.MANIFEST_BYTES_MAX + 256
PAYLOAD_BYTES_MAX: Final = {
    FrameKind.BLOCK: limits.BLOCK_PAYLOAD_BYTES_MAX,
    FrameKind.SEGMENT: limits.SEGMENT_PAYLOAD_BYTES_MAX,
    FrameKind.OBJECT: limits.OBJECT_PAYLOAD_BYTES_MAX,
}


@dataclass(frozen=True, slots=True)
class Header:
    """The 40 bytes before a frame, checked against their own CRC and the limits."""

    kind: FrameKind
    salt: int
    number: int
    cose_bytes: int
    payload_bytes: int
    body_crc: int

    @property
    def frame_bytes(self) -> int:
        """Length of the whole frame, header included, padding not."""
        return HEADER_BYTES + self.cose_bytes + self.payload_bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame in memory, structure and digests checked, signature not (see `verified`)."""

    manifest: Manifest
    sign1: Sign1
    cose: bytes
    payload: bytes | memoryview
    crc: int | None = None  # of COSE_Sign1 and payload, where it was taken already

    def verified(self, verifier: Verifier) -> Frame:
        """Return itself, or raise SignatureError."""
        self.sign1.verified(verifier)
        return self

    def wire(self) -> bytes:
        """Return the frame as it travels: salt 0, no padding."""
        return b"".join((self.header(), self.cose, self.payload))

    def header(self, salt: int = 0) -> bytes:
        """Return the 40 bytes before it in a file with this salt (0: on the wire)."""
        return encode_header(self.manifest, self.cose, self.payload, salt, self.crc)


def encode_header(manifest: Manifest, cose: bytes, payload: bytes | memoryview, salt: int, crc: int | None = None) -> bytes:
    """Return the 40 bytes that precede `cose` and `payload` in a file with this salt (0: on the wire). crc: theirs, if it is known."""
    if crc is None:
        crc = zlib.crc32(payload, zlib.crc32(cose))
    head = _HEADER.pack(MAGIC, VERSION, manifest.kind, 0, salt, manifest.first_block, len(cose), len(payload), crc)
    return head + struct.pack("<I", zlib.crc32(head))


def parse_header(data: bytes | memoryview) -> Header:
    """Return the header at the start of `data`; raise CorruptError. Allocates nothing by what it reads."""
    if len(data) < HEADER_BYTES:
        raise CorruptError("frame header is cut off")
    head = bytes(data[:HEADER_BYTES])
    magic, version, kind, zero, salt, number, cose_bytes, payload_bytes, body_crc = _HEADER.unpack_from(head)
    if magic != MAGIC:
        raise CorruptError("no frame here (wrong magic)")
    if zlib.crc32(head[: _HEADER.size]) != int.from_bytes(head[_HEADER.size :], "little"):
        raise CorruptError("frame header does not match its CRC")
    if version != VERSION or zero != 0 or kind not in (1, 2, 3):
        message = f"frame version {version}, kind {kind}: written by another release?"
        raise CorruptError(message)
    if not 0 < cose_bytes <= COSE_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX[FrameKind(kind)]:
        raise CorruptError("frame header states a length beyond the limits")
    return Header(FrameKind(kind), salt, number, cose_bytes, payload_bytes, body_crc)


def seal_frame(signer: Signer, manifest: Manifest, payload: bytes | memoryview) -> Frame:
    """Sign `manifest`, whose payload digest and length must already be those of `payload`."""
    cose, parts = signed(signer, encode_manifest(manifest))
    return Frame(manifest, parts, cose, payload)


def payload_digest(payload: bytes | memoryview) -> bytes:
    """Return the SHA-256 that a manifest states of its payload."""
    return hashlib.sha256(payload).digest()


def parse_body(header: Header, cose: bytes, payload: bytes | memoryview) -> Frame:
    """Return the frame made of these parts; raise CorruptError unless CRC, manifest and payload digest all agree."""
    if zlib.crc32(payload, zlib.crc32(cose)) != header.body_crc:
        raise CorruptError("frame does not match its CRC")
    parsed = parse_sign1(cose)
    manifest = decode_manifest(parsed.payload)
    number = 0 if manifest.kind == FrameKind.OBJECT else manifest.first_block
    if manifest.kind != header.kind or number != header.number or manifest.payload_length != header.payload_bytes:
        raise CorruptError("frame header and signed manifest contradict each other")
    if payload_digest(payload) != manifest.payload_sha256:
        raise CorruptError("payload does not match the signed digest")
    return Frame(manifest, parsed, cose, payload, header.body_crc)


def parse_frame(data: bytes | memoryview) -> Frame:
    """Return the frame at the start of `data`, which may be longer; raise CorruptError."""
    header = parse_header(data)
    if len(data) < header.frame_bytes:
        raise CorruptError("frame is cut off")
    view = memoryview(data)
    at = HEADER_BYTES + header.cose_bytes
    return parse_body(header, bytes(view[HEADER_BYTES:at]), view[at : header.frame_bytes])


def parse_frames(data: bytes | memoryview) -> Iterator[Frame]:
    """Yield the frames of a body (whole frames without padding); raise CorruptError with the offset of the bad one."""
    view, at = memoryview(data), 0
    while at < len(view):
        try:
            frame = parse_frame(view[at:])
        except CorruptError as error:
            raise error.at("frames", at) from None
        yield frame
        at += HEADER_BYTES + len(frame.cose) + len(frame.payload)
