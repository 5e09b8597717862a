"""The enumeration: lives of a collector made from seeds; every prefix of what each did to the disk; of each the kill and the power cuts
that keep all, none, each single, each pair and random subsets of what was on its way; of some of these a second crash in what came
after. Every state has a name, `seed/prefix/kept[/prefix/kept]`, that brings it back.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from buffer.errors import StorageFault
from tests.crash.check import Place, Violation, announced, examine, held
from tests.crash.directed import DIRECTED
from tests.crash.plant import PAGE, RESERVE, Book, Collector, Gone, Script
from tests.support.simulated_disk import Effect, Medium, SimulatedDisk

ACTIONS = ("live",) * 6 + ("gap", "fill", "fill", "idle", "roll", "roll", "table", "room", "seal", "seal")
MORE_ACTIONS = ("restart", "restart", "sync_fails", "no_last")  # of the lives from WIDE on: generations, and a disk that refuses now and then
WIDE = 10**6
RANDOM_SUBSETS = 8
PAIRS_MAX = 200  # beyond: random pairs; only moments with more than 20 pieces on their way
CUTS_MAX = 20
TWICE = 12  # one state in so many is crashed again
TWICE_STATES = 4
ERRNOS = (errno.EIO, errno.EIO, errno.EIO, errno.ENOSPC, errno.EMFILE)

def script_of(seed: int) -> Script:
    """Return the life of a seed: every fourth sees calls fail, every fourth a full disk, half are small and evict. Below 0: DIRECTED."""
    if seed < 0:
        return DIRECTED[-seed - 1]
    rng = random.Random(seed)
    journal = RESERVE + rng.choice((6, 9)) * PAGE
    every = (*ACTIONS, *MORE_ACTIONS) if seed >= WIDE else ACTIONS
    actions = tuple((rng.choice(every), rng.randint(1, 3)) for _ in range(rng.randint(6, 12 + 6 * (seed % 2))))
    faults: tuple[tuple[int, int], ...] = ()
    syncs: tuple[int, ...] = ()
    if seed % 4 == 1:
        faults = tuple((rng.randint(30, 120), rng.choice(ERRNOS)) for _ in range(rng.randint(0, 2)))
        syncs = tuple(rng.randint(3, 25) for _ in range(rng.randint(1, 3)))
    small = rng.choice((2, 3, 4)) * journal
    capacity = small if seed % 4 == 2 else 10**12  # noqa: PLR2004
    return Script(small if seed % 2 else 10**9, journal, actions, faults, syncs, rng.randint(0, 3), capacity)


def new_disk(medium: Medium, script: Script) -> SimulatedDisk:
    """Return a disk with the faults of a life, and its log on."""
    disk = SimulatedDisk(medium)
    disk.calls.log = []
    disk.calls.faults = dict(script.faults)
    disk.calls.sync_faults = frozenset(script.syncs)
    disk.calls.capacity = script.capacity
    disk.calls.sync_reaches = lambda count: range(0, count, script.reaches) if script.reaches else ()
    return disk


@dataclass
class Moment:
    """A prefix of a life: what the disk is like, and what was promised by then."""

    number: int
    medium: Medium
    book: Book
    lows: tuple[Place, ...]


def moments(start: Medium, log: list[Effect], book: Book, first: Book) -> Iterator[Moment]:
    """Yield every prefix. book: at the end of that life; first: at its beginning."""
    medium = start.copy()
    entries, begun, acked, gaps, low = first.entries, len(first.entries), first.acked, first.gaps, first.low
    notes = [(i, effect[4]) for i, effect in enumerate(log) if effect[0] == "note" and len(effect) > 4]
    coming = {i: low for i, low in notes}
    after: list[tuple[Place, ...]] = []
    upcoming = book.low
    for i in range(len(log) - 1, -1, -1):
        after.append((upcoming,))
        upcoming = coming.get(i, upcoming)
    after.reverse()
    for i, effect in enumerate(log):
        if effect[0] == "note":
            entries, (begun, acked, gaps) = book.entries, effect[1:4]
            low = effect[4] if len(effect) > 4 else low
        else:
            medium.apply(effect)
        if i + 1 < len(log) and log[i + 1][0] == "note":
            continue
        yield Moment(i, medium, Book(entries[:begun], acked, gaps, low), (low, *after[i]))


def subsets(n: int, rng: random.Random) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return subsets of n pieces: broad ones (all, in order and in reverse order up to some point, random), fine ones (each, each pair)."""
    broad: list[tuple[int, ...]] = [tuple(range(n))]
    if n > 2:  # noqa: PLR2004
        broad += [tuple(i for i in range(n) if rng.random() < 0.5) for _ in range(RANDOM_SUBSETS)]
        cuts = range(2, n) if n < CUTS_MAX else sorted(rng.sample(range(2, n), CUTS_MAX - 2))
        broad += [piece for i in cuts for piece in (tuple(range(i)), tuple(range(i, n)))]
    pairs = list(itertools.combinations(range(n), 2))
    fine = [(i,) for i in range(n)] + (pairs if len(pairs) <= PAIRS_MAX else rng.sample(pairs, PAIRS_MAX))
    return list(dict.fromkeys(broad)), fine


