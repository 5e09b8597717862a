"""Reads what docs/format.md describes, written from that document alone: nothing of buffer or gateway is imported.

stdlib, cbor2, cryptography, zstandard, pcodec (and numpy, which pcodec hands out). Raises AssertionError where a file is not as described.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

import cbor2
import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pcodec import standalone

PAGE = 4096
FRAME = struct.Struct("<4sBBHQQIII")


class Keys:
    """Public keys by name: the first 8 bytes of SHA-256 of the SubjectPublicKeyInfo."""

    def __init__(self, *paths: Path) -> None:
        self.known: dict[bytes, Ed25519PublicKey] = {}
        for path in paths:
            self.add(load_pem_public_key(path.read_bytes()))

    def add(self, key: Ed25519PublicKey) -> None:
        self.known[hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()[:8]] = key

    def open(self, message: bytes):
        """COSE_Sign1 -> its payload, decoded, after the signature."""
        tag = cbor2.loads(message)
        assert tag.tag == 18
        protected, unprotected, payload, signature = tag.value
        header = cbor2.loads(protected)
        assert not unprotected and set(header) == {1, 4} and header[1] == -8, "Ed25519 in the golden files"
        self.known[header[4]].verify(signature, cbor2.dumps(["Signature1", protected, b"", payload]))
        assert cbor2.dumps(cbor2.loads(payload), canonical=True) == payload, "deterministic CBOR"
        return cbor2.loads(payload)

    def introduce(self, statement: bytes) -> None:
        proposal, endorsement = cbor2.loads(statement)
        raw = cbor2.loads(cbor2.loads(proposal).value[2])
        endorsed = self.open(endorsement)
        assert endorsed == raw and raw[0] == "ebbgate key statement 1"
        self.add(Ed25519PublicKey.from_public_bytes(raw[1]))
        self.open(proposal)


def frame(data: bytes, at: int, keys: Keys, salt: int = 0):
    """One frame at an offset -> (manifest, COSE_Sign1, payload, end)."""
    magic, version, kind, zero, found, number, cose_size, size, crc = FRAME.unpack_from(data, at)
    assert (magic, version, zero, found) == (b"EBBF", 1, 0, salt)
    assert zlib.crc32(data[at : at + 36]) == struct.unpack_from("<I", data, at + 36)[0]
    body = data[at + 40 : at + 40 + cose_size + size]
    assert zlib.crc32(body) == crc
    cose, payload = body[:cose_size], body[cose_size:]
    if kind == 3 and cbor2.loads(cbor2.loads(cose).value[2])[15] == 2:
        keys.introduce(payload)
    m = keys.open(cose)
    assert (m[1], m[4]) == (kind, size) and m[3] == hashlib.sha256(payload).digest()
    assert number == (0 if kind == 3 else m[6][0])
    return m, cose, payload, at + 40 + cose_size + size


def chain(m: dict, cose: bytes) -> bytes:
    """h after the last block of a frame."""
    return m[10] if m[1] == 2 else hashlib.sha256(m[9] + hashlib.sha256(cose).digest()).digest()


def durable(data: bytes) -> tuple[int, ...]:
    assert len(data) == 64 and data[:4] == b"EBBD" and zlib.crc32(data[:60]) == struct.unpack_from("<I", data, 60)[0]
    return struct.unpack_from("<QQQQQ", data, 8)


# ---- block payload ----


def bodies(payload: bytes, n: int):
    magic, version, columns, count = struct.unpack_from("<2sBBI", payload)
    assert (magic, version, count) == (b"EC", 1, n)
    at, out = 8 + 8 * columns, {}
    for i in range(columns):
        column, codec, parameter, _, length = struct.unpack_from("<BBBBI", payload, 8 + 8 * i)
        out[column] = (codec, parameter, payload[at : at + length])
        at += length
    assert at == len(payload)
    return out


def unzip(codec: int, body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(body) if codec in (1, 4) else body


def numbers(entry, dtype: str, n: int):
    codec, _, body = entry
    if codec == 2:
        wide = np.zeros(n, "<u2" if dtype == "<u1" else dtype)
        standalone.simple_decompress_into(body, wide)
        return wide.astype(dtype)
    raw = unzip(codec, body)
    if codec in (3, 4):
        runs = struct.unpack_from("<I", raw)[0]
        lengths = np.frombuffer(raw, "<u4", runs, 4)
        return np.repeat(np.frombuffer(raw, dtype, runs, 4 + 4 * runs), lengths)
    return np.frombuffer(raw, dtype)


def block(payload: bytes, n: int) -> list[tuple]:
    """Rows in arrival order: (tag number, ts ns, kind, value bits or text, quality, flags, ts source ns)."""
    if n == 0:
        assert payload == b""
        return []
    b = bodies(payload, n)
    tag = numbers(b[1], "<u4", n)
    ts = numbers(b[2], "<i8", n) * 10 ** b[2][1]
    order = np.argsort(tag, kind="stable")
    kind = numbers(b[3], "<u1", n)
    quality = numbers(b[4], "<u4", n) if 4 in b else np.zeros(n, "<u4")
    flags = numbers(b[5], "<u2", n) if 5 in b else np.zeros(n, "<u2")
    values: list[object] = [0] * n
    for kinds, found in ((kind == 0, _doubles), ((kind == 1) | (kind == 4), _integers), (kind == 2, _booleans), ((kind == 3) | (kind == 5), _texts)):
        places = np.flatnonzero(kinds)
        for place, value in zip(places, found(b, len(places)) if len(places) else (), strict=True):
            values[place] = value
    source = numbers(b[12], "<i8", n) if 12 in b else np.zeros(n, "<i8")
    out: list[tuple] = [()] * n
    for i, row in enumerate(order):
        out[row] = (int(tag[row]), int(ts[row]), int(kind[i]), values[i], int(quality[i]), int(flags[i]), int(ts[row] + source[i]))
    return out


def _doubles(b, n: int) -> list[int]:
    mask = numbers(b[13], "<u1", n) if 13 in b else np.full(n, 7 in b, "<u1")
    out = np.zeros(n, "<u8")
    decimals = int(mask.sum())
    if decimals:
        out[mask == 1] = (numbers(b[7], "<i8", decimals) / 10.0 ** b[7][1]).view("<u8")
    if decimals < n:
        out[mask == 0] = numbers(b[6], "<f8", n - decimals).view("<u8")
    return [int(x) for x in out]


def _integers(b, n: int) -> list[int]:
    return [int(x) for x in numbers(b[8], "<i8", n).view("<u8")]


def _booleans(b, n: int) -> list[int]:
    return [int(x) for x in np.unpackbits(np.frombuffer(unzip(b[9][0], b[9][2]), "u1"), count=n)]


def _texts(b, n: int) -> list[str]:
    raw = unzip(b[11][0], b[11][2])
    t = struct.unpack_from("<I", raw)[0]
    lengths = struct.unpack_from(f"<{t}I", raw, 4)
    at, texts = 4 + 4 * t, []
    for length in lengths:
        texts.append(raw[at : at + length].decode())
        at += length
    return [texts[i] for i in numbers(b[10], "<u4", n)]


# ---- stores ----


def objects(root: Path, keys: Keys) -> dict[bytes, bytes]:
    """Payload by SHA-256; key statements first, which introduce keys."""
    out = {}
    files = sorted((root / "objects").iterdir())
    for path in sorted(files, key=lambda p: b"ebbgate key statement" not in p.read_bytes()):
        m, _, payload, end = frame(path.read_bytes(), 0, keys)
        assert end == path.stat().st_size and m[3].hex() == path.name
        out[m[3]] = payload
    return out


def tag_table(payload: bytes) -> dict:
    return json.loads(zstandard.ZstdDecompressor().decompress(payload))


def segment(root: Path, name: str, keys: Keys) -> tuple[dict, bytes]:
    """A segment by the stem of its files -> manifest, COSE_Sign1. The Parquet itself is any Parquet reader's affair."""
    head, parquet = (root / f"{name}.cose").read_bytes(), (root / f"{name}.parquet").read_bytes()
    m, cose, payload, end = frame(head + parquet, 0, keys)
    assert end == len(head) + len(parquet) and payload[:4] == b"PAR1"
    g, first, last = re.fullmatch(r".*/(\d{10}-[0-9a-f]{8})-(\d{16})-(\d{16})", f"/{name}").groups()
    assert f"{m[5] >> 32:010d}-{m[5] & 0xFFFFFFFF:08x}" == g and m[7] == [int(first), int(last) - int(first) + 1]
    return m, cose


