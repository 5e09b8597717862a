"""Sealing: what the child makes equals the journal, and what is wrong in the journal is not laundered."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.workload import Workload
from buffer import limits, segment
from buffer.errors import CorruptError
from buffer.rows import make_rows
from buffer.seal import result_from
from buffer.segment import arrow_table, compare, parquet_bytes, seal
from buffer.tagtable import Tag, TagTable
from buffer.types import concat, empty_columns, make_columns
from tests.support.keys import Key
from tests.support.readings import columns, some
from tests.support.store import GENERATION, TABLE, Store, state_record

NAN = 0x7FF8_0000_0000_0BAD
MINUS_ZERO = 0x8000_0000_0000_0000

# ---- rows and Parquet ----


def parquet(c, first_seq=0):
    seq = np.arange(first_seq, first_seq + len(c), dtype=np.int64)
    return parquet_bytes(arrow_table(make_rows(c, seq, TABLE, by_tag=True), GENERATION), {})


@given(columns(min_size=1))
@settings(max_examples=60, deadline=None)
def test_no_value_raises_and_every_row_comes_back(c):
    compare(parquet(c, 5), c, 5, GENERATION, TABLE)


def _edit(table: pa.Table, name: str, change) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, change(table[name].combine_chunks()))


def _with_bits(bits):
    return lambda column: pa.array(np.where(np.arange(len(column)) == 0, np.uint64(bits).view(np.float64), column.to_numpy(zero_copy_only=False)))


EDITS = {
    "ts": ("ts", lambda x: pc.add(x, pa.scalar(1, pa.duration("us")))),
    "ts_ns": ("ts_ns", lambda x: pc.add(x, pa.scalar(1, pa.int16()))),
    "ts_ns out of range": ("ts_ns", lambda x: pc.subtract(x, pa.scalar(1000, pa.int16()))),
    "source lost": ("ts_source", lambda x: pa.nulls(len(x), x.type)),
    "source moved": ("ts_source", lambda x: pc.add(x, pa.scalar(1, pa.duration("us")))),
    "NaN payload": ("value_double", _with_bits(NAN + 1)),
    "sign of zero": ("value_double", _with_bits(0)),
    "double lost": ("value_double", lambda x: pa.nulls(len(x), x.type)),
    "int": ("value_int", lambda x: pc.add(x, 1)),
    "bool": ("value_bool", lambda x: pc.invert(x)),
    "string": ("value_string", lambda x: pc.utf8_upper(x.cast(pa.string()))),
    "quality": ("quality", lambda x: pc.bit_wise_xor(x, 0x80000000)),
    "flags": ("flags", lambda x: pc.bit_wise_xor(x, 1)),
    "seq": ("seq", lambda x: pc.add(x, 1)),
    "generation": ("generation", lambda x: pc.add(x.cast(pa.int64()), 1)),
    "tag": ("tag", lambda x: pc.utf8_upper(x.cast(pa.string())).dictionary_encode()),
    "path": ("path", lambda x: pc.utf8_upper(x.cast(pa.string())).dictionary_encode()),
}


@pytest.mark.parametrize("what", EDITS)
def test_the_comparison_sees_every_column(what):
    c = make_columns(
        [17, 16, 17, 16, 18, 18], [1001, 2002, 3003, 4004, 5005, 6006], [0, 0, 1, 2, 3, 5], [NAN, 0, 9, 1, 0, 1], [0] * 6, texts=("a", "b")
    )
    c = concat([make_columns([16], [7], [0], [MINUS_ZERO], [0]), replace(c, ts_source_ns=c.ts_ns + 5000)])
    data = parquet(c)
    compare(data, c, 0, GENERATION, TABLE)
    name, change = EDITS[what]
    table = _edit(pq.read_table(pa.BufferReader(data)), name, change)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    with pytest.raises(CorruptError, match="segment"):
        compare(sink.getvalue(), c, 0, GENERATION, TABLE)


def test_the_comparison_sees_order_and_missing_rows():
    c = Workload().scans(2)
    table = pq.read_table(pa.BufferReader(parquet(c)))
    backwards = pc.sort_indices(
        pa.table({"tag": table["tag"].cast(pa.string()), "seq": table["seq"]}), [("tag", "ascending"), ("seq", "descending")]
    )
    for wrong in (table.take(backwards), table.slice(1), pa.concat_tables([table, table.slice(0, 1)])):
        sink = pa.BufferOutputStream()
        pq.write_table(wrong, sink)
        with pytest.raises(CorruptError, match="segment"):
            compare(sink.getvalue(), c, 0, GENERATION, TABLE)


def test_a_segment_of_the_workload_is_small():
    w = Workload()
    table = TagTable("g", "g.main", "s", "UTC", ("p",), tuple(Tag(16 + i, f"tag{i:04d}", f"line/{i:04d}", "p") for i in range(1000)))
    c = concat([w.scans(60) for _ in range(5)])
    data = parquet_bytes(arrow_table(make_rows(c, np.arange(len(c)), table, by_tag=True), GENERATION), {})
    assert len(data) / len(c) <= 1.75  # 300,000 readings; 1.64 at 900,000 (DESIGN 11: 1.7)


# ---- the child, on journals of any shape ----


def test_empty_blocks_alone_make_no_segment(tmp_path):
    journal = Store(tmp_path).add(empty_columns()).add(empty_columns())
    assert seal(journal.request()) == result_from('{"parts": [], "error": ""}')


def test_a_file_that_would_be_too_large_is_cut_at_block_borders(tmp_path, monkeypatch):
    journal = Store(tmp_path)
    w = Workload()
    for i in range(6):
        journal.add(empty_columns() if i in (0, 3) else w.scans(1))
    whole = seal(journal.request()).parts[0]
    monkeypatch.setattr(limits, "SEGMENT_PAYLOAD_BYTES_MAX", whole.length - 1)
    parts = seal(journal.request()).parts
    assert len(parts) > 1
    assert sum(part.count for part in parts) == whole.count == 4000
    assert all(part.count and part.length < whole.length for part in parts)
    assert (parts[0].chain_before, parts[-1].chain_after) == (whole.chain_before, whole.chain_after)
    for a, b in itertools.pairwise(parts):
        assert (a.chain_after, a.last_block + 1, a.first_seq + a.count) == (b.chain_before, b.first_block, b.first_seq)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8).filter(lambda counts: sum(n > 0 for n in counts) > 1))
def test_a_cut_leaves_readings_on_both_sides(counts):
    at = segment._half([SimpleNamespace(manifest=SimpleNamespace(count=n)) for n in counts])
    assert sum(counts[:at]) > 0 and sum(counts[at:]) > 0


def test_one_block_that_makes_too_large_a_file_is_an_error_not_a_loop(tmp_path, monkeypatch):
    journal = Store(tmp_path).add(empty_columns()).add(Workload().scans(1)).add(empty_columns())
    monkeypatch.setattr(limits, "SEGMENT_PAYLOAD_BYTES_MAX", 1000)
    result = seal(journal.request())
    assert result.parts == () and "one block" in result.error
    assert list((tmp_path / "segments").iterdir()) == []


def test_two_copies_of_one_block_are_one_block(tmp_path):
    store = Store(tmp_path).add(some(0, 10))
    store.roll()  # its sync failed: the same block goes to the next journal
    store.writer.append(store.frames[0])
    store.add(some(10, 10))
    result = seal(store.request(journals=tuple(store.names), first_block=0))
    assert result.error == "" and [part.count for part in result.parts] == [20]


def test_two_different_blocks_under_one_number_are_refused(tmp_path):
    store = Store(tmp_path).add(some(0, 10))
    store.roll()
    other = Store(tmp_path / "other").add(some(5, 10))
    store.writer.append(other.frames[0])
    store.writer.sync()
    assert "two of it" in seal(store.request(journals=tuple(store.names), first_block=0)).error


WRONG = {
    "stream": (dict(stream="g.other"), "another stream"),
    "chain": (dict(chain_before=bytes(32)), "chain|continue"),
    "seq": (dict(first_seq=11, state=None), "continue"),
    "tag table": (dict(tag_table_sha256=bytes(32)), "continue"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_block_that_does_not_fit_is_not_sealed(tmp_path, what):
    changes, message = WRONG[what]
    if "state" in changes:
        changes = changes | {"state": state_record(1, 21)}
    journal = Store(tmp_path).add(some(0, 10)).add(some(10, 10), **changes)
    result = seal(journal.request())
    assert result.parts == ()
    assert re.search(message, result.error)


def test_a_first_block_that_begins_another_chain_is_not_sealed(tmp_path):
    assert "begin the chain" in seal(Store(tmp_path).add(some(0, 10), chain_before=bytes(32)).request()).error


def test_a_block_of_an_unknown_key_is_not_sealed(tmp_path):
    result = seal(Store(tmp_path, key=Key(bytes(31) + b"\1")).add(some(0, 10)).request())
    assert result.parts == () and "not known" in result.error


def test_a_payload_that_lies_about_its_readings_is_not_sealed(tmp_path):
    state = state_record(0, 9)
    journal = Store(tmp_path).add(some(0, 10), count=9, state=state)
    assert "number of readings" in seal(journal.request()).error


def test_the_child_answers_a_request_it_cannot_read():
    out = subprocess.run([sys.executable, "-m", "buffer.sealing"], input="{}\n", capture_output=True, text=True, timeout=60, check=True)
    assert "not a seal request" in result_from(out.stdout).error
