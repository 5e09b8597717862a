"""Journals and COSE read a second way, for `ebbgate ring check`: from the documented layout alone, sharing no parser with the writer.

Deliberately not buffer.journal, buffer.frame or buffer.manifest: what both paths accept is what the format says. Values of a manifest are
the raw CBOR map by key number.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import cbor2

from buffer.errors import CorruptError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buffer.cose import Verifier

PAGE: Final = 4096
MAGIC: Final = b"EBBF"
_HEADER: Final = struct.Struct("<4sBBHQQIII")
_HEADER_BYTES: Final = 40
_PAYLOAD_MAX: Final = 8 * 1024 * 1024
_COSE_MAX: Final = 16 * 1024
_KEY_ID: Final = 4
_ALGORITHM: Final = 1


@dataclass(frozen=True, slots=True)
class Walked:
    """One frame: where, its manifest as a map, the COSE_Sign1 and the payload; digest and signature hold."""

    offset: int
    end: int
    manifest: dict[int, Any]
    cose: bytes
    payload: bytes


def walk_frame(data: bytes, at: int, keys: Verifier, salt: int | None) -> Walked:
    """Return the frame at `at`; raise CorruptError. salt None: any."""
    if len(data) < at + _HEADER_BYTES:
        raise CorruptError("no header", offset=at)
    magic, version, kind, zero, found_salt, number, cose_size, payload_size, crc = _HEADER.unpack_from(data, at)
    if magic != MAGIC or (version, zero) != (1, 0) or zlib.crc32(data[at : at + 36]) != int.from_bytes(data[at + 36 : at + 40], "little"):
        raise CorruptError("no header", offset=at)
    if salt is not None and found_salt != salt:
        raise CorruptError("of an earlier use", offset=at)
    if cose_size > _COSE_MAX or payload_size > _PAYLOAD_MAX:
        raise CorruptError("lengths beyond the limits", offset=at)
    middle = at + _HEADER_BYTES + cose_size
    end = middle + payload_size
    if len(data) < end or zlib.crc32(data[at + _HEADER_BYTES : end]) != crc:
        raise CorruptError("CRC of the body does not hold", offset=at)
    cose, payload = data[at + _HEADER_BYTES : middle], data[middle:end]
    manifest = signed_map(cose, keys, at)
    first = 0 if kind == 3 else manifest[6][0]  # noqa: PLR2004 -- 3: object
    if (manifest[1], first, manifest[4]) != (kind, number, payload_size) or manifest[3] != hashlib.sha256(payload).digest():
        raise CorruptError("header, manifest and payload contradict each other", offset=at)
    return Walked(at, end, manifest, cose, payload)


def signed_map(cose: bytes, keys: Verifier, at: int = 0) -> dict[int, Any]:
    """Return the map that a COSE_Sign1 signs; raise CorruptError, SignatureError."""
    try:
        tag = cbor2.loads(cose)
        protected, unprotected, payload, signature = tag.value
        header = cbor2.loads(protected)
        manifest = cbor2.loads(payload)
        wrong = tag.tag != 18 or unprotected or set(header) != {_ALGORITHM, _KEY_ID}  # noqa: PLR2004 -- COSE_Sign1
    except Exception as error:  # cbor2 raises many kinds
        message = f"not a COSE_Sign1: {type(error).__name__}"
        raise CorruptError(message, offset=at) from None
    if wrong or type(manifest) is not dict:
        raise CorruptError("not a COSE_Sign1 of ours", offset=at)
    if not _well_formed(manifest):
        raise CorruptError("the manifest has not the fields of its kind", offset=at)
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", payload])
    try:
        keys.verify(header[_KEY_ID], header[_ALGORITHM], to_be_signed, signature)
    except SignatureError as error:
        raise error.at("", at) from None
    return manifest


_FIELDS: Final[dict[int, dict[int, type]]] = {
    1: {5: int, 6: list, 7: list, 8: bytes, 9: bytes, 11: int, 12: dict, 14: list},
    2: {5: int, 6: list, 7: list, 8: bytes, 9: bytes, 10: bytes, 14: list},
    3: {15: int},
}
_COMMON: Final[dict[int, type]] = {1: int, 2: str, 3: bytes, 4: int}
_STATE_FIELDS: Final = 11


def _well_formed(m: dict[Any, Any]) -> bool:
    """Say whether the fields that are looked at are there and of their type."""
    kind = m.get(1)
    if type(kind) is not int or kind not in _FIELDS:
        return False
    wanted = _COMMON | _FIELDS[kind]
    if any(type(m.get(key)) is not kind_of for key, kind_of in wanted.items()):
        return False
    pairs = [m[6], m[7], m[14][4] if len(m[14]) == _STATE_FIELDS else []] if 14 in wanted else []
    if any(type(pair) is not list or len(pair) != 2 or any(type(x) is not int or x < 0 for x in pair) for pair in pairs):  # noqa: PLR2004
        return False
    return 14 not in wanted or (0 <= m[5] < 2**63 and _state_well_formed(m[14]))


def _state_well_formed(state: list[Any]) -> bool:
    before, lost = state[2], state[5]
    good = all(type(state[i]) is int for i in (0, 1, 3)) and type(lost) is list and (before is None or _integers(before, 2))
    return good and all(_integers(loss, 4) for loss in lost)


def _integers(value: Any, length: int) -> bool:  # noqa: ANN401
    return type(value) is list and len(value) == length and all(type(x) is int and x >= 0 for x in value)


def walk_journal(data: bytes, keys: Verifier) -> Iterator[Walked | CorruptError]:
    """Yield the frames of a journal in order, and what does not hold between them; what follows the last good one is not judged."""
    page = data[:PAGE]
    salt = int.from_bytes(page[8:16], "little")
    if page[:4] != b"EBBJ" or zlib.crc32(page[: PAGE - 4]) != int.from_bytes(page[PAGE - 4 :], "little"):
        yield CorruptError("page 0 does not hold", offset=0)
        return
    waiting: list[CorruptError] = []
    at, number = PAGE, -1
    while at < len(data):
        try:
            found = walk_frame(data, at, keys, salt)
            if found.manifest[6][0] <= number:
                raise CorruptError("block number does not rise", offset=at)
        except CorruptError as error:
            waiting.append(error)
            at += PAGE
            continue
        yield from waiting[:1]  # one hole, one finding
        waiting = []
        yield found
        number = found.manifest[6][1]
        at = -(-found.end // PAGE) * PAGE
