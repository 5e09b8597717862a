"""Counts what the demo promises, from the stores themselves: ring, landing, lake. Shares nothing with the processes' own counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buffer import layout
from buffer.errors import CorruptError
from buffer.intervals import Intervals
from buffer.last import decode_last
from buffer.reader import RingReader
from buffer.storage import PosixReadStorage
from gateway.completeness import account, ledger_lines
from gateway.deliver.parquet import identities
from gateway.landing import LandingReader, stream_names
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from pathlib import Path

    from buffer.manifest import StateRecord


RECORDS_MAX: Final = 10_000_000  # of one demo


@dataclass(frozen=True, slots=True)
class Ends:
    """One past the newest committed seq of every generation of a stream."""

    by_generation: dict[int, int]

    @property
    def committed(self) -> int:
        """All readings ever committed."""
        return sum(self.by_generation.values())


def committed(ring: Path) -> Ends:
    """Return what the ring says was committed, generation by generation: signed state records, and `last` where a generation has none left.

    That is one whose journals were all sealed by the next: a segment carries the newest record.
    """
    storage = PosixReadStorage(ring)
    reader = RingReader(storage)
    inventory = reader.inventory()
    newest = reader.newest(inventory)
    if newest is None or newest.state is None:
        return Ends({})
    ends = _told_by_last(storage) | {newest.generation: newest.state.end}
    state: StateRecord | None = newest.state
    while state is not None and state.predecessor is not None:
        generation, end = state.predecessor
        ends[generation] = end
        state = next((f.manifest.state for f in reader.blocks(inventory, generation, 0)), None)
        if state is None:
            manifests = (reader.segment_manifest(s) for s in inventory.segments if s.generation == generation)
            state = next((m.state for m in manifests if m is not None and m.state is not None and m.state.generation == generation), None)
    return Ends(ends)


def _told_by_last(storage: PosixReadStorage) -> dict[int, int]:
    names = [name for entry in storage.list(layout.LAST) if (name := layout.parse_last(entry)) is not None]
    if not names:
        return {}
    path = max(names).path
    return dict(decode_last(storage.read(path, 0, storage.size(path) or 0) or b"")[0].ends)


def landed(landing: Path) -> int:
    """Return how many readings the landing index holds as new."""
    reader = LandingReader(PosixReadStorage(landing))
    reader.refresh()
    return sum(last - first + 1 for lane in Lane for record in reader.records(lane, 0, RECORDS_MAX) for first, last in record.new)


def ledger(landing: Path) -> list[str]:
    """Return what `ebbgate ledger` says."""
    lines: list[str] = []
    for stream in stream_names(landing):
        reader = LandingReader(PosixReadStorage(landing / stream))
        reader.refresh()
        lines += ledger_lines(account(stream, reader.state))
    return lines


def drained(landing: Path, since_ns: int) -> bool:
    """Say whether a record committed after `since_ns` has landed and nothing that any record reported is still waiting."""
    reader = LandingReader(PosixReadStorage(landing))
    try:
        reader.refresh()
    except CorruptError:
        return False  # receive is being killed and started: the next look says more
    one = account(landing.name, reader.state)
    return one.reported_until_ns > since_ns and not one.waiting


def latencies_ms(landing: Path, quiet: list[tuple[int, int]], since_ns: int) -> list[float]:
    """Return commit to landed of live records, those committed inside `quiet` (wall ns: outages and their drains) left out.

    Where nothing was committed after `since_ns` (a short run), everything counts.
    """
    reader = LandingReader(PosixReadStorage(landing))
    reader.refresh()
    found = [(r.state.wall_ns, (r.received_ns - r.state.wall_ns) / 1e6) for r in reader.records(Lane.LIVE, 0, RECORDS_MAX)]
    live = [(at, ms) for at, ms in found if not any(a <= at <= b for a, b in quiet)]
    return sorted(ms for _, ms in [x for x in live if x[0] >= since_ns] or live)


def percentile(values: list[float], share: float) -> float | None:
    """Return the value below which `share` of the sorted values lie."""
    return round(values[min(len(values) - 1, int(len(values) * share))], 1) if values else None


@dataclass(frozen=True, slots=True)
class LakeCount:
    """What stands in the lake."""

    rows: int
    missing: int
    duplicates: int


def count_lake(lake: Path, stream: str, ends: Ends) -> LakeCount:
    """Compare every identity in the lake with what was committed."""
    rows = duplicates = 0
    seen: dict[int, Intervals] = {}
    by_generation: dict[int, list[int]] = {}
    for name, generation, seq in identities(lake):
        if name == stream:
            rows += 1
            by_generation.setdefault(generation, []).append(seq)
    for generation, seqs in by_generation.items():
        distinct = sorted(set(seqs))
        duplicates += len(seqs) - len(distinct)
        ranges = seen.setdefault(generation, Intervals())
        for seq in distinct:
            ranges.add(seq, seq)
    missing = 0
    for generation, end in ends.by_generation.items():
        held = seen.get(generation, Intervals())
        missing += sum(b - a + 1 for a, b in held.holes(0, end - 1)) if end else 0
    return LakeCount(rows, missing, duplicates)
