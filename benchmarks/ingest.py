"""Durable ingest: columns in, `commit` returns when they survive a power cut. The ring, signed and in its shipped codec, against other stores.

Per commit of 100, 1,000, 4,096 and 65,536 readings of the synthetic plant. Beside the ring: the same ring with columns packed by
zstandard 1 ("fast", a codec that every reader knows but no writer uses); the bare disk, which is given the ring's own frames and writes and syncs
them; and the ring with the encoding done before ("stored": chain, signature, write, sync, mark), which is what the ring adds
to the bare disk. Peers get their readings in the form their interface takes, made outside the clock; the ring encodes inside it. "split" says
where a commit's time goes: encoding, signing, writing (frame and mark), the sync, and the rest. Its sync is the bare disk's; the encode is CPU.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import split
from benchmarks.harness import Options, Report, Sample, interleave, main, median, percentile, ratio, stopwatch
from benchmarks.peers import EMBEDDED, MESSAGE, SERVERS, missing, python_values
from benchmarks.rings import batches, instant, open_ring
from benchmarks.workload import Workload
from buffer import cut
from buffer.codec import encode
from buffer.journal import Found, parse_journal_header, scan
from buffer.limits import PAGE_BYTES
from buffer.storage import PosixStorage
from buffer.types import Columns, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.peers import Peer

SIZES: Final = {100: 20_000, 1_000: 100_000, 4_096: 409_600, 65_536: 655_360}  # readings a commit -> readings a round
SERVER_SIZES: Final = (4_096, 65_536)  # a round trip per 100 readings says more about the client than about the server
GOALS: Final = {4_096: ">= 5", 65_536: ">= 8"}
FAST_GOALS: Final = {4_096: ">= 10", 65_536: ">= 18"}
WHY: Final = "median of interleaved rounds; ratio: median over the rounds"

_names = count()


def fresh(options: Options) -> Path:
    """Return an empty directory."""
    path = options.work / str(next(_names))
    path.mkdir()
    return path


# ---- contestants ----


@contextmanager
def encoder(how: Callable[[Columns], Iterator[tuple[Columns, bytes]]]) -> Iterator[None]:
    """Have the ring encode otherwise for a while."""
    shipped, cut.encode_blocks = cut.encode_blocks, how
    try:
        yield
    finally:
        cut.encode_blocks = shipped


def fast(columns: Columns) -> Iterator[tuple[Columns, bytes]]:
    """Pack with zstandard 1."""
    yield columns, encode(columns, fast=True)


def run_ring(options: Options, parts: list[Columns], how: str = "shipped") -> Sample:
    """Append and commit each part."""
    ring = open_ring(fresh(options) / "ring")
    known = {id(part): encode(part) for part in parts} if how == "stored" else {}
    encoders = {"shipped": cut.encode_blocks, "fast": fast, "stored": lambda c: iter([(c, known[id(c)])])}
    latency: list[float] = []
    samples: list[Sample] = []
    n = sum(map(len, parts))
    with encoder(encoders[how]), stopwatch(n, samples) as extra:
        for part in parts:
            begun = time.perf_counter()
            ring.append(part)
            ring.commit(instant())
            latency.append(time.perf_counter() - begun)
    extra |= {"p50_ms": percentile(latency, 0.5) * 1e3, "p99_ms": percentile(latency, 0.99) * 1e3, "bytes": ring.counters.bytes_written / n}
    ring.close()
    return samples[0]


def run_split(options: Options, parts: list[Columns]) -> Sample:
    """Append and commit each part, each stage timed: us a commit in `extra`."""
    ring = open_ring(fresh(options) / "ring")
    spent = dict.fromkeys(split.STAGES, 0.0)
    samples: list[Sample] = []
    with split.commits(ring, spent), stopwatch(sum(map(len, parts)), samples) as extra:
        for part in parts:
            ring.append(part)
            ring.commit(instant())
    ring.close()
    extra |= {stage: seconds / len(parts) * 1e6 for stage, seconds in spent.items()}
    extra["all"] = samples[0].wall_s / len(parts) * 1e6
    extra["rest"] = extra["all"] - sum(extra[stage] for stage in split.STAGES)
    return samples[0]


def frames_of(options: Options, parts: list[Columns]) -> list[bytes]:
    """Return what the ring writes for each part, padding and all."""
    root = fresh(options) / "ring"
    ring = open_ring(root)
    for part in parts:
        ring.append(part)
        ring.commit(instant())
    ring.close()
    out: list[bytes] = []
    for path in sorted((root / "journal").glob("*.journal")):
        data = path.read_bytes()
        found = list(scan(lambda at, size, data=data: data[at : at + size], parse_journal_header(data[:PAGE_BYTES]).salt, len(data)))
        bounds = [one.offset for one in found if isinstance(one, Found)]
        ends = [*bounds[1:], -(-(bounds[-1] + found[-1].frame.manifest.payload_length + 500) // PAGE_BYTES) * PAGE_BYTES]  # type: ignore[union-attr]
        out += [data[a:b] for a, b in zip(bounds, ends, strict=True)]
    return out[1:]  # the first block begins the generation


def run_bare(options: Options, frames: list[bytes], n: int) -> Sample:
    """Write and sync the same bytes, in a file that was zeroed before."""
    storage = PosixStorage(fresh(options))
    handle = storage.create("log", sum(map(len, frames)))
    samples: list[Sample] = []
    latency: list[float] = []
    spent = dict.fromkeys(split.STAGES, 0.0)
    at = 0
    with split.disk(storage, spent), stopwatch(n, samples) as extra:
        for frame in frames:
            begun = time.perf_counter()
            storage.pwrite(handle, at, frame)
            storage.fdatasync(handle)
            at += len(frame)
            latency.append(time.perf_counter() - begun)
    extra |= {"p50_ms": percentile(latency, 0.5) * 1e3, "p99_ms": percentile(latency, 0.99) * 1e3}
    extra |= {stage: spent[stage] / len(frames) * 1e6 for stage in ("write", "sync")}
    storage.close(handle)
    return samples[0]


def run_peer(options: Options, make: Callable[[Path], Peer], parts: list[Columns]) -> Sample:
    """Commit each part in another store."""
    directory = fresh(options)
    directory.chmod(0o777)  # a server may run as another user
    peer = make(directory)
    try:
        prepared, seq = [], 0
        for part in parts:
            prepared.append(peer.prepare(part, seq))
            seq += len(part)
        latency: list[float] = []
        samples: list[Sample] = []
        with stopwatch(seq, samples, peer.server_cpu_s) as extra:
            for one in prepared:
                begun = time.perf_counter()
                peer.commit(one)
                latency.append(time.perf_counter() - begun)
        extra |= {"p50_ms": percentile(latency, 0.5) * 1e3, "p99_ms": percentile(latency, 0.99) * 1e3}
    finally:
        peer.close()
    used = sum(one.stat().st_size for one in directory.rglob("*") if one.is_file())
    samples[0].extra["bytes"] = used / seq
    return samples[0]


def run_single(options: Options, columns: Columns, per_commit: int) -> Sample:
    """Add readings one at a time."""
    ring = open_ring(fresh(options) / "ring")
    values = [value == 1 if kind == Kind.BOOL else value for kind, value in zip(columns.kind.tolist(), python_values(columns), strict=True)]
    rows = list(zip(columns.tag.tolist(), columns.ts_ns.tolist(), values, columns.quality.tolist(), strict=True))
    add = ring.singly.add
    samples: list[Sample] = []
    with stopwatch(len(rows), samples):
        for first in range(0, len(rows), per_commit):
            for tag, ts, value, quality in rows[first : first + per_commit]:
                add(tag, ts, value, quality)
            ring.commit(instant())
    ring.close()
    return samples[0]


# ---- the report ----


def run(report: Report) -> None:
    """Run all sizes."""
    options = report.options
    workload = Workload()
    workload.scans(60)
    for size, full in SIZES.items():
        n = options.size(full, 4 * size)
        parts = list(batches(workload.scans(-(-n // 1_000)), size))
        one_size(report, size, parts)
    single(report, workload)


def one_size(report: Report, size: int, parts: list[Columns]) -> None:
    """Run and report commits of one size."""
    options = report.options
    frames = frames_of(options, parts)
    n = sum(map(len, parts))
    contestants: dict[str, Callable[[], Sample]] = {
        "ring": partial(run_ring, options, parts),
        "fast": partial(run_ring, options, parts, "fast"),
        "stored": partial(run_ring, options, parts, "stored"),
        "bare": partial(run_bare, options, frames, n),
        "split": partial(run_split, options, parts),
    }
    peers: dict[str, Any] = {**EMBEDDED, **(SERVERS if size in SERVER_SIZES and not options.quick else {})}
    absent = {name: why for name in peers if (why := missing(name))}
    for name in peers.keys() - absent.keys():
        contestants[name] = partial(run_peer, options, peers[name], parts)
    result = interleave(options.rounds, contestants)
    ring, bare = result["ring"], result["bare"]
    for name, make in peers.items():
        against(report, f"{size}.ring", "ring", ring, name, result.get(name), make.settings, absent, GOALS.get(size, "") if name == "SQLite" else "")
    against(report, f"{size}.fast", "ring, zstandard 1", result["fast"], "SQLite", result["SQLite"], EMBEDDED["SQLite"].settings, absent,
            FAST_GOALS.get(size, ""))  # fmt: skip
    report.add(
        f"{size}.stored", median(result["stored"], lambda s: s.per_s), "readings/s", peer="bare write + fdatasync of the same bytes",
        peer_value=median(bare, lambda s: s.per_s), ratio=ratio(result["stored"], bare, lambda s: s.per_s),
        goal="ratio >= 0.9" if size in GOALS else "", what="ring with the encoding done before: chain, signature, write, sync, mark", how=WHY,
    )  # fmt: skip
    report.add(
        f"{size}.whole", median(ring, lambda s: s.per_s), "readings/s", peer="bare write + fdatasync of the same bytes",
        peer_value=median(bare, lambda s: s.per_s), ratio=ratio(ring, bare, lambda s: s.per_s), what="ring, encoding included", how=WHY,
    )  # fmt: skip
    report.add(
        f"{size}.commit_p99", median(ring, lambda s: s.extra["p99_ms"]), "ms", peer="bare write + fdatasync of the same bytes",
        peer_value=median(bare, lambda s: s.extra["p99_ms"]), ratio=ratio(ring, bare, lambda s: s.extra["p99_ms"]),
        p50_ms=median(ring, lambda s: s.extra["p50_ms"]), peer_p50_ms=median(bare, lambda s: s.extra["p50_ms"]), how=WHY,
    )  # fmt: skip
    stages = {f"{stage}_us": median(result["split"], lambda s, stage=stage: s.extra[stage]) for stage in (*split.STAGES, "rest")}
    report.add(
        f"{size}.split", median(result["split"], lambda s: s.extra["all"]), "us/commit", peer="bare write + fdatasync of the same bytes",
        peer_value=median(bare, lambda s: s.wall_s / len(frames) * 1e6), ratio=ratio(result["split"], bare, lambda s: s.wall_s), **stages,
        **{f"peer_{stage}_us": median(bare, lambda s, stage=stage: s.extra[stage]) for stage in ("write", "sync")}, how=WHY,
    )  # fmt: skip


def against(
    report: Report, name: str, what: str, ours: list[Sample], peer: str, theirs: list[Sample] | None, settings: str, absent: dict[str, str],
    goal: str,
) -> None:  # fmt: skip
    """Say readings a second of two contestants, with CPU and bytes beside."""
    measured = theirs is not None
    report.add(
        f"{name}.{peer.split()[0].lower()}", median(ours, lambda s: s.per_s), "readings/s", peer=peer,
        peer_value=median(theirs, lambda s: s.per_s) if theirs else None, ratio=ratio(ours, theirs, lambda s: s.per_s) if theirs else None,
        goal=f"ratio {goal}" if goal else "", what=what, peer_settings=settings, how=WHY, cpu_us=median(ours, lambda s: s.cpu_us),
        bytes_per_reading=median(ours, lambda s: s.extra["bytes"]),
        **({"peer_cpu_us": median(theirs, lambda s: s.cpu_us), "cpu_ratio": ratio(ours, theirs, lambda s: s.cpu_us),
            "peer_bytes_per_reading": median(theirs, lambda s: s.extra["bytes"])} if theirs else {}),
        **({} if measured else {"absent": absent[peer]}),
    )  # fmt: skip


def single(report: Report, workload: Workload) -> None:
    """Readings handed over one at a time."""
    options = report.options
    size = 4_096
    columns = workload.scans(options.size(40, 5))
    parts = list(batches(columns, min(size, len(columns))))
    result = interleave(
        options.rounds,
        {"single": partial(run_single, options, columns, size), "SQLite": partial(run_peer, options, EMBEDDED["SQLite"], parts)},
    )
    report.add(
        "single", median(result["single"], lambda s: s.per_s), "readings/s", peer="SQLite",
        peer_value=median(result["SQLite"], lambda s: s.per_s), ratio=ratio(result["single"], result["SQLite"], lambda s: s.per_s),
        what=f"one call per reading (Ring.singly.add), commit per {size}", peer_settings=EMBEDDED["SQLite"].settings,
        cpu_us=median(result["single"], lambda s: s.cpu_us), how=WHY, message=MESSAGE,
    )  # fmt: skip


if __name__ == "__main__":
    main("ingest", run)
