"""Reads what a receiver holds, from its files alone, and judges it. Shares no module with the product: the formats are read here a second
time, from their specification, with cbor2, pcodec, zstandard and cryptography.

What is judged: every bit has a valid signature and chain (G5); one identity has one content (G4); every seq that a state record reported
is received, or evicted, or lost with a reason, or rolled back (G2); every reading is one that the plant made; whatever a source was told is
safe has arrived (G1); of what the plant made nothing is missing and nothing double (G3, and the protocol of collect).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import cbor2
import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pcodec import standalone

from tests.simulation.ledger import LedgerError

HEADER = struct.Struct("<4sBBHQQIII")
BLOCK, SEGMENT = 1, 2
INT64, BOOL, TEXT, UINT64, NULL = 1, 2, 3, 4, 6
MARKER, INITIAL = 32, 64
Place = tuple[int, int]  # generation, seq


@dataclass(frozen=True)
class Reading:
    tag: int
    ts: int
    ts_source: int
    kind: int
    value: int | None  # None: a text, or no value
    quality: int
    flags: int


@dataclass
class Book:
    """readings: by identity. states: newest state record of each generation. ends: what each successor says of its predecessor."""

    readings: dict[Place, Reading] = field(default_factory=dict)
    states: dict[int, list[Any]] = field(default_factory=dict)
    reasons: set[tuple[int, int, int]] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)
    chains: dict[tuple[int, int], bytes] = field(default_factory=dict)  # generation, block -> h before it
    frames: int = 0


# ---- frames ----


def frames_in(data: bytes):
    """Yield (kind, number, cose, payload) of frames one behind the other, or on 4 KiB boundaries."""
    at = 0
    while at + 40 <= len(data):
        magic, version, kind, _, _, number, cose_bytes, payload_bytes, crc = HEADER.unpack_from(data, at)
        if magic != b"EBBF" or version != 1 or zlib.crc32(data[at : at + 36]) != int.from_bytes(data[at + 36 : at + 40], "little"):
            at = (at // 4096 + 1) * 4096
            continue
        body = data[at + 40 : at + 40 + cose_bytes + payload_bytes]
        if zlib.crc32(body) == crc and len(body) == cose_bytes + payload_bytes:
            yield kind, number, body[:cose_bytes], body[cose_bytes:]
        at += 40 + cose_bytes + payload_bytes


def opened(cose: bytes, key: Ed25519PublicKey) -> dict[int, Any]:
    """Return the manifest in a COSE_Sign1, its signature checked."""
    protected, _, payload, signature = cbor2.loads(cose).value
    key.verify(bytes(signature), cbor2.dumps(["Signature1", protected, b"", payload], canonical=True))
    return cbor2.loads(payload)


def read(files: dict[str, bytes], key: Ed25519PublicKey) -> Book:
    """Return everything in live/ and segments/."""
    book = Book()
    for path in sorted(files):
        if path.startswith("live/"):
            for kind, _, cose, payload in frames_in(files[path]):
                if kind == BLOCK:
                    _block(book, opened(cose, key), cose, payload)
        elif path.startswith("segments/") and path.endswith(".cose"):
            head = files[path]
            cose = head[40 : 40 + HEADER.unpack_from(head)[6]]
            _segment(book, opened(cose, key), files.get(path.removesuffix(".cose") + ".parquet", b""))
    return book


def _common(book: Book, m: dict[int, Any], payload: bytes) -> None:
    if hashlib.sha256(payload).digest() != m[3] or len(payload) != m[4]:
        raise LedgerError(f"G5 payload of {m[5]:x} blocks {m[6]} is not what was signed")
    book.frames += 1
    state = m[14]
    known = book.states.get(state[0])
    if known is None or known[1] < state[1]:
        book.states[state[0]] = state
    if state[2] is not None:
        generation, end = state[2]
        book.ends[generation] = min(end, book.ends.get(generation, end))
    book.reasons |= {(g, first, last) for g, first, last, _ in state[5]}
    _chain(book, m[5], m[6][0], m[9])


def _chain(book: Book, generation: int, block: int, h: bytes) -> None:
    if book.chains.setdefault((generation, block), h) != h:
        raise LedgerError(f"G5 two chains meet before block {block} of {generation:x}")


def _block(book: Book, m: dict[int, Any], cose: bytes, payload: bytes) -> None:
    _common(book, m, payload)
    _chain(book, m[5], m[6][1] + 1, hashlib.sha256(m[9] + hashlib.sha256(cose).digest()).digest())
    for seq, reading in enumerate(unpacked(payload, m[7][1]), m[7][0]):
        _take(book, (m[5], seq), reading)


def _segment(book: Book, m: dict[int, Any], payload: bytes) -> None:
    _common(book, m, payload)
    _chain(book, m[5], m[6][1] + 1, m[10])
    seqs = set()
    at = 4
    while at < len(payload):
        first, count, length = struct.unpack_from("<QII", payload, at)
        at += 16
        for seq, reading in enumerate(unpacked(payload[at : at + length], count), first):
            _take(book, (m[5], seq), reading)
            seqs.add(seq)
        at += length
    if seqs != set(range(m[7][0], sum(m[7]))):
        raise LedgerError(f"G5 segment of {m[5]:x} blocks {m[6]} does not hold the seqs it states")


def _take(book: Book, place: Place, reading: Reading) -> None:
    if book.readings.setdefault(place, reading) != reading:
        raise LedgerError(f"G4 {place} has two contents: {book.readings[place]} and {reading}")


# ---- block payloads (specification: docs/format.md) ----


def _numbers(body: tuple[int, bytes] | None, dtype: Any, n: int) -> Any:
    if body is None or n == 0:
        return np.zeros(n, dtype)
    codec, data = body
    if codec == 2:
        out = np.zeros(n, np.uint16 if dtype == np.uint8 else dtype)
        standalone.simple_decompress_into(data, out)
        return out.astype(dtype)
    if codec in (1, 4):
        data = zstandard.ZstdDecompressor().decompress(data)
    if codec in (3, 4):
        runs = int.from_bytes(data[:4], "little")
        lengths = np.frombuffer(data, "<u4", runs, 4)
        return np.repeat(np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), runs, 4 + 4 * runs), lengths).astype(dtype)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), n).astype(dtype)


def unpacked(payload: bytes, count: int) -> list[Reading]:
    """Return the readings of a block in arrival order. Texts and doubles are not told apart: the plant sends neither."""
    if not count:
        return []
    _, _, columns, n = struct.unpack_from("<2sBBI", payload)
    if n != count:
        raise LedgerError(f"a block of {n} readings that states {count}")
    bodies, parameters, at = {}, {}, 8 + 8 * columns
    for i in range(columns):
        column, codec, parameter, length = struct.unpack_from("<BBBxI", payload, 8 + 8 * i)
        bodies[column], parameters[column] = (codec, payload[at : at + length]), parameter
        at += length
    tag = _numbers(bodies[1], np.uint32, n)
    ts = _numbers(bodies[2], np.int64, n) * 10 ** parameters[2]
    order = np.argsort(tag, kind="stable")
    kind = _numbers(bodies[3], np.uint8, n)
    quality, flags = _numbers(bodies.get(4), np.uint32, n), _numbers(bodies.get(5), np.uint16, n)
    is_int = (kind == INT64) | (kind == UINT64)
    value = np.full(n, -1, np.int64)
    value[is_int] = _numbers(bodies.get(8), np.int64, int(is_int.sum()))
    offset = _numbers(bodies.get(12), np.int64, n)
    out: list[Reading | None] = [None] * n
    for at, i in enumerate(order.tolist()):
        number = int(value[at]) if is_int[at] else None
        out[i] = Reading(int(tag[i]), int(ts[i]), int(ts[i] + offset[at]), int(kind[at]), number, int(quality[at]), int(flags[at]))
    return out  # type: ignore[return-value]


# ---- judgement ----


def reported(book: Book) -> dict[int, int]:
    """Return how far each generation reaches by what records say: its successor's word, or its own newest where it has none."""
    own = {generation: state[3] for generation, state in book.states.items()}
    return own | book.ends


