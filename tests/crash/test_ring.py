"""Crash enumeration of the real ring, in short; the long form is `make crash STATES=...`, the defects it must see are `make mutants`."""

from __future__ import annotations

import itertools

import pytest

from tests.crash.directed import DIRECTED
from tests.crash.rot import all_states
from tests.crash.states import replay, states
from tests.crash.toys import install
from tests.support.simulated_disk import Medium, pieces_of

STATES = 150  # of each life, at most; a few of every eighth moment


@pytest.fixture(autouse=True, scope="module")
def toys():
    """For the tests of this file alone."""
    remove = install()
    yield
    remove()


@pytest.mark.parametrize("seed", [*range(-len(DIRECTED), 6), 7, 9])
def test_nothing_acknowledged_is_lost_or_doubled_wherever_the_ring_is_crashed(seed):
    assert [found for found in itertools.islice(states(seed, 0.12), STATES) if found[1]] == []


def test_what_rots_is_named():
    assert [found for found in all_states(200) if found[1]] == []


def test_a_state_comes_back_by_its_name():
    names = [name for name, _ in itertools.islice(states(4, 0.3), 40)]
    assert any(name.count("/") > 2 for name in names), "no second crash among them"
    assert [replay(name) for name in names[::8]] == [""] * len(names[::8])


# ---- the disk itself ----


def test_a_write_is_broken_at_512_bytes_and_zeros_stay_together():
    data = b"a" * 100 + bytes(2000) + b"b"
    pieces = pieces_of(500, data)
    assert [(at, len(piece)) for at, piece in pieces] == [(500, 12), (512, 512), (1024, 1536), (2560, 41)]
    assert b"".join(piece for _, piece in pieces) == data


def test_names_and_data_have_fates_of_their_own():
    medium = Medium()
    for effect in (("name", 1, "", "a.tmp"), ("write", 1, 0, b"x" * 600), ("name", 1, "a.tmp", "a")):
        medium.apply(effect)
    name, rename, first, second = medium.pending()
    assert medium.power_cut([]).names == {}
    assert medium.power_cut([rename]).names == {}, "the change before it, of the same file, was lost"
    early = medium.power_cut([name, rename])
    assert (early.names, early.cache[1]) == ({"a": 1}, b""), "renamed before the sync: empty"
    assert medium.power_cut([name, rename, second]).cache[1] == bytes(512) + b"x" * 88
    medium.apply(("sync", 1))
    medium.apply(("sync_directory", ""))
    assert medium.power_cut([]).cache == {1: b"x" * 600}


def test_after_a_failed_sync_the_cache_lies_and_the_next_sync_succeeds():
    medium = Medium()
    for effect in (("name", 1, "", "a"), ("sync_directory", ""), ("write", 1, 0, b"x"), ("sync_failed", 1, ()), ("sync", 1)):
        medium.apply(effect)
    assert (medium.cache[1], medium.platter[1]) == (b"x", b"")
