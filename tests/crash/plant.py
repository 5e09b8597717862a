"""What stands on both sides of the ring in the crash enumeration: a source that resends what nobody acknowledged, a collector that acts
by the rules of DESIGN section 5, and the book: what a commit would make true, and which commits were acknowledged.

The source has no state: message n always carries the same readings, and after a crash it sends again everything above the last
position it was told. Live values count from 0; the history of a gap has values of its own. No value ever occurs twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from buffer import limits
from buffer.cut import Built
from buffer.errors import CorruptError, StorageFault
from buffer.manifest import StateRecord
from buffer.ring import Instant, Ring, RingOptions
from tests.crash.toys import STREAM, TABLES, TOY, columns_of, seal, tag_of
from tests.support.simulated_disk import SimulatedDisk

PAGE = 4096
RESERVE = 2 * PAGE
HISTORY = 3  # readings that the source's historian has for every gap
HISTORY_FROM = 10**6
TRIES = 3
BESIDE = 3  # how often an action is done where other things come in between
HOUR_NS = 3_600 * 10**9


def message(number: int) -> tuple[int, ...]:
    """Return the readings of a message, 0 to 3 of them."""
    return tuple(range(number * 4, number * 4 + (number * 7 + number // 3) % 4))


def place(number: int) -> bytes:
    """Return the position behind a message. Every other one is long, so that its block takes two sectors and can be torn inside its payload."""
    return number.to_bytes(limits.POSITION_BYTES_MAX if number % 2 else 4, "big")


def history(gap: int) -> tuple[int, ...]:
    """Return what the historian has for the gap with this `from_ns`."""
    return tuple(range(HISTORY_FROM + gap * HISTORY, HISTORY_FROM + (gap + 1) * HISTORY))


@dataclass(frozen=True)
class GapFacts:
    """An open gap, as it must be known after a restart."""

    from_ns: int
    progress: int
    before: tuple[tuple[int, int], ...]  # tag, newest live value before it
    first: tuple[tuple[int, int], ...] = ()  # tag, first live value after it


@dataclass(frozen=True)
class Facts:
    """What is known of the source after some commit."""

    position: int = 0  # messages up to this one are in
    last: tuple[tuple[int, int], ...] = ()  # tag, newest live value
    gaps: tuple[GapFacts, ...] = ()

    def live(self, position: int, values: tuple[int, ...]) -> Facts:
        """Return the facts after live readings."""
        last, gaps = dict(self.last), []
        for v in values:
            last[tag_of(v)] = v
        for gap in self.gaps:
            first = dict(gap.first)
            for v in values:
                first.setdefault(tag_of(v), v)
            gaps.append(replace(gap, first=tuple(sorted(first.items()))))
        return Facts(position, tuple(sorted(last.items())), tuple(gaps))


@dataclass(frozen=True)
class Entry:
    """One commit: its readings stand at (generation, first_seq...) in this order."""

    generation: int
    first_seq: int
    values: tuple[int, ...]
    facts: Facts


@dataclass
class Book:
    """entries: commits begun, in order. acked: how many were acknowledged. low: of the newest acknowledged record."""

    entries: list[Entry] = field(default_factory=list)
    acked: int = 0
    gaps: int = 0  # numbers given to gaps
    low: tuple[int, int] = (0, 0)

    def copy(self) -> Book:
        return Book(list(self.entries), self.acked, self.gaps, self.low)

    def facts(self, count: int) -> Facts:
        """Return what is known after the first `count` commits."""
        return self.entries[count - 1].facts if count else Facts()


@dataclass(frozen=True)
class Change:
    """A buffer.cut.GapChange."""

    step: str
    id: int = 0
    from_ns: int = 0
    progress: bytes = b""


@dataclass(frozen=True)
class Script:
    """One life of a collector. actions: (what, how much). faults: number of a call -> errno. syncs: numbers of syncs that fail."""

    max_bytes: int
    journal_bytes: int
    actions: tuple[tuple[str, int], ...]
    faults: tuple[tuple[int, int], ...] = ()
    syncs: tuple[int, ...] = ()
    reaches: int = 0  # of a failed sync: every how many-th piece made it, 0 none
    capacity: int = 10**12


class Gone(Exception):
    """The collector gave up: its disk takes nothing any more. Whatever it was told stays true."""


class Collector:
    """Owns a ring for one life. `disk.calls.log` gets a note whenever the book changes."""

    def __init__(self, disk: SimulatedDisk, script: Script, book: Book, nonce: int, told: int) -> None:
        self.disk = disk
        self.book = book
        self.told = told  # the source was told: up to here
        self._clock = itertools.count(nonce * 10**6)
        self._late = 0
        self._table = 0
        self._nonce = nonce
        self._salts = itertools.count(nonce * 1000 + 1)
        self._options = RingOptions(STREAM, script.max_bytes, script.journal_bytes, reserve_bytes=RESERVE)
        self.ring = self._open()

    def _open(self) -> Ring:
        ring = Ring.open(self.disk, self._options, TOY, TOY, self.now(), self._nonce, lambda: next(self._salts))
        ring.use_table(TABLES[0])
        acknowledge = ring._acknowledge

        def noted(built: Sequence[Built]) -> None:
            acknowledge(built)
            self._note_low(ring.state)  # one commit may evict more than once before it has its room

        ring._acknowledge = noted  # type: ignore[method-assign]
        return ring

    def now(self) -> Instant:
        """The wall clock is wrong by years, back and forth: nothing may depend on it."""
        n = next(self._clock)
        return Instant((n * 7_919 % 61 - 30) * 365 * 86_400 * 10**9, n + self._late, bytes(16), False)

    def begin(self) -> None:
        """The first commit of a generation."""
        self._commit((), self.facts)

    @property
    def facts(self) -> Facts:
        """As of the newest commit that was acknowledged."""
        return self.book.facts(len(self.book.entries))

    def run(self, script: Script) -> None:
        """Live; raise Gone where the disk is of no use any more."""
        self.begin()
        for what, how in script.actions:
            try:
                self.act(what, how)
            except StorageFault:
                pass  # everything but a commit is tried again at its next turn, as collect does

    def act(self, what: str, how: int) -> None:
        """Do one thing; raise StorageFault, Gone."""
        getattr(self, "_do_" + what)(how)

    def _commit(self, values: tuple[int, ...], facts: Facts) -> None:
        book, ring = self.book, self.ring
        book.entries.append(Entry(ring.generation, ring._chain.seq, values, facts))
        self.disk.note(len(book.entries), book.acked, book.gaps)
        for attempt in range(TRIES):
            try:
                ring.commit(self.now())
                break
            except StorageFault as fault:
                if attempt + 1 == TRIES:
                    self._note_low(ring._unsynced[-1].frame.manifest.state if ring._unsynced else ring.state)
                    raise Gone from fault
        book.acked = len(book.entries)
        self.told = facts.position
        self._room()

    def _room(self) -> None:
        """After every commit, as collect does."""
        book, state = self.book, self.ring.state
        assert state is not None
        book.low = state.low
        self.disk.note(len(book.entries), book.acked, book.gaps, book.low)
        try:
            self.ring.make_room(self.now())
        except StorageFault:
            pass  # tried again after the next commit
        self._note_low(self.ring.state)

    def _note_low(self, state: StateRecord | None) -> None:
        """Note an eviction since the last note: committed, or written when the collector gave up, for what its syncs left may be all there."""
        book = self.book
        if state is not None and state.low != book.low:
            book.low = state.low
            self.disk.note(len(book.entries), book.acked, book.gaps, book.low)

    # ---- actions ----

    def _do_live(self, how: int) -> None:
        """Take the next messages, each a batch of its own, into one commit."""
        facts, values = self.facts, ()
        for _ in range(how):
            number = facts.position + 1
            some = message(number)
            self.ring.append(columns_of(some), 0, place(number))
            facts, values = facts.live(number, some), values + some
        self._commit(values, facts)

    def _do_gap(self, how: int) -> None:
        """Something before it, then the first readings after an outage: the gap is open before they are committed."""
        facts, values, book = self.facts, (), self.book
        if how % 2:
            values = message(facts.position + 1)
            self.ring.append(columns_of(values), 0, place(facts.position + 1))
            facts = facts.live(facts.position + 1, values)
        book.gaps += 1
        older = tuple(replace(g, first=tuple(sorted((dict(g.before) | dict(g.first)).items()))) for g in facts.gaps)  # the new one owes the rest
        facts = replace(facts, gaps=(*older, GapFacts(book.gaps, 0, facts.last)))
        number = facts.position + 1
        some = message(number)
        self.ring.append(columns_of(some), 0, place(number), Change("open", from_ns=book.gaps))
        self._commit(values + some, facts.live(number, some))

    def _do_fill(self, how: int) -> None:
        """History of the oldest open gap, and with it how far that came; live readings in the same commit."""
        known = self.ring.known(0).gaps
        if not known:
            return
        gap = known[0]
        facts = self.facts
        done = int.from_bytes(gap.progress, "big")
        some = history(gap.from_ns)[done : done + 1 + how % 2]
        upto = done + len(some)
        step = "filled" if upto == HISTORY else "progress"
        self.ring.append(columns_of(some), 0, None, Change(step, gap.id, progress=upto.to_bytes(2, "big")))
        gaps = tuple(replace(g, progress=upto) if g.from_ns == gap.from_ns else g for g in facts.gaps)
        facts = replace(facts, gaps=tuple(g for g in gaps if g.progress < HISTORY))
        live = message(facts.position + 1) if how % 3 else ()
        if how % 3:
            self.ring.append(columns_of(live), 0, place(facts.position + 1))
            facts = facts.live(facts.position + 1, live)
        self._commit(some + live, facts)

    def _do_sync_fails(self, how: int) -> None:
        """Have one of the next syncs fail: 1, the very next."""
        calls = self.disk.calls
        calls.sync_faults |= {calls.syncs + how - 1}

    def _do_no_last(self, how: int) -> None:
        """Have no `last` file written from here on; an even number: written again."""
        self.disk.calls.refused = "/last/" if how % 2 else ""

    def _do_restart(self, how: int) -> None:
        """Stop where nothing waits, and start: the next generation, on what the cache shows."""
        try:
            self.ring = self._open()
        except StorageFault as fault:
            raise Gone from fault
        self._table = 0
        self.begin()

    def _do_idle(self, how: int) -> None:
        self._commit((), self.facts)

    def _do_roll(self, how: int) -> None:
        """Have the next commit begin a journal; 3: in a file made for it beforehand."""
        self.ring._roll = True
        number = self.ring.spare.wanted() if how == BESIDE else None
        if number is not None and self.ring.spare.make(number):
            self.ring.spare.add(number)

    def _do_table(self, how: int) -> None:
        if self.ring._unsynced or self.ring._pending:
            return
        self._table = 1 - self._table
        self.ring.use_table(TABLES[self._table])

    def _do_room(self, how: int) -> None:
        self._late += HOUR_NS * how
        self._room()

    def _do_seal(self, how: int) -> None:
        """Seal so many journals; 3: with a commit, which may evict, between what is published beside commits and what is counted."""
        for _ in range(how):
            request = self.ring.sealable()
            if request is None:
                return
            try:
                published = self.ring.publish_sealed(request, seal(self.disk, request))
                if how == BESIDE:
                    self._do_live(2)
                self.ring.admit(request, published, self.now())
            except CorruptError as error:
                self.ring.seal_failed(request, str(error))
