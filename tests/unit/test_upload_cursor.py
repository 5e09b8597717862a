"""The cursor against the plainest possible book, and its file against every kind of damage."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.upload.cursor import PIECE_BLOCKS, Cursor
from gateway.upload.memory import Memory, Parked
from gateway.upload.state import StateStore
from gateway.wire.receipt import Ends

STEPS = st.one_of(
    st.tuples(st.just("receipted"), st.integers(1, 3), st.integers(0, 60), st.integers(0, 12), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("forget"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("doubt"), st.integers(1, 3), st.integers(0, 60), st.integers(0, 12)),
    st.tuples(st.just("not_held"), st.integers(1, 3), st.integers(0, 60), st.integers(0, 12)),
    st.tuples(st.just("drop"), st.integers(1, 3), st.integers(0, 60)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_the_cursor_never_claims_or_forgets_what_a_plain_book_does_not(steps):
    cursor = Cursor()
    done: dict[tuple[int, int], Ends] = {}
    doubt: set[tuple[int, int]] = set()
    for step in steps:
        if step[0] == "receipted":
            _, generation, first, more, live, backfill = step
            cursor.receipted(generation, first, first + more, Ends(live, backfill))
            for block in range(first, first + more + 1):
                done[generation, block] = Ends(live, backfill)
                doubt.discard((generation, block))
        elif step[0] == "forget":
            since = Ends(*step[1:])
            must = {k for k, ends in done.items() if ends.live > since.live or ends.backfill > since.backfill}
            before = {k for k in done}
            cursor.forget_above(since)
            left = {k for k in before if k[1] in cursor.done(k[0])}
            assert not must & left, "something receipted above a later start is still believed"
            doubt |= before - left
            done = {k: v for k, v in done.items() if k in left}
        elif step[0] == "doubt":
            _, generation, first, more = step
            cursor.doubtful(generation, first, first + more)
            doubt |= {(generation, b) for b in range(first, first + more + 1) if (generation, b) not in done}
        elif step[0] == "not_held":
            _, generation, first, more = step
            cursor.not_held(generation, first, first + more)
            doubt -= {(generation, b) for b in range(first, first + more + 1)}
        else:
            _, generation, block = step
            cursor.drop_before(generation, block)
            done = {k: v for k, v in done.items() if k >= (generation, block)}
            doubt = {k for k in doubt if k >= (generation, block)}
        pieces = list(cursor.pieces())
        claimed = {(p.generation, b): p.ends for p in pieces for b in range(p.first, p.last + 1)}
        assert claimed.keys() == done.keys()
        assert sum(p.last - p.first + 1 for p in pieces) == len(claimed), "pieces overlap"
        assert all(claimed[k].live >= v.live and claimed[k].backfill >= v.backfill for k, v in done.items())
        assert {(g, b) for g, a, z in cursor.doubts() for b in range(a, z + 1)} == doubt
        assert all(list(cursor.done(g)) == _runs({b for gg, b in done if gg == g}) for g in (1, 2, 3))


def _runs(blocks: set[int]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if out and out[-1][1] == block - 1:
            out[-1] = (out[-1][0], block)
        else:
            out.append((block, block))
    return out


def test_a_month_of_live_receipts_stays_small_and_a_restore_costs_about_an_hour():
    cursor = Cursor()
    blocks = 200_000
    for block in range(blocks):
        cursor.receipted(1, block, block, Ends(block + 1, 0))
    assert len(list(cursor.pieces())) <= 2 * blocks // PIECE_BLOCKS + 2
    assert cursor.forget_above(Ends(blocks - 10, 0)) <= 10 + PIECE_BLOCKS


def test_a_receipt_in_backfill_above_the_start_of_its_lane_is_doubted_though_live_is_below():
    cursor = Cursor()
    cursor.receipted(1, 0, 9, Ends(5, 7))
    cursor.receipted(1, 20, 29, Ends(5, 6))
    assert cursor.forget_above(Ends(5, 6)) == 10
    assert list(cursor.done(1)) == [(20, 29)]
    assert list(cursor.doubts()) == [(1, 0, 9)]


# ---- the file ----


def memory() -> Memory:
    m = Memory(landing=5 << 32 | 9, fresh=False, conflicts=2, receipt_ns=77, restored_ns=8, restored_blocks=3, forgotten_ns=9)
    m.cursor.receipted(1 << 32 | 5, 0, 99, Ends(3, 4))
    m.cursor.doubtful(2 << 32 | 6, 7, 9)
    m.objects.add(bytes(range(32)))
    m.parked[3, 1, 2] = Parked(3, 1, 2, 4, 55)
    m.day.turn(10**18)
    m.day.sent_bytes, m.day.resent_bytes = 1000, 10
    return m


def same(a: Memory, b: Memory) -> bool:
    plain = ("landing", "objects", "parked", "day", "receipt_ns", "restored_ns", "restored_blocks", "forgotten_ns", "conflicts", "fresh")
    equal = all(getattr(a, name) == getattr(b, name) for name in plain)
    return equal and list(a.cursor.pieces()) == list(b.cursor.pieces()) and list(a.cursor.doubts()) == list(b.cursor.doubts())


def kept(path, m: Memory) -> None:
    store = StateStore(path, "hall1.main")
    store.load()
    assert store.write(store.rows(m)) == ""
    store.close()


def test_everything_comes_back_and_a_second_write_takes_away_what_went(tmp_path):
    path = tmp_path / "state.db"
    m = memory()
    kept(path, m)
    store = StateStore(path, "hall1.main")
    again = store.load()
    assert same(m, again)
    again.cursor.forget_above(Ends(0, 0))
    again.parked.clear()
    again.objects.clear()
    assert store.write(store.rows(again)) == ""
    store.close()
    assert same(again, StateStore(path, "hall1.main").load())


def test_no_file_is_a_fresh_memory(tmp_path):
    assert StateStore(tmp_path / "state.db", "hall1.main").load().fresh


@pytest.mark.parametrize("where", ["header", "page", "truncated", "text"])
def test_a_damaged_file_is_replaced_and_works_again(tmp_path, where):
    path = tmp_path / "state.db"
    m = memory()
    for i in range(0, 60_000, 10):
        m.cursor.receipted(9, i, i, Ends(i, 0))
    kept(path, m)
    data = bytearray(path.read_bytes())
    if where == "header":
        data[:16] = b"not a database.."
    elif where == "page":
        data[4096 * 3 : 4096 * 3 + 200] = bytes(200)
    elif where == "truncated":
        del data[5000:]
    else:
        data[:] = b"lost+found"
    path.write_bytes(data)
    store = StateStore(path, "hall1.main")
    assert store.load().fresh
    assert store.write(store.rows(m)) == ""
    store.close()
    assert same(m, StateStore(path, "hall1.main").load())


def test_a_row_that_says_more_was_receipted_is_not_believed(tmp_path):
    path = tmp_path / "state.db"
    kept(path, memory())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE piece SET last = last + 1000")
    assert StateStore(path, "hall1.main").load().fresh


def test_the_state_of_another_stream_is_not_believed(tmp_path):
    path = tmp_path / "state.db"
    kept(path, memory())
    assert StateStore(path, "hall2.main").load().fresh


def test_a_full_disk_is_said_and_is_not_the_end(tmp_path):
    path = tmp_path / "state.db"
    store = StateStore(path, "hall1.main")
    m = store.load()
    assert store.write(store.rows(m)) == ""
    store._open().execute("PRAGMA max_page_count = 8")
    for i in range(0, 100_000, 10):
        m.cursor.receipted(9, i, i, Ends(i, 0))
    assert "full" in store.write(store.rows(m))
    store._open().execute("PRAGMA max_page_count = 100000")
    assert store.write(store.rows(m)) == ""
    store.close()
    assert same(m, StateStore(path, "hall1.main").load())
