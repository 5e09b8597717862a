"""Acknowledged data that the device gives back changed, or not at all: every reading is there bit for bit or named in `lost`, no start fails,
no reason given once is ever withdrawn. Journals, `last` and `durable`; of segments the scrub and `ring check` judge. `durable` and the
newest `last` say nothing that does not stand elsewhere too: either of them may rot, and nothing is lost or forgotten by it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from buffer import layout
from buffer.frame import HEADER_BYTES, MAGIC
from tests.crash.check import Place, Violation, held, known, plain
from tests.crash.directed import JOURNAL
from tests.crash.plant import PAGE, Book, Collector, Script
from tests.crash.states import Life, live, live_of
from tests.crash.toys import TOY
from tests.support.simulated_disk import Medium, SimulatedDisk

SEALED_WITH_A_GAP = -6  # tests.crash.directed
ENDS_IN_TWO_BLOCKS = Script(10**9, 3 * JOURNAL, (("live", 2), ("gap", 1)))


def places(disk: SimulatedDisk) -> list[tuple[str, int]]:
    """Return where a bit may rot: in header, signature and payload of every block, and here and there in the rest."""
    out: list[tuple[str, int]] = []
    for path in disk.paths():
        size = len(disk.content(path))
        if path.startswith("journal/"):
            used = [at for at in range(0, size, PAGE) if any(disk.content(path)[at : at + 64])]
            out += [(path, at + inside) for at in used for inside in (1, 10, 18, HEADER_BYTES + 40, HEADER_BYTES + 200, 700) if at + inside < size]
        elif path.startswith("last/") or path == layout.DURABLE:
            out += [(path, at) for at in (0, size // 2, size - 1)]
    return out


def at_rest(life: Life) -> Medium:
    """Return the disk after a life, everything on the platter."""
    medium = Medium()
    for effect in life.log:
        if effect[0] != "note":
            medium.apply(effect)
    for inode in list(medium.data):
        medium.apply(("sync", inode))
    return medium


def marks() -> Iterator[tuple[str, str]]:
    """Yield (name, what is broken) of a life with a bit changed in each byte of `durable`, then of the newest `last` file."""
    script, life = live(SEALED_WITH_A_GAP)
    medium = at_rest(life)
    disk = SimulatedDisk(medium)
    for path in (layout.DURABLE, f"last/{disk.list(layout.LAST)[-1]}"):
        for at in range(len(disk.content(path))):
            rotten = SimulatedDisk(medium.copy())
            rotten.flip(path, at, 0x10)
            yield f"{SEALED_WITH_A_GAP}:{path}@{at}", judged(rotten, life.book, script, exact=True)


def ends() -> Iterator[tuple[str, str]]:
    """Yield (name, what is broken) of a life whose last commit has two blocks, with a bit changed here and there in the second."""
    life = live_of(ENDS_IN_TWO_BLOCKS)
    medium = at_rest(life)
    inode, offset, data = next(effect[1:] for effect in reversed(life.log) if effect[0] == "write" and effect[3].startswith(MAGIC))
    path = next(path for path, number in medium.names.items() if number == inode)
    for at in range(0, len(data.rstrip(b"\0")), 20):
        for refused in ("", "/last/"):  # without `last`, only the record of the next generation says where this one ended
            disk = SimulatedDisk(medium.copy())
            disk.flip(path, offset + at, 0x10)
            disk.calls.refused = refused
            yield f"two blocks:{path}@{offset + at} {refused}", judged(disk, life.book, ENDS_IN_TWO_BLOCKS)


def states(seed: int, most: int = 60) -> Iterator[tuple[str, str]]:
    """Yield (name, what is broken) for one life of that seed, with one or two bits changed after it."""
    seed = seed // 4 * 8  # lives without faults that evict nothing
    script, life = live(seed)
    medium = at_rest(life)
    rng = random.Random(seed)
    every = places(SimulatedDisk(medium.copy()))
    wanted = [(one,) for one in rng.sample(every, min(most, len(every)))]
    blocks = [one for one in every if one[0] != layout.DURABLE]  # an acknowledged tail that rots together with its only proof is not seen
    wanted += [tuple(rng.sample(blocks, 2)) for _ in range(most // 2)] if len(blocks) > 1 else []
    for flips in wanted:
        disk = SimulatedDisk(medium.copy())
        for path, at in flips:
            disk.flip(path, at, 0x10)
        yield f"{seed}:" + "+".join(f"{path}@{at}" for path, at in flips), judged(disk, life.book, script, flips=len(flips))


def judged(disk: SimulatedDisk, book: Book, script: Script, *, flips: int = 1, exact: bool = False) -> str:
    """Start twice and compare with the book; return what is broken. exact: nothing may be missing. flips: no more commits may miss readings."""
    try:
        lost: set[Place] = set()
        ended: Place = (0, 0)
        for nonce in (2, 3):
            before, lost, ended = ended, *_start(disk, book, script, nonce, lost, exact=exact)
            if ended < before:
                raise Violation(f"G2 the predecessor ended at {before}, and now at {ended}")
            disk = disk.after_kill()
        hit = [e.first_seq for e in book.entries if any((e.generation, e.first_seq + i) in lost for i in range(len(e.values)))]
        if len(hit) > flips:
            raise Violation(f"G2 {flips} bits changed, and readings of {len(hit)} commits are lost: those from {hit}")
    except Violation as violation:
        return str(violation)
    except Exception as error:  # noqa: BLE001 -- whatever it is, a start must not raise it
        return f"{type(error).__name__}: {error}"
    return ""


def _start(disk: SimulatedDisk, book: Book, script: Script, nonce: int, told: set[Place], *, exact: bool) -> tuple[set[Place], Place]:
    """Start, commit, compare; return what is lost, and what is said of the generation before."""
    collector = Collector(disk, script, book.copy(), nonce, 0)
    collector.ring.commit(collector.now())
    state = collector.ring.state
    assert state is not None and TOY
    found = held(disk)
    expected = {(e.generation, e.first_seq + i): v for e in book.entries for i, v in enumerate(e.values)}
    lost = {(loss.generation, seq) for loss in state.lost for seq in range(loss.first, loss.last + 1)}
    silent = sorted(p for p in expected if p not in found and p not in lost and p >= state.low)
    if silent:
        raise Violation(f"G2 silently gone: {silent[:4]}")
    if any(expected.get(place) != value for place, value in found.items()):
        raise Violation("G5 something that was never committed")
    if lost & found.keys():
        raise Violation(f"G2 lost is claimed of {sorted(lost & found.keys())[:4]}")
    if lost - expected.keys():
        raise Violation(f"G2 lost is claimed of what never was: {sorted(lost - expected.keys())[:4]}")
    facts, true = known(collector.ring), plain(book.facts(len(book.entries)))
    if exact and (lost or facts != true):
        raise Violation(f"lost {sorted(lost)[:4]}; the source is known as {facts}, should be {true}")
    if told - lost:
        raise Violation(f"G2 a loss is withdrawn: {sorted(told - lost)[:4]}")
    return lost, state.predecessor or (0, 0)


def all_states(count: int) -> Iterator[tuple[str, str]]:
    """Yield states of as many lives as it takes, after those of `marks` and `ends`."""
    return itertools.chain(marks(), ends(), itertools.islice(itertools.chain.from_iterable(states(seed) for seed in itertools.count(0, 4)), count))
