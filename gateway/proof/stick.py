"""The proof of a stick (gateway.upload.folder): sums, every frame of every file, and nothing that does not belong there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, BinaryIO, Final

from buffer.errors import CorruptError
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, PAYLOAD_BYTES_MAX, parse_body, parse_header
from buffer.manifest import FrameKind
from buffer.plain import plain_size
from gateway.proof.objects import introduce_all
from gateway.wire.carry import OBJECTS, STICK, STICK_FILE_BYTES_MAX, SUMS, SUMS_BYTES_MAX, parse_sums

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buffer.frame import Frame
    from gateway.proof.report import Proof
    from gateway.trust.keys import KeyRing

_CHUNK: Final = 1024 * 1024


def prove_stick(directory: Path, keys: KeyRing, proof: Proof, *, statements: bool) -> None:
    """Check the frames of one stream on a stick."""
    found = STICK.fullmatch(directory.name)
    stream = found[1] if found else ""
    try:
        if plain_size(directory / SUMS, SUMS, SUMS_BYTES_MAX) is None:
            raise CorruptError("is not here: the export did not end", source=SUMS)
        sums = parse_sums((directory / SUMS).read_bytes().decode("ascii", errors="replace"))
    except CorruptError as error:
        proof.bad(f"{directory.name}/{error}")
        sums = {}
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    for name in sorted(names - sums.keys() - {SUMS}):
        proof.bad(f"{directory.name}/{name}: not in {SUMS}")
    for name in sorted(sums.keys() - names):
        proof.bad(f"{directory.name}/{name}: in {SUMS} and not here")
    for name in sorted(sums.keys() & names, key=lambda name: (name != OBJECTS, name)):
        path = directory / name
        try:
            plain_size(path, name, STICK_FILE_BYTES_MAX)
        except CorruptError as error:
            proof.bad(f"{directory.name}/{error}")
            continue
        if _digest(path) != sums[name]:
            proof.bad(f"{directory.name}/{name}: its sum is not the one in {SUMS}")
        prove_frames(path, f"{directory.name}/{name}", keys, proof, statements=statements, stream=stream)


def prove_frames(path: Path, place: str, keys: KeyRing, proof: Proof, *, statements: bool, stream: str = "") -> None:
    """Check a file of whole frames, without padding or with zeros between them (live frames of a landing)."""
    try:
        for at, frame in _frames(path):
            try:
                if stream and frame.manifest.stream != stream:
                    message = f"a frame of stream {frame.manifest.stream}"
                    raise CorruptError(message)
                refused = introduce_all([frame], keys) if statements and frame.manifest.kind == FrameKind.OBJECT else {}
                for error in refused.values():
                    raise error
                keys.admit(frame)
            except CorruptError as error:
                proof.bad(f"{place} at byte {at}: {error}")
                continue
            if frame.manifest.kind == FrameKind.OBJECT:
                proof.saw_object(frame)
            else:
                proof.saw(frame, f"{place} at byte {at}")
    except CorruptError as error:
        proof.bad(f"{error.at(place, error.offset)}; what follows in this file is not judged")


def _frames(path: Path) -> Iterator[tuple[int, Frame]]:
    at = 0
    with path.open("rb") as file:
        while head := file.read(HEADER_BYTES):
            try:
                if not any(head):
                    at += len(head) + _zeros(file)
                    file.seek(at)
                    continue
                if head[:4] == bytes(4):  # padding up to the next frame
                    skip = len(head) - len(head.lstrip(b"\0"))
                    at += skip
                    file.seek(at)
                    continue
                header = parse_header(head)
                body = file.read(min(header.cose_bytes, COSE_BYTES_MAX) + min(header.payload_bytes, PAYLOAD_BYTES_MAX[header.kind]))
                if len(body) != header.cose_bytes + header.payload_bytes:
                    raise CorruptError("frame is cut off")
                yield at, parse_body(header, body[: header.cose_bytes], memoryview(body)[header.cose_bytes :])
            except CorruptError as error:
                raise error.at(path.name, at) from None
            at += header.frame_bytes


def _zeros(file: BinaryIO) -> int:
    """Return how many zeros follow, within a chunk."""
    chunk = file.read(_CHUNK)
    return len(chunk) - len(chunk.lstrip(b"\0"))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
