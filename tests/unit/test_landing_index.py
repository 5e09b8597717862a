"""The index read by strangers: whatever is flipped, cut or forged, a reader says CorruptError or tells less, never something else."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buffer.cose import encode_cbor
from buffer.errors import CorruptError
from buffer.intervals import Intervals
from buffer.manifest import Loss, LossReason
from gateway.landing import LandingReader, stream_names
from gateway.landing.index import (
    LANES,
    OPENINGS_MAX,
    LandingState,
    Opening,
    PartName,
    encode_entry,
    encode_part_header,
    parse_entries,
    parse_part_header,
    parse_part_name,
)
from gateway.receive.landing import Landing
from gateway.wire.receipt import Ends
from gateway.wire.request import Lane
from tests.crash.test_landing import GROUPS, arrival, play, records, runtime
from tests.support.frames import Source
from tests.support.simulated_disk import SimulatedDisk


def entry(body: bytes) -> bytes:
    return struct.pack("<4sII", b"EBBE", len(body), zlib.crc32(body)) + body


CBOR = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**64) | st.binary(max_size=33) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.integers(0, 3), inner, max_size=3),
    max_leaves=30,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5), st.lists(CBOR, max_size=18))
def test_a_forged_body_with_a_good_crc_is_an_entry_or_the_end(kind: int, rest: list) -> None:
    for found, _ in parse_entries(entry(encode_cbor([kind, *rest])), 0):
        assert not isinstance(found, bytes)


@given(st.binary(max_size=300))
def test_garbage_is_the_end(data: bytes) -> None:
    list(parse_entries(data, 0))


def test_every_flipped_byte_leaves_a_reader_with_less_or_with_an_error() -> None:
    disk = SimulatedDisk()
    play(disk, 1500)
    whole = records(LandingReader(disk))
    for path in [p for p in disk.paths() if p.startswith(("index/", "durable"))]:
        for at in range(0, len(disk.content(path)), 41):
            disk.flip(path, at, 0x11)
            reader = LandingReader(disk)
            try:
                reader.refresh()
                for lane in LANES:
                    for record in reader.records(lane, 0, 10**6):
                        assert whole[lane, record.number] == record
            except CorruptError:
                pass
            disk.flip(path, at, 0x11)
    assert records(LandingReader(disk)) == whole


def test_rotten_frames_and_objects_are_named_with_file_and_offset() -> None:
    disk = SimulatedDisk()
    play(disk)
    reader = LandingReader(disk)
    found = records(reader)
    for record in found.values():
        if not record.file:
            continue
        disk.flip(record.file, record.offset + record.length - 1, 1)
        with pytest.raises(CorruptError, match=record.file.replace(".", r"\.")):
            reader.frame(record)
        disk.flip(record.file, record.offset + record.length - 1, 1)
        reader.frame(record)
    one, two = found[Lane.LIVE, 0], found[Lane.LIVE, 1]
    import dataclasses

    with pytest.raises(CorruptError, match="not the frame that the index names"):
        reader.frame(dataclasses.replace(one, digest=two.digest))


def test_names_and_headers_come_back_and_nothing_else_is_one() -> None:
    name = PartName(3, 7 << 32 | 0x3FA91C02)
    assert parse_part_name(name.path.removeprefix("index/")) == name
    assert parse_part_header(encode_part_header(name, Ends(4, 5))) == (name, Ends(4, 5))
    for text in ("", "x", ".0000000003-0000000007-3fa91c02.tmp", "3-7-3fa91c02", "0000000003-0000000007-3FA91C02"):
        assert parse_part_name(text) is None


def test_a_summary_says_what_the_entries_said() -> None:
    state = LandingState()
    source = Source([2, 0, 3], lost=(Loss(1 << 32 | 7, 0, 0, LossReason.BIT_ROT),), predecessor=(5, 9))
    landing = Landing(SimulatedDisk(), "hall1.main", runtime())
    landing.land([arrival(*source.blocks), arrival(source.segment(0, 2))])
    state = landing.state
    (again, _), *_ = parse_entries(encode_entry(state), 0)
    assert again == state
    assert again.lost == {(1 << 32 | 7, LossReason.BIT_ROT): Intervals([(0, 0)])}
    assert again.stated_end(5) == 9 and again.stated_end(6) is None


def test_since_is_the_least_start_after_the_one_known() -> None:
    state = LandingState()
    for n, start in enumerate([Ends(0, 0), Ends(10, 2), Ends(6, 2), Ends(8, 3)], 1):
        state.open(Opening(n, start, 0))
    assert [state.since(n) for n in (1, 2, 3, 4)] == [Ends(6, 2), Ends(6, 2), Ends(8, 3), None]
    assert state.since(99) == state.since(0) == Ends(0, 0)
    for n in range(10, 10 + OPENINGS_MAX):
        state.open(Opening(n, Ends(50, 50), 0))
    assert len(state.openings) == OPENINGS_MAX
    assert state.since(4) == Ends(0, 0), "forgotten: begin at 0"


def test_a_new_landing_and_an_empty_place_are_read_as_nothing(tmp_path) -> None:
    assert stream_names(tmp_path / "absent") == [] == stream_names(tmp_path)
    reader = LandingReader(SimulatedDisk())
    assert not reader.refresh()
    assert reader.records(Lane.LIVE, 0, 9) == []
    disk = SimulatedDisk()
    Landing(disk, "hall1.main", runtime())
    reader = LandingReader(disk)
    assert reader.refresh() and reader.state.ends == Ends(0, 0) and reader.object_frame(bytes(32)) is None


def test_a_reader_that_stood_by_while_the_landing_was_restored_follows_the_new_history() -> None:
    disk = SimulatedDisk()
    landing = Landing(disk, "hall1.main", runtime(1))
    landing.land(GROUPS[0])
    yesterday = disk.after_kill()
    landing.land(GROUPS[1])
    reader = LandingReader(disk)
    reader.refresh()
    known, ends = reader.state.landing, reader.state.ends
    disk.become(yesterday)
    restored = Landing(disk, "hall1.main", runtime(2))
    restored.land(GROUPS[4])
    assert reader.refresh()
    assert reader.state == restored.state
    assert reader.state.since(known).live < ends.live
    assert [r.first_block for r in reader.records(Lane.LIVE, reader.state.since(known).live, 9)] == [6, 5]
