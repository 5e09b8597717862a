"""Ring: commit, seal, evict, rot, generations; uploader; link; what the receiver may believe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.model.kernel import Gen, Id, Model, Step
from tests.model.ties import next_low


class Rec(NamedTuple):
    """State record. n is the number of the block that carries it."""

    gen: Gen
    n: int = 0
    end: int = 0
    low: Id = ((0, 0), 0)
    lost: frozenset[Id] = frozenset()
    before: Id = ((0, 0), 0)  # predecessor and where it ended


class Unit(NamedTuple):
    ids: tuple[Id, ...]
    rec: Rec
    segment: bool = False


class R(NamedTuple):
    units: tuple[Unit, ...] = ()  # readable files, oldest first
    rec: Rec = Rec((1, 5))  # newest committed record
    doomed: Unit | None = None
    rotten: frozenset[Id] = frozenset()  # bad, not yet noticed
    committed: tuple[Id, ...] = ()
    net: tuple[tuple[tuple[Id, ...], Rec], ...] = ()
    got: frozenset[Id] = frozenset()
    recs: tuple[Rec, ...] = ()  # per generation, the newest record received
    acked: frozenset[Id] = frozenset()
    told: Rec | None = None  # newest record that was receipted
    snap: tuple[tuple[Unit, ...], Rec] | None = None
    faults: int = 0
    rots: int = 0
    sends: int = 0


class Ring(Model):
    """G2 at rest for every committed reading a record has reported; G3: only size evicts."""

    name, bounds = "ring", "3 readings, ring of 2, 1 of {rot, kill -9, snapshot restored, state lost}, 2 frames sent, then rest"
    fixes = ("records_by_block_number", "empty_block_travels", "rolled_back_is_a_reason")
    mutants = ("evict_before_low", "lost_shrinks", "cursor_before_receipt", "evict_when_receipted", "rot_not_recorded")
    readings, capacity = 3, 2

    def initial(self) -> R:
        return R()

    def next(self, s: R, **change: Any) -> Rec:
        lost = frozenset() if self.has("lost_shrinks") else s.rec.lost
        return s.rec._replace(**{"n": s.rec.n + 1, "lost": lost} | change)

    def learn(self, s: R, ids: tuple[Id, ...], rec: Rec) -> R:
        """The receiver lands a frame."""
        def age(r: Rec) -> int:
            return r.n if self.has("records_by_block_number") else r.end
        known = {r.gen: r for r in s.recs}
        if (ids or self.has("empty_block_travels")) and (rec.gen not in known or age(rec) > age(known[rec.gen])):
            known[rec.gen] = rec
        return s._replace(got=s.got | set(ids), recs=tuple(known[g] for g in sorted(known)))

    def steps(self, s: R) -> Iterator[Step]:
        held = {i for u in s.units for i in u.ids}
        if len(s.committed) < self.readings:
            i = (s.rec.gen, s.rec.end)
            rec = self.next(s, end=s.rec.end + 1)
            yield f"commit {i[0][0]}:{i[1]}", s._replace(rec=rec, units=s.units + (Unit((i,), rec),), committed=s.committed + (i,))
        receipted = self.has("evict_when_receipted") and s.units and set(s.units[0].ids) <= s.acked
        if s.units and not s.doomed and (len(held) > self.capacity or receipted):
            old = s.units[0]
            left = [i for u in s.units[1:] for i in u.ids]
            low = next_low(tuple(u.ids for u in s.units), (s.rec.gen, s.rec.end)) if set(old.ids) - set(left) else s.rec.low
            if self.has("evict_before_low"):
                yield "unlink oldest", s._replace(doomed=old, units=s.units[1:])
            else:
                yield "commit new low (empty block)", s._replace(doomed=old, rec=self.next(s, low=max(low, s.rec.low)))
        if s.doomed and s.doomed in s.units:
            yield "unlink oldest", s._replace(doomed=None, units=tuple(u for u in s.units if u != s.doomed))
        elif s.doomed:
            low = min([i for u in s.units for i in u.ids], default=(s.rec.gen, s.rec.end))
            yield "commit new low (empty block)", s._replace(doomed=None, rec=self.next(s, low=low))
        for a, b in zip(s.units, s.units[1:]):
            if not (a.segment or b.segment or s.doomed) and a.ids[0][0] == b.ids[0][0] and a.ids[0][1] + 1 == b.ids[0][1]:
                if any(u.segment for u in s.units):
                    continue
                at = s.units.index(b) + 1
                yield "seal two", s._replace(units=s.units[:at] + (Unit(a.ids + b.ids, s.rec, True),) + s.units[at:])
        for k, u in enumerate(s.units):
            rest = s.units[:k] + s.units[k + 1:]
            if not u.segment and not s.doomed and any(v.segment and set(u.ids) <= set(v.ids) for v in s.units):
                yield "journal goes, segment stays", s._replace(units=rest)
            elif s.rots + s.faults < 1 and s.snap is None and not s.doomed:
                bad = set(u.ids) - {i for v in rest for i in v.ids}
                yield f"{u.ids[0][0][0]}:{u.ids[0][1]} rots", s._replace(units=rest, rotten=s.rotten | bad, rots=1)
            if s.sends < 2 and not s.net and not set(u.ids) <= s.acked:
                acked = s.acked | set(u.ids) if self.has("cursor_before_receipt") else s.acked
                kind = "segment" if u.segment else "block"
                yield f"send {kind} {u.ids[0][0][0]}:{u.ids[0][1]}", s._replace(net=((u.ids, u.rec),), acked=acked, sends=s.sends + 1)
        if s.rotten:
            lost = s.rec.lost if self.has("rot_not_recorded") else s.rec.lost | s.rotten
            yield "scrub finds it, commits lost (empty block)", s._replace(rotten=frozenset(), rec=self.next(s, lost=lost))
        if s.sends < 2 and not s.net and s.told != s.rec and all(u.rec != s.rec for u in s.units):
            yield "send empty block", s._replace(net=(((), s.rec),), sends=s.sends + 1)
        for ids, rec in s.net:
            landed = self.learn(s, ids, rec)
            told = max((r for r in (s.told, rec) if r), key=lambda r: (r.gen, r.n))
            yield "frame lost", s._replace(net=())
            yield "landed, receipt lost", landed._replace(net=())
            yield "landed, receipted", landed._replace(net=(), acked=s.acked | set(ids), told=told)
        if s.faults + s.rots < 1:
            f = s._replace(faults=1, doomed=None)
            reopened = Rec((s.rec.gen[0] + 1, 5), 0, 0, s.rec.low, s.rec.lost, (s.rec.gen, s.rec.end))
            yield "kill -9, new generation", f._replace(rec=reopened, snap=None)
            yield "uploader state lost", f._replace(acked=frozenset(), told=None, snap=None)
            if s.snap is None and not s.doomed and not s.rots:
                yield "take disk snapshot", s._replace(snap=(s.units, s.rec))
            elif s.snap is not None and not s.rotten:
                units, old = s.snap
                for nonce in (1, 9):  # random: it may be smaller or greater than the other branch's
                    new = Rec((old.gen[0] + 1, nonce), 0, 0, old.low, old.lost, (old.gen, old.end))
                    yield f"restore snapshot, new generation {new.gen[0]}-{nonce}", f._replace(units=units, rec=new, snap=None)

    def broken(self, s: R) -> Iterator[str]:
        held = {i for u in s.units for i in u.ids} | s.rotten
        past = {i for i in s.committed if s.rec.before[0] == i[0] and i[1] >= s.rec.before[1]}  # rolled back with the disk
        if any(i not in held | s.rec.lost | past and i >= s.rec.low for i in s.committed):
            yield "G2 reading left the ring, its newest record does not say so"
        if any(i not in held | s.rec.lost | past for i in s.committed[1 - self.capacity:]):  # a file of 2 goes at once
            yield "G3 evicted although the ring had room"
        rest = s  # drive to rest: link up, everything un-receipted sent, newest record last
        for u in s.units:
            if not set(u.ids) <= s.acked:
                rest = self.learn(rest, u.ids, u.rec)
        if s.told != s.rec:
            rest = self.learn(rest, (), s.rec)
        if not rest.recs:
            return
        believed = rest.recs  # the newest of every generation
        ends = {r.before[0]: r.before[1] for r in rest.recs}
        for g, q in s.committed:
            told_end = max((r.end for r in rest.recs if r.gen == g), default=0)
            why = any((g, q) < r.low or (g, q) in r.lost for r in believed)
            why = why or (self.has("rolled_back_is_a_reason") and q >= ends.get(g, q + 1))
            if q < told_end and (g, q) not in rest.got and not why and (g, q) not in s.rotten:
                yield "G2 reported reading neither received, nor waiting, nor with a reason"

