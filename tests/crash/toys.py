"""What the crash enumeration replaces, and why that is honest.

* The signature is a keyed hash: a real one costs 0.1 ms, and no promise of the disk depends on the curve.
* Encoding, signing and parsing are remembered by their whole input: the product's pure functions, run once per content.
* The Parquet encoder of the sealing child is a concatenation of the block payloads. Everything round it is the product's: the child's
  reading of the journal past the cache with all its checks, the temporary file, `Ring.adopt`, both renames. That the real encoder
  gives back every bit is shown in tests/unit/test_segment.py.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Iterator

import numpy as np

from buffer import adopt, codec, cut, frame, journal, reader, recovery, ring, tagtable
from buffer.errors import SignatureError
from buffer.frame import Frame, Header
from buffer.manifest import FrameKind, Manifest, chain_next
from buffer.seal import SealedPart, SealRequest, SealResult
from buffer.segment import read_blocks
from buffer.storage import PosixStorage
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import Columns, make_columns

TAGS = (16, 17)
STREAM = "g.main"
_PART = struct.Struct("<QII")
BLOCKS_PER_PART = 3


class ToySigner:
    """Signer and Verifier."""

    key_id = b"toy-key!"
    algorithm = -8

    def sign(self, to_be_signed: bytes) -> bytes:
        return hashlib.blake2b(to_be_signed, key=b"toy").digest()

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        if signature != self.sign(to_be_signed):
            raise SignatureError("toy signature does not fit")


TOY = ToySigner()


def table(number: int) -> bytes:
    """Return one of the tag tables: they differ in a description."""
    return encode_table(TagTable("g", STREAM, "s", "UTC", ("p",), tuple(Tag(n, f"t{n}", f"x/{n}v{number}", "p") for n in TAGS)))


TABLES = tuple(table(n) for n in range(2))


def tag_of(value: int) -> int:
    """Return the tag a value belongs to."""
    return TAGS[value % 2]


@functools.lru_cache(maxsize=20_000)
def columns_of(values: tuple[int, ...]) -> Columns:
    """Return readings that tell their value by every bit."""
    return make_columns([tag_of(v) for v in values], [10**18 + v for v in values], [1] * len(values), list(values), [0] * len(values))


# ---- remembered by content: each runs once per input, whatever the disk did in between ----

MEMORY = 20_000  # entries of each

_decode = codec.decode
_encode_blocks = codec.encode_blocks
_parse_body = frame.parse_body
_parse_frame = frame.parse_frame
_seal_frame = frame.seal_frame
_decode_table = tagtable.decode_table


@functools.lru_cache(maxsize=MEMORY)
def _decoded(payload: bytes, count: int) -> Columns:
    return _decode(payload, count)


def decode(payload: bytes | memoryview, count: int) -> Columns:
    """As buffer.codec.decode. Nobody changes what comes back."""
    return _decoded(bytes(payload), count)


_encoded: dict[tuple[bytes, ...], list[tuple[Columns, bytes]]] = {}


def encode_blocks(columns: Columns) -> Iterator[tuple[Columns, bytes]]:
    """As buffer.codec.encode_blocks, for columns without texts."""
    key = (columns.tag.tobytes(), columns.ts_ns.tobytes(), columns.values.tobytes())
    if key not in _encoded:
        if len(_encoded) > MEMORY:
            _encoded.clear()
        _encoded[key] = list(_encode_blocks(columns))
    return iter(_encoded[key])


@functools.lru_cache(maxsize=MEMORY)
def _parsed(cose: bytes, payload: bytes, kind: FrameKind, number: int, crc: int) -> Frame:
    return _parse_body(Header(kind, 0, number, len(cose), len(payload), crc), cose, payload)


def parse_body(header: Header, cose: bytes, payload: bytes | memoryview) -> Frame:
    """As buffer.frame.parse_body, of which the salt is no input."""
    if (header.cose_bytes, header.payload_bytes) != (len(cose), len(payload)):
        return _parse_body(header, cose, payload)
    return _parsed(cose, bytes(payload), header.kind, header.number, header.body_crc)


@functools.lru_cache(maxsize=MEMORY)
def parse_frame(data: bytes) -> Frame:
    """As buffer.frame.parse_frame."""
    return _parse_frame(data)


@functools.lru_cache(maxsize=MEMORY)
def _sealed(manifest: Manifest, payload: bytes) -> Frame:
    return _seal_frame(TOY, manifest, payload)


def seal_frame(signer: object, manifest: Manifest, payload: bytes | memoryview) -> Frame:
    """As buffer.frame.seal_frame with the toy key."""
    return _sealed(manifest, bytes(payload))


@functools.lru_cache(maxsize=8)
def decode_table(payload: bytes) -> TagTable:
    """As buffer.tagtable.decode_table."""
    return _decode_table(bytes(payload))


_PLACES: tuple[tuple[object, str, object], ...] = (
    (cut, "encode_blocks", encode_blocks),
    (recovery, "decode", decode),
    *((where, "parse_body", parse_body) for where in (journal, reader)),
    (recovery, "parse_frame", parse_frame),
    *((where, "seal_frame", seal_frame) for where in (cut, ring, adopt)),
    *((where, "decode_table", decode_table) for where in (ring, recovery)),
)


def install() -> Callable[[], None]:
    """Put what remembers into the ring; return what takes it out again, for other tests in the same process."""
    before = [(where, name, getattr(where, name)) for where, name, _ in _PLACES]
    for where, name, what in _PLACES:
        setattr(where, name, what)

    def remove() -> None:
        for where, name, what in before:
            setattr(where, name, what)

    return remove


# ---- the sealing child ----


def seal(storage: PosixStorage, request: SealRequest, verifier: object = TOY) -> SealResult:
    """Do what buffer.segment.seal does, up to the encoder. Raise CorruptError, StorageFault."""
    frames = read_blocks(storage, request, verifier)  # type: ignore[arg-type]
    parts = []
    full = [i for i, frame in enumerate(frames) if frame.manifest.count]
    middle = full[len(full) // 2] if len(full) > BLOCKS_PER_PART else 0
    for some in [frames[:middle], frames[middle:]] if middle else [frames]:
        first, last = some[0].manifest, some[-1].manifest
        data = b"TOYP" + b"".join(
            _PART.pack(f.manifest.first_seq, f.manifest.count, len(f.payload)) + bytes(f.payload) for f in some if f.manifest.count
        )
        name = f"{request.output}/toy-{first.generation}-{first.first_seq}.tmp"
        storage.publish(name, [data])
        parts.append(
            SealedPart(
                name, hashlib.sha256(data).hexdigest(), len(data), first.first_block, last.last_block, first.first_seq,
                last.end_seq - first.first_seq, first.tag_table_sha256.hex(), first.chain_before.hex(),
                chain_next(last.chain_before, some[-1].cose).hex(),
            )
        )  # fmt: skip
    return SealResult(tuple(parts))


def unseal(payload: bytes) -> Iterator[tuple[int, int]]:
    """Yield (seq, value) of a toy segment."""
    assert payload[:4] == b"TOYP", "a segment that nobody made"
    at = 4
    while at < len(payload):
        first, count, length = _PART.unpack_from(payload, at)
        at += _PART.size
        yield from enumerate(np.asarray(decode(payload[at : at + length], count).values).tolist(), first)
        at += length

