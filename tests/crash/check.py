"""What must be true of a ring after a crash, whatever was kept: asked through `RingReader` and through the ring itself.

After some number k of commits, at least those acknowledged and at most those begun, everything must be as the book says: all readings of
those k and no other, each bit for bit at its place, once (G1, G4); position, newest readings and open gaps those of the same k; no
loss named where nothing was lost, none missing that no record names (G2); `low` one that was committed or about to be (G3).
"""

from __future__ import annotations

import itertools

import numpy as np

from buffer.manifest import Manifest
from buffer.reader import RingReader
from buffer.ring import Ring
from buffer.storage import TEMPORARY_SUFFIX, PosixReadStorage
from tests.crash.plant import Book, Collector, Facts, Script, message
from tests.crash.toys import TOY, decode, unseal
from tests.support.simulated_disk import SimulatedDisk

Place = tuple[int, int]
LONG = (("live", 2), ("seal", 9), ("room", 2), ("fill", 1), ("roll", 1), ("live", 1), ("seal", 9), ("idle", 1))


class Violation(Exception):
    """A promise is broken."""


def held(storage: PosixReadStorage) -> dict[Place, int]:
    """Return every reading a reader finds, by identity; raise Violation where one identity has two contents, or no tag table."""
    reader = RingReader(storage)
    inventory = reader.inventory()
    out: dict[Place, int] = {}
    tables: set[bytes] = set()
    for before, after in itertools.pairwise(inventory.segments):
        if before.generation == after.generation and after.first <= before.last:
            message = f"G4 segments overlap at {after.generation}, {after.first}: a query counts those readings twice"
            raise Violation(message)
    for name in inventory.segments:
        frame = reader.segment_frame(name)
        if frame is not None:
            tables.add(frame.verified(TOY).manifest.tag_table_sha256)
            for seq, value in unseal(bytes(frame.payload)):
                _take(out, (name.generation, seq), value)
    for generation in sorted({j.generation for j in inventory.journals}):
        before: Manifest | None = None
        for frame in reader.blocks(inventory, generation, 0):
            m = frame.verified(TOY).manifest
            if before is not None and m.first_block != before.first_block + 1 and m.first_seq < before.end_seq:
                raise Violation("G4 blocks overlap")
            before = m
            here: dict[int, int] = {}
            if m.count:
                tables.add(m.tag_table_sha256)
                here = dict(enumerate(np.asarray(decode(frame.payload, m.count).values).tolist(), m.first_seq))
                for seq, value in here.items():
                    _take(out, (generation, seq), value)
            _position_fits(m, here)
    if any(reader.object_frame(digest) is None for digest in tables):
        raise Violation("G2 the tag table of readings is gone: they are numbers without names")
    return out


def _position_fits(manifest: Manifest, here: dict[int, int]) -> None:
    """The position in a block is that after its readings: in an earlier block, it would stand though the readings rotted away."""
    position = dict(manifest.positions).get(0)
    number = int.from_bytes(position or b"", "big")
    if not set(message(number) if number else ()) <= set(here.values()):
        text = f"G1 block {manifest.first_block} of {manifest.generation} says that message {number} is in, which stands later"
        raise Violation(text)


def announced(storage: PosixReadStorage, low: Place) -> None:
    """A .cose announces a segment: a reader that does not find the .parquet beside it takes its readings for evicted."""
    reader = RingReader(storage)
    for name in reader.inventory().segments:
        if (name.generation, name.last) >= low and reader.segment_frame(name) is None:
            message = f"G2 segment {name.parquet} is announced and not there"
            raise Violation(message)


def _take(out: dict[Place, int], place: Place, value: int) -> None:
    if out.setdefault(place, value) != value:
        message = f"G4 {place} has two contents"
        raise Violation(message)


