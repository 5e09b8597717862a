"""What a frame claims: the signed part, everything a receiver may decide on without decoding a payload.

Specification. A manifest is a CBOR map (deterministic, RFC 8949 section 4.2.1) with these integer keys; a key that does
not belong to the kind is absent, and an unknown key is refused:

    key  field            kinds   type
     1   kind             b s o   1 block, 2 segment, 3 object
     2   stream           b s o   text, limits.ID_PATTERN
     3   payload sha256   b s o   32 bytes
     4   payload length   b s o   uint
     5   generation       b s     uint: ordinal << 32 | nonce
     6   blocks           b s     [first, last] block numbers; equal in a block
     7   seqs             b s     [first seq, count]; count may be 0 in a block only
     8   tag table        b s     32 bytes: SHA-256 of the tag table object
     9   chain before     b s     32 bytes: h of the block before `blocks`
    10   chain after      s       32 bytes: h of the last block (in a block it is computed)
    11   arrival          b       int: gateway wall clock of the oldest reading, ns since 1970
    12   positions        b       {source number: bytes}; only those that changed
    13   fill             b       [gap id, progress bytes]; in a block of history, and where a gap is opened by hand
    14   state            b s     the state record, below
    15   object type      o       1 tag table, 2 key statement
    16   more             b       true: the commit goes on in the next block; absent in its last block. One commit is all of its
                                  blocks or none: after a power cut a tail of blocks with `more` is dropped

State record, an array: [generation, block, predecessor | null, end, low, lost, open gaps, wall ns, monotonic ns,
boot id, trusted] with predecessor = [generation, end seq], low = [generation, seq], lost = [[generation, first, last,
reason]...] in order, open gaps = [[id, source number, from ns]...] in order.

Chain: h(n) = SHA-256(h(n-1) || SHA-256(COSE_Sign1 of block n)), h(-1) = SHA-256(stream || 0x00 || generation as 8 bytes
big-endian). Same content is judged by chain, never by digest of an encoding.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from buffer import limits
from buffer.cose import decode_cbor, encode_sorted
from buffer.errors import CorruptError

_DIGEST_BYTES: Final = 32
_BOOT_ID_BYTES: Final = 16
_INT64_MAX: Final = 2**63 - 1
_ID: Final = re.compile(limits.ID_PATTERN)


class FrameKind(IntEnum):
    """One grammar for disk, HTTPS, folder and UDP."""

    BLOCK = 1
    SEGMENT = 2
    OBJECT = 3


class ObjectType(IntEnum):
    """What an object is; receive needs to know without opening a tag table."""

    TAG_TABLE = 1
    KEY_STATEMENT = 2


class LossReason(IntEnum):
    """Why a reading above `low` will never come. What fell out by size is told by `low` alone."""

    STORAGE_FAULT = 1  # a block did not verify at recovery
    BIT_ROT = 2  # the scrub found a file changed
    SEAL_FAULT = 3  # the sealing child proved a journal unreadable


@dataclass(frozen=True, slots=True, order=True)
class Loss:
    """A signed statement that these readings will never come. A received reading beats it."""

    generation: int
    first: int
    last: int
    reason: LossReason


@dataclass(frozen=True, slots=True, order=True)
class OpenGap:
    """Time of a source that live readings do not cover and history may still fill."""

    id: int
    source: int
    from_ns: int


@dataclass(frozen=True, slots=True)
class StateRecord:
    """All the accounting there is. Newer = greater block within a generation; a newer record replaces an older one."""

    generation: int
    block: int  # the newest committed block, which carries it (a segment repeats it)
    predecessor: tuple[int, int] | None  # generation before and where it ended; None on a new disk
    end: int  # one past the newest committed seq
    low: tuple[int, int]  # (generation, seq) of the first reading still in the ring
    lost: tuple[Loss, ...]
    open_gaps: tuple[OpenGap, ...]
    wall_ns: int
    monotonic_ns: int
    boot_id: bytes  # 16 bytes
    clock_trusted: bool


@dataclass(frozen=True, slots=True)
class Manifest:
    """The fields of one frame; None or empty where the kind has no such field."""

    kind: FrameKind
    stream: str
    payload_sha256: bytes
    payload_length: int
    generation: int = 0
    first_block: int = 0
    last_block: int = 0
    first_seq: int = 0
    count: int = 0
    tag_table_sha256: bytes = b""
    chain_before: bytes = b""
    chain_after: bytes = b""
    arrival_ns: int = 0
    positions: tuple[tuple[int, bytes], ...] = ()
    fill: tuple[int, bytes] | None = None
    state: StateRecord | None = None
    object_type: ObjectType | None = None
    more: bool = False

    @property
    def end_seq(self) -> int:
        """One past the last seq in it."""
        return self.first_seq + self.count


def chain_start(stream: str, generation: int) -> bytes:
    """Return h(-1) of a generation."""
    return hashlib.sha256(stream.encode() + b"\0" + generation.to_bytes(8, "big")).digest()


def chain_next(before: bytes, cose: bytes) -> bytes:
    """Return h(n) from h(n-1) and the COSE_Sign1 of block n."""
    return hashlib.sha256(before + hashlib.sha256(cose).digest()).digest()


def format_generation(generation: int) -> str:
    """Return the printed form, as `7-3fa91c02`."""
    return f"{generation >> 32}-{generation & 0xFFFFFFFF:08x}"


def parse_generation(text: str) -> int:
    """Return the number of a printed generation; raise CorruptError if `text` is not exactly the printed form."""
    found = re.fullmatch(r"([0-9]{1,10})-([0-9a-f]{8})", text)
    value = int(found[1]) << 32 | int(found[2], 16) if found else -1
    if not 0 <= value <= _INT64_MAX or format_generation(value) != text:
        message = f"{text[:40]!r} is not a generation (as 7-3fa91c02)"
        raise CorruptError(message)
    return value


# ---- encoding ----


def encode_state(state: StateRecord) -> list[Any]:
    """Return the state record as the array the module's specification names."""
    return [
        state.generation,
        state.block,
        None if state.predecessor is None else list(state.predecessor),
        state.end,
        list(state.low),
        [[x.generation, x.first, x.last, int(x.reason)] for x in state.lost],
        [[x.id, x.source, x.from_ns] for x in state.open_gaps],
        state.wall_ns,
        state.monotonic_ns,
        state.boot_id,
        state.clock_trusted,
    ]


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes to be signed."""
    m = manifest
    fields: dict[int, Any] = {1: int(m.kind), 2: m.stream, 3: m.payload_sha256, 4: m.payload_length}
    if m.kind == FrameKind.OBJECT:
        fields[15] = int(m.object_type or 0)
        return encode_sorted(fields)
    fields |= {
        5: m.generation,
        6: [m.first_block, m.last_block],
        7: [m.first_seq, m.count],
        8: m.tag_table_sha256,
        9: m.chain_before,
    }
    if m.kind == FrameKind.SEGMENT:
        fields[10] = m.chain_after
    else:
        fields[11] = m.arrival_ns
        fields[12] = dict(sorted(m.positions))
        if m.fill is not None:
            fields[13] = list(m.fill)
    if m.state is not None:
        fields[14] = encode_state(m.state)
    if m.more:
        fields[16] = True
    return encode_sorted(fields)


# ---- decoding: every field checked for type and range before anybody sees it ----

_KEYS: Final = {
    FrameKind.BLOCK: ({1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14}, {13, 16}),
    FrameKind.SEGMENT: ({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14}, set[int]()),
    FrameKind.OBJECT: ({1, 2, 3, 4, 15}, set[int]()),
}
_PAYLOAD_MAX: Final = {
    FrameKind.BLOCK: limits.BLOCK_PAYLOAD_BYTES_MAX,
    FrameKind.SEGMENT: limits.SEGMENT_PAYLOAD_BYTES_MAX,
    FrameKind.OBJECT: limits.OBJECT_PAYLOAD_BYTES_MAX,
}


def _uint(value: Any, field: str, top: int = _INT64_MAX) -> int:  # noqa: ANN401
    if type(value) is not int or not 0 <= value <= top:
        message = f"manifest {field}: not an integer in 0..{top}"
        raise CorruptError(message)
    return value


def _int(value: Any, field: str) -> int:  # noqa: ANN401
    if type(value) is not int or not -_INT64_MAX <= value <= _INT64_MAX:
        message = f"manifest {field}: not a 64-bit integer"
        raise CorruptError(message)
    return value


def _bytes(value: Any, field: str, length: int) -> bytes:  # noqa: ANN401
    if type(value) is not bytes or len(value) != length:
        message = f"manifest {field}: not {length} bytes"
        raise CorruptError(message)
    return value


def _array(value: Any, field: str, length: int | None = None, most: int = 0) -> list[Any]:  # noqa: ANN401
    if type(value) is not list or (len(value) != length if length is not None else len(value) > most):
        message = f"manifest {field}: not an array of {length if length is not None else f'at most {most}'}"
        raise CorruptError(message)
    return value


def _pair(value: Any, field: str) -> tuple[int, int]:  # noqa: ANN401
    first, second = _array(value, field, 2)
    return _uint(first, field), _uint(second, field)


def _loss(value: Any) -> Loss:  # noqa: ANN401
    generation, first, last, reason = _array(value, "lost", 4)
    reasons = {int(x) for x in LossReason}
    if type(reason) is not int or reason not in reasons:
        raise CorruptError("manifest lost: unknown reason")
    loss = Loss(_uint(generation, "lost"), _uint(first, "lost"), _uint(last, "lost"), LossReason(reason))
    if loss.first > loss.last:
        raise CorruptError("manifest lost: empty range")
    return loss


def _gap(value: Any) -> OpenGap:  # noqa: ANN401
    identity, source, start = _array(value, "open gaps", 3)
    return OpenGap(_uint(identity, "open gaps"), _uint(source, "open gaps", limits.SOURCE_NUMBER_MAX), _int(start, "open gaps"))


def decode_state(value: Any) -> StateRecord:  # noqa: ANN401
    """Return the state record of a decoded array; raise CorruptError."""
    a = _array(value, "state", 11)
    lost = tuple(_loss(x) for x in _array(a[5], "lost", most=limits.LOST_RANGES_MAX))
    gaps = tuple(_gap(x) for x in _array(a[6], "open gaps", most=limits.OPEN_GAPS_MAX))
    if list(lost) != sorted(lost) or list(gaps) != sorted(gaps):
        raise CorruptError("manifest state: losses or gaps out of order")
    if type(a[10]) is not bool:
        raise CorruptError("manifest state: clock_trusted is not a boolean")
    return StateRecord(
        generation=_uint(a[0], "state generation"),
        block=_uint(a[1], "state block"),
        predecessor=None if a[2] is None else _pair(a[2], "predecessor"),
        end=_uint(a[3], "end"),
        low=_pair(a[4], "low"),
        lost=lost,
        open_gaps=gaps,
        wall_ns=_int(a[7], "wall clock"),
        monotonic_ns=_uint(a[8], "monotonic clock"),
        boot_id=_bytes(a[9], "boot id", _BOOT_ID_BYTES),
        clock_trusted=a[10],
    )


def _positions(value: Any) -> tuple[tuple[int, bytes], ...]:  # noqa: ANN401
    if type(value) is not dict or len(value) > limits.SOURCE_NUMBER_MAX:
        raise CorruptError("manifest positions: not a map")
    for source, position in value.items():
        _uint(source, "positions", limits.SOURCE_NUMBER_MAX)
        if type(position) is not bytes or len(position) > limits.POSITION_BYTES_MAX:
            raise CorruptError("manifest positions: not bytes, or too long")
    return tuple(sorted(value.items()))


def _fill(value: Any) -> tuple[int, bytes] | None:  # noqa: ANN401
    if value is None:
        return None
    gap, progress = _array(value, "fill", 2)
    if type(progress) is not bytes or len(progress) > limits.MANIFEST_BYTES_MAX // 2:
        raise CorruptError("manifest fill: progress is not bytes, or too long")
    return _uint(gap, "fill"), progress


def _frame_fields(kind: FrameKind, f: dict[int, Any]) -> dict[str, Any]:
    blocks, seqs = _pair(f[6], "blocks"), _pair(f[7], "seqs")
    fields: dict[str, Any] = {
        "generation": _uint(f[5], "generation"),
        "first_block": blocks[0],
        "last_block": blocks[1],
        "first_seq": seqs[0],
        "count": seqs[1],
        "tag_table_sha256": _bytes(f[8], "tag table", _DIGEST_BYTES),
        "chain_before": _bytes(f[9], "chain before", _DIGEST_BYTES),
        "state": decode_state(f[14]),
    }
    if kind == FrameKind.SEGMENT:
        fields["chain_after"] = _bytes(f[10], "chain after", _DIGEST_BYTES)
        consistent = blocks[0] <= blocks[1] and 0 < seqs[1] <= limits.SEGMENT_READINGS_MAX
    else:
        if f.get(16, True) is not True:
            raise CorruptError("manifest more: may only be true")
        fields |= {"arrival_ns": _int(f[11], "arrival"), "positions": _positions(f[12]), "fill": _fill(f.get(13)), "more": 16 in f}
        state: StateRecord = fields["state"]
        consistent = blocks[0] == blocks[1] == state.block and seqs[1] <= limits.BLOCK_READINGS_MAX
        consistent = consistent and state.generation == fields["generation"] and state.end == sum(seqs)
    if not consistent or sum(seqs) > _INT64_MAX:
        raise CorruptError("manifest: blocks, seqs and state contradict each other")
    return fields


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest in `data`; raise CorruptError for anything the specification does not allow."""
    if len(data) > limits.MANIFEST_BYTES_MAX:
        raise CorruptError("manifest is longer than limits.MANIFEST_BYTES_MAX")
    f = decode_cbor(data)
    if type(f) is not dict or type(f.get(1)) is not int or f[1] not in (1, 2, 3):
        raise CorruptError("manifest is not a map with a known kind")
    kind = FrameKind(f[1])
    need, may = _KEYS[kind]
    if not need <= f.keys() <= need | may or any(type(key) is not int for key in f):
        raise CorruptError("manifest has missing or unknown keys")
    if type(f[2]) is not str or not _ID.fullmatch(f[2]) or ".." in f[2]:
        raise CorruptError("manifest stream: not an id")
    fields: dict[str, Any] = {
        "kind": kind,
        "stream": f[2],
        "payload_sha256": _bytes(f[3], "payload sha256", _DIGEST_BYTES),
        "payload_length": _uint(f[4], "payload length", _PAYLOAD_MAX[kind]),
    }
    if kind == FrameKind.OBJECT:
        if f[15] not in (1, 2):
            raise CorruptError("manifest object type: unknown")
        return Manifest(**fields, object_type=ObjectType(f[15]))
    return Manifest(**fields, **_frame_fields(kind, f))
