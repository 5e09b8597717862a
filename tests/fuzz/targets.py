"""The parsers and what they are fed: pieces of the golden files, changed. Checksums that would end every run are put right after the change."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from buffer.checkwalk import signed_map, walk_frame, walk_journal
from buffer.codec import decode
from buffer.cose import decode_cbor, parse_sign1
from buffer.errors import CorruptError, SignatureError
from buffer.frame import HEADER_BYTES, parse_frame, parse_frames, parse_header
from buffer.journal import PAGE, find_salt, parse_journal_header, scan
from buffer.last import decode_last
from buffer.layout import decode_durable, parse_journal, parse_last, parse_segment
from buffer.manifest import decode_manifest, parse_generation
from buffer.scrub import decode_progress
from buffer.tagtable import decode_table
from gateway.collect.modbus.frame import crc16
from gateway.errors import ConfigError, PlantError
from gateway.landing.index import parse_entries, parse_part_header
from gateway.trust.keys import KeyRing, parse_proposal, parse_statement
from gateway.wire.carry import parse_sums
from gateway.wire.receipt import parse_receipt
from gateway.wire.request import parse_missing, parse_status, parse_target
from tests.fuzz.plant import plant
from tests.golden.make import FILES, STREAM

RING, LANDING = FILES / "ring" / STREAM, FILES / "landing" / STREAM


class Anyone:
    """Believes every signature: what stands behind it is to be fuzzed."""

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        return


@dataclass(frozen=True)
class Target:
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    mend: Callable[[bytes], bytes] = lambda data: data  # puts checksums right
    refusals: tuple[type[Exception], ...] = (CorruptError, SignatureError)  # how it says no; anything else is a defect


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("latin-1"))


def _head_crc(data: bytes) -> bytes:
    """Header and body CRC of a frame."""
    if len(data) < HEADER_BYTES:
        return data
    cose, payload = struct.unpack_from("<II", data, 24)
    body = data[HEADER_BYTES : HEADER_BYTES + (cose + payload) % 2**24]
    head = data[:32] + struct.pack("<I", zlib.crc32(body))
    return head + struct.pack("<I", zlib.crc32(head)) + data[HEADER_BYTES:]


def _tail_crc(size: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: size - 4] + struct.pack("<I", zlib.crc32(data[: size - 4])) + data[size:]


def _entry_crc(data: bytes) -> bytes:
    body = data[76:]
    return data[:64] + struct.pack("<4sII", b"EBBE", len(body), zlib.crc32(body)) + body


def _rtu_crc(data: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", crc16(data[:-2]))


def _last_digest(data: bytes) -> bytes:
    return hashlib.sha256(data[32:]).digest() + data[32:]


def _drain(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    return lambda data: list(parse(data))


def _scan(data: bytes) -> object:
    def read(at: int, n: int) -> bytes:
        return data[at : at + n]

    salt = find_salt(read, len(data), 1 << 32 | 0x3FA91C02, 0, 0)
    return list(scan(read, salt, len(data))) if salt is not None else None


SAID_BY_PEOPLE = (ValueError, ConfigError)


def targets() -> dict[str, Target]:
    """Return every parser by name."""
    said = (CorruptError, PlantError, ConfigError)
    mends = {"Modbus RTU answer": _rtu_crc, "Modbus identification": _rtu_crc}
    by_hand = ("Modbus address", "Modbus range", "Modbus type", "unit")
    of_plant = {
        name: Target(parse, seeds, mends.get(name, Target.mend), SAID_BY_PEOPLE if name in by_hand else said)
        for name, (parse, seeds) in plant().items()
    }
    return _stores() | of_plant


def _stores() -> dict[str, Target]:
    journals = [p.read_bytes() for p in sorted(RING.glob("journal/*.journal"))]
    stick = next((FILES / "stick").glob("*/0000000001*.frames")).read_bytes()
    frames = list(parse_frames(stick))
    from buffer.reader import RingReader
    from buffer.storage import PosixReadStorage

    reader = RingReader(PosixReadStorage(RING))
    inventory = reader.inventory()
    blocks = [f for g in sorted({j.generation for j in inventory.journals}) for f in reader.blocks(inventory, g, 0)]
    objects = [parse_frame(p.read_bytes()) for p in sorted(RING.glob("objects/*"))]
    manifests = tuple(f.sign1.payload for f in [*frames, *blocks, *objects])
    payloads = tuple(bytes(f.payload) for f in blocks if f.manifest.count)
    counts = {bytes(f.payload): f.manifest.count for f in blocks}
    longest = max(payloads, key=len)
    index = next(LANDING.glob("index/*")).read_bytes()
    cut = index.find(b"EBBE", 65)
    second = index[:64] + index[cut : index.find(b"EBBE", cut + 1)]
    receipts = tuple(p.read_bytes() for p in sorted((FILES / "receipts").glob("*.cose")))
    keys = KeyRing()
    requests = tuple(line.split()[0].encode() for line in (FILES / "receipts/requests.txt").read_text().splitlines())
    names = tuple(p.name.encode() for p in RING.rglob("*") if p.is_file())
    table = next(bytes(o.payload) for o in objects if bytes(o.payload[:4]) == b"\x28\xb5\x2f\xfd")
    statement = next(bytes(o.payload) for o in objects if bytes(o.payload[:4]) != b"\x28\xb5\x2f\xfd")
    return {
        "frame header": Target(parse_header, (stick[:HEADER_BYTES],), _tail_crc(40)),
        "frame": Target(parse_frame, tuple(f.wire() for f in frames[:3]), _head_crc),
        "frames": Target(_drain(parse_frames), (stick,)),
        "cose": Target(parse_sign1, tuple(f.cose for f in blocks)),
        "cbor": Target(decode_cbor, manifests),
        "manifest": Target(decode_manifest, manifests),
        "payload": Target(lambda data: decode(data, counts[longest]), (longest,)),
        "small payload": Target(lambda data: decode(data, 3), tuple(p for p in payloads if counts[p] == 3)),
        "journal header": Target(parse_journal_header, (journals[0][:PAGE],), _tail_crc(PAGE)),
        "journal": Target(_scan, (journals[0][: 4 * PAGE],)),
        "journal, second path": Target(lambda data: list(walk_journal(data, Anyone())), (journals[0][: 4 * PAGE],)),
        "frame, second path": Target(lambda data: walk_frame(data, 0, Anyone(), None), tuple(f.wire() for f in frames[:3]), _head_crc),
        "cose, second path": Target(lambda data: signed_map(data, Anyone()), tuple(f.cose for f in blocks)),
        "durable": Target(decode_durable, ((RING / "durable").read_bytes(),), _tail_crc(64)),
        "last": Target(decode_last, tuple(p.read_bytes() for p in sorted(RING.glob("last/*"))), _last_digest),
        "tag table": Target(decode_table, (table,)),
        "key statement": Target(parse_statement, (statement,)),
        "key proposal": Target(parse_proposal, (statement[3:200],)),
        "receipt": Target(lambda data: parse_receipt(data, Anyone()), receipts),
        "receipt, unknown key": Target(lambda data: parse_receipt(data, keys), receipts),
        "index part": Target(parse_part_header, (index[:64],), _tail_crc(64)),
        "index": Target(_drain(parse_entries), (index,)),
        "index entry": Target(_drain(parse_entries), (second,), _entry_crc),
        "request": Target(_text(parse_target), requests),
        "missing": Target(parse_missing, (b"object " + b"a" * 64 + b"\nkey 0123456789abcdef",)),
        "status": Target(parse_status, (b'{"stream": "hall1.main", "backlog": [1, 2.5, null]}',)),
        "sums": Target(_text(parse_sums), ((FILES / "stick" / f"ebbgate-{STREAM}-frames" / "SHA256SUMS").read_bytes(),)),
        "names": Target(_text(lambda name: (parse_segment(name), parse_journal(name), parse_last(name))), names),
        "generation": Target(_text(parse_generation), (b"7-3fa91c02",)),
        "scrub progress": Target(decode_progress, (b'{"began_ns": 1, "finished_ns": 0, "position": "", "files": 3, "size_bytes": 9, "damaged": 0}',)),
    }


BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x1A, 0x3B, 0x5F, 0x9F, 0xBF, 0xDB, 0xF9, 0xFB)


def change(seed: bytes, rng: random.Random) -> bytes:
    """Flip, set, insert, drop, repeat (now and then often enough to nest deeply), cut: one to four times."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(64, len(data)) + 1)
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.choice(BYTES)
            case 2:
                data[at:at] = bytes(rng.choice(BYTES) for _ in range(rng.randint(1, 9)))
            case 3:
                del data[at : at + rng.randint(1, 16)]
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 64)] if rng.random() < 0.97 else data[at : at + rng.randint(1, 4)] * 2_000  # noqa: S311
            case 5:
                data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32))))
            case _:
                del data[at:]
    return bytes(data)


def feed(target: Target, data: bytes) -> bool:
    """Say whether it was taken; anything but its own way to refuse goes up."""
    try:
        target.parse(target.mend(data))
    except target.refusals:
        return False
    return True
