"""Source -> collect -> journal -> durable mark -> uploader: what is committed stays, once, under one identity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tests.model.kernel import Gen, Id, Model, Step

Msg = tuple[int, int, int]  # subscription, message number, reading (-1: known already, nothing to store)


class Block(NamedTuple):
    gen: Gen
    n: int  # block number in its generation
    first: int
    msgs: tuple[Msg, ...]

    def ids(self) -> Iterator[tuple[Id, int]]:
        return (((self.gen, self.first + i), r) for i, r in enumerate(m[2] for m in self.msgs if m[2] >= 0))


class C(NamedTuple):
    made: int = 0  # readings the source has produced
    sub: int = 1
    num: int = 1  # next message number; 0 is the initial value of a later subscription
    queue: tuple[Msg, ...] = ()  # the source's retransmission queue: everything not acknowledged
    taken: int = 0  # how many of these the collector has seen since its start
    mem: tuple[Msg, ...] = ()
    wet: Block | None = None  # written, not synced
    again: Block | None = None  # its sync failed: goes, byte for byte, to a new journal
    disk: tuple[Block, ...] = ()  # platter; copies of a failed block included
    ghost: Block | None = None  # only in the page cache: its sync failed
    synced: int = 0
    mark: int = 0  # the file `durable`, as a count of disk
    gen: Gen = (1, 1)
    n: int = 0
    end: int = 0
    pos: tuple[int, int] = (0, 0)  # committed position of the source
    last: int = -1  # newest reading taken
    promised: frozenset[int] = frozenset()
    acked: frozenset[int] = frozenset()
    sent: frozenset[tuple[Id, int]] = frozenset()
    snap: tuple[Block, ...] | None = None
    rolled: bool = False
    crashes: int = 0
    fails: int = 0


class Commit(Model):
    """G1, and the ring's half of G4: what is committed stays, once, under one identity."""

    name, bounds = "commit", "2 readings, 2 subscriptions, 2 crashes/restores, 1 failed sync, blocks of 1-2 messages"
    fixes = ("drop_acked_after_commit",)
    mutants = ("durable_ignored", "positions_not_in_manifest", "failed_block_recut", "generation_without_nonce",
               "recovery_reads_cache", "ack_before_commit", "initial_not_deduplicated")

    def initial(self) -> C:
        return C()

    def open(self, s: C, disk: tuple[Block, ...], view: tuple[Block, ...], rolled: bool) -> C:
        """A new generation: ordinal is one above what the disk shows, nonce is fresh."""
        ordinal = 1 + max((b.gen[0] for b in disk), default=0)
        nonce = 0 if self.has("generation_without_nonce") else s.crashes + 2
        known = [] if self.has("positions_not_in_manifest") else [b.msgs[-1][:2] for b in view]
        last = max((m[2] for b in view for m in b.msgs), default=-1)
        return s._replace(taken=0, mem=(), wet=None, again=None, disk=disk, ghost=None, synced=len(disk), mark=len(disk), gen=(ordinal, nonce),
                          n=0, end=0, pos=max(known, default=(0, 0)), last=last, crashes=s.crashes + 1, rolled=s.rolled or rolled)

    def steps(self, s: C) -> Iterator[Step]:
        if s.made < 2:
            yield f"source makes r{s.made}", s._replace(made=s.made + 1, num=s.num + 1, queue=s.queue + ((s.sub, s.num, s.made),))
        if s.sub < 2 and s.made:
            first = ((s.sub + 1, 0, s.made - 1),)
            yield f"session lost, new subscription sends r{s.made - 1} again", s._replace(sub=s.sub + 1, num=1, queue=first, taken=0)
        if s.taken < len(s.queue) and len(s.mem) < 2:
            m = s.queue[s.taken]
            rest = s.queue[: s.taken] + s.queue[s.taken + 1:]
            again = m[1] == 0 and m[2] == s.last and not self.has("initial_not_deduplicated")
            if m[:2] <= s.pos:
                yield f"drop r{m[2]}, committed already", s._replace(queue=rest, acked=s.acked | {m[2]})
            elif again and not self.has("drop_acked_after_commit"):
                yield f"drop and acknowledge initial r{m[2]}", s._replace(queue=rest, acked=s.acked | {m[2]})
            else:
                took = (m[0], m[1], -1 if again else m[2])
                acked = s.acked | {m[2]} if self.has("ack_before_commit") else s.acked
                yield f"take r{m[2]}", s._replace(taken=s.taken + 1, mem=s.mem + (took,), last=m[2], acked=acked)
        if s.again:
            yield "append the same block to a new journal", s._replace(wet=s.again, again=None)
        if s.mem and s.wet is None and s.again is None:
            b = Block(s.gen, s.n, s.end, s.mem)
            yield "append block", s._replace(wet=b, mem=(), n=s.n + 1, end=s.end + len(list(b.ids())))
        if s.wet:
            disk = s.disk + (s.wet,)
            yield "sync ok", s._replace(disk=disk, wet=None, ghost=None, synced=len(disk), pos=s.wet.msgs[-1][:2],
                                        promised=s.promised | {r for _, r in s.wet.ids()})
            if s.fails < 1:
                f = s._replace(fails=1, wet=None, again=s.wet)
                if self.has("failed_block_recut"):
                    f = f._replace(mem=s.wet.msgs + s.mem, again=None, n=s.wet.n, end=s.wet.first)
                yield "sync fails (bytes reached the platter)", f._replace(disk=disk)
                yield "sync fails (bytes only in cache)", f._replace(ghost=s.wet)
        if s.mark < s.synced:
            yield "rewrite durable", s._replace(mark=s.synced)
        ship = s.disk[: s.mark] + ((s.wet,) if s.wet and self.has("durable_ignored") else ())
        sent = s.sent | {i for b in ship for i in b.ids()}
        if sent != s.sent:
            yield "upload", s._replace(sent=sent)
        keep = tuple(m for m in s.queue if m[:2] > s.pos)
        if keep != s.queue:
            gone = {m[2] for m in s.queue} - {m[2] for m in keep}
            yield "acknowledge", s._replace(queue=keep, taken=max(0, s.taken - len(s.queue) + len(keep)), acked=s.acked | gone)
        if s.crashes < 2:
            kept = s.disk + ((s.wet,) if s.wet else ())
            seen = kept + ((s.ghost,) if s.ghost and self.has("recovery_reads_cache") else ())
            yield "kill -9", self.open(s, kept, seen, False)
            yield "power cut, unsynced lost", self.open(s, s.disk, s.disk, False)
            if s.snap is None and s.disk:
                yield "take disk snapshot", s._replace(snap=s.disk)
            if s.snap is not None:
                yield "restore snapshot", self.open(s, s.snap, s.snap, True)
            yield "new empty disk", self.open(s, (), (), True)

    def broken(self, s: C) -> Iterator[str]:
        held = {i for b in s.disk for i in b.ids()}
        stored = {r for _, r in held}
        if not s.rolled:  # a disk taken away is promised nothing but clean identities
            if s.promised - stored:
                yield "G1 committed reading gone"
            if s.acked - stored:
                yield "G1 source was told 'committed' for a reading that is not"
            if max(Counter(r for _, r in held | s.sent).values(), default=0) > 1:
                yield "G4 one reading under two identities"
        if len({i for i, _ in s.sent}) < len(s.sent) or len({(b.gen, b.n) for b in s.disk}) < len(set(s.disk)):
            yield "G4 one identity with two contents"