def known(ring: Ring) -> Facts:
    """Return what the ring says of the source, in the words of the book."""
    facts = ring.known(0)
    gaps = []
    for gap in sorted(facts.gaps, key=lambda g: g.from_ns):
        before = tuple(sorted((tag, int(r.value)) for tag, r in gap.last.items()))
        first = tuple(sorted((tag, ts - 10**18) for tag, ts in gap.first_live_ns.items()))
        gaps.append((gap.from_ns, int.from_bytes(gap.progress, "big"), before, first))
    last = tuple(sorted((tag, int(r.value)) for tag, r in facts.last.items()))
    return Facts(int.from_bytes(facts.position or b"", "big"), last, tuple(gaps))  # type: ignore[arg-type]


def plain(facts: Facts) -> Facts:
    """Return facts in the shape of `known`."""
    return Facts(facts.position, facts.last, tuple((g.from_ns, g.progress, g.before, g.first) for g in facts.gaps))  # type: ignore[arg-type]


def problems(book: Book, count: int, found: dict[Place, int], ring: Ring, facts: Facts, lows: tuple[Place, ...]) -> list[str]:
    """Return what contradicts that exactly the first `count` commits happened. lows: what `low` may be beside all too low."""
    state = ring.state
    assert state is not None
    out: list[str] = []
    expected = {(e.generation, e.first_seq + i): v for e in book.entries[:count] for i, v in enumerate(e.values)}
    waiting = {place: v for place, v in expected.items() if place >= state.low}
    gone = sorted(place for place in waiting if place not in found)
    if gone:
        out.append(f"G1 committed and gone: {gone[:4]}")
    wrong = sorted(place for place, v in waiting.items() if found.get(place, v) != v)
    if wrong:
        out.append(f"G5 changed: {wrong[:4]}")
    more = sorted(place for place in found if place not in expected)
    if more:
        out.append(f"G4 never committed: {more[:4]}")
    if state.lost:
        out.append(f"G2 lost is claimed: {state.lost[:2]}")
    if len(waiting) < len(expected) and state.low not in lows:
        out.append(f"G3 low {state.low} is none of {lows}")
    if state.low > (state.generation, state.end):
        out.append(f"low {state.low} is beyond the end")
    if facts != plain(book.facts(count)):
        out.append(f"the source is known as {facts}, should be {plain(book.facts(count))}")
    return out


def examine(disk: SimulatedDisk, book: Book, lows: tuple[Place, ...], script: Script, nonce: int, *, long: bool = True) -> tuple[dict[Place, int], Book]:
    """Start after a crash, commit, check; where `long`, go on and check again. Return what was there and the book since; raise Violation."""
    book = book.copy()
    calm = Script(script.max_bytes, script.journal_bytes, LONG)
    collector = Collector(disk, calm, book, nonce, book.facts(book.acked).position)
    ring = collector.ring
    ring.commit(collector.now())
    left = [path for path in disk.paths() if path.endswith(TEMPORARY_SUFFIX)]
    if left:
        message = f"{left} is left behind, and will be for ever"
        raise Violation(message)
    found = held(disk)
    facts = known(ring)
    tried = {count: problems(book, count, found, ring, facts, lows) for count in range(len(book.entries), book.acked - 1, -1)}
    count = next((count for count, broken in tried.items() if not broken), -1)
    if count < 0:
        raise Violation("; ".join(tried[book.acked]))
    del book.entries[count:]
    book.acked = count
    disk.note(count, count, book.gaps)  # from here on that is how it was: until now, what a kill cut short could still come or go
    ends = [(e.generation, e.first_seq + len(e.values)) for e in book.entries if e.values]
    assert ring.state is not None
    if ring.state.predecessor != (max(ends) if ends else None):
        message = f"G2 predecessor {ring.state.predecessor}, should be {max(ends, default=None)}"
        raise Violation(message)
    state = ring.state
    if not long:
        return found, book
    collector.run(calm)
    low = ring.state.low
    broken = problems(book, len(book.entries), held(disk), ring, known(ring), (low,) if low > state.low else lows)
    if broken:
        raise Violation("after going on: " + "; ".join(broken))
    if script.max_bytes > 10**8 and low != state.low and state.low != (0, 0):
        raise Violation("G3 evicted though there was room")
    return found, book
