"""Where a model decides, the product decides: its pure functions, called with the small numbers of a model. A change of a rule in the
product is a change of the model, and the search says what it breaks.
"""

from __future__ import annotations

from functools import lru_cache

from buffer.intervals import Intervals
from buffer.manifest import FrameKind, StateRecord, chain_start
from buffer.retention import low_after
from gateway.deliver import cursor as delivered
from gateway.landing.index import LandingState, Opening
from gateway.receive.accept import Unit, decide
from gateway.upload.cursor import Cursor
from gateway.wire.receipt import Ends
from tests.model.kernel import Id

GENERATION = 1
NOTHING_CHANGED = (9, 9)  # beyond every landing number of a model
Pair = tuple[int, int]


@lru_cache(maxsize=100_000)
def next_low(units: tuple[tuple[Id, ...], ...], end: Id) -> Id:
    """Return `low` once the first unit is gone (buffer.retention.low_after)."""
    left = {i for ids in units[1:] for i in ids}
    oldest = sorted((ids[0], ids) for ids in units if ids == units[0] or set(ids) & left)
    low = low_after(oldest, lambda unit: 1, 1, end)  # type: ignore[arg-type]
    assert low is not None
    return low  # type: ignore[return-value]


@lru_cache(maxsize=100_000)
def since(openings: tuple[tuple[int, Pair], ...], known: int) -> Pair:
    """Return from where landing numbers may mean something else (gateway.landing.index.LandingState.since)."""
    state = LandingState()
    for landing, (live, backfill) in openings:
        state.open(Opening(landing, Ends(live, backfill), 0))
    found = state.since(known)
    return NOTHING_CHANGED if found is None else (found.live, found.backfill)


@lru_cache(maxsize=100_000)
def new(held: frozenset[int], ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return what a batch brings (gateway.receive.accept.decide); one block a reading."""
    state = LandingState()
    state.seqs[GENERATION] = Intervals([(i, i) for i in sorted(held)])
    state.blocks[GENERATION] = Intervals([(i, i) for i in sorted(held)])
    record = StateRecord(GENERATION, ids[-1], None, ids[-1] + 1, (GENERATION, 0), (), (), 0, 0, bytes(16), False)
    before = chain_start("s", GENERATION)
    unit = Unit("s", FrameKind.SEGMENT, GENERATION, ids[0], ids[-1], ids[0], len(ids), before, b"", b"", b"", record)
    return tuple(i for first, last in decide(state, unit, lambda generation, block: None).new for i in range(first, last + 1))


@lru_cache(maxsize=100_000)
def forgotten(high: Pair, since: Pair) -> bool:
    """Say whether what was receipted with these ends is to be offered again (gateway.upload.cursor.Cursor)."""
    cursor = Cursor()
    cursor.receipted(GENERATION, 0, 0, Ends(*high))
    return cursor.forget_above(Ends(*since)) > 0


@lru_cache(maxsize=100_000)
def follow(at: int, following: Pair, landing: int, later: Pair) -> Pair:
    """Return where a sink goes on under a newer landing generation (gateway.deliver.cursor.Cursor)."""
    cursor = delivered.Cursor(at, {"live": following[0], "backfill": following[1]})
    cursor.follow(landing, {"live": later[0], "backfill": later[1]})
    return cursor.following["live"], cursor.following["backfill"]


@lru_cache(maxsize=100_000)
def fresh(held: frozenset[int], new: tuple[int, ...]) -> tuple[int, ...]:
    """Return what of a record is not in the target yet (gateway.deliver.cursor.Cursor)."""
    cursor = delivered.Cursor(held={GENERATION: Intervals([(i, i) for i in sorted(held)])})
    return tuple(i for first, last in cursor.fresh(GENERATION, [(i, i) for i in new]) for i in range(first, last + 1))
