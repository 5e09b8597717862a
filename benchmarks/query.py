"""SQL over a full ring: one tag, one hour, out of 100 million readings.

100 sealed files of a million readings of 1,000 tags, ids sorted apart from devices: made by the writer of the sealing child, with signed
manifests, but not passed through a journal. Twelve are generated, three hours and twenty minutes in a row; the other 88 are links to those
of the twelve that hold nothing of the hour that is asked for, under names of their own: a statement must look at each of the 100 files, and
the answer stands in five of them. `statement`: the SQL alone, in an open
session of the query process, views of the product, until all rows are fetched. `command`: the whole of `ebbgate query` behind its command line: a new process that
gives up its right to write, imports DuckDB, reads the names, plans, runs, hands over the rows. Times are medians; `best_ms` is the shortest of all, what it takes
where no neighbour interferes. Peer: the same readings as pyarrow writes them by default
(arrival order, zstd), the same statement.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fabricate import Fabric
from benchmarks.harness import Report, Sample, interleave, main, median, ratio, stopwatch
from benchmarks.ingest import fresh
from benchmarks.rings import open_ring, tag_table
from benchmarks.workload import Workload
from buffer.query import QueryOptions, _connect, run_query
from buffer.rows import make_rows
from buffer.segment import arrow_table, parquet_bytes
from buffer.snapshot import stream_directories, take_snapshot
from gateway.trust.keys import create_signer

if TYPE_CHECKING:
    from collections.abc import Callable

READINGS: Final = 1_000_000  # a segment
SEGMENTS: Final = 100
DISTINCT: Final = 12  # generated, in a row; the others are links to those of them outside of the hour
GOAL_MS: Final = 50
_HOUR_FROM_S: Final = 3600  # after the first reading
_REPEAT: Final = 3  # statements a round, each for another tag: the median counts


def build(report: Report) -> tuple[Path, Path, int]:
    """Make the ring and its peer's directory; return both and the first whole second."""
    options = report.options
    readings, segments = options.size(READINGS, 10_000), options.size(SEGMENTS, 5)
    root, plain = fresh(options) / "ring", fresh(options)
    signer = create_signer(root.parent / "ring.key")
    fabric = Fabric(root, signer, readings)
    workload = Workload()
    made: list[tuple[Path, Path, bytes, bytes]] = []  # ours, theirs, the bytes and SHA-256 of ours
    first_us = 0
    for n in range(min(DISTINCT, segments)):
        columns = workload.scans(readings // 1_000)
        seq = np.arange(n * readings, (n + 1) * readings)
        ours, theirs = (arrow_table(make_rows(columns, seq, tag_table(), by_tag=by_tag), 1) for by_tag in (True, False))
        first_us = first_us or int(theirs["ts"].cast(pa.int64())[0].as_py())
        data = parquet_bytes(ours, {}, tries=_FIXED)
        digest = hashlib.sha256(data).digest()
        path = plain / f"{n:04d}.parquet"
        pq.write_table(theirs.drop_columns(["path", "ts_ns", "ts_source", "flags", "generation"]), path, compression="zstd")
        made.append((root / fabric.add(data, digest).parquet, path, data, digest))
    scans = readings // 1_000  # a second each
    outside = [one for n, one in enumerate(made) if not (n * scans <= _HOUR_FROM_S + 3600 + 60 and (n + 1) * scans >= _HOUR_FROM_S - 60)] or made
    for n in range(len(made), segments):
        path, theirs_path, data, digest = outside[n % len(outside)]
        fabric.add(data, digest, path)
        os.link(theirs_path, plain / f"{n:04d}.parquet")
    open_ring(root, signer=signer).close()
    return root, plain, first_us // 1_000_000


_FIXED: Final = {  # what trying chooses on this plant: trying 100 times would take the time of the whole benchmark
    "ts": ("PLAIN",), "ts_source": ("DELTA_BINARY_PACKED",), "value_double": ("PLAIN",), "value_int": ("DELTA_BINARY_PACKED",),
    "value_string": (), "seq": ("DELTA_BINARY_PACKED",),
}  # fmt: skip


def sql(view: str, tag: str, first_s: int, hours: float) -> str:
    """Return the statement."""
    a, b = (f"make_timestamptz({(first_s + int(h)) * 1_000_000})" for h in (_HOUR_FROM_S, _HOUR_FROM_S + hours * 3600))
    return f"SELECT ts, value FROM {view} WHERE tag = '{tag}' AND ts >= {a} AND ts < {b} ORDER BY ts"


def timed(connection: duckdb.DuckDBPyConnection, statement: Callable[[str], str], tags: list[str]) -> Sample:
    """Run the statement for each tag; wall and CPU of the median one."""
    walls: list[tuple[float, float]] = []
    rows = 0
    for tag in tags:
        samples: list[Sample] = []
        with stopwatch(1, samples):
            rows = len(connection.execute(statement(tag)).fetchall())
        walls.append((samples[0].wall_s, samples[0].cpu_s))
    walls.sort()
    return Sample(1, *walls[len(walls) // 2], {"rows": rows})


def run(report: Report) -> None:
    """Build, then measure."""
    begun = time.perf_counter()
    root, plain, first_s = build(report)
    built_s = time.perf_counter() - begun
    scratch = Path(tempfile.mkdtemp(dir=report.options.work))
    session = _connect([take_snapshot(one, scratch) for one in stream_directories(root)], scratch, QueryOptions())
    peer = duckdb.connect()
    peer.execute("SET TimeZone='UTC'").fetchall()
    peer.execute("SET threads=2").fetchall()
    peer.execute(
        "CREATE VIEW plain AS SELECT *, coalesce(value_double, value_int::DOUBLE, value_bool::INTEGER::DOUBLE) AS value "
        f"FROM read_parquet('{plain}/*.parquet')"
    ).fetchall()
    tags = [tag.id for tag in tag_table().tags]
    picked = [tags[i] for i in (43, 510, 999)[:_REPEAT]]
    total = session.execute("SELECT count(*) FROM readings").fetchall()[0][0]
    whole = "tag over all readings", 1e6

    def command() -> Sample:
        samples: list[Sample] = []
        with stopwatch(1, samples, children_cpu_s) as extra:
            extra["rows"] = len(run_query(root, sql("readings", picked[0], first_s, 1)).rows)
        return samples[0]

    contestants: dict[str, Callable[[], Sample]] = {
        "ours": lambda: timed(session, lambda tag: sql("readings", tag, first_s, 1), picked),
        "peer": lambda: timed(peer, lambda tag: sql("plain", tag, first_s, 1), picked),
        "ours all": lambda: timed(session, lambda tag: f"SELECT count(value), avg(value) FROM readings WHERE tag = '{tag}'", picked),
        "peer all": lambda: timed(peer, lambda tag: f"SELECT count(value), avg(value) FROM plain WHERE tag = '{tag}'", picked),
        "command": command,
    }
    result = interleave(report.options.rounds, contestants)
    facts: dict[str, Any] = {
        "readings": total, "segments": report.options.size(SEGMENTS, 5), "build_s": built_s, "threads": 2,
        "ring_bytes_per_reading": _size(root) / total, "peer_bytes_per_reading": _size(plain) / total,
    }  # fmt: skip
    line(report, "statement.tag_hour", result["ours"], result["peer"], f"value <= {GOAL_MS}", facts)
    line(report, "statement.tag_all", result["ours all"], result["peer all"], "", facts | {"what": whole[0]})
    report.add("command.tag_hour", median(result["command"], lambda s: s.wall_s) * 1e3, "ms", best_ms=min(s.wall_s for s in result["command"]) * 1e3,
               cpu_ms=median(result["command"], lambda s: s.cpu_s) * 1e3, rows=median(result["command"], lambda s: s.extra["rows"]),
               what="new process, landlock, imports, names, plan, answer")  # fmt: skip
    session.close()
    shutil.rmtree(scratch, ignore_errors=True)


def children_cpu_s() -> float:
    """Return what ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*.parquet"))


def line(report: Report, name: str, ours: list[Sample], theirs: list[Sample], goal: str, facts: dict[str, Any]) -> None:
    """Say the time of a statement against the peer's."""
    report.add(
        name, median(ours, lambda s: s.wall_s) * 1e3, "ms", peer="Parquet as pyarrow writes it, DuckDB",
        peer_value=median(theirs, lambda s: s.wall_s) * 1e3, ratio=ratio(ours, theirs, lambda s: s.wall_s), goal=goal,
        best_ms=min(s.wall_s for s in ours) * 1e3, peer_best_ms=min(s.wall_s for s in theirs) * 1e3, cpu_ms=median(ours, lambda s: s.cpu_s) * 1e3, peer_cpu_ms=median(theirs, lambda s: s.cpu_s) * 1e3,
        rows=median(ours, lambda s: s.extra["rows"]), **facts,
    )  # fmt: skip


if __name__ == "__main__":
    main("query", run)
