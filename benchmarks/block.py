"""Blocks: bytes a reading as they travel (manifest and signature included), and what encoding and decoding costs.

Batches of 1,000, 10,000 and 60,000 readings of the synthetic plant, and of its sibling with stamps of 100 ns; of 1,000 and 10,000 of real
data (benchmarks.data). Peers: the same readings as InfluxDB line protocol and as a Sparkplug B payload, each through gzip 6, as their
clients do. Sizes are means over the batches of a round; they do not depend on the machine.
"""

from __future__ import annotations

import gzip
import itertools
import time
from collections.abc import Callable  # of a value
from functools import partial
from typing import Final

from benchmarks.data import tennessee_eastman, wind
from benchmarks.harness import Report, Sample, interleave, main, median, ratio, stopwatch
from benchmarks.ingest import fresh
from benchmarks.lines import line_protocol, sparkplug
from benchmarks.rings import batches, instant, open_ring
from benchmarks.workload import MILLISECOND_NS, TICK_NS, Workload
from buffer.codec import decode, encode
from buffer.types import Columns

SIZES: Final = {1_000: 20, 10_000: 6, 60_000: 3}  # readings a block -> blocks a round
GOALS: Final = {1_000: 3.0, 10_000: 1.2}  # bytes a reading, DESIGN section 11
CPU_GOALS: Final = {1_000: 0.53, 10_000: 0.14, 60_000: 0.11}  # us a reading: what pcodec alone took when the goals were set
MANIFEST_MAX: Final = 400
FLOORS: Final = {"ms": "0.52: order-0 entropy of simple predictors", "100ns": "1.26: order-0 entropy of simple predictors"}
REAL: Final[dict[str, Callable[[int], tuple[Columns, list[str]] | None]]] = {
    "la_haute_borne": wind,
    "tennessee_eastman_f64": partial(tennessee_eastman, single=False),
    "tennessee_eastman_f32": partial(tennessee_eastman, single=True),
}


def wire_bytes(report: Report, parts: list[Columns]) -> tuple[float, float]:
    """Return the mean bytes of frames that the ring makes of `parts`, and of what is not payload."""
    root = fresh(report.options) / "ring"
    ring = open_ring(root)
    frames: list[int] = []
    acknowledge = ring._acknowledge

    def spy(built):  # type: ignore[no-untyped-def]
        frames.extend(len(one.frame.wire()) for one in built)
        acknowledge(built)

    ring._acknowledge = spy  # type: ignore[method-assign]
    before = ring.counters.payload_bytes
    for part in parts:
        ring.append(part, 0, bytes(16))  # a source's position travels with each
        ring.commit(instant())
    payload = ring.counters.payload_bytes - before
    ring.close()
    return sum(frames) / len(parts), (sum(frames) - payload) / len(parts)


def timed(what: str, parts: list[Columns], payloads: list[bytes]) -> Sample:
    """Encode or decode every part once, on this thread's CPU clock."""
    samples: list[Sample] = []
    best = [0.0] * len(parts)
    with stopwatch(sum(map(len, parts)), samples) as extra:
        for i, (part, payload) in enumerate(zip(parts, payloads, strict=True)):
            begun = time.thread_time()
            if what == "encode":
                encode(part)
            else:
                decode(payload, len(part))
            best[i] = (time.thread_time() - begun) / len(part)
    extra["us"] = sorted(best)[len(best) // 2] * 1e6
    return samples[0]


def run(report: Report) -> None:
    """Measure all sizes at both resolutions."""
    for resolution, label in ((MILLISECOND_NS, "ms"), (TICK_NS, "100ns")):
        workload = Workload(resolution_ns=resolution)
        workload.scans(60)
        for size, blocks in SIZES.items():
            number = report.options.size(blocks, 1)
            parts = list(itertools.islice(batches(workload.scans(number * size // 1_000), size), number))
            sizes(report, label, size, parts)
            if label == "ms":
                times(report, size, parts)
    real(report)


def real(report: Report) -> None:
    """Report bytes a reading of data that nobody here made up."""
    for label, load in REAL.items():
        found = load(max(size * blocks for size, blocks in SIZES.items()))
        if found is None:
            report.add(f"{label}.bytes", None, "bytes/reading", absent="its data is not here: make bench-data")
            continue
        for size in GOALS:
            sizes(report, label, size, list(itertools.islice(batches(found[0], size), report.options.size(SIZES[size], 1))))


def sizes(report: Report, label: str, size: int, parts: list[Columns]) -> None:
    """Report bytes a reading."""
    ours, head = wire_bytes(report, parts)
    goal = f"value <= {GOALS[size]}" if label == "ms" and size in GOALS else ""
    for peer, form in (("InfluxDB line protocol, gzip 6", partial(line_protocol, unit_ns=1 if label != "ms" else MILLISECOND_NS)), ("Sparkplug B payload, gzip 6", sparkplug)):
        theirs = sum(len(gzip.compress(form(part), 6, mtime=0)) for part in parts) / len(parts)
        report.add(
            f"{label}.{size}.bytes.{peer.split()[0].lower()}", ours / size, "bytes/reading", peer=peer, peer_value=theirs / size, goal=goal,
            frame_bytes_beside_payload=head, blocks=len(parts), **({"floor": FLOORS[label]} if label in FLOORS else {}),
        )  # fmt: skip
    if label == "ms" and size == min(SIZES):
        report.add("manifest", head, "bytes", goal=f"value <= {MANIFEST_MAX}", what="header, manifest and signature, one changed position, no losses")


def times(report: Report, size: int, parts: list[Columns]) -> None:
    """Report CPU a reading."""
    payloads = [encode(part) for part in parts]

    def influx() -> Sample:
        samples: list[Sample] = []
        begun = time.thread_time()
        with stopwatch(len(parts[0]), samples) as extra:
            gzip.compress(line_protocol(parts[0]), 6)
        extra["us"] = (time.thread_time() - begun) / len(parts[0]) * 1e6
        return samples[0]

    result = interleave(report.options.rounds, {
        "encode": lambda: timed("encode", parts, payloads), "decode": lambda: timed("decode", parts, payloads), "influx": influx,
    })  # fmt: skip
    for what in ("encode", "decode"):
        report.add(
            f"ms.{size}.{what}_cpu", median(result[what], lambda s: s.extra["us"]), "us/reading", peer="InfluxDB line protocol + gzip 6, encode",
            peer_value=median(result["influx"], lambda s: s.extra["us"]),
            ratio=ratio(result[what], result["influx"], lambda s: s.extra["us"]),
            goal=f"value <= {CPU_GOALS[size]}" if what == "encode" else "", how="median over blocks, then over rounds, CPU time of the thread",
        )  # fmt: skip


if __name__ == "__main__":
    main("block", run)
