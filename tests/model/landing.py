"""Receiver, receipts, restore from backup, deliver: once in the target, and what a restored receiver lost is offered again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.model import ties
from tests.model.kernel import Model, Step

BATCHES: dict[str, tuple[int, tuple[int, ...]]] = {  # lane (0 live, 1 backfill), readings
    "block0": (0, (0,)), "block1": (0, (1,)), "segment01": (1, (0, 1))}
Entry = tuple[str, tuple[int, ...]]  # batch, new


class Receipt(NamedTuple):
    batch: str
    lane: int
    n: int  # landing number; -1: nothing new was stored
    high: tuple[int, int]  # landing numbers in use, per lane
    seen: tuple[int, int]  # what the uploader had seen when it asked
    asked: int  # landing generation the uploader knew when it asked
    landing: int  # landing generation that answers
    since: tuple[int, int]  # least start of the openings after `asked`; 0 if the index does not know `asked`


class L(NamedTuple):
    ask: tuple[str, tuple[int, int], int] | None = None  # one request on the link
    obj: tuple[str, tuple[int, int], int] | None = None  # object durable, no index record yet
    index: tuple[tuple[Entry, ...], tuple[Entry, ...]] = ((), ())
    wet: int = -1  # lane whose last index record is not synced
    owed: Receipt | None = None
    answers: tuple[Receipt, ...] = ()
    known: frozenset[tuple[str, int, int, tuple[int, int]]] = frozenset()  # uploader: batch, lane, n, high
    seen: tuple[int, int] = (0, 0)
    openings: tuple[tuple[int, tuple[int, int]], ...] = ((1, (0, 0)),)  # in the index: landing generation, start per lane
    met: int = 1  # landing generation the uploader knows
    cursor: tuple[int, int] = (0, 0)  # in the target, in the transaction of the rows
    at: int = 1  # landing generation the cursor belongs to
    rows: tuple[int, int] = (0, 0)
    backup: Any = None  # index and openings
    restored: bool = False
    alarm: bool = False
    faults: int = 0
    sends: int = 0


class Landing(Model):
    """G4 at the target, and 'what a restored receiver lost is offered again'."""

    name, bounds = "landing", "3 batches of 2 readings in 2 lanes, overlap, 3 requests, 1 request and 1 receipt in flight, 2 of {crash, restore}"
    fixes = ("landing_generation", "target_keeps_ranges")
    mutants = ("new_ignored", "restore_not_noticed")
    other = ("no_restore", "index_has_durable", "receipt_before_index", "cursor_apart_from_rows")

    def initial(self) -> L:
        return L()

    def reopen(self, s: L, index: Any, openings: Any, **change: Any) -> L:
        opened = (s.faults + 2, (len(index[0]), len(index[1])))
        return s._replace(obj=None, owed=None, wet=-1, index=index, faults=s.faults + 1, openings=(*openings, opened), **change)

    def since(self, s: L, known: int) -> tuple[int, int]:
        """From where the landing numbers may mean something else to one who last met generation `known`."""
        return ties.since(s.openings, known)

    def place(self, s: L) -> tuple[L, Receipt]:
        """The index record: `new` is the range minus what is held."""
        assert s.obj
        batch, seen, asked = s.obj
        lane, ids = BATCHES.get(batch, (0, ()))
        held = frozenset(i for part in s.index for e in part for i in e[1])
        new = ties.new(held, ids) if ids else ()
        parts, n = list(s.index), -1
        if new:
            n = len(parts[lane])
            parts[lane] += ((batch, new),)
        index = (parts[0], parts[1])
        high = (len(index[0]), len(index[1]))
        after = s._replace(obj=None, index=index, wet=lane if new else s.wet)
        return after, Receipt(batch, lane, n, high, seen, asked, s.openings[-1][0], self.since(s, asked))

    def learn(self, s: L, r: Receipt) -> L:
        """The uploader reads a receipt; a restored receiver makes it forget, so that it offers again."""
        known, alarm = set(s.known), s.alarm
        if not self.has("restore_not_noticed"):
            if self.has("landing_generation"):
                if r.asked != s.met:
                    return s  # an answer from before a change that is known already: ask again
                lost = {k for k in known if ties.forgotten(k[3], r.since)}
            else:
                lower = r.high[r.lane] < s.seen[r.lane]
                other = any(k[1] == r.lane and k[2] == r.n >= 0 and k[0] != r.batch for k in known)
                cut = r.n if other else r.high[r.lane] if lower else 1 << 9
                lost = {k for k in known if k[1] == r.lane and k[2] >= cut}
                alarm = alarm or ((lower or other) and not s.restored)
            known -= lost
        if r.batch in BATCHES:
            known = {k for k in known if k[0] != r.batch} | {(r.batch, r.lane, r.n, r.high)}
        return s._replace(known=frozenset(known), met=r.landing, seen=(max(s.seen[0], r.high[0]), max(s.seen[1], r.high[1])), alarm=alarm)

    def deliver(self, s: L, lane: int) -> L:
        """One transaction in the target: rows and cursor."""
        n = s.cursor[lane]
        batch, new = s.index[lane][n]
        ids = BATCHES[batch][1] if self.has("new_ignored") else new
        if self.has("target_keeps_ranges"):
            ids = ties.fresh(frozenset(i for i in (0, 1) if s.rows[i]), ids) if not self.has("new_ignored") else ids
        rows = (min(2, s.rows[0] + (0 in ids)), min(2, s.rows[1] + (1 in ids)))
        return s._replace(rows=rows, cursor=(n + 1, s.cursor[1]) if lane == 0 else (s.cursor[0], n + 1))

    def follow(self, s: L) -> L:
        """With landing generations, deliver goes back to where the new one began."""
        if not self.has("landing_generation") or s.at == s.openings[-1][0]:
            return s
        back = self.since(s, s.at)
        return s._replace(at=s.openings[-1][0], cursor=ties.follow(s.at, s.cursor, s.openings[-1][0], back))

    def steps(self, s: L) -> Iterator[Step]:
        for b in BATCHES:
            if s.sends < 3 and s.ask is None and all(k[0] != b for k in s.known):
                yield f"send {b}", s._replace(ask=(b, s.seen, s.met), sends=s.sends + 1)
        if s.ask:
            yield "request lost", s._replace(ask=None)
            if s.obj is None and s.wet < 0 and s.owed is None:
                yield f"{s.ask[0]} object durable", s._replace(ask=None, obj=s.ask)
        if s.obj:
            after, receipt = self.place(s)
            if self.has("receipt_before_index") and len(s.answers) < 1:
                yield "receipt sent", s._replace(answers=s.answers + (receipt,), known=s.known)
            yield "index record written", after._replace(owed=receipt)
        if s.wet >= 0:
            yield "index synced", s._replace(wet=-1)
        if s.owed and s.wet < 0 and len(s.answers) < 1:
            yield "receipt sent", s._replace(owed=None, answers=s.answers + (s.owed,))
        for i, r in enumerate(s.answers):
            rest = s._replace(answers=s.answers[:i] + s.answers[i + 1:])
            yield f"receipt {r.batch} arrives", self.learn(rest, r)
            yield f"receipt {r.batch} lost", rest
        d = self.follow(s)
        for lane in (0, 1):
            ready = len(d.index[lane]) - (self.has("index_has_durable") and d.wet == lane)
            if d.cursor[lane] < ready:
                after = self.deliver(d, lane)
                yield f"deliver lane {lane} number {d.cursor[lane]}", after
                if self.has("cursor_apart_from_rows") and s.faults < 2:
                    yield "deliver writes rows, crashes before cursor", after._replace(cursor=d.cursor, faults=s.faults + 1)
        if s.faults < 2:
            dry = tuple(p[:-1] if lane == s.wet else p for lane, p in enumerate(s.index))
            yield "receiver power cut, unsynced lost", self.reopen(s, (dry[0], dry[1]), s.openings)
            yield "receiver kill -9", self.reopen(s, s.index, s.openings)
            if s.backup is None and s.wet < 0 and not self.has("no_restore"):
                yield "backup of landing", s._replace(backup=(s.index, s.openings))
            if s.backup is not None:
                yield "receiver restored from backup", self.reopen(s, *s.backup, backup=None, restored=True)

    def broken(self, s: L) -> Iterator[str]:
        if s.alarm:
            yield "false alarm 'receiver restored'"
        r = s._replace(ask=None, obj=None, wet=-1, owed=None, answers=())  # rest: link good, heartbeats flow, all delivered
        for _ in range(3):
            for b in ("heartbeat", *BATCHES):
                if all(k[0] != b for k in r.known):
                    r, receipt = self.place(r._replace(obj=(b, r.seen, r.met)))
                    r = self.learn(r._replace(wet=-1), receipt)
        held = {i for part in r.index for e in part for i in e[1]}
        r = self.follow(r)
        for lane in (0, 1):
            while r.cursor[lane] < len(r.index[lane]):
                r = self.deliver(r, lane)
        if held != {0, 1}:
            yield "G2 receipted, still in the ring, not at the receiver, never offered again"
        elif 0 in r.rows:
            yield "G4 at the receiver, never in the target"
        if 2 in r.rows:
            yield "G4 twice in the target"

