"""What outlives a connection to one server: the newest readings, the message numbers, what waits for the ring. Messages in, batches out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.errors import CorruptError
from buffer.notice import NoticeKind
from buffer.types import GOOD, Flag, Kind, empty_columns, make_columns
from gateway.collect.clock import NO_TIME, SkewWatch
from gateway.collect.opcua.active import BAD_WAITING_FOR_INITIAL_DATA
from gateway.collect.opcua.answers import decode_message
from gateway.collect.opcua.arrays import Arrays
from gateway.collect.opcua.byhand import Hand, by_hand
from gateway.collect.opcua.committer import Committer
from gateway.collect.opcua.eventdebt import EDGE_NS, LATE_NS, Seen, Times, first_progress
from gateway.collect.opcua.readings import TagStates, Taken
from gateway.collect.opcua.tracker import Tracker, make_position, settled_of, with_settled
from gateway.collect.source import Batch, GapChange, GapStep

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from buffer.types import Columns
    from gateway.collect.clock import GatewayClock
    from gateway.collect.opcua.active import Condition
    from gateway.collect.opcua.answers import Message
    from gateway.collect.opcua.decode import Items
    from gateway.collect.opcua.state import Subscription
    from gateway.collect.source import Gap, Sink
    from gateway.runtime import Runtime
    from gateway.settings import OpcuaSource

OVERFLOW_GAPS_MAX: Final = 8  # open at a time: a queue that always overflows is too short, and asking for its history makes it worse
OVERFLOW_NOTICE_NS: Final = 60 * 10**9  # one notice a minute while a server's queues overflow
SECOND: Final = 10**9
RESENT_NS: Final = 30 * SECOND  # after a cut, while what the server held comes in: its newest values may come a second time
_SEMANTICS_CHANGED: Final = np.uint32(0xC000)  # StructureChanged, SemanticsChanged (OPC 10000-4, 7.39)


class Feed:
    """One source's readings on their way to the sink, over any number of connections."""

    def __init__(self, settings: OpcuaSource, runtime: Runtime, clock: GatewayClock, sink: Sink) -> None:
        self.settings = settings
        self.runtime = runtime
        self.sink = sink
        self.name = settings.name
        self._clock = clock
        self._known = sink.known(settings.name)
        self.states = TagStates(settings.tags, self._known.last)
        self.hand = Hand()  # what people asked to have filled
        self.arrays = Arrays(settings.tags)
        self._longer: dict[int, int] = {}  # first element -> length of an array of which people were told that it is cut
        self.committer = Committer(sink)
        self.subscription: Subscription | None = None
        self.tracker: Tracker | None = None
        self.structure: Callable[[str, bytes], object] | None = None
        self._kept_ns = -RESENT_NS
        self._skew = SkewWatch()
        slowest = max((tag.every_ns for tag in settings.tags), default=0)
        self._slack_ns = settings.publish_ns + slowest
        self._level_ns = self.states.newest_ns or self.now()[0]
        self.alarms_told = False  # which alarms were active when this process, or the subscription, began
        self.refused_before: frozenset[int] = frozenset()  # tags that the subscription before this one could not read either
        self.settled = False  # every tag's present value is known: a gap has its first live readings
        self._overflows = 0
        self._overflow_told_ns = 0
        self._concerned: dict[int, frozenset[int] | None] = {}  # gaps opened here, by from_ns: the tags they are about, None: all
        self._opening: set[asyncio.Task[None]] = set()
        self.fill_losses: dict[int, int] = {}  # gap id -> connections lost in a row while its history was asked for
        self.program_ns = -(10**18)  # monotonic: when the server was last found to run another program
        self._placed = self._known.position  # as of the newest batch
        self._event_tags = self.states.numbers[self.states.events]
        known_events = {number: self._known.last[number] for number in self._event_tags.tolist() if number in self._known.last}
        self.seen = Seen(known_events)
        settled_ns = settled_of(self._known.position)
        self.settled_ns = NO_TIME if settled_ns is None else settled_ns  # of events (gateway.collect.opcua.eventdebt), server's clock
        self._lived_ns = self._until_ns = NO_TIME  # when history may be asked, by our clock; up to when, by the server's
        self.outages = 0  # that began, with a gap of their own or one that goes on
        self.semantics_changed = False  # a status said so: types, units or the program may be others now
        self.alive_number = next((tag.number for tag in settings.tags if settings.alive and tag.id == settings.alive.tag), None)
        self.alive_changed_ns: int | None = None
        self.heard_ns = runtime.monotonic_ns()  # last answer of the server, whatever it said

    @property
    def position(self) -> bytes | None:
        """The committed position at the start of this process."""
        return self._known.position

    def now(self) -> tuple[int, bool]:
        """Return the gateway's time and whether it is trusted."""
        return self._clock.now(self.runtime.wall_ns(), self.runtime.monotonic_ns()), self._clock.trusted

    def begin(self, subscription: Subscription, last: int) -> None:
        """Use this subscription; `last`: number of its last committed message, 0 for a new one."""
        self.subscription, self.tracker = subscription, Tracker(last)

    def kept(self) -> None:
        """The subscription outlived a cut: what was on its way comes again, and some servers then repeat each item's newest value."""
        self._kept_ns = self.runtime.monotonic_ns()
        if self.tracker is not None:
            self.tracker.reconnected()

    def end(self) -> None:
        """The subscription is gone."""
        self.subscription = self.tracker = None

    def notice(self, kind: NoticeKind, **detail: object) -> None:
        """Tell people something about this source."""
        self.sink.notice(kind, self.name, **detail)

    # ---- what the server sent ----

    def take_message(self, message: Message) -> bool:
        """Commit a message's readings and, once durable, acknowledge it. Return False if its items cannot be decoded: they are lost."""
        subscription, tracker = self.subscription, self.tracker
        if subscription is None or tracker is None:
            return True
        number = message.sequence
        tracker.took(number)
        position = self._place(make_position(subscription.identity, subscription.id, number))
        try:
            columns = self._convert(decode_message(message, self.structure))
            self._open_overflow(columns)
            good = True
        except CorruptError as error:
            self.notice(NoticeKind.GAP, event="message not readable", message=number, error=str(error))
            columns, good = empty_columns(), False
        self.committer.submit(Batch(self.name, columns, position), lambda: tracker.committed(number))
        return good

    def take_read(self, numbers: Sequence[int], items: Items) -> None:
        """Commit values that were read, one per item, unless they are the newest already; the next notification may repeat them."""
        tags = self.arrays.spread(numbers)
        self.states.await_first(tags)
        columns = self._convert(replace(items, handle=np.asarray(numbers, np.uint32)))
        self.states.await_same(tags)
        if len(columns):
            self.committer.submit(Batch(self.name, columns))

    def _convert(self, items: Items) -> Columns:
        now, trusted = self.now()
        items, longer = self.arrays.expand(items)
        for number, size in longer.items():
            if self._longer.get(number) != size:
                self._longer[number] = size
                self.notice(NoticeKind.TAG, event="array longer than `expand`: the rest is not kept", tag=self.tag_id(number), elements=size)
        since = min(now, self._level_ns) - self._slack_ns
        self.states.resent = self.runtime.monotonic_ns() - self._kept_ns < RESENT_NS
        taken = self.states.take(items, now, since, trusted, self.settings.clock)
        if len(self._event_tags):
            self.seen.took(taken.columns, np.flatnonzero(np.isin(taken.columns.tag, self._event_tags)))
        self._tell(taken, now)
        if self.alive_number is not None and np.any(taken.columns.tag == self.alive_number):
            self.alive_changed_ns = self.runtime.monotonic_ns()
        return taken.columns

    def _tell(self, taken: Taken, now: int) -> None:
        episode = self._skew.update(taken.stamped, now)
        if episode is not None:
            event = "source clock wrong: gateway time used" if episode.began else "source clock right again"
            self.notice(NoticeKind.CLOCK, event=event, offset_s=round(episode.offset_ns / SECOND, 3), readings=episode.readings)
        for number, (before, after) in taken.retyped.items():
            self.notice(NoticeKind.TAG, event="type changed", tag=self.tag_id(number), before=before.name, after=after.name)
        self._overflows += int(np.count_nonzero(taken.columns.flags & np.uint16(Flag.OVERFLOW)))
        self.semantics_changed |= bool(np.any(taken.columns.quality & _SEMANTICS_CHANGED))
        if self._overflows and now - self._overflow_told_ns >= OVERFLOW_NOTICE_NS:
            self.notice(NoticeKind.GAP, event="queue overflow at the server", readings=self._overflows)
            self._overflows, self._overflow_told_ns = 0, now

    def tag_id(self, number: int) -> str:
        """Return the id of a tag number."""
        rows, _ = self.states.rows(np.asarray([number], np.uint32))
        return self.states.tags[int(rows[0])].id if len(rows) else str(number)

    def level(self) -> None:
        """Note that the server has nothing more for us now."""
        self._level_ns = self.now()[0]

    # ---- events ----

    def _place(self, position: bytes | None) -> bytes | None:
        self._placed = with_settled(position, self.settled_ns) if self.settled_ns != NO_TIME else position
        return self._placed

    def lived(self, skew_ns: int | None) -> None:
        """Note that the subscription lives now. skew_ns: the server's clock minus ours; a clock that is wrong settles nothing."""
        until_ns = self.now()[0] + EDGE_NS
        wrong = skew_ns is not None and abs(skew_ns) > self.settings.clock.max_skew_ns
        self._lived_ns, self._until_ns = until_ns + LATE_NS, NO_TIME if wrong else until_ns + (skew_ns or 0)

    @property
    def events_level(self) -> bool:
        """Whether what came live of the time when the subscription lived has come: the history before it can be told from it."""
        return self._level_ns >= self._lived_ns

    @property
    def events_placed(self) -> bool:
        """Whether the server's clock was right when the subscription lived: else nobody knows up to when its events have come."""
        return self._until_ns != NO_TIME

    def event_times(self, gap: Gap, skew_ns: int) -> Times:
        """Return between which times the events of a gap are to be looked for."""
        return Times(gap.from_ns + skew_ns, self._until_ns, self.settings.history_fill_ns)

    def settle(self, until_ns: int) -> bytes | None:
        """Note that events up to this time are settled, but no further than live ones have come; return the position to commit."""
        self.settled_ns = max(self.settled_ns, min(until_ns, self._until_ns))
        return self._place(self._placed)

    async def begin_events(self) -> None:
        """From the first subscription on events are owed, also of a notifier that never spoke."""
        if len(self._event_tags) and self.settled_ns == NO_TIME and self.events_placed and self.events_level:
            await self.committer.submit(Batch(self.name, empty_columns(), self.settle(self._until_ns)))

    # ---- gaps ----

    async def open_gap(self, reason: str) -> None:
        """Commit a gap since the last moment we were level, before any later reading; a gap without a later reading goes on."""
        self.settled = False
        self.outages += 1
        gaps = self.sink.known(self.name).gaps
        nothing = not self.states.has.any() and self.settled_ns == NO_TIME
        if nothing or any(not gap.first_live_ns and not by_hand(gap) for gap in gaps):
            return
        await self._open(None, reason)

    def _open_overflow(self, columns: Columns) -> None:
        """Values that a server's full queue threw away lie before the flagged ones: a gap of those tags, if not too many are open."""
        flagged = frozenset(columns.tag[(columns.flags & np.uint16(Flag.OVERFLOW)) != 0].tolist())
        waiting = sum(concerned is not None for concerned in self._concerned.values())
        if flagged and self.states.has.any() and waiting < OVERFLOW_GAPS_MAX:
            self._open(flagged, f"queue overflow at the server, {len(flagged)} tags")

    def _open(self, concerned: frozenset[int] | None, reason: str) -> asyncio.Task[None]:
        from_ns = self._level_ns
        while from_ns in self._concerned:  # two gaps in a row without a level moment between them
            from_ns += 1
        self._concerned[from_ns] = concerned
        self.notice(NoticeKind.GAP, event="opened", since_ns=from_ns, reason=reason)
        progress = first_progress(self.settled_ns) if concerned is None and len(self._event_tags) else b""
        task = self.committer.submit(Batch(self.name, empty_columns(), None, GapChange(GapStep.OPEN, from_ns=from_ns, progress=progress)))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return task

    @property
    def opening(self) -> bool:
        """Whether a gap is on its way into the ring that `sink.known` does not show yet."""
        return bool(self._opening)

    def concerned(self, gap: Gap) -> frozenset[int] | None:
        """Return the tags a gap is about; None: all, or opened before this process began."""
        return self._concerned.get(gap.from_ns)

    def span(self, gap: Gap) -> tuple[int, int] | None:
        """Return between which times of the source a value can have changed that is new after a gap; None: the gateway's clock does not know."""
        now, trusted = self.now()
        skew_ns = self.settings.clock.max_skew_ns
        return (gap.from_ns - self._slack_ns - skew_ns, now + skew_ns) if trusted else None

    def unseen(self, gap: Gap) -> int:
        """Return of how many tags that had values before a gap none is known after it: their first value is still to come, or refused."""
        refused = frozenset(self.subscription.refused if self.subscription else ()) - self.refused_before
        concerned = self.concerned(gap)
        numbers = {*self.states.awaiting, *refused} & set(gap.last)
        return len(numbers if concerned is None else numbers & concerned)

    def events_concerned(self, gap: Gap) -> int:
        """Return of how many event tags a gap may hide something."""
        concerned = self.concerned(gap)
        numbers = self.states.numbers[self.states.events].tolist()
        return sum(concerned is None or number in concerned for number in numbers)

    def forget(self, gap: Gap) -> None:
        """Note that a gap is closed."""
        self._concerned.pop(gap.from_ns, None)
        self.fill_losses.pop(gap.id, None)

    # ---- what nobody sent ----

    def mark(self, quality: int, ts_ns: int) -> None:
        """Commit a marker for every tag that shows a value."""
        columns = self.states.mark(quality, ts_ns)
        if len(columns):
            self.committer.submit(Batch(self.name, columns))

    def refuse(self, refused: dict[int, int]) -> None:
        """Commit one marker per tag the server refuses (number -> status), and tell people."""
        if refused:
            self.committer.submit(Batch(self.name, self.states.refuse(refused, self.now()[0])))
        for number, status in list(refused.items())[:20]:
            self.notice(NoticeKind.TAG, event="refused by the server", tag=self.tag_id(number), status=f"0x{status:08X}", refused=len(refused))

    def tell_alarms(self, numbers: Sequence[int], conditions: Sequence[Condition] | None, as_of_ns: int) -> None:
        """Commit which alarms were active at that time for these tags; None: nobody knows before they change."""
        n = len(numbers)
        for one in conditions or ():
            if one.active:
                flags = [Flag.INITIAL | Flag.MARKER] * n  # no event: neither the newest one nor the first after a gap
                columns = make_columns(numbers, [as_of_ns] * n, [Kind.TEXT] * n, range(n), [GOOD] * n, flags, (one.text,) * n)
                said = np.full(n, as_of_ns if one.time_ns == NO_TIME else one.time_ns, np.int64)
                self.committer.submit(Batch(self.name, replace(columns, ts_source_ns=said)))
        quality = BAD_WAITING_FOR_INITIAL_DATA if conditions is None else GOOD
        self.committer.submit(Batch(self.name, self.states.tell(numbers, quality, as_of_ns)))
        names = [self.tag_id(number) for number in numbers[:20]]
        if conditions is None:
            self.notice(NoticeKind.TAG, event="which alarms are active is not known before each changes", tags=names)
        else:
            active = sum(one.active for one in conditions)
            self.notice(NoticeKind.TAG, event="active alarms read", active=active, conditions=len(conditions), tags=names)

    def repeat_marked(self) -> None:
        """Commit the newest reading again where a marker stands: the source was never without us, though we were without it."""
        events = self.states.numbers[self.states.marked & self.states.events].tolist()
        if events:  # the server kept what happened meanwhile: it comes, or there was nothing
            self.committer.submit(Batch(self.name, self.states.tell(events, GOOD, self.now()[0])))
        self._repeat(self.states.marked.copy())

    def heartbeat(self) -> None:
        """Commit the newest reading again where its heartbeat is due. Only while the subscription is proven alive."""
        due = self.states.due(self.now()[0]) if self.states.beats else None
        if due is not None and due.any():
            self._repeat(due)

    def _repeat(self, which: NDArray[np.bool_]) -> None:
        now, trusted = self.now()
        columns = self.states.repeat(which, now, trusted)
        if len(columns):
            self.committer.submit(Batch(self.name, columns))
