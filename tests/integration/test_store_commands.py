"""ebbgate ring check, ring export, ring info, query: over a real ring, through the command line."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from buffer.types import make_columns
from tests.integration.test_carry import ebbgate, write_configs
from tests.integration.test_upload_receive import free_port, put, seal_all
from tests.support.site import Site, instant


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"), free_port())
    ring = site.ring()
    put(ring, 0, 50)
    seal_all(ring, site.root / "ring" / site.stream)
    put(ring, 50, 50)
    ring.append(make_columns([16, 17], [10**18, 10**18 + 10**9], [3, 0], [0, 0x4004_0000_0000_0000], [0, 0], texts=("=HYPERLINK(1)",)))
    ring.commit(instant())
    write_configs(site)
    return site


@pytest.fixture
def config(site):
    return site.root / "gateway.toml"


def test_check_finds_nothing_then_the_flipped_byte(site, config):
    report = json.loads(ebbgate("ring", "check", "--config", config, "--json"))
    assert (report["findings"], report["readings"], report["segments"]) == ([], 102, 1)
    assert report["compared"] == 50
    segment = next((site.root / "ring").rglob("*.parquet"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    try:
        assert segment.stem in ebbgate("ring", "check", "--config", config, code=1)
    finally:
        segment.write_bytes(whole)
    assert "findings: 0" in ebbgate("ring", "check", "--ring", site.root / "ring" / site.stream, "--key", site.pki / "data.pub")


def test_export_by_time_and_tag_to_parquet_and_csv(site, config, tmp_path):
    ebbgate("ring", "export", "--config", config, "-o", tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.num_rows == 102
    assert set(table["tag"].to_pylist()) == {"a", "b"}
    ebbgate("ring", "export", "--config", config, "--tag", "a", "--to", "2001-09-09T01:46:40.5", "-o", tmp_path / "one.csv")
    rows = list(csv.DictReader((tmp_path / "one.csv").open()))
    assert {row["tag"] for row in rows} == {"a"}
    assert [row["value_string"] for row in rows if row["value_string"]] == ["'=HYPERLINK(1)"]
    assert len(rows) == sum(tag == "a" and ts.timestamp() < 10**9 + 0.5 for tag, ts in zip(table["tag"].to_pylist(), table["ts"].to_pylist(), strict=True))
    assert "not a time" in ebbgate("ring", "export", "--config", config, "--from", "yesterday", "-o", tmp_path / "x.csv", code=2)
    assert ".parquet or .csv" in ebbgate("ring", "export", "--config", config, "-o", tmp_path / "x.xlsx", code=2)
    turned = ("--from", "2026-11-23", "--to", "2026-11-23T00:00:00.000+00:00")
    assert "no time lies between" in ebbgate("ring", "export", "--config", config, *turned, "-o", tmp_path / "x.csv", code=2)
    mistyped = ("--tag", "a", "--tag", "no'such*")
    assert "is called no'such*\n" in ebbgate("ring", "export", "--config", config, *mistyped, "-o", tmp_path / "x.csv", code=2)
    assert not (tmp_path / "x.csv").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.parquet", "one.csv"], "nothing is left behind"


def test_info_says_what_is_there(site, config):
    facts = json.loads(ebbgate("ring", "info", "--config", config, "--json"))
    assert (facts["segments"], facts["end"], facts["lost"]) == (1, 102, [])
    assert facts["bytes"] == sum(facts["bytes_by_directory"].values())
    assert "horizon" in ebbgate("ring", "info", "--config", config, "--endurance", "150 TB")
    (site.root / "state/collect").mkdir(parents=True, exist_ok=True)
    (site.root / "state/collect/status.json").write_text(json.dumps({"stream": site.stream, "written_bytes_per_day": 10**9}))
    facts = json.loads(ebbgate("ring", "info", "--config", config, "--endurance", "365.25 GB", "--json"))
    assert facts["flash_years"] == 1.0
    assert "--endurance" in ebbgate("ring", "info", "--config", config, "--endurance", "much", code=2)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT flavour FROM readings", "value_double"),
        ("SELECT 1; SELECT 2", "one statement per call"),
        ("COPY readings TO '/tmp/x.csv'", "COPY is refused"),
        ("ATTACH '/tmp/x.db'", "ATTACH is refused"),
        ("PRAGMA database_list", "PRAGMA is refused"),
        ("SELECT * FROM nowhere", "views: readings"),
        ("SELECT * FROM read_text('/etc/passwd')", "reads the ring and nothing else"),
    ],
)
def test_mistakes_in_a_query_are_one_friendly_message(config, sql, words):
    said = ebbgate("query", sql, "--config", config, code=2)
    assert words in said
    assert "Traceback" not in said


def test_a_query_is_limited_and_written_whole(config, tmp_path):
    said = ebbgate("query", "SELECT seq FROM readings", "--config", config, "--limit", "5")
    assert "more rows than shown" in said
    assert len(said.splitlines()) == 7
    said = ebbgate("query", "SELECT seq FROM readings -- all of them", "--config", config, "-o", tmp_path / "all.csv")
    assert "102 rows" in said
    evil = f"SELECT 1) TO '{tmp_path}/evil.csv'; --"
    ebbgate("query", evil, "--config", config, "-o", tmp_path / "x.csv", code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["all.csv"]


def test_json_is_json_also_with_nan_and_infinity(config):
    sql = "SELECT 'nan'::DOUBLE AS a, '-inf'::DOUBLE AS b, ['inf'::DOUBLE, 1.5] AS c"

    def refuse(word):
        raise AssertionError(word)

    said = json.loads(ebbgate("query", sql, "--config", config, "--json"), parse_constant=refuse)
    assert said["rows"] == [["NaN", "-Infinity", ["Infinity", 1.5]]]


def test_a_plan_is_shown_as_lines(config):
    said = ebbgate("query", "EXPLAIN SELECT count(*) FROM readings", "--config", config)
    assert len(said.splitlines()) > 3 and "\ufffd" not in said


def test_a_limit_below_zero_is_refused(config):
    ebbgate("query", "SELECT 1", "--config", config, "--limit", "-1", code=2)


def test_a_ring_that_is_not_there_is_said(site, tmp_path):
    text = (site.root / "gateway.toml").read_text().replace('path = "ring"', f'path = "{tmp_path}/none"')
    (site.root / "other.toml").write_text(text)
    assert "no ring" in ebbgate("query", "SELECT 1", "--config", site.root / "other.toml", code=3)
    assert "no ring" in ebbgate("ring", "check", "--config", site.root / "other.toml", code=3)
    assert "no ring" in ebbgate("export", tmp_path, "--config", site.root / "other.toml", code=3)


def test_a_result_over_a_damaged_ring_says_what_it_lacks(tmp_path):
    site = Site(tmp_path, free_port())
    ring = site.ring()
    for first in (0, 10, 20):
        put(ring, first, 10)
    write_configs(site)
    config = tmp_path / "gateway.toml"
    assert json.loads(ebbgate("query", "SELECT count(*) FROM readings", "--config", config, "--json"))["missing"] == []
    journal = next((tmp_path / "ring").rglob("*-0000000000000000-*.journal"))
    whole = journal.read_bytes()
    at = [at for at in range(4096, len(whole), 4096) if whole[at : at + 4] == b"EBBF"][-2] + 200  # the second commit of three
    journal.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for command in (("query", "SELECT * FROM readings"), ("ring", "export", "-o", tmp_path / "x.csv")):
        said = ebbgate(*command, "--config", config)
        assert "10-19" in said
        assert "ring check" in said
    assert "10-19" in ebbgate("ring", "check", "--config", config, code=1)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            found += [int(stat.parent.name)] if int(stat.read_text().rpartition(")")[2].split()[1]) == pid else []
    return found


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not (seen := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("more", [[], ["-o", "x.csv"]])
def test_a_query_ends_with_whoever_asked_and_leaves_nothing(config, tmp_path, number, more):
    sql = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE hash(a.range, b.range) = 7"
    command = [sys.executable, "-m", "gateway.cli", "query", sql, "--config", str(config), *more]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background of a shell hears none, nor would its child
    try:
        asked = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, heard)
    try:
        (child,) = wait_for(lambda: children(asked.pid))
        wait_for(lambda: len(list(Path(f"/proc/{child}/task").iterdir())) > 1)  # DuckDB is there
        asked.send_signal(number)
        asked.wait(60)
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    finally:
        asked.kill()
        asked.wait()
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []
