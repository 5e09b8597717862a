"""Segments: bytes a reading as they lie in the ring, and what sealing costs, against Parquet as pyarrow writes it by default.

A segment is sealed as in life: blocks in a journal, the child's code with all its checks (signatures, reading back past the cache, every row compared), the
encodings of each column chosen by trying. Data: the synthetic plant with ids grouped by device, with ids sorted apart from
devices, and with stamps of 100 ns; La Haute Borne; Tennessee Eastman as 64-bit and as 32-bit floats (benchmarks.data). Peers hold the
same columns (tag, ts, value by type, quality, seq) in arrival order, as somebody would write them who reads the manual of pyarrow.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import tennessee_eastman, wind
from benchmarks.harness import Report, Sample, interleave, main, median, ratio, stopwatch
from benchmarks.ingest import fresh
from benchmarks.rings import STREAM, batches, instant, open_ring, sealable
from benchmarks.workload import PER_DEVICE, TAGS, TICK_NS, Workload
from buffer import limits
from buffer.rows import make_rows
from buffer.segment import arrow_table, parquet_bytes, seal
from buffer.tagtable import Tag, TagTable
from buffer.types import Columns, Kind, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from buffer.seal import SealRequest

GOAL: Final = "value <= 1.7"
BLOCK: Final = 10_000  # readings a commit
_PEERS: Final = {"pyarrow, zstd": "zstd", "pyarrow, snappy": "snappy"}


def tag_table(names: list[str]) -> TagTable:
    """Return a table in which tag number 16 + i has the id names[i]."""
    tags = tuple(Tag(limits.TAG_NUMBER_FIRST + i, name, f"acme/ghent/{name.replace('.', '/')}", "plc") for i, name in enumerate(names))
    return TagTable(STREAM.partition(".")[0], STREAM, "acme/ghent", "UTC", ("plc",), tags)


def data_sets(report: Report) -> dict[str, tuple[Columns, list[str], str] | None]:
    """Return columns, tag ids and goal by name; None: `make bench-data` was not run."""
    most = report.options.size(limits.SEGMENT_READINGS_MAX - limits.BLOCK_READINGS_MAX, 20_000)
    by_device = [f"d{i // PER_DEVICE:02d}.t{i:04d}" for i in range(TAGS)]
    apart = [f"d{i % 20:02d}.t{i:04d}" for i in range(TAGS)]
    out: dict[str, tuple[Columns, list[str], str] | None] = {
        "synthetic": (Workload().scans(most // TAGS), by_device, GOAL),
        "synthetic_apart": (Workload().scans(most // TAGS), apart, GOAL),
        "synthetic_100ns": (Workload(resolution_ns=TICK_NS).scans(most // TAGS), by_device, ""),
    }
    for name, found in (
        ("la_haute_borne", wind(most)),
        ("tennessee_eastman_f64", tennessee_eastman(most, single=False)),
        ("tennessee_eastman_f32", tennessee_eastman(most, single=True)),
    ):
        out[name] = None if found is None else (*found, "")
    return out


def plain_table(columns: Columns, names: list[str]) -> pa.Table:
    """Return the readings as a person would put them into Arrow: arrival order, text tags, ns stamps."""
    kind = columns.kind
    texts = pa.array([columns.texts[int(v)] if k == Kind.TEXT else None for k, v in zip(kind, columns.values, strict=True)], pa.string())
    return pa.table({
        "tag": pa.array([names[i] for i in columns.tag - limits.TAG_NUMBER_FIRST]),
        "ts": pa.array(columns.ts_ns, pa.timestamp("ns", "UTC")),
        "value_double": pa.array(columns.values.view(np.float64), mask=kind != Kind.DOUBLE),
        "value_int": pa.array(columns.values.view(np.int64), mask=kind != Kind.INT64),
        "value_bool": pa.array(columns.values != 0, mask=kind != Kind.BOOL),
        "value_string": texts,
        "quality": pa.array(columns.quality),
        "seq": pa.array(np.arange(len(columns))),
    })  # fmt: skip


def run_seal(request: SealRequest, n: int) -> Sample:
    """Seal the journal; the file stays where the child leaves it."""
    samples: list[Sample] = []
    cpu = time.thread_time()
    with stopwatch(n, samples) as extra:
        result = seal(request)
    if result.error:
        raise RuntimeError(result.error)
    extra["bytes"] = sum(part.length for part in result.parts) / n
    extra["thread_us"] = (time.thread_time() - cpu) / n * 1e6
    return samples[0]


def run_plain(table: pa.Table, compression: str) -> Sample:
    """Write the table with pyarrow's defaults and this compression."""
    samples: list[Sample] = []
    sink = pa.BufferOutputStream()
    with stopwatch(len(table), samples) as extra:
        pq.write_table(table, sink, compression=compression)
    extra["bytes"] = sink.getvalue().size / len(table)
    return samples[0]


