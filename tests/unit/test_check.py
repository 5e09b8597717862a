"""`ring check`: a good ring has no finding; each planted fault has one, also those that keep every digest and signature right."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from buffer import layout
from buffer.check import check_ring
from buffer.checkrows import Duck
from buffer.codec import encode
from buffer.frame import encode_header, seal_frame
from buffer.journal import PAGE
from buffer.reader import RingReader
from buffer.ring import with_root
from buffer.segment import seal
from buffer.storage import PosixReadStorage
from buffer.types import make_columns
from tests.support.keys import Key
from tests.support.store import Store
from tests.unit.test_ring import crash, instant, open_ring, some

NAN = 0x7FF8_0000_0000_0BAD


def every_kind(first: int):
    return make_columns(
        [16, 17, 16, 17, 16, 16, 17, 3], [10**18 + first * 10**6 + i * 1001 for i in range(8)], [0, 0, 1, 2, 3, 4, 6, 3],
        [NAN, 0x8000_0000_0000_0000, 2**64 - 5, 1, 0, 2**63 + 1, 0, 1], [0, 0x80000000, 0, 0, 0, 0, 0x80310000, 0],
        texts=("Größe\n", '{"source": "p"}'),
    )  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Two generations, segments, journals that still hold sealed blocks, an unsealed tail."""
    root = tmp_path / "g.main"
    root.mkdir()
    ring = open_ring(root)
    for i in range(6):
        ring.append(every_kind(i))
        ring.append(some(i * 10, 10))
        ring.commit(instant(i))
    ring._roll = True
    ring.commit(instant())
    request = with_root(ring.sealable(), str(root))
    ring.adopt(request, seal(request), instant())
    ring.append(some(500, 10))
    ring.commit(instant())
    crash(ring)
    ring = open_ring(root, nonce=2)
    ring.append(some(600, 10))
    ring.commit(instant())
    return root


def findings(root):
    return check_ring(root, Key()).findings


def test_a_good_ring_agrees_on_both_paths(root):
    report = check_ring(root, Key())
    assert report.findings == []
    assert report.readings == 6 * 18 + 10 + 10
    assert report.compared == 6 * 18, "every sealed reading was also seen in its block"
    assert (report.segments, report.objects) == (1, 1)


def test_rot_in_any_file_is_found(root):
    mark = RingReader(PosixReadStorage(root)).durable()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size and p.name not in ("writer", "reserve")):  # which hold nothing
        whole = path.read_bytes()
        at = len(whole) // 2 if path.suffix != ".journal" else PAGE + 100
        if path.name.endswith(f"{mark.serial:06d}.journal"):
            at = mark.end_offset - PAGE + 50
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert findings(root), f"{path.name}: byte {at}"
        path.write_bytes(whole)
    assert findings(root) == []


def test_a_segment_that_is_signed_and_says_something_else_than_its_blocks_is_found(root):
    """What no digest can see: the sealing path itself was wrong."""
    cose = next(root.glob("segments/*.cose"))
    table = pq.read_table(cose.with_suffix(".parquet"))
    index = table.schema.get_field_index("quality")
    quality = table["quality"].to_pylist()
    quality[7] = 0x80000000 if not quality[7] else 0
    import pyarrow as pa

    changed = table.set_column(index, "quality", pa.array(quality, pa.int64()))
    pq.write_table(changed, cose.with_suffix(".parquet"))
    manifest = RingReader(PosixReadStorage(root)).segment_manifest(layout.parse_segment(cose.name)[0])
    data = cose.with_suffix(".parquet").read_bytes()
    manifest = replace(manifest, payload_sha256=hashlib.sha256(data).digest(), payload_length=len(data))
    frame = seal_frame(Key(), manifest, data)
    cose.write_bytes(encode_header(manifest, frame.cose, data, 0) + frame.cose)
    [found] = findings(root)
    assert "quality" in found


