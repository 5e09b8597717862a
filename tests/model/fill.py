"""History fill keeps its debt: no hour is forgotten, none is stored twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.kernel import Model, Step


class Gap(NamedTuple):
    lo: int
    hi: int = -1  # ts of the first live reading after it; -1 until there is one
    upto: int = -1  # progress of the fill
    state: str = "open"


class F(NamedTuple):
    now: int = 0  # the source's historian holds one reading per tick 0..now-1
    up: bool = False
    mem: int = -1  # live reading taken, not committed
    log: tuple[tuple[str, int], ...] = ()  # committed readings in order: (live|fill, ts)
    gaps: tuple[Gap, ...] = ()
    need: bool = True  # a gap must be opened before the next live reading
    kills: int = 0


class Fill(Model):
    """G2 and G4 for the hours in which the gateway was down or cut off and the server kept history."""

    name, bounds = "fill", "7 ticks, one tag, 3 kills, one reading per fill block"
    fixes = ("progress_committed", "one_open_gap", "first_live_kept", "last_ignores_fills")
    mutants = ("gap_opened_after_live",)

    def initial(self) -> F:
        return F()

    def steps(self, s: F) -> Iterator[Step]:
        if s.now < 7 and s.mem < 0:
            yield f"tick {s.now}" + (" live" if s.up else " while down"), s._replace(now=s.now + 1, mem=s.now if s.up else -1)
        if not s.up:
            waiting = self.has("one_open_gap") and any(g.hi < 0 and g.state == "open" for g in s.gaps)
            yield "start", s._replace(up=True, need=not waiting)
            return
        if s.need and (s.mem < 0 or not self.has("gap_opened_after_live")):
            known = [ts for kind, ts in s.log if kind == "live" or not self.has("last_ignores_fills")]
            lo = known[-1] if known else -1
            yield f"commit gap open after {lo}", s._replace(need=False, gaps=s.gaps + (Gap(lo, upto=lo),))
        if s.mem >= 0 and (not s.need or self.has("gap_opened_after_live")):
            gaps = tuple(g._replace(hi=s.mem) if g.hi < 0 else g for g in s.gaps)
            yield f"commit live {s.mem}", s._replace(mem=-1, log=s.log + (("live", s.mem),), gaps=gaps)
        for i, g in enumerate(s.gaps):
            if g.state == "open" and g.hi >= 0:
                ts = g.upto + 1
                more = ts < g.hi
                done = g._replace(upto=ts) if more else g._replace(state="filled")
                yield (f"commit fill {ts}" if more else "close gap filled"), s._replace(
                    log=s.log + (("fill", ts),) if more else s.log, gaps=s.gaps[:i] + (done,) + s.gaps[i + 1:])
                yield "close gap unfillable", s._replace(gaps=s.gaps[:i] + (g._replace(state="unfillable"),) + s.gaps[i + 1:])
        if s.kills < 3:
            gaps = tuple(g._replace(upto=g.upto if self.has("progress_committed") else g.lo,
                                    hi=g.hi if self.has("first_live_kept") or g.state != "open" else -1) for g in s.gaps)
            yield "kill -9", s._replace(up=False, mem=-1, gaps=gaps, kills=s.kills + 1)

    def broken(self, s: F) -> Iterator[str]:
        stamps = [ts for _, ts in s.log]
        if len(set(stamps)) < len(stamps):
            yield "G4 one reading stored twice by live and fill"
        newest = max((ts for kind, ts in s.log if kind == "live"), default=-1)
        owed = {ts for g in s.gaps if g.state != "filled" for ts in range(g.lo + 1, g.hi if g.hi >= 0 else newest + 1)}
        if set(range(newest + 1)) - set(stamps) - owed:
            yield "G2 hole that no gap, open or unfillable, names"