def run(report: Report) -> None:
    """Measure every data set."""
    pa.set_cpu_count(1)
    for name, found in data_sets(report).items():
        if found is None:
            report.add(name, None, "bytes/reading", absent="data not fetched: make bench-data")
            continue
        columns, names, goal = found
        one_set(report, name, columns, names, goal)


def one_set(report: Report, name: str, columns: Columns, names: list[str], goal: str) -> None:
    """Commit, seal, compare."""
    root = fresh(report.options) / "ring"
    ring = open_ring(root, table=tag_table(names))
    columns = take(columns, 0, len(columns) // BLOCK * BLOCK)
    for part in batches(columns, BLOCK):
        ring.append(part)
        ring.commit(instant())
    request = sealable(ring, root)
    if request is None:
        message = f"{name}: nothing to seal"
        raise RuntimeError(message)
    n = len(columns)
    plain = plain_table(columns, names)
    contestants: dict[str, Callable[[], Sample]] = {"ours": partial(run_seal, request, n)}
    contestants |= {peer: partial(run_plain, plain, compression) for peer, compression in _PEERS.items()}
    rounds = report.options.rounds if name == "synthetic" else 1  # bytes are the same every time
    result = interleave(rounds, contestants)
    ours = result["ours"]
    for peer in _PEERS:
        report.add(
            f"{name}.bytes.{_PEERS[peer]}", median(ours, lambda s: s.extra["bytes"]), "bytes/reading", peer=peer,
            peer_value=median(result[peer], lambda s: s.extra["bytes"]), goal=goal, readings=n, tags=len(names),
            encodings=encodings(columns, names), peer_settings=f"pyarrow.parquet.write_table, compression={_PEERS[peer]}, defaults otherwise",
        )  # fmt: skip
    if name == "synthetic":
        report.add(
            "seal_cpu", median(ours, lambda s: s.cpu_us), "us/reading", peer="pyarrow, zstd",
            peer_value=median(result["pyarrow, zstd"], lambda s: s.cpu_us), ratio=ratio(ours, result["pyarrow, zstd"], lambda s: s.cpu_us),
            seconds_per_million=median(ours, lambda s: s.wall_s) / n * 1e6,
            what="the whole sealing child: verify, decode, sort, try encodings, write, sync, read back, compare; the peer only encodes",
        )  # fmt: skip
    ring.close()


def encodings(columns: Columns, names: list[str]) -> dict[str, Any]:
    """Return what was chosen for ts, values and seq, and the bytes a reading of each."""
    rows = make_rows(columns, np.arange(len(columns)), tag_table(names), by_tag=True)
    data = parquet_bytes(arrow_table(rows, 1), {})
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    out: dict[str, Any] = {}
    for i in range(metadata.num_columns):
        column = groups[0].column(i)
        if column.path_in_schema in ("ts", "value_double", "value_int", "seq"):
            kind = "dictionary" if "RLE_DICTIONARY" in column.encodings else next(e for e in column.encodings if e != "RLE")
            out[column.path_in_schema] = f"{kind}, {sum(g.column(i).total_compressed_size for g in groups) / len(columns):.3f} B"
    return out


if __name__ == "__main__":
    main("segment", run)