def _line(book: Book) -> set[int]:
    """Return the newest generation and its ancestors, as far as records name them; all others were left behind by a restored or new disk."""
    out, at = set(), max(book.states, default=0)
    while at:
        out.add(at)
        state = book.states.get(at)
        at = state[2][0] if state and state[2] else 0
    return out


def unaccounted(book: Book, *, exact: bool) -> list[Place]:
    """Return every seq that a record reported and that is neither received, nor evicted, lost or rolled back (G2)."""
    low = max((tuple(state[4]) for state in book.states.values()), default=(0, 0))
    line, out = _line(book), []
    for generation, end in reported(book).items():
        if not exact and generation not in line:
            continue
        lost = [(first, last) for g, first, last in book.reasons if g == generation]
        for seq in range(end):
            place = (generation, seq)
            if place not in book.readings and place >= low and not any(a <= seq <= b for a, b in lost):
                out.append(place)
    return out


def excused(book: Book) -> int:
    """Return how many reported seqs were not received, each with a reason."""
    ends = reported(book)
    return sum(ends.values()) - sum(1 for generation, seq in book.readings if seq < ends.get(generation, 0))


@dataclass(frozen=True)
class Truth:
    """What the plant did. made: tag -> value -> ts (None: any). owed: tags of which every value between the first and the last is owed.
    told: (tag, value) that a source was told is durable. exact: no reading fell back behind what was told (no restored disk)."""

    made: dict[int, dict[int, int | None]]
    owed: frozenset[int]
    told: set[tuple[int, int]]
    exact: bool
    left: frozenset[tuple[int, int]] = frozenset()  # of what is owed: what nobody can have any more, because a server said so


def judge(book: Book, truth: Truth) -> None:
    """Raise LedgerError for the first promise that is broken."""
    waiting = unaccounted(book, exact=truth.exact)
    if waiting:
        raise LedgerError(f"G2 reported and without a reason: {waiting[:3]} ({len(waiting)})")
    seen: Counter[tuple[int, int]] = Counter()
    for place, r in book.readings.items():
        if r.value is None or r.flags & MARKER:
            continue
        if r.tag in truth.made:
            ts = truth.made[r.tag].get(r.value, -1)
            if ts == -1 or (ts is not None and r.ts_source != ts):
                raise LedgerError(f"G5 {place} {r}: the plant never made it")
            seen[r.tag, r.value] += 1
    gaps = excused(book)
    if truth.exact:
        double = [one for one, count in seen.items() if count > 1]
        if double:
            raise LedgerError(f"read twice: {double[:3]} ({len(double)})")
    missing = sorted((truth.told - seen.keys()) | (_holes(seen, truth.owed) - truth.left))
    if len(missing) > gaps:
        raise LedgerError(f"G1, G3 missing {missing[:3]} ({len(missing)}), of which state records excuse {gaps}")


def _holes(seen: Counter[tuple[int, int]], owed: frozenset[int]) -> set[tuple[int, int]]:
    """Return what is missing between the first and the last value of each tag that is owed whole."""
    out = set()
    for tag in owed:
        values = [v for t, v in seen if t == tag]
        if values:
            out |= {(tag, v) for v in range(min(values), max(values))} - seen.keys()
    return out