def chosen(n: int, rng: random.Random, share: float) -> list[tuple[int, ...]]:
    """Return the subsets to try, every one once, without the empty one."""
    broad, fine = subsets(n, rng)
    if share < 1:
        broad, fine = rng.sample(broad, min(len(broad), 3)), rng.sample(fine, min(len(fine), 1))
    return [kept for kept in dict.fromkeys([*broad, *fine]) if kept]


def bring_back(medium: Medium, kept: str) -> Medium:
    """Return the state of this name."""
    if kept == "kill":
        return medium.copy()
    pending = medium.pending()
    return medium.power_cut(pending[int(i)] for i in kept.split(".") if kept != "none")


@dataclass
class Life:
    """What one collector did, from a start."""

    start: Medium
    first: Book
    log: list[Effect]
    book: Book


def live(seed: int) -> tuple[Script, Life]:
    """Return the whole life of a seed; raise Violation."""
    script = script_of(seed)
    return script, live_of(script)


def live_of(script: Script) -> Life:
    """Return the whole life of a script; raise Violation."""
    start, book = Medium(), Book()
    disk = new_disk(start.copy(), script)
    try:
        Collector(disk, script, book, 1, 0).run(script)
    except Gone:
        pass  # its disk took nothing any more
    except StorageFault as fault:
        if script.capacity > 10**9 and not script.faults and not script.syncs:
            raise Violation(f"did not start: {fault}") from fault
    assert disk.calls.log is not None
    return Life(start, Book(), disk.calls.log, book)


def one(moment: Moment, medium: Medium, script: Script, nonce: int, durable: dict[Place, int] | None, *, long: bool = True) -> tuple[str, Life, dict[Place, int]]:
    """Examine one state; return what is broken ("" for nothing), the life after it, and what was there."""
    calm = Script(script.max_bytes, script.journal_bytes, ())
    disk = new_disk(medium, calm)
    start = medium.copy()
    found: dict[Place, int] = {}
    book = moment.book
    try:
        if durable is not None:
            reader(disk, moment, durable)
        found, book = examine(disk, moment.book, moment.lows, calm, nonce, long=long)
        broken = ""
    except Violation as violation:
        broken = str(violation)
    except Exception as error:  # noqa: BLE001 -- whatever it is, a start must not raise it
        broken = f"{type(error).__name__}: {error}"
    assert disk.calls.log is not None
    return broken, Life(start, moment.book, disk.calls.log, book), found


def reader(disk: SimulatedDisk, moment: Moment, durable: dict[Place, int]) -> None:
    """A reader beside the living writer: everything acknowledged, nothing that a power cut could still take back."""
    seen = held(disk)
    announced(disk, max(moment.lows))
    book = moment.book
    for place in seen:
        if place not in durable and place >= max(moment.lows):
            raise Violation(f"G2 a reader sees {place}, which is not durable")
    for entry in book.entries[: book.acked]:
        for i, value in enumerate(entry.values):
            place = (entry.generation, entry.first_seq + i)
            if place >= max(moment.lows) and seen.get(place) != value:
                raise Violation(f"G1 a reader does not see {place}, which is acknowledged")


def states(seed: int, share: float = 1.0) -> Iterator[tuple[str, str]]:
    """Yield (name, what is broken) of every state of a seed, or of a random share of the moments, with a few subsets."""
    script, life = live(seed)
    for moment in moments(life.start, life.log, life.book, life.first):
        rng = random.Random(f"{seed} {moment.number}")
        if share < 1 and rng.random() > share:
            continue
        durable: dict[Place, int] | None = None
        rest = chosen(len(moment.medium.pending()), rng, share)
        for kept in ("none", "kill", *(".".join(map(str, kept)) for kept in rest)):
            medium = bring_back(moment.medium, kept)
            name, again = f"{seed}/{moment.number}/{kept}", kept == "kill" or rng.randrange(TWICE) == 0
            broken, after, found = one(moment, medium, script, 2, durable if kept == "kill" else None, long=again)
            yield name, broken
            if kept == "none":
                durable = found if not broken else None
            if again and not broken:
                yield from twice(name, script, after, rng)


def twice(name: str, script: Script, life: Life, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield a few states of a life that began with a crash."""
    end = len(life.log) - 1
    wanted = sorted({*rng.sample(range(end), min(TWICE_STATES - 1, end)), end})
    for moment in moments(life.start, life.log, life.book, life.first):
        if not wanted or moment.number < wanted[0]:
            continue
        wanted = [n for n in wanted if n > moment.number]
        pending = moment.medium.pending()
        kept = rng.choice(("kill", "none", ".".join(str(i) for i in range(len(pending)) if rng.random() < 0.5) or "none"))
        kept = "none" if moment.number == end else kept
        broken, _, _ = one(moment, bring_back(moment.medium, kept), script, 3, None)
        yield f"{name}/{moment.number}/{kept}", broken


def replay(name: str) -> str:
    """Return what is broken in the state of this name."""
    seed, *steps = name.split("/")
    script, life = live(int(seed))
    broken = ""
    for nonce, (number, kept) in enumerate(zip(steps[::2], steps[1::2], strict=True), 2):
        moment = next(m for m in moments(life.start, life.log, life.book, life.first) if m.number == int(number))
        durable = one(moment, bring_back(moment.medium, "none"), script, nonce, None)[2] if kept == "kill" and nonce == 2 else None  # noqa: PLR2004
        broken, life, _ = one(moment, bring_back(moment.medium, kept), script, nonce, durable)
    return broken
