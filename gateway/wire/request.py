"""What an uploader may ask of a receiver, and what each status means. Pure.

Specification. Every request is a PUT over mutual TLS 1.3 with a Content-Length; no other method, encoding or framing exists.

    /v1/streams/{stream}/{generation}/{first}-{last}   block numbers, both inclusive; body = whole frames, no padding, in order:
                                                       blocks first..last, or the one segment that holds exactly those blocks
    /v1/objects/{sha256}?stream={stream}               body = one object frame; before the first frame that names it
    /v1/status                                         body = JSON, at most 1 KiB: advisory, unsigned, never accounting

    query      where            meaning
    landing    streams, objects the landing generation the uploader knows, as 7-3fa91c02; absent: none yet
    lane       streams          live | backfill: a hint for order only; absent: live
    chain      streams          64 hex: h after `last`. With an empty body this is an offer: a receipt only if every seq is held
                                and h there is known and equal, else 404. With a body it must be what the frames say
    offset     streams          the body continues one segment at this byte of its frame; `length` must be there too
    length     streams          bytes of that whole frame
    stream     objects          whose object it is

An object without a body is an offer too. Queries are written in the order of this table; anything else is refused: one request
has one spelling.

    status  meaning
    200     the body is a signed receipt (gateway.wire.receipt): the only answer that moves a cursor or parks a frame
    204     the advisory status was taken
    404     offer: not held here, send it (unsigned: it only makes the uploader send more)
    424     objects or a key are missing (unsigned); the body names them, a line each: `object <64 hex>` or `key <16 hex>`
    400     not a request in this grammar        403  this certificate may not send       411, 413, 415  length, size, encoding
    429     faster than this gateway's rate      503  the receiver cannot store now       all of these: no answer, try later
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from buffer import limits
from buffer.errors import CorruptError
from buffer.manifest import format_generation, parse_generation

if TYPE_CHECKING:
    from collections.abc import Sequence

OK: Final = 200
NO_CONTENT: Final = 204
BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_HELD: Final = 404
LENGTH_REQUIRED: Final = 411
TOO_LARGE: Final = 413
ENCODED: Final = 415
MISSING_OBJECTS: Final = 424
TOO_FAST: Final = 429
DEFECT: Final = 500
CANNOT_STORE: Final = 503

FRAMES_TYPE: Final = "application/vnd.ebbgate.frames"
RECEIPT_TYPE: Final = "application/cose"
ANSWER_BYTES_MAX: Final = 512  # a longer body is no answer
STATUS_BYTES_MAX: Final = 1024  # the uploader's advisory status
MISSING_MAX: Final = 6  # lines in a 424, so that it stays below ANSWER_BYTES_MAX
STATUS_PATH: Final = "/v1/status"

_UINT: Final = r"0|[1-9][0-9]{0,18}"
_STREAMS: Final = re.compile(rf"/v1/streams/({limits.ID_PATTERN})/([0-9]{{1,10}}-[0-9a-f]{{8}})/({_UINT})-({_UINT})")
_OBJECTS: Final = re.compile(r"/v1/objects/([0-9a-f]{64})")
_ID: Final = re.compile(limits.ID_PATTERN)
_MISSING: Final = re.compile(r"object [0-9a-f]{64}|key [0-9a-f]{16}")
_INT64_MAX: Final = 2**63 - 1


class Lane(StrEnum):
    """In which order things go, nothing else."""

    LIVE = "live"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class FramesTarget:
    """PUT of blocks or of one segment."""

    stream: str
    generation: int
    first: int  # block numbers, inclusive
    last: int
    landing: int = 0  # landing generation the uploader knows; 0: none yet
    lane: Lane = Lane.LIVE
    chain: bytes | None = None  # h after `last`, 32 bytes
    offset: int | None = None  # continuation of one segment frame, bytes
    length: int | None = None  # bytes of that frame


@dataclass(frozen=True, slots=True)
class ObjectTarget:
    """PUT of one object."""

    digest: bytes  # SHA-256 of the object, 32 bytes
    stream: str
    landing: int = 0


@dataclass(frozen=True, slots=True)
class StatusTarget:
    """PUT of the uploader's advisory status."""


Target = FramesTarget | ObjectTarget | StatusTarget


