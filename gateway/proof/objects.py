"""Objects of a store: each is the object its name says, signed by a key that is believed; statements introduce keys first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buffer import layout, limits
from buffer.errors import CorruptError
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, Frame, parse_frame, payload_digest
from buffer.manifest import FrameKind, ObjectType
from buffer.plain import PlainFiles
from gateway.trust import rotation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.proof.report import Proof
    from gateway.trust.keys import KeyRing

OBJECT_FILE_BYTES_MAX: Final = HEADER_BYTES + COSE_BYTES_MAX + limits.OBJECT_PAYLOAD_BYTES_MAX


def frame_bytes(frame: Frame) -> int:
    """Return the length of a whole frame."""
    return HEADER_BYTES + len(frame.cose) + len(frame.payload)


def read_object(data: bytes, name: str) -> Frame:
    """Return the one object in a file called `name`; raise CorruptError."""
    frame = parse_frame(data)
    if frame.manifest.kind != FrameKind.OBJECT:
        raise CorruptError("not an object")
    if frame_bytes(frame) != len(data) or frame.manifest.payload_sha256.hex() != name:
        raise CorruptError("the file holds other bytes than its object")
    return frame


def prove_objects(root: Path, keys: KeyRing, proof: Proof, *, statements: bool, count: bool = True) -> None:
    """Check objects/ of one stream. statements: introduce keys that an authority endorsed. count: else only introduce."""
    storage = PlainFiles(root)
    frames: list[tuple[str, Frame]] = []
    for name in storage.list(layout.OBJECTS):
        path = f"{layout.OBJECTS}/{name}"
        try:
            frames.append((path, read_object(storage.read(path, 0, OBJECT_FILE_BYTES_MAX + 1) or b"", name)))
        except CorruptError as error:
            if count:
                proof.bad(f"{root.name}/{error.at(path, error.offset or 0)}")
    refused = introduce_all([frame for _, frame in frames], keys) if statements else {}
    for path, frame in frames if count else ():
        try:
            if (why := refused.get(frame.manifest.payload_sha256)) is not None:
                raise why
            keys.admit(frame)
            proof.saw_object(frame)
        except CorruptError as error:
            proof.bad(f"{root.name}/{path}: {error}")


def introduce_all(frames: list[Frame], keys: KeyRing) -> dict[bytes, CorruptError]:
    """Introduce what can be introduced, in whatever order statements endorse each other; return the refused, by digest."""
    statements = [frame for frame in frames if frame.manifest.object_type == ObjectType.KEY_STATEMENT]
    refused: dict[bytes, CorruptError] = {}
    for stream in sorted({frame.manifest.stream for frame in statements}):
        payloads = [bytes(frame.payload) for frame in statements if frame.manifest.stream == stream]
        refused |= {payload_digest(payload): error for payload, error in rotation.introduce_all(keys, payloads, stream)}
    return refused


def believed(root: Path, ca: Path | None, keys: Iterable[Path]) -> KeyRing:
    """Return the keys in these files, and those that statements in the ring `root` introduce; raise TrustError."""
    from gateway.proof.report import Proof
    from gateway.trust.certs import load_certificate_key
    from gateway.trust.keys import KeyRing, load_public

    ring = KeyRing([load_certificate_key(ca)] if ca is not None else [])
    for key in keys:
        ring.trust(load_public(key))
    prove_objects(root, ring, Proof(), statements=True, count=False)
    return ring