def test_an_unsorted_segment_and_one_with_a_seq_twice_are_found(tmp_path):
    store = Store(tmp_path / "g.main")
    store.add(some(0, 20))
    [name] = store.seal()
    store.add(some(20, 5))
    assert findings(store.root) == []
    table = pq.read_table(store.root / name.parquet)
    for change, word in (
        (lambda t: t.take(list(range(19, -1, -1))), "sorted"),
        (lambda t: t.set_column(t.schema.get_field_index("seq"), "seq", [[0] * 20]), "seqs"),
        (lambda t: t.drop_columns(["flags"]), "columns"),
    ):
        pq.write_table(change(table), store.root / name.parquet)
        data = (store.root / name.parquet).read_bytes()
        manifest = RingReader(store.storage).segment_manifest(name)
        manifest = replace(manifest, payload_sha256=hashlib.sha256(data).digest(), payload_length=len(data))
        frame = seal_frame(Key(), manifest, data)
        store.storage.publish(name.cose, [encode_header(manifest, frame.cose, data, 0), frame.cose])
        assert any(word in found for found in findings(store.root)), word


def test_a_segment_that_a_later_generation_sealed_does_not_tell_the_end_of_its_own(tmp_path):
    root = tmp_path / "g.main"
    root.mkdir()
    ring = open_ring(root)
    ring.append(some(0, 10))
    ring.commit(instant())
    crash(ring)
    ring = open_ring(root, nonce=2)
    for i in range(20):
        ring.append(some(700 + i * 10, 10))
        ring.commit(instant())
    request = with_root(ring.sealable(), str(root))
    [name] = ring.adopt(request, seal(request), instant())
    assert name.generation != ring.generation
    assert findings(root) == []


def test_a_file_that_duckdb_refuses_does_not_speak_for_the_next(tmp_path):
    duck = Duck()
    with pytest.raises(duck.errors):
        duck.execute(f"SELECT * FROM read_parquet('{tmp_path}/nothing.parquet')")
    assert duck.execute("SELECT 1").fetchall() == [(1,)]


def test_a_hole_between_blocks_that_no_record_names_is_found(tmp_path):
    store = Store(tmp_path / "g.main")
    store.add(some(0, 5))
    store.seq += 3  # three readings that were never written
    store.add(some(5, 5))
    assert any("readings 5-7" in found for found in findings(store.root))


def test_a_broken_chain_is_found(tmp_path):
    store = Store(tmp_path / "g.main")
    store.add(some(0, 5))
    store.chain = bytes(32)
    store.add(some(5, 5))
    assert any("chain" in found for found in findings(store.root))


def test_a_payload_that_does_not_decode_is_found_though_it_is_signed(tmp_path):
    store = Store(tmp_path / "g.main")
    store.add(some(0, 5))
    payload = encode(some(5, 5))[:-1]
    good = store.frames[-1].manifest
    from tests.support.store import state_record

    manifest = replace(
        good, first_block=1, last_block=1, first_seq=5, count=5, chain_before=store.chain, state=state_record(1, 10),
        payload_sha256=hashlib.sha256(payload).digest(), payload_length=len(payload),
    )  # fmt: skip
    store.write(seal_frame(Key(), manifest, payload), 5)
    assert any("payload" in found for found in findings(store.root))


def test_another_key_is_a_finding(root):
    assert findings(root) == []
    assert check_ring(root, Key(bytes([9] * 32))).findings


def test_a_ring_that_is_written_sealed_and_evicted_meanwhile_has_no_finding(tmp_path):
    import threading

    root = tmp_path / "g.main"
    root.mkdir()
    ring = open_ring(root, max_bytes=2 * 2**20)
    for i in range(20):
        ring.append(some(i * 10, 10))
        ring.commit(instant(i))
    stop = threading.Event()
    evicted = []

    def write() -> None:
        n = 200
        while not stop.is_set():
            for _ in range(40):
                ring.append(some(n, 500))
                ring.commit(instant(n))
                n += 500
            ring._roll = True
            ring.commit(instant(n))
            while (request := ring.sealable()) is not None:
                request = with_root(request, str(root))
                ring.adopt(request, seal(request), instant(n))
            evicted.append(ring.make_room(instant(n)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(4):
            assert check_ring(root, Key()).findings == []
    finally:
        stop.set()
        writer.join()
    assert sum(evicted) > 0 or len(evicted) < 5


@pytest.mark.parametrize("older", [False, True])
def test_a_generation_of_which_only_the_mark_is_left_is_a_finding(tmp_path, older):
    if older:
        Store(tmp_path / "g.main").add(some(0, 5)).seal()
    store = Store(tmp_path / "g.main", generation=8 << 32 | 1).add(some(0, 5))
    assert check_ring(store.root, Key()).findings == []
    (store.root / store.names[0]).unlink()
    assert check_ring(store.root, Key()).findings == ["durable: speaks of generation 8-00000001, and no record of it can be read"]