def format_target(target: Target) -> str:
    """Return path and query of a request."""
    if isinstance(target, StatusTarget):
        return STATUS_PATH
    query = [f"landing={format_generation(target.landing)}"] if target.landing else []
    if isinstance(target, ObjectTarget):
        return f"/v1/objects/{target.digest.hex()}?" + "&".join([*query, f"stream={target.stream}"])
    if target.lane != Lane.LIVE:
        query.append(f"lane={target.lane}")
    if target.chain is not None:
        query.append(f"chain={target.chain.hex()}")
    if target.offset is not None:
        query += [f"offset={target.offset}", f"length={target.length}"]
    path = f"/v1/streams/{target.stream}/{format_generation(target.generation)}/{target.first}-{target.last}"
    return path + ("?" + "&".join(query) if query else "")


def parse_target(text: str) -> Target:
    """Return what a request asks; raise CorruptError unless `text` is exactly what `format_target` writes."""
    path, _, query = text.partition("?")
    try:
        target = _parse(path, _fields(query))
    except (KeyError, ValueError) as error:
        message = f"not a request: {type(error).__name__}"
        raise CorruptError(message) from error
    if format_target(target) != text:
        raise CorruptError("request is not in its one spelling")
    return target


def _fields(query: str) -> dict[str, str]:
    if len(query) > ANSWER_BYTES_MAX:
        raise CorruptError("query is too long")
    pairs = [part.partition("=") for part in query.split("&")] if query else []
    return {key: value for key, _, value in pairs}


def _parse(path: str, fields: dict[str, str]) -> Target:
    if path == STATUS_PATH:
        return StatusTarget()
    landing = parse_generation(fields["landing"]) if "landing" in fields else 0
    if found := _OBJECTS.fullmatch(path):
        return ObjectTarget(bytes.fromhex(found[1]), _stream(fields["stream"]), landing)
    found = _STREAMS.fullmatch(path)
    if not found:
        raise CorruptError("no such path")
    target = FramesTarget(
        stream=_stream(found[1]),
        generation=parse_generation(found[2]),
        first=_uint(found[3]),
        last=_uint(found[4]),
        landing=landing,
        lane=Lane(fields.get("lane", Lane.LIVE)),
        chain=_chain(fields["chain"]) if "chain" in fields else None,
        offset=_uint(fields["offset"]) if "offset" in fields else None,
        length=_uint(fields["length"]) if "offset" in fields else None,
    )
    if target.first > target.last:
        raise CorruptError("blocks run backwards")
    return target


def _stream(text: str) -> str:
    if not _ID.fullmatch(text) or ".." in text:
        raise CorruptError("not a stream id")
    return text


def _uint(text: str) -> int:
    if not re.fullmatch(_UINT, text) or int(text) > _INT64_MAX:
        raise CorruptError("not a number below 2**63")
    return int(text)


def _chain(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise CorruptError("chain is not 64 hex digits")
    return bytes.fromhex(text)


def format_missing(objects: Sequence[bytes], keys: Sequence[bytes] = ()) -> bytes:
    """Return the body of a 424: SHA-256 of objects, 8-byte ids of keys; the first MISSING_MAX of them."""
    lines = [f"object {x.hex()}" for x in objects] + [f"key {x.hex()}" for x in keys]
    return "\n".join(lines[:MISSING_MAX]).encode()


def parse_missing(body: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return (objects, key ids) of a 424; raise CorruptError. Unsigned: good for sending more, for nothing else."""
    if len(body) > ANSWER_BYTES_MAX:
        raise CorruptError("answer is too long")
    lines = body.decode("ascii", errors="replace").split("\n")
    if not all(_MISSING.fullmatch(line) for line in lines):
        raise CorruptError("not a list of missing objects")
    named = [line.partition(" ") for line in lines]
    return tuple(bytes.fromhex(x) for k, _, x in named if k == "object"), tuple(bytes.fromhex(x) for k, _, x in named if k == "key")


def parse_status(body: bytes) -> dict[str, Any]:
    """Return the advisory status as plain JSON values; raise CorruptError. Shown as what it is: unsigned."""
    if len(body) > STATUS_BYTES_MAX:
        raise CorruptError("status is longer than 1 KiB")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptError("status is not JSON") from error
    if type(value) is not dict:
        raise CorruptError("status is not a JSON object")
    return value
