"""Which holes a ring has: between neighbours, by the source's time, whole, and never where nobody can say any more what was held."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from buffer.types import Flag, Kind
from gateway.errors import ConfigError
from gateway.fillplan import check_window, fillable, find_holes, moment_of
from gateway.settings import SECOND, Clock, ModbusSource, OpcuaSource, TagRow
from tests.support.readings import build
from tests.support.site import Site, instant

S = SECOND
BEGIN = 1_700_000_000 * S
ROWS = tuple(TagRow(name, f"x/{name}", "p", f"ns=1;s={name}", every_ns=S, number=number) for number, name in ((16, "a"), (17, "b"), (18, "c")))
SOURCE = OpcuaSource("p", ("opc.tcp://127.0.0.1:1",), history_fill_ns=100 * S, clock=Clock(max_skew_ns=S), tags=ROWS)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, 0)


def put(site: Site, *rows: tuple[int, int, int, int | None]) -> None:
    """Commit readings (tag, ts, flags, ts_source), times from BEGIN."""
    ring = site.ring()
    full = [(tag, BEGIN + ts, Kind.DOUBLE, 0, 0, flags, None if source is None else BEGIN + source) for tag, ts, flags, source in rows]
    ring.append(build(full, ()), 0)
    ring.commit(instant())
    ring.close()


def holes(site: Site, begin: int, end: int, longer: int = 2 * S, source: OpcuaSource = SOURCE) -> dict[str, list[tuple[int, int]]]:
    found = find_holes(site.root / "ring" / site.stream, source, BEGIN + begin, BEGIN + end, longer)
    return {tag: [(after - BEGIN, before - BEGIN) for after, before in pairs] for tag, pairs in found.items()}


def test_a_hole_lies_between_neighbours_and_is_taken_whole(site: Site) -> None:
    put(site, (16, 5 * S, 0, None), (16, 6 * S + 100, 0, None), (16, 20 * S, 0, None), (16, 22 * S, 0, None), (16, 90 * S, 0, None), (17, 50 * S, 0, None))
    found = holes(site, 10 * S, 30 * S)
    assert found["a"] == [(6 * S + 100, 20 * S), (22 * S, 90 * S)], "2 s are not longer than 2 s; times below a microsecond are kept"
    assert found["b"] == [(10 * S - 1, 50 * S)], "nothing before it: the window is its beginning"
    assert found["c"] == [(10 * S - 1, 30 * S)], "nothing at all: the window"
    assert "a" not in holes(site, 20 * S, 22 * S), "what only touches the window is not in it"
    slow = replace(SOURCE, tags=tuple(replace(row, every_ns=10 * S) for row in ROWS))
    assert holes(site, 10 * S, 30 * S, source=slow)["a"] == [(22 * S, 90 * S)], "less than two samplings is no hole"


def test_markers_and_repetitions_hold_nothing_and_the_source_s_time_counts(site: Site) -> None:
    put(site, (16, 0, 0, None), (16, 5 * S, int(Flag.MARKER), None), (16, 6 * S, int(Flag.REPEATED), 0), (16, 40 * S, int(Flag.TIME_SUBSTITUTED), 10 * S + 100))
    assert holes(site, 1 * S, 9 * S)["a"] == [(0, 10 * S)], "a source time is kept to the microsecond, the end of a hole is not after it"
    assert holes(site, 11 * S, 20 * S)["a"] == [(10 * S + 1000, 20 * S)], "and its beginning not before it"


def test_too_many_holes_are_not_cut_off_in_silence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.fillplan.HOLES_MAX", 2)
    put(site, *((16, n * 5 * S, 0, None) for n in range(9)))
    with pytest.raises(ConfigError, match="more than 2 holes"):
        holes(site, 0, 40 * S)


def test_what_the_ring_has_evicted_is_not_asked_for(site: Site) -> None:
    put(site, (16, 0, 0, None))
    root = site.root / "ring" / site.stream
    generation, since_ns = moment_of(root, SOURCE, 0)
    assert generation.startswith("1-") and since_ns > 0, "nothing was ever evicted: any time will do"
    ring = site.ring(2)
    ring._room.low = (ring.generation, 0)
    ring.commit(instant())
    ring.close()
    with pytest.raises(ConfigError, match="reaches back to"):
        moment_of(root, SOURCE, 0)
    assert moment_of(root, SOURCE, instant().wall_ns + 2 * S)[0].startswith("2-")


@pytest.mark.parametrize(
    ("begin", "end", "why"), [(5, 5, "not before"), (5, 1001, "in the future"), (5, 106, "longer than history_fill = 100s of p")]
)  # fmt: skip
def test_windows_that_are_none(begin: int, end: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_window(SOURCE, begin * S, end * S, 1000 * S)
    check_window(SOURCE, 5 * S, 105 * S, 1000 * S)


def test_sources_that_cannot_be_filled(site: Site) -> None:
    settings = replace(site.gateway(1), sources=(SOURCE, ModbusSource("m", "modbus-tcp", "127.0.0.1:1"), replace(SOURCE, name="q", history_fill_ns=0)))
    assert fillable(settings, "p") is SOURCE
    for name, why in (("x", "no source 'x'\n  Sources here: p, m, q"), ("m", "keeps no history"), ("q", "history_fill = 0")):
        with pytest.raises(ConfigError, match=why):
            fillable(settings, name)
