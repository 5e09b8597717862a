"""What kind of store a path is, and its proof: a landing, a ring, a stick, or one file of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from buffer import layout
from buffer.errors import CorruptError
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, MAGIC, parse_body, parse_header
from buffer.journal import PAGE, Hole, frame_pages, parse_journal_header, scan
from buffer.plain import FILE_BYTES_MAX, PlainFiles, plain_size
from gateway.landing.index import PART_HEADER_BYTES, Rot, parse_entries, parse_part_header
from gateway.proof.landing import verify_landing
from gateway.proof.objects import frame_bytes, prove_objects
from gateway.proof.report import Proof
from gateway.proof.ring import prove_ring, prove_segment
from gateway.proof.stick import prove_frames, prove_stick
from gateway.wire.carry import OBJECTS, STICK, STICK_FILE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.trust.keys import KeyRing


def verify_path(path: Path, keys: KeyRing, *, statements: bool = True, full: bool = False) -> Proof:
    """Return the proof of whatever store or file of ours stands at `path`; bad bytes are findings. Raise OSError.

    statements: believe key statements that an authority in `keys` endorsed. full: keep a line for each frame.
    """
    if not path.is_dir():
        return _file(path, keys, Proof(full), statements)
    rings = [one for one in (path, *_below(path)) if (one / layout.JOURNALS).is_dir()]
    sticks = [one for one in (path, *_below(path)) if STICK.fullmatch(one.name)]
    if not rings and not sticks:
        proof = verify_landing(path, keys, statements=statements, full=full)
        if not proof.frames and any("no landing here" in finding for finding in proof.findings):
            proof.findings = [f"{path}: neither a landing, a ring, a stick nor a file of one (nothing of ours is in it)"]
        return proof
    proof = Proof(full)
    for ring in rings:
        with proof.judging(ring.name):
            prove_ring(ring, keys, proof, statements=statements)
    for stick in sticks:
        prove_stick(stick, keys, proof, statements=statements)
    if not (proof.frames or proof.objects or proof.findings):
        proof.bad(f"{path}: nothing is in it, so nothing was confirmed")
    return proof


def _below(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.is_symlink())


# ---- one file ----


def _file(path: Path, keys: KeyRing, proof: Proof, statements: bool) -> Proof:
    """Judge a file by its name, else by how it begins. Key statements of the store it stands in are looked at too."""
    if statements:
        for root in path.absolute().parents[:2]:
            if (root / layout.OBJECTS).is_dir():
                prove_objects(root, keys, proof, statements=True, count=False)
        if path.name != OBJECTS and (path.parent / OBJECTS).is_file():
            prove_frames(path.parent / OBJECTS, OBJECTS, keys, Proof(), statements=True)
    try:
        plain_size(path, path.name, STICK_FILE_BYTES_MAX)
    except CorruptError as error:
        proof.bad(str(error))
        return proof
    with path.open("rb") as file:
        magic = file.read(4)
    judges: dict[bytes, Callable[[Path, KeyRing, Proof], None]] = {b"EBBJ": _journal, b"EBBD": _durable, b"EBBI": _index}
    segment = layout.parse_segment(path.name)
    if segment is not None and path.parent.name == layout.SEGMENTS:
        prove_segment(path.absolute().parents[1], segment[0], keys, proof)
    elif segment is not None:
        _loose_segment(path, keys, proof)
    elif path.suffix == ".journal":
        _journal(path, keys, proof)
    elif magic == MAGIC or path.suffix == ".frames" or path.parent.name == layout.OBJECTS:
        prove_frames(path, path.name, keys, proof, statements=statements)
    else:
        judge = _last if layout.parse_last(path.name) else judges.get(magic, _stranger)
        judge(path, keys, proof)
    return proof


def _last(path: Path, keys: KeyRing, proof: Proof) -> None:  # noqa: ARG001 -- one form for all judges
    data = _whole(path, proof)
    if data is not None and hashlib.sha256(data[32:]).digest() != data[:32]:
        proof.bad(f"{path.name} at byte 0: does not match its digest")


def _stranger(path: Path, keys: KeyRing, proof: Proof) -> None:  # noqa: ARG001
    proof.bad(f"{path.name} at byte 0: not a file of ours (unknown name and magic)")


def _loose_segment(path: Path, keys: KeyRing, proof: Proof) -> None:
    """A segment copied out of its store: .parquet and .cose side by side anywhere."""
    parquet, cose = path.with_suffix(".parquet"), path.with_suffix(".cose")
    if not parquet.is_file() or not cose.is_file():
        missing = cose if parquet.is_file() else parquet
        proof.bad(f"{missing.name}: not beside {path.name}; a segment is both files")
        return
    try:
        beside = PlainFiles(path.parent)
        head = beside.read(cose.name, 0, HEADER_BYTES + COSE_BYTES_MAX + 1) or b""
        frame = parse_body(parse_header(head), head[HEADER_BYTES:], beside.read(parquet.name, 0, FILE_BYTES_MAX) or b"")
        keys.admit(frame)
    except CorruptError as error:
        proof.bad(str(error.at(f"{cose.name} with {parquet.name}", 0)))
        return
    proof.saw(frame, parquet.name)


def _whole(path: Path, proof: Proof) -> bytes | None:
    try:
        return PlainFiles(path.parent).read(path.name, 0, FILE_BYTES_MAX)
    except CorruptError as error:
        proof.bad(str(error))
        return None


def _journal(path: Path, keys: KeyRing, proof: Proof) -> None:
    data = _whole(path, proof)
    if data is None:
        return
    try:
        header = parse_journal_header(data[:PAGE])
    except CorruptError as error:
        proof.bad(str(error.at(path.name, 0)))
        return
    end = PAGE
    for found in scan(lambda at, n: data[at : at + n], header.salt, len(data)):
        if isinstance(found, Hole):
            proof.bad(f"{path.name} at byte {found.offset}: {found.reason} (up to byte {found.end})")
            continue
        end = found.offset + frame_pages(found.frame)
        place = f"{path.name} at byte {found.offset}"
        try:
            keys.admit(found.frame)
        except CorruptError as error:
            proof.bad(f"{place}: {error}")
            continue
        proof.saw(found.frame, place)
        padding = found.offset + frame_bytes(found.frame)
        if any(data[padding:end]):
            proof.bad(f"{path.name} at byte {padding}: padding that is not zero")
    if _torn(data, end, header.salt):
        proof.bad(f"{path.name} at byte {end}: a block that does not verify: torn by a crash, or changed; the ring around it knows which")


def _torn(data: bytes, end: int, salt: int) -> bool:
    """Say whether a frame of this use of the file seems to begin at `end`: its salt is there, or a header whose CRC does not hold."""
    head = data[end : end + HEADER_BYTES]
    if head[8:16] == salt.to_bytes(8, "little"):
        return True
    try:
        parse_header(head)
    except CorruptError:
        return head[:4] == MAGIC
    return False  # whole, with another salt: an earlier use


def _durable(path: Path, keys: KeyRing, proof: Proof) -> None:  # noqa: ARG001
    try:
        layout.decode_durable(PlainFiles(path.parent).read(path.name, 0, layout.DURABLE_BYTES + 1) or b"")
    except CorruptError as error:
        proof.bad(str(error.at(path.name, 0)))


def _index(path: Path, keys: KeyRing, proof: Proof) -> None:  # noqa: ARG001
    data = _whole(path, proof)
    if data is None:
        return
    try:
        parse_part_header(data)
    except CorruptError as error:
        proof.bad(str(error.at(path.name, 0)))
    end = PART_HEADER_BYTES
    for entry, behind in parse_entries(data):
        if isinstance(entry, Rot):
            proof.bad(f"{path.name} at byte {entry.offset}: an entry that does not verify (up to byte {entry.end})")
        end = behind
    if data[end:].strip(b"\0"):
        proof.bad(f"{path.name} at byte {end}: bytes that do not verify")
