"""History fill: what happened while we were away, asked from the server's own history, within `history_fill` and the load contract.

The ring keeps the debt: a gap is open from before its first live reading until it is filled or unfillable, with each tag's last reading
before it and the time of its first live reading after it. Per tag the server is asked for what lies strictly between the two (gateway.
collect.opcua.debt). Tags are asked in chunks, in the order of their numbers; each answer is committed with its progress, so that a kill
costs one request. A request that is slow, fails or is refused as too large is cut in halves down to one tag; live readings go on beside.

"Filled" is said only if the server served every tag over its whole range, from a value at or before our last reading on. Everything else
is unfillable, with the reason; what the server did have is in the ring all the same.

Events are asked in the same way, last and as one chunk (gateway.collect.opcua.eventdebt), where the notifier's node says that it has a history.
What a queue of events threw away is not asked: which of it came live nobody can say after a kill.

What a person asks for (gateway.collect.opcua.byhand) is paid in the same way, when nothing else is owed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.notice import NoticeKind
from buffer.types import empty_columns
from gateway.collect.clock import NO_TIME
from gateway.collect.opcua import eventdebt
from gateway.collect.opcua.address import parse_address
from gateway.collect.opcua.answers import History, ServiceFault
from gateway.collect.opcua.byhand import by_hand, debts_by_hand, split_progress
from gateway.collect.opcua.debt import SPREAD, Chunk, Debt, alike, debts_of, every, harvest, in_slices, pack_progress, remaining
from gateway.collect.opcua.decode import blank_items
from gateway.collect.opcua.events import is_event
from gateway.collect.opcua.items import EVENT_NOTIFIER
from gateway.collect.opcua.subscribe import FILTER_REFUSED, plainer, wish_of
from gateway.collect.source import Batch, GapChange, GapStep
from gateway.errors import PlantError

if TYPE_CHECKING:
    from gateway.collect.opcua.feed import Feed
    from gateway.collect.opcua.items import Wish
    from gateway.collect.opcua.session import Session
    from gateway.collect.source import Gap

VALUES_MAX: Final = 1_000  # per node and answer: with ten nodes a block
VALUES_MIN: Final = 50
SLOW_S: Final = 1.0  # an answer that takes longer keeps the server from live readings: the next request asks for half
LOOK_S: Final = 1.0  # between looks for an open gap
FIRST_VALUES_S: Final = 30.0  # for the first values after a new subscription
SILENT_MAX: Final = 2  # requests in a row without an answer: each keeps the load contract from asking for live readings for a while
REFUSED_MAX: Final = 8  # requests in a row that are refused or not understood, down to one tag
LOST_MAX: Final = 5  # connections lost while one gap was asked for, without any progress: the server cannot bear it
ACCESS_LEVEL, HISTORY_READ = 17, 4  # attribute and its bit, the same in EventNotifier (OPC 10000-3, 8.57 and 8.59)
# BadServiceUnsupported, BadHistoryOperationInvalid, BadHistoryOperationUnsupported, BadNotSupported
_NOT_HERE: Final = frozenset({0x800B_0000, 0x8071_0000, 0x8072_0000, 0x803D_0000})


async def fill(session: Session, feed: Feed) -> None:
    """Pay debts for ever: the newest gap first, what people asked for last."""
    began = feed.runtime.monotonic_ns()
    while True:
        await feed.runtime.sleep(LOOK_S)
        late = feed.runtime.monotonic_ns() - began > FIRST_VALUES_S * 1e9
        if not feed.settled or (feed.states.awaiting and not late):
            continue
        if not feed.sink.known(feed.name).gaps:
            if not feed.opening:
                await feed.begin_events()
                await feed.hand.begin(feed)
            continue
        await feed.committer.submit(Batch(feed.name, empty_columns()))  # durable after all before it: the first live readings are known
        gaps = feed.sink.known(feed.name).gaps
        if gaps:
            gap = max(gaps, key=lambda gap: (not by_hand(gap), gap.from_ns))
            if feed.events_level or eventdebt.split_progress(gap.progress)[0] is None:
                await (_ByHand if by_hand(gap) else _Fill)(session, feed, gap).pay()


class _Fill:
    """One attempt to pay one gap."""

    def __init__(self, session: Session, feed: Feed, gap: Gap) -> None:
        self._session = session
        self._feed = feed
        self._gap = gap
        self._most = VALUES_MAX
        self._unserved = 0  # tags of the chunks that are done
        self._readings = 0
        self._silent = self._refused = 0  # requests in a row without an answer, or with one that helps nobody
        self._hopeless = ""
        self._outages = feed.outages
        self._head, self._progress = eventdebt.split_progress(gap.progress)
        self._chosen = eventdebt.Owed(gap, feed.seen, self._head.doubtful if self._head else 0)
        self._without: set[int] = set()  # event tags found to have no history, by place
        self._plain: set[int] = set()  # event tags whose filter was refused

    async def pay(self) -> None:
        """Ask for everything that is owed, then close the gap."""
        settings, skew = self._feed.settings, self._session.facts.skew_ns
        if settings.history_fill_ns <= 0:
            await self._close(GapStep.UNFILLABLE, "history_fill is 0")
        elif skew is None or abs(skew) > settings.clock.max_skew_ns or (self._head and not self._feed.events_placed):
            await self._close(GapStep.UNFILLABLE, "the server's clock is wrong: its history cannot be placed")
        elif self._feed.fill_losses.get(self._gap.id, 0) >= LOST_MAX:
            await self._close(GapStep.UNFILLABLE, f"the connection was lost {LOST_MAX} times while history was asked for")
        else:
            await self._pay()

    async def _pay(self) -> None:
        debts, unpaid = self._owed(self._nodes())
        able = await self._historized(debts)
        chunks, self._unserved = self._remaining(able, self._session.facts.limits["MaxNodesPerHistoryReadData"])
        while chunks and not self._hopeless and not self._gives_way():
            chunk = chunks.pop(0)
            halves = await self._ask(chunk)
            chunks[:0] = halves
            self._unserved += 0 if halves else len(chunk.unserved)
        if self._gives_way():
            return
        if self._hopeless:
            await self._close(GapStep.UNFILLABLE, self._hopeless)
        elif missing := self._missing(debts, able):
            await self._close(GapStep.UNFILLABLE, f"the server keeps {missing}")
        elif unpaid:
            await self._close(GapStep.UNFILLABLE, unpaid)
        else:
            await self._closed_whole()

    def _nodes(self) -> dict[int, str]:
        """Return the node of each tag that has one at this server."""
        settings, spaces = self._feed.settings, self._session.facts.namespaces
        nodes = {tag.number: parse_address(tag.address, settings.namespaces).node_id(spaces) for tag in settings.tags if not is_event(tag)}
        return {number: node for number, node in nodes.items() if node}

    def _wishes(self) -> dict[int, Wish]:
        """Return how the events of each tag that has a node at this server are asked for."""
        settings, spaces = self._feed.settings, self._session.facts.namespaces
        nodes = [(tag, parse_address(tag.address, settings.namespaces).node_id(spaces)) for tag in settings.tags if is_event(tag)]
        return {tag.number: wish_of(tag, node, settings.publish_ns) for tag, node in nodes if node}

    # ---- what a fill by hand does otherwise ----

    def _owed(self, nodes: dict[int, str]) -> tuple[list[Debt], str]:
        feed, gap = self._feed, self._gap
        debts, unpaid = debts_of(gap, nodes, feed.settings.history_fill_ns, feed.concerned(gap), feed.span(gap))
        if unseen := feed.unseen(gap):
            unpaid = unpaid or f"{unseen} tags have no value after it"
        if self._head is None:
            return debts, unpaid
        events, cut = eventdebt.event_debts(gap, self._head, self._wishes(), feed.event_times(gap, self._session.facts.skew_ns or 0))
        return debts + events, unpaid or ("older than history_fill" if cut else "")

    def _remaining(self, debts: list[Debt], size: int) -> tuple[list[Chunk], int]:
        together = partial(in_slices, span_ns=SPREAD * self._feed.settings.history_fill_ns)
        return remaining(debts, self._progress, size, together)

    def _packed(self, chunk: Chunk, unserved: int) -> bytes:
        packed = pack_progress(chunk, unserved)
        return replace(self._head, doubtful=self._chosen.doubtful).pack(packed) if self._head else packed

    def _gives_way(self) -> bool:
        """A newer outage is paid first; and it owes the events that this one has not paid yet."""
        return self._outages != self._feed.outages

    def _missing(self, debts: list[Debt], able: list[Debt]) -> str:
        """Return what the server's history does not have, "" if nothing."""
        unserved = self._unserved + len(debts) - len(able)
        if unserved and unserved == len(self._without):
            return f"no history of events, {unserved} tags; all values are filled"
        if unserved and unserved == len(debts) and not self._readings:
            return "no history"
        return f"no history of {unserved} tags over the whole gap" if unserved else ""

    async def _closed_whole(self) -> None:
        if self._head is None and (events := self._feed.events_concerned(self._gap)):
            await self._close(GapStep.UNFILLABLE, f"which events are missing is not known, {events} tags; all values are filled")
        elif doubtful := self._chosen.doubtful:
            await self._close(GapStep.UNFILLABLE, f"{doubtful} events at the very time of the first or last that came: not told apart, left out")
        else:
            await self._close(GapStep.FILLED, "from the server's history")

    # ---- asking ----

    async def _historized(self, debts: list[Debt]) -> list[Debt]:
        """Return the debts whose node may have a history; a node that does not say is asked."""
        able: list[Debt] = []
        for attribute in (ACCESS_LEVEL, EVENT_NOTIFIER):
            some = [debt for debt in debts if (debt.wish is not None) == (attribute == EVENT_NOTIFIER)]
            try:
                levels = await self._session.read([debt.node for debt in some], attribute) if some else blank_items(0)
            except ServiceFault:
                able += some
                continue
            said = [levels.value(row) for row in range(len(some))]
            able += [debt for debt, level in zip(some, said, strict=True) if not isinstance(level, int) or level & HISTORY_READ]
        self._without |= {debt.place for debt in debts if debt.wish is not None and debt not in able}
        return able

    async def _ask(self, chunk: Chunk) -> list[Chunk]:
        """Fetch and commit one chunk, and note in it who was not served; or return its halves, to be asked instead."""
        feed, gap = self._feed, self._gap
        to_ns = max(debt.before_ns for debt in chunk.debts)
        start_ns = min(debt.shown_ns for debt in chunk.debts)
        from_ns = max(chunk.cursor_ns, min(debt.begin_ns for debt in chunk.debts))
        if from_ns > start_ns:  # resumed after a kill: does the history reach back to our last readings?
            first = await self._request(chunk, start_ns, to_ns, 1)
            if first is None:
                return chunk.halves()
            harvest(feed.states.history, chunk, first, to_ns, 1)
            chunk.unserved.clear()
        while from_ns < to_ns:
            most = self._most
            results = await self._request(chunk, from_ns, to_ns, most)
            if results is None:
                if self._hopeless or most == VALUES_MIN or (chunk.cursor_ns == NO_TIME and not chunk.events):
                    return [] if self._hopeless else chunk.halves()
                continue
            if chunk.events and self._gives_way():
                return []
            got = harvest(feed.states.history, chunk, results, from_ns, most, self._chosen.choose if chunk.events else every)
            from_ns = to_ns if got.cursor_ns is None else min(got.cursor_ns, to_ns)
            chunk.cursor_ns = from_ns
            if from_ns == to_ns:
                chunk.unserved |= chunk.unreached()
            unserved = self._unserved + (len(chunk.unserved) if from_ns == to_ns else 0)
            change = GapChange(GapStep.PROGRESS, gap.id, gap.from_ns, self._packed(chunk, unserved))
            position = feed.settle(from_ns - 1) if chunk.events else None
            await feed.committer.submit(Batch(feed.name, got.columns, position, change))
            feed.hand.history_ns = feed.runtime.monotonic_ns()
            feed.fill_losses.pop(gap.id, None)
            self._readings += len(got.columns)
        return []

    async def _request(self, chunk: Chunk, from_ns: int, to_ns: int, most: int) -> list[History] | None:
        """Return the answer, None if there is none that helps: then ask for less. Sets `_hopeless` where that would not help either."""
        feed = self._feed
        began = feed.runtime.monotonic_ns()
        try:
            results = await (self._events if chunk.events else self._values)(chunk, from_ns, to_ns, most)
        except (PlantError, CorruptError) as error:
            silent = isinstance(error.__cause__, TimeoutError)
            if not silent and not isinstance(error, ServiceFault | CorruptError):
                feed.fill_losses[self._gap.id] = feed.fill_losses.get(self._gap.id, 0) + 1
                raise
            self._silent, self._refused = self._silent + silent, self._refused + (not silent)
            self._most = max(VALUES_MIN, self._most // 4)
            if isinstance(error, ServiceFault) and error.status in _NOT_HERE:
                self._hopeless = "the server keeps no history"
            elif self._silent >= SILENT_MAX or self._refused >= REFUSED_MAX:
                self._hopeless = f"the server does not serve its history: {error}"
            return None
        self._silent = self._refused = 0
        slow = feed.runtime.monotonic_ns() - began > SLOW_S * 1e9
        self._most = max(VALUES_MIN, self._most // 2) if slow else min(VALUES_MAX, self._most * 2)
        return results

    async def _values(self, chunk: Chunk, from_ns: int, to_ns: int, most: int) -> list[History]:
        nodes = list(dict.fromkeys(debt.node for debt in chunk.debts))  # elements of one array share a node
        answered = dict(zip(nodes, await self._session.history(nodes, from_ns, to_ns, most), strict=True))
        return [answered[debt.node] for debt in chunk.debts]

    async def _events(self, chunk: Chunk, from_ns: int, to_ns: int, most: int) -> list[History]:
        """Ask for each tag alone: one request has one filter."""
        results = []
        for debt, wish in [(debt, debt.wish) for debt in chunk.debts if debt.wish is not None]:
            plain = replace(wish, conditions=False) if wish.conditions else plainer(wish)
            got = await self._one(plain if debt.number in self._plain else wish, from_ns, to_ns, most)
            if got.status in FILTER_REFUSED and debt.number not in self._plain:
                self._plain.add(debt.number)
                got = await self._one(plain, from_ns, to_ns, most)
            if got.status in _NOT_HERE:
                self._without.add(debt.place)
            results.append(got)
        return results

    async def _one(self, wish: Wish, from_ns: int, to_ns: int, most: int) -> History:
        try:
            return await self._session.event_history(wish, from_ns, to_ns, most)
        except ServiceFault as fault:
            if fault.status in _NOT_HERE | FILTER_REFUSED:
                return History(fault.status, b"", blank_items(0))
            raise

    def _until_ns(self) -> int:
        return max(self._gap.first_live_ns.values(), default=self._gap.from_ns)

    async def _close(self, step: GapStep, reason: str) -> None:
        feed, gap = self._feed, self._gap
        times = {"since_ns": gap.from_ns, "until_ns": self._until_ns()}
        detail: dict[str, object] = {"gap": gap.id, **times, "readings": self._readings, "reason": reason}
        feed.notice(NoticeKind.GAP, event=str(step), **detail)
        await feed.committer.submit(Batch(feed.name, empty_columns(), None, GapChange(step, gap.id, gap.from_ns)))
        feed.forget(gap)


class _ByHand(_Fill):
    """One attempt to fill what a person asked for."""

    def __init__(self, session: Session, feed: Feed, gap: Gap) -> None:
        super().__init__(session, feed, gap)
        self._order = feed.hand.of(gap)

    async def pay(self) -> None:
        if self._order is None:
            await self._close(GapStep.UNFILLABLE, "the order was taken back, or another was written")
        else:
            self._feed.hand.filling(self._order)
            self._readings = self._feed.hand.result["readings"]  # of the attempts before this one
            await super().pay()

    def _owed(self, nodes: dict[int, str]) -> tuple[list[Debt], str]:
        numbers = {tag.id: tag.number for tag in self._feed.settings.tags}
        window_ns = self._feed.settings.history_fill_ns
        return debts_by_hand(self._order, self._gap, numbers, nodes, window_ns) if self._order is not None else ([], "")

    def _remaining(self, debts: list[Debt], size: int) -> tuple[list[Chunk], int]:
        return remaining(debts, split_progress(self._gap.progress)[1], size, alike)

    def _packed(self, chunk: Chunk, unserved: int) -> bytes:
        self._feed.hand.result |= {"asked": chunk.debts[-1].place, "readings": self._readings}
        return split_progress(self._gap.progress)[0] + pack_progress(chunk, unserved)

    def _gives_way(self) -> bool:
        """Another gap is older news than what a person can wait for; and an order may be taken back."""
        gaps = self._feed.sink.known(self._feed.name).gaps
        return self._feed.opening or len(gaps) > 1 or self._feed.hand.of(self._gap) is None

    def _missing(self, debts: list[Debt], able: list[Debt]) -> str:
        tags, none = {debt.number for debt in debts}, {debt.number for debt in debts} - {debt.number for debt in able}
        said = [f"no history of {len(none)} of {len(tags)} tags"] if none else []
        said += [f"no history over the whole of {self._unserved} of {len(debts)} holes"] if self._unserved else []
        return "; ".join(said)

    async def _closed_whole(self) -> None:
        await self._close(GapStep.FILLED, "from the server's history")

    def _until_ns(self) -> int:
        return self._order.to_ns if self._order is not None else self._gap.from_ns

    async def _close(self, step: GapStep, reason: str) -> None:
        await super()._close(step, reason)
        self._feed.hand.closed(str(step), reason, self._readings)