def ring(root: Path, keys: Keys):
    """Yield (manifest, COSE_Sign1, rows) of every durable block, then check segments, objects and `last` files."""
    generation, serial, end_offset, end_seq, end_block = durable((root / "durable").read_bytes())
    objects(root, keys)
    newest = None
    for path in sorted((root / "journal").glob("*.journal")):
        data = path.read_bytes()
        magic, version, salt, g, first_seq, first_block, number, length = struct.unpack_from("<4sIQQQQQH", data)
        assert (magic, version) == (b"EBBJ", 1) and data[50 : 50 + length].decode() == root.name
        assert zlib.crc32(data[: PAGE - 4]) == struct.unpack_from("<I", data, PAGE - 4)[0]
        at, stop = PAGE, end_offset if (g, number) == (generation, serial) else len(data)
        while at < stop and data[at : at + 4] == b"EBBF" and struct.unpack_from("<Q", data, at + 8)[0] == salt:
            m, cose, payload, end = frame(data, at, keys, salt)
            newest = m
            yield m, cose, block(payload, m[7][1])
            at = -(-end // PAGE) * PAGE
    assert (newest[5], newest[14][3], newest[6][1] + 1) == (generation, end_seq, end_block)
    for path in (root / "segments").glob("*.cose"):
        segment(root, f"segments/{path.stem}", keys)
    for path in (root / "last").iterdir():
        data = path.read_bytes()
        body = cbor2.loads(data[32:])
        assert hashlib.sha256(data[32:]).digest() == data[:32] and body[0] == 1 and len(body[5]) % 36 == 0


def landing(root: Path, keys: Keys):
    """Yield (lane, number, new, manifest, chain after) of every record, each frame checked against the index."""
    generation, part, end, live, backfill = durable((root / "durable").read_bytes())
    objects(root, keys)
    [path] = (root / "index").iterdir()
    data = path.read_bytes()[:end]
    assert data[:4] == b"EBBI" and zlib.crc32(data[:60]) == struct.unpack_from("<I", data, 60)[0]
    assert struct.unpack_from("<QQ", data, 8) == (part, generation)
    at, ends = 64, [0, 0]
    while at < len(data):
        magic, length, crc = struct.unpack_from("<4sII", data, at)
        body = data[at + 12 : at + 12 + length]
        assert magic == b"EBBE" and zlib.crc32(body) == crc
        at += 12 + length
        entry = cbor2.loads(body)
        if entry[0] != 2:
            continue
        _, lane, number, kind, g, blocks, seqs, before, after, digest, new, file, offset, size, table, state, received = entry
        ends[lane] = number + 1
        if not file:
            yield lane, number, new, None, after
            continue
        if kind == 2:
            m, cose = segment(root, file.removesuffix(".parquet"), keys)
        else:
            m, cose, _, stop = frame((root / file).read_bytes(), offset, keys)
            assert stop == offset + size
        assert hashlib.sha256(cose).digest() == digest and chain(m, cose) == after and m[9] == before
        assert (m[1], m[5], m[6], m[7], m[8], m[14]) == (kind, g, blocks, seqs, table, state)
        yield lane, number, new, m, after
    assert ends == [live, backfill]


def stick(root: Path, keys: Keys):
    """Yield (manifest, COSE_Sign1) of every frame of a stick, objects first."""
    sums = dict(reversed(line.split("  ")) for line in (root / "SHA256SUMS").read_text().splitlines())
    for name in sorted(sums, key=lambda name: (name != "objects.frames", name)):
        data = (root / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sums[name]
        at = 0
        while at < len(data):
            m, cose, _, at = frame(data, at, keys)
            yield m, cose
