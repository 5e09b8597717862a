"""Bytes to frames that may be landed: grammar, then digests, then the key, then what that key may sign. Pure; decodes no payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buffer.cose import parse_sign1
from buffer.errors import CorruptError
from buffer.frame import HEADER_BYTES, Frame, parse_frame, parse_header
from buffer.manifest import FrameKind, ObjectType, decode_manifest
from gateway.receive.accept import Unit, linked, unit_of
from gateway.receive.landing import Arrival
from gateway.trust.keys import RevokedKeyError, UnknownKeyError, WrongStreamError
from gateway.wire.receipt import Refusal

if TYPE_CHECKING:
    from collections.abc import Container

    from gateway.trust.keys import KeyRing
    from gateway.wire.request import FramesTarget, ObjectTarget

FRAMES_MAX: Final = 4_096  # of one request: half a second of signature checks; the receipt asks for the rest


class Missing(Exception):
    """Objects or keys that must come first: SHA-256 of objects, names of keys."""

    def __init__(self, objects: tuple[bytes, ...], keys: tuple[bytes, ...] = ()) -> None:
        super().__init__("objects or keys are missing")
        self.objects, self.keys = objects, keys


class Refused(Exception):
    """Frames up to block `last` will never be accepted as they are: the sender parks them."""

    def __init__(self, reason: Refusal, last: int, why: str) -> None:
        super().__init__(why)
        self.reason, self.last = reason, last


def verify_frames(target: FramesTarget, body: bytes | memoryview, keys: KeyRing, held: Container[bytes]) -> Arrival:
    """Return the frames that may be landed: a prefix, if something later is wrong. Raises Missing or Refused about the first frame."""
    frames: list[Frame] = []
    units: list[Unit] = []
    view, at = memoryview(body), 0
    while at < len(view) and len(frames) < FRAMES_MAX:
        try:
            frame, unit = _next(target, view[at:], units[-1] if units else None, keys, held)
        except (Missing, Refused):
            if not frames:
                raise
            break
        frames.append(frame)
        units.append(unit)
        at += HEADER_BYTES + len(frame.cose) + len(frame.payload)
    whole, complete = at == len(view), units[-1].last_block == target.last
    if whole != complete or (whole and target.chain not in (None, units[-1].chain_after)):
        raise Refused(Refusal.NOT_A_FRAME, target.last, "frames are not those that the request names")
    return Arrival(tuple(frames), tuple(units), target.lane, target.landing)


def _next(target: FramesTarget, data: memoryview, before: Unit | None, keys: KeyRing, held: Container[bytes]) -> tuple[Frame, Unit]:
    last = target.last
    try:
        if parse_header(data).kind == FrameKind.BLOCK:
            last = target.first  # what is wrong with one block is no verdict on those behind it
        frame = parse_frame(data)
        unit = unit_of(frame)
        first = before.last_block + 1 if before else target.first
        named = (unit.stream, unit.generation, unit.first_block) == (target.stream, target.generation, first)
        if not named or unit.last_block > target.last or (before is not None and not linked((before, unit))):
            raise CorruptError("frames are not those that the request names, or do not continue each other")
        keys.admit(frame)
    except UnknownKeyError:
        raise Missing(() if unit.tag_table in held else (unit.tag_table,), (frame.sign1.key_id,)) from None
    except CorruptError as error:
        raise Refused(_reason(error), last, str(error)) from None
    if unit.tag_table not in held:
        raise Missing((unit.tag_table,))
    return frame, unit


def verify_object(target: ObjectTarget, body: bytes | memoryview, keys: KeyRing) -> Frame:
    """Return the object, its key introduced if it is a key statement. Raises Missing or Refused."""
    statement = False
    try:
        frame = parse_frame(body)
        m = frame.manifest
        whole = HEADER_BYTES + len(frame.cose) + len(frame.payload) == len(body)
        if not whole or (m.kind, m.payload_sha256, m.stream) != (FrameKind.OBJECT, target.digest, target.stream):
            raise CorruptError("not the object that the request names")
        statement = m.object_type == ObjectType.KEY_STATEMENT
        if statement:
            keys.introduce(bytes(frame.payload), m.stream)
        keys.admit(frame)
    except UnknownKeyError as error:
        if statement:
            raise Refused(Refusal.UNTRUSTED_STATEMENT, 0, str(error)) from None
        raise Missing((), (frame.sign1.key_id,)) from None
    except CorruptError as error:
        raise Refused(Refusal.UNTRUSTED_STATEMENT if statement else _reason(error), 0, str(error)) from None
    return frame


def segment_head(target: FramesTarget, data: bytes | bytearray, keys: KeyRing) -> Frame | None:
    """Return the signed head of a segment that is still coming (payload empty), None while even that is cut off.

    Raises Refused unless it is the segment that the request names, signed by a key that may sign it; Missing as verify_frames.
    """
    if len(data) < HEADER_BYTES:
        return None
    try:
        header = parse_header(bytes(data[:HEADER_BYTES]))
        end = HEADER_BYTES + header.cose_bytes
        if len(data) < end:
            return None
        cose = bytes(data[HEADER_BYTES:end])
        sign1 = parse_sign1(cose)
        m = decode_manifest(sign1.payload)
        named = (m.stream, m.generation, m.first_block, m.last_block) == (target.stream, target.generation, target.first, target.last)
        if m.kind != FrameKind.SEGMENT or not named or header.frame_bytes != target.length:
            raise CorruptError("not the segment that the request names")
        head = Frame(m, sign1, cose, b"")
        keys.admit(head)
    except UnknownKeyError:
        raise Missing((), (sign1.key_id,)) from None
    except CorruptError as error:
        raise Refused(_reason(error), target.last, str(error)) from None
    return head


def _reason(error: CorruptError) -> Refusal:
    if isinstance(error, RevokedKeyError):
        return Refusal.REVOKED_KEY
    return Refusal.WRONG_STREAM if isinstance(error, WrongStreamError) else Refusal.NOT_A_FRAME
