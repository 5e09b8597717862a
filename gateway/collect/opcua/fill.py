"""History fill: what happened while we were away, asked from the server's own history, within `history_fill` and the load contract.

The ring keeps the debt: a gap is open from before its first live reading until it is filled or unfillable, with each tag's last reading
before it and the ts of its first live reading after it. Per tag the server is asked for what lies strictly between (its last source
time, its first live ts). Tags are asked in chunks, in the order of their numbers; each answer is committed with its progress:

    progress (20 bytes) = first and last tag number of the chunk, ns up to which the chunk is complete, tags so far that the server has
                          no history of; big-endian

so that a kill costs one request. "Filled" is said only if the server served every tag over its whole range.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.notice import NoticeKind
from buffer.types import concat, empty_columns
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua.address import parse_address
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.source import Batch, GapChange, GapStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.types import Columns
    from gateway.collect.opcua.answers import History
    from gateway.collect.opcua.feed import Feed
    from gateway.collect.opcua.session import Session
    from gateway.collect.source import Gap

VALUES_MAX: Final = 1_000  # per node and answer: with ten nodes a block
LOOK_S: Final = 1.0  # between looks for an open gap
FIRST_VALUES_S: Final = 30.0  # for the first values after a new subscription
_PROGRESS: Final = struct.Struct(">IIqI")
_BAD: Final = 31  # bit of a StatusCode that means Bad
_NOTHING_THERE: Final = frozenset({0x809B_0000, 0x00A5_0000})  # BadNoData, GoodNoData: asked and answered


@dataclass(frozen=True, slots=True)
class Debt:
    """What one tag is owed: readings with after_ns < ts < before_ns."""

    number: int
    node: str
    after_ns: int
    before_ns: int


def debts_of(gap: Gap, nodes: dict[int, str], window_ns: int) -> tuple[list[Debt], bool]:
    """Return what is owed in a gap, by tag number, and whether the window leaves some of it out."""
    debts, clipped = [], False
    for number, before_ns in sorted(gap.first_live_ns.items()):
        last = gap.last.get(number)
        if last is None or number not in nodes:
            continue
        after_ns = max(last.ts_source_ns, before_ns - window_ns)
        clipped |= after_ns > last.ts_source_ns
        if before_ns - after_ns > 1:
            debts.append(Debt(number, nodes[number], after_ns, before_ns))
    return debts, clipped


def remaining(debts: Sequence[Debt], progress: bytes, size: int) -> tuple[list[tuple[list[Debt], int]], int]:
    """Return the chunks still to ask, each with the ns up to which it is complete (NO_TIME: not begun), and the tags not served so far."""
    first, last, cursor, unserved = _PROGRESS.unpack(progress) if len(progress) == _PROGRESS.size else (0, 0, NO_TIME, 0)
    begun = [debt for debt in debts if first <= debt.number <= last and debt.before_ns > cursor]
    rest = [debt for debt in debts if debt.number > last]
    chunks = [(begun, cursor)] if begun else []
    return chunks + [(rest[at : at + size], NO_TIME) for at in range(0, len(rest), size)], unserved


@dataclass(frozen=True, slots=True)
class Harvest:
    """What one answer gives. cursor_ns: everything before it is complete; None: the chunk is."""

    columns: Columns
    cursor_ns: int | None
    unserved: int  # tags the server has no history of


def harvest(feed: Feed, chunk: Sequence[Debt], results: Sequence[History], cursor_ns: int) -> Harvest:
    """Take from an answer what is owed. Nodes with more to come say how far all are complete."""
    ends = [int(one.items.source_ns.max()) for one in results if one.point and len(one.items)]
    stop_ns = min(ends, default=None)
    if stop_ns is not None:
        stop_ns = max(stop_ns, cursor_ns + 1)  # a thousand values of one instant, or from before it: we do not ask for ever
    parts, unserved = [], 0
    for debt, one in zip(chunk, results, strict=True):
        if one.status >> _BAD and one.status not in _NOTHING_THERE:
            unserved += 1
            continue
        ts = one.items.source_ns
        owed = (ts > debt.after_ns) & (ts < debt.before_ns) & (ts >= cursor_ns)
        if stop_ns is not None:
            owed &= ts < stop_ns
        parts.append(feed.states.history(debt.number, one.items, np.flatnonzero(owed)))
    return Harvest(concat([part for part in parts if len(part)]), stop_ns, unserved)


async def fill(session: Session, feed: Feed) -> None:
    """Pay debts for ever: the newest gap first."""
    began = feed.runtime.monotonic_ns()
    while True:
        await feed.runtime.sleep(LOOK_S)
        late = feed.runtime.monotonic_ns() - began > FIRST_VALUES_S * 1e9
        if not feed.settled or (feed.states.awaits_first and not late):
            continue
        await feed.committer.drain(LOOK_S)  # what was live after the gap is known to the ring
        gaps = feed.sink.known(feed.name).gaps
        if gaps:
            await _pay(session, feed, max(gaps, key=lambda gap: gap.from_ns))


async def _pay(session: Session, feed: Feed, gap: Gap) -> None:
    settings, spaces = feed.settings, session.facts.namespaces
    skew = session.facts.skew_ns
    if settings.history_fill_ns <= 0:
        await _close(feed, gap, GapStep.UNFILLABLE, "history_fill is 0")
        return
    if skew is None or abs(skew) > settings.clock.max_skew_ns:
        await _close(feed, gap, GapStep.UNFILLABLE, "the server's clock is wrong: its history cannot be placed")
        return
    nodes = {tag.number: parse_address(tag.address, settings.namespaces).node_id(spaces) for tag in settings.tags}
    debts, clipped = debts_of(gap, {number: node for number, node in nodes.items() if node}, settings.history_fill_ns)
    chunks, unserved = remaining(debts, gap.progress, session.facts.limits["MaxNodesPerHistoryReadData"])
    for chunk, cursor_ns in chunks:
        before, unserved = unserved, await _ask(session, feed, gap, chunk, cursor_ns, unserved)
        if unserved - before == len(chunk):
            await _close(feed, gap, GapStep.UNFILLABLE, "the server keeps no history")
            return
    if unserved:
        await _close(feed, gap, GapStep.UNFILLABLE, f"the server keeps no history of {unserved} tags")
    elif clipped:
        await _close(feed, gap, GapStep.UNFILLABLE, "older than history_fill")
    else:
        await _close(feed, gap, GapStep.FILLED, "")


async def _ask(session: Session, feed: Feed, gap: Gap, chunk: list[Debt], cursor_ns: int, unserved: int) -> int:
    """Fetch and commit one chunk from cursor_ns on; return `unserved` plus how many of its tags have no history."""
    to_ns = max(debt.before_ns for debt in chunk)
    from_ns = max(cursor_ns, min(debt.after_ns for debt in chunk))
    while True:
        try:
            results = await session.history([debt.node for debt in chunk], from_ns, to_ns, VALUES_MAX)
        except ServiceFault:
            return unserved + len(chunk)
        got = harvest(feed, chunk, results, from_ns)
        done = got.cursor_ns is None or got.cursor_ns >= to_ns
        known = unserved + (got.unserved if done else 0)
        progress = _PROGRESS.pack(chunk[0].number, chunk[-1].number, to_ns if done else got.cursor_ns or 0, known)
        await feed.committer.submit(Batch(feed.name, got.columns, None, GapChange(GapStep.PROGRESS, gap.id, gap.from_ns, progress)))
        if done:
            return known
        from_ns = got.cursor_ns or to_ns


async def _close(feed: Feed, gap: Gap, step: GapStep, reason: str) -> None:
    feed.notice(NoticeKind.GAP, event=str(step), gap=gap.id, since_ns=gap.from_ns, reason=reason)
    await feed.committer.submit(Batch(feed.name, empty_columns(), None, GapChange(step, gap.id, gap.from_ns)))
