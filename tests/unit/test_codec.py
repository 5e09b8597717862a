"""The block codec: what goes in comes out, bit for bit; what is hostile raises CorruptError and nothing else."""

from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pcodec import ChunkConfig, standalone

from benchmarks.workload import TICK_NS, Workload
from buffer import codec, limits, packing, shape
from buffer.codec import decode, encode, encode_blocks
from buffer.errors import CorruptError, MisuseError
from buffer.types import Columns, Kind, empty_columns, make_columns, take
from tests.support.readings import columns, meaning

MANIFEST_AND_HEADER_BYTES = 374  # of a block without changed positions; tests/unit/test_golden.py measures a real one


@given(columns(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_kind_and_every_bit_comes_back(c, fast):
    assert meaning(decode(encode(c, fast=fast), len(c))) == meaning(c)


@given(columns(min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_equal_columns_give_equal_bytes(c):
    copy = Columns(*(x.copy() if isinstance(x, np.ndarray) else x for x in (getattr(c, f) for f in Columns.__slots__)))
    assert encode(copy) == encode(c)


def test_nothing_is_nothing():
    assert encode(empty_columns()) == b""
    assert len(decode(b"", 0)) == 0
    with pytest.raises(CorruptError):
        decode(b"", 1)


@pytest.mark.parametrize("resolution_ns", [1_000_000, TICK_NS])
@pytest.mark.parametrize("scans", [1, 10, 60])
def test_the_workload_comes_back(scans, resolution_ns):
    c = Workload(resolution_ns=resolution_ns).scans(scans)
    assert meaning(decode(encode(c), len(c))) == meaning(c)


@pytest.mark.parametrize(("scans", "most"), [(1, 3.0), (10, 1.2)])
def test_bytes_per_reading_are_what_the_goals_say(scans, most):
    w = Workload()
    w.scans(60)
    sizes = [len(encode(w.scans(scans))) + MANIFEST_AND_HEADER_BYTES for _ in range(5)]
    assert sum(sizes) / 5 / (scans * 1000) <= most


def _doubles(bits) -> Columns:
    bits = np.asarray(bits, np.uint64)
    zero = np.zeros(len(bits), np.uint8)
    return Columns(
        np.full(len(bits), 16, np.uint32), np.arange(len(bits)), zero, bits, zero.astype(np.uint32), zero.astype(np.uint16), None, ()
    )


def test_a_few_odd_doubles_do_not_spoil_the_decimals():
    rng = np.random.default_rng(1)
    bits = np.round(np.cumsum(rng.normal(0, 1, 4000)), 2).view(np.uint64)
    odd = bits.copy()
    odd[::500] = [0x7FF8_0000_0000_0BAD + i for i in range(8)]
    odd[1] = 0x8000_0000_0000_0000
    clean, spoilt = encode(_doubles(bits)), encode(_doubles(odd))
    assert len(spoilt) < 1.1 * len(clean)
    assert decode(spoilt, 4000).values.tolist() == odd.tolist()


@pytest.mark.parametrize("exponent", range(7))
def test_decimals_of_every_length(exponent):
    bits = (np.arange(-500, 500) * 7 / 10**exponent).view(np.uint64)
    assert decode(encode(_doubles(bits)), 1000).values.tolist() == bits.tolist()


def test_columns_that_do_not_fit_are_cut_in_order():
    rng = np.random.default_rng(2)
    n = 65_536  # fits by count, not by bytes
    noise = Columns(
        rng.integers(16, 5000, n).astype(np.uint32),
        rng.integers(0, 2**62, n),
        np.zeros(n, np.uint8),
        rng.integers(0, 2**63, n).astype(np.uint64),
        rng.integers(0, 2**32, n).astype(np.uint32),
        np.zeros(n, np.uint16),
        None,
        (),
    )
    assert len(encode(noise)) > limits.BLOCK_PAYLOAD_BYTES_MAX
    parts = list(encode_blocks(noise))
    assert all(len(payload) <= limits.BLOCK_PAYLOAD_BYTES_MAX and len(c) <= limits.BLOCK_READINGS_MAX for c, payload in parts)
    assert sum((meaning(decode(payload, len(c))) for c, payload in parts), []) == meaning(noise)


def test_the_longest_texts_are_cut_into_blocks_that_fit():
    rng = random.Random(1)
    texts = tuple("".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(limits.TEXT_BYTES_MAX // 3)) for _ in range(100))
    c = make_columns([16] * 100, range(100), [Kind.TEXT] * 100, range(100), [0] * 100, texts=texts)
    parts = list(encode_blocks(c))
    assert [len(c) for c, _ in parts] and sum(len(c) for c, _ in parts) == 100
    assert [row[3] for c, payload in parts for row in meaning(decode(payload, len(c)))] == list(texts)


def test_a_lone_surrogate_does_not_stop_a_commit():
    c = make_columns([16], [0], [Kind.TEXT], [0], [0], texts=("a\ud800b",))
    assert decode(encode(c), 1).texts == ("a\ufffdb",)


@pytest.mark.parametrize(
    ("kind", "value", "texts"), [(7, 0, ()), (255, 0, ()), (Kind.NULL, 1, ()), (Kind.BOOL, 2, ()), (Kind.TEXT, 0, ()), (Kind.BYTES, 1, ("x",))]
)
def test_what_no_source_may_hand_over_is_our_defect(kind, value, texts):
    with pytest.raises(MisuseError):
        encode(make_columns([16], [0], [kind], [value], [0], texts=texts))


# ---- hostile payloads ----


def _sample() -> Columns:
    c = Workload().scans(1)
    c = take(c, 0, 300)
    source = c.ts_ns.copy()
    source[::7] += 5
    values = c.values.copy()
    values[np.flatnonzero(c.kind == Kind.DOUBLE)[:60]] = 0x7FF8_0000_0000_0001
    return Columns(c.tag, c.ts_ns, c.kind, values, c.quality, (c.tag % 3).astype(np.uint16), source, c.texts)


@pytest.mark.parametrize("fast", [False, True])
def test_any_change_of_bytes_is_an_answer_or_a_corrupt_error(fast):
    payload = encode(_sample(), fast=fast)
    rng = random.Random(7)
    for _ in range(6_000):
        data = bytearray(payload)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(rng.choice((130, len(data))))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        try:
            assert len(decode(bytes(data), 300)) == 300
        except CorruptError:
            pass


@given(st.binary(max_size=300), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_garbage_is_a_corrupt_error(data, count):
    try:
        decode(b"EC\x01" + data, count)
    except CorruptError:
        pass


def _with_body(column: int, which: int, body: bytes, count: int = 300) -> bytes:
    """The sample's payload with one body replaced."""
    payload = encode(_sample())
    number = payload[3]
    entries = [struct.unpack_from("<BBBxI", payload, 8 + 8 * i) for i in range(number)]
    at, bodies = 8 + 8 * number, []
    for _, _, _, length in entries:
        bodies.append(payload[at : at + length])
        at += length
    place = next(i for i, entry in enumerate(entries) if entry[0] == column)
    bodies[place] = body
    entries[place] = (column, which, entries[place][2], len(body))
    head = struct.pack("<2sBBI", b"EC", 1, number, count)
    return head + b"".join(struct.pack("<BBBxI", c, k, p, len(b)) for (c, k, p, _), b in zip(entries, bodies, strict=True)) + b"".join(bodies)


BOMB = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(bytes(512 * 1024 * 1024))


@pytest.mark.parametrize(
    ("column", "which"),
    [(codec.TAG, packing.ZSTD), (codec.KIND, packing.RUNS_ZSTD), (codec.BOOLEAN, packing.ZSTD), (codec.TEXTS, packing.ZSTD)],
)
def test_a_bomb_is_refused_by_its_stated_size(column, which):
    data = _with_body(column, which, BOMB)
    tracemalloc.start()
    with pytest.raises(CorruptError, match="wanted"):
        decode(data, 300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1024 * 1024


def test_a_frame_without_a_stated_size_is_refused():
    body = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1200))
    with pytest.raises(CorruptError):
        decode(_with_body(codec.TAG, packing.ZSTD, body), 300)


def test_runs_must_add_up():
    for runs in ([(300, 0), (0, 1)], [(299, 0)], [(2**32 - 1, 0), (301, 0)], []):
        lengths, values = [r for r, _ in runs], [v for _, v in runs]
        body = struct.pack(f"<{1 + len(runs)}I", len(runs), *lengths) + bytes(values)
        with pytest.raises(CorruptError):
            decode(_with_body(codec.KIND, packing.RUNS, body), 300)


@pytest.mark.parametrize("count", [0, 1, 299, 301, 65_537])
def test_the_manifest_decides_how_many(count):
    with pytest.raises(CorruptError):
        decode(encode(_sample()), count)


def test_bytes_that_no_column_owns_are_refused():
    with pytest.raises(CorruptError):
        decode(encode(_sample()) + b"\0", 300)


@pytest.mark.parametrize("n", [0, 1, 256, 299, 301, 4096])
def test_a_pcodec_body_of_another_length_is_refused(n):
    body = standalone.simple_compress(np.full(n, 16, np.uint32), ChunkConfig())
    with pytest.raises(CorruptError):
        decode(_with_body(codec.TAG, packing.PCODEC, body), 300)


def test_a_text_index_beyond_the_texts_is_refused():
    texts = int(np.isin(_sample().kind, [Kind.TEXT, Kind.BYTES]).sum())
    body = standalone.simple_compress(np.full(texts, 1_000, np.uint32), ChunkConfig())
    with pytest.raises(CorruptError, match="beyond the texts"):
        decode(_with_body(codec.TEXT, packing.PCODEC, body), 300)


def _noise(tags: int, scans: int) -> np.ndarray:
    """Measurements that are no decimals: each tag another size, readings of a tag together."""
    random = np.random.default_rng(3)
    size = np.exp(random.uniform(-5, 8, tags))[:, None]
    return (size * (1 + 1e-3 * random.normal(0, 1, (tags, scans)).cumsum(axis=1))).ravel()


@pytest.mark.parametrize("scans", [3, 40, 240, 500])
def test_floats_are_packed_the_smaller_of_two_ways(scans):
    data = _noise(41, scans)
    packed = packing.pack_floats(data, 1)
    ways = (packing._SEARCH, packing._DIFFERENCES) if len(data) >= packing.SEARCH_SUFFICES else (packing._SEARCH,)
    assert len(packed[1]) == min(len(standalone.simple_compress(data, way)) for way in ways)
    assert len(packing.pack_floats(data, 1, search=False)[1]) >= len(packed[1])
    assert (packing.unpack_numbers(packed, np.float64, len(data)).view(np.uint64) == data.view(np.uint64)).all()


def test_a_long_column_of_sequences_is_zstandards_and_any_other_is_not():
    random = np.random.default_rng(4)
    scan = random.permutation(1_000).astype(np.uint32) + 16
    n = limits.BLOCK_READINGS_MAX
    for data, codec_id in ((np.resize(scan, n), packing.ZSTD), (np.resize(scan, 4_096), packing.PCODEC), (random.choice(scan, n), packing.PCODEC)):
        packed = packing.pack_places(data)
        assert packed[0] == codec_id
        assert (packing.unpack_numbers(packed, np.uint32, len(data)) == data).all()


def test_a_block_is_what_it_would_be_without_the_block_before():
    """Tags and kinds that the block before had too are not packed again: whatever differs, nothing of that block may be left in this one."""
    scans = Workload(seed=3).scans(3)
    first = take(scans, 0, 1000)
    same = replace(first, values=first.values.copy(), quality=first.quality + np.uint32(1), ts_ns=first.ts_ns + 10**9)
    others = [
        same, take(scans, 1000, 2000), take(first, 0, 999), replace(first, tag=first.tag[::-1].copy()), replace(first, tag=first.tag + np.uint32(1)),
        replace(first, kind=np.where(first.kind == Kind.INT64, Kind.UINT64, first.kind).astype(np.uint8)),
    ]  # fmt: skip
    for other in others:
        for fast in (False, True):
            shape._shapes.clear()
            alone = encode(other, fast=fast)
            for before in (False, True):
                shape._shapes.clear()
                encode(first, fast=before)
                assert encode(other, fast=fast) == alone
            assert meaning(decode(alone, len(other))) == meaning(other)


def test_kinds_of_many_tags_are_packed_as_they_are():
    for scans in (5, 60):
        c = Workload().scans(scans)
        body = codec._Bodies(encode(c), len(c))
        kind, data = body._bodies[codec.KIND][1]
        runs = packing.pack_bytes(_runs_of(c.kind[np.argsort(c.tag, kind="stable")]))[1]
        assert kind == packing.ZSTD and len(data) <= 1.1 * len(runs)


def _runs_of(data: np.ndarray) -> bytes:
    starts = np.flatnonzero(np.concatenate(([True], data[1:] != data[:-1])))
    return np.diff(np.append(starts, len(data))).astype("<u4").tobytes() + data[starts].tobytes()
