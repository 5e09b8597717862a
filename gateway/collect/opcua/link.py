"""One connection at work: subscription kept or made, messages taken in order, life proven, until the connection or the subscription is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError
from buffer.notice import NoticeKind
from gateway.collect.opcua import subscribe
from gateway.collect.opcua.active import read_conditions
from gateway.collect.opcua.address import parse_address
from gateway.collect.opcua.answers import ServiceFault, parse_publish
from gateway.collect.opcua.arrays import one_per_item
from gateway.collect.opcua.events import is_event
from gateway.collect.opcua.fill import fill
from gateway.collect.opcua.publish import Publisher
from gateway.collect.opcua.session import VALUE
from gateway.collect.opcua.state import Subscription
from gateway.collect.opcua.subscribe import KEEP_ALIVE_S, LIFETIME_S, NOTIFICATIONS_MAX
from gateway.collect.opcua.tracker import position_number
from gateway.errors import PlantError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.collect.opcua.answers import PublishAnswer
    from gateway.collect.opcua.feed import Feed
    from gateway.collect.opcua.session import Session
    from gateway.collect.opcua.state import SourceState
    from gateway.collect.opcua.throttle import Throttle

SILENCE_S: Final = 5.0  # without any answer: the server is asked for its state
ANSWER_S: Final = 5.0  # for that answer: together a dead connection is found within about 10 s
REFUSED_AGAIN_S: Final = 60.0  # refused items are tried again, and the server is asked whether it still runs the same program
CHANGED_AGAIN_S: Final = 5.0  # at least between two such looks, when a status says that semantics changed
UNSTEADY_S: Final = 300.0  # a start time that changed is believed once in so long
TICK_S: Final = 0.5

_NOT_AVAILABLE: Final = 0x807B_0000  # BadMessageNotAvailable
_TOO_MANY_PUBLISH: Final = 0x8078_0000
_TIMEOUT: Final = 0x800A_0000
_NO_SUBSCRIPTION: Final = frozenset({0x8028_0000, 0x8079_0000})  # BadSubscriptionIdInvalid, BadNoSubscription
_STATE_NODE: Final = "i=2259"  # ServerStatus.State


class SubscriptionLost(PlantError):
    """The server no longer has our subscription: the next connection makes another."""


class Link:
    """Run once. `proven` is called when the first answer showed that readings flow; kept: the subscription outlived a cut."""

    def __init__(self, session: Session, feed: Feed, state: SourceState, throttle: Throttle, proven: Callable[[bool], None]) -> None:
        self._session = session
        self._feed = feed
        self._state = state
        self._throttle = throttle
        self._proven = proven
        self._kept = False
        self._is_proven = False
        self._resync = False
        self._faults = 0  # answers to Publish in a row that published nothing
        feed.heard_ns = self._published_ns = feed.runtime.monotonic_ns()
        self._refused: dict[int, int] = {}
        self._publisher = Publisher(session, throttle, feed.committer.publish_ahead, self._acknowledgements)

    # ---- subscription ----

    async def prepare(self) -> None:
        """Keep the subscription there is, or make a new one with all items; a gap is opened first where readings may be missing."""
        await self._subscribe()
        self._feed.lived(self._session.facts.skew_ns)

    async def _subscribe(self) -> None:
        settings, feed = self._feed.settings, self._feed
        facts = await self._session.read_facts(feed.runtime.wall_ns)
        identity = f"{self._session.url} {facts.start_us}"
        digest = subscribe.digest_of(settings)
        old = feed.subscription or self._state.subscription
        self._kept = old is not None and await self._keep(old, identity, digest)
        if self._kept:
            self._refused = dict.fromkeys(feed.subscription.refused if feed.subscription else (), 0)
            return
        if old is not None and self._session.resumed:
            await self._session.delete_subscription(old.id)
        feed.end()
        feed.refused_before = frozenset(old.refused if old is not None else ())
        feed.alarms_told = False
        await feed.open_gap("no subscription survived")
        interval_ms = settings.publish_ns / 1e6
        keep_alive_s = subscribe.keep_alive_s(settings)
        number, revised_ms, count = await self._session.create_subscription(interval_ms, keep_alive_s, LIFETIME_S, NOTIFICATIONS_MAX)
        feed.begin(Subscription(number, identity, digest, subscribe.revised_keep_alive_s(revised_ms, count)), 0)
        try:
            await self._create_items(tuple(tag.number for tag in settings.tags))
        except BaseException:
            feed.end()  # without all its items it lives, publishes, and says nothing: it is never kept
            raise

    async def _keep(self, old: Subscription, identity: str, digest: str) -> bool:
        feed = self._feed
        if old.digest != digest:
            return False
        if not self._session.resumed and not (old.identity == identity and await self._session.transfer(old.id)):
            return False
        if feed.tracker is None:
            feed.begin(old, position_number(feed.position, old.identity, old.id))
        feed.kept()
        return True

    async def _create_items(self, numbers: tuple[int, ...]) -> None:
        feed = self._feed
        subscription = feed.subscription
        if subscription is None:
            return
        wanted = set(numbers)
        tags = one_per_item(tag for tag in feed.settings.tags if tag.number in wanted)
        accepted, refused_items, bare = await subscribe.create(self._session, feed.settings, subscription.id, tags)
        accepted = feed.arrays.spread(accepted)
        refused = {number: status for item, status in refused_items.items() for number in feed.arrays.spread([item])}
        feed.states.await_first(accepted)
        feed.refuse({number: status for number, status in refused.items() if self._refused.get(number) != status})
        back = [number for number in accepted if number in self._refused]
        for number in back[:20]:
            feed.notice(NoticeKind.TAG, event="accepted by the server", tag=feed.tag_id(number), accepted=len(back))
        for one in bare[:20]:
            feed.notice(NoticeKind.TAG, event="no deadband at the server: every change is kept", tag=one, tags=len(bare))
        self._refused = {number: status for number, status in self._refused.items() if number not in wanted} | refused
        feed.subscription = replace(subscription, refused=tuple(sorted(self._refused)))

    def _acknowledgements(self) -> list[tuple[int, int]]:
        tracker, subscription = self._feed.tracker, self._feed.subscription
        return [(subscription.id, number) for number in tracker.take_acknowledgements()] if tracker and subscription else []

    # ---- at work ----

    async def run(self) -> None:
        """Work until the connection is lost: raises PlantError, TrustError or what the ring raises."""
        feed = self._feed
        feed.committer.eased = self._publisher.eased
        feed.heard_ns = self._published_ns = feed.runtime.monotonic_ns()
        alarms = () if feed.alarms_told else (self._read_alarms(),)
        await together(
            self._publisher.keep_asking(), self._consume(), self._watch_life(), self._tick(), self._renew(), fill(self._session, feed), *alarms
        )  # fmt: skip

    async def _renew(self) -> None:
        while True:
            await self._feed.runtime.sleep(self._session.renew_after_s)
            await self._session.renew()

    async def _consume(self) -> None:
        while True:
            data = await self._publisher.answer()
            self._feed.heard_ns = self._feed.runtime.monotonic_ns()
            try:
                answer = parse_publish(data)
                self._published_ns, self._faults = self._feed.heard_ns, 0
            except ServiceFault as fault:
                self._faults += 1
                if fault.status == _TOO_MANY_PUBLISH:
                    self._publisher.fewer()
                elif fault.status in _NO_SUBSCRIPTION:
                    raise SubscriptionLost("the server has no subscription of ours") from fault
                elif fault.status != _TIMEOUT:
                    raise
                continue
            if self._feed.subscription is None or answer.subscription != self._feed.subscription.id:
                await self._session.delete_subscription(answer.subscription)  # made and forgotten before a crash
            else:
                await self._judge(answer)

    async def _judge(self, answer: PublishAnswer) -> None:
        """Take one message after those missing before it."""
        feed, message, tracker = self._feed, answer.message, self._feed.tracker
        if tracker is None:
            return
        verdict = tracker.arrived(message.sequence, answer.available)
        if verdict.duplicate:
            return
        if verdict.skipped:
            await self._lost("messages lost")
        for number in verdict.missing:
            await self._again(number, answer.available)
        if message.keep_alive:
            tracker.level(message.sequence)
        elif message.status is not None:
            raise SubscriptionLost(f"the server ended the subscription: 0x{message.status:08X}")
        elif not feed.take_message(message):
            await self._lost("message not readable")
        if not answer.more:
            await self._level()

    async def _lost(self, reason: str) -> None:
        await self._feed.open_gap(reason)
        self._feed.lived(self._session.facts.skew_ns)
        self._resync = True

    async def _again(self, number: int, available: tuple[int, ...]) -> None:
        """Ask for one message again and take it, or open a gap if the server no longer has it."""
        feed = self._feed
        subscription, tracker = feed.subscription, feed.tracker
        if subscription is None or tracker is None:
            return
        if not available or number in available:
            try:
                message = await self._session.republish(subscription.id, number)
                if message.sequence == number and feed.take_message(message):
                    return
            except ServiceFault as fault:
                if fault.status in _NO_SUBSCRIPTION:
                    raise SubscriptionLost("the subscription is gone") from fault
                if fault.status != _NOT_AVAILABLE:
                    raise
        tracker.took(number)
        await self._lost(f"message {number} lost")

    async def _level(self) -> None:
        """The server has nothing more for us now: prove life, and read what a hole may have hidden."""
        if self._resync:
            self._resync = False
            await self._read_all()
        self._feed.level()
        self._feed.settled = True
        self._feed.heartbeat()  # here and nowhere else: what has not changed up to this answer is what the server shows now
        if not self._is_proven:
            self._is_proven = True
            if self._kept:
                self._feed.repeat_marked()
            self._proven(self._kept)

    async def _read_all(self) -> None:
        """After lost messages a tag that has not changed since shows an old value: read all of them once."""
        settings = self._feed.settings
        spaces = self._session.facts.namespaces
        tags = [tag for tag in one_per_item(settings.tags) if not is_event(tag)]
        nodes = {tag.number: parse_address(tag.address, settings.namespaces).node_id(spaces) for tag in tags}
        wanted = {number: node for number, node in nodes.items() if node is not None and number not in self._refused}
        if wanted:
            self._feed.take_read(list(wanted), await self._session.read(list(wanted.values()), VALUE))
        await self._read_alarms()

    async def _read_alarms(self) -> None:
        """What events before now would have told: which alarms are active, where the server keeps them as nodes."""
        settings, spaces = self._feed.settings, self._session.facts.namespaces
        by_node: dict[str, list[int]] = {}
        for tag in settings.tags:
            node = parse_address(tag.address, settings.namespaces).node_id(spaces) if is_event(tag) else None
            if node is not None and tag.number not in self._refused:
                by_node.setdefault(node, []).append(tag.number)
        for node, numbers in by_node.items():
            as_of_ns = self._feed.now()[0]  # an event that comes meanwhile is later news
            self._feed.tell_alarms(numbers, await read_conditions(self._session, node), as_of_ns)
        self._feed.alarms_told = True

    # ---- life ----

    async def _watch_life(self) -> None:
        """Find a connection that is dead though open, and a server that answers but no longer publishes."""
        feed = self._feed
        keep_alive_s = feed.subscription.keep_alive_s if feed.subscription else KEEP_ALIVE_S
        while True:
            await feed.runtime.sleep(1.0)
            now = feed.runtime.monotonic_ns()
            if self._publisher.waiting == 0 and not self._faults:
                self._published_ns = now  # back-pressure: nobody asked
            elif now - self._published_ns > (1.5 * keep_alive_s + 2) * 1e9:
                raise PlantError(f"no publish for {(now - self._published_ns) / 1e9:.0f} s though the server answers")
            if now - feed.heard_ns > SILENCE_S * 1e9:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        await self._session.read([_STATE_NODE], VALUE)
                except TimeoutError as error:
                    raise PlantError(f"connected but no answer for {SILENCE_S + ANSWER_S:.0f} s") from error
                feed.heard_ns = feed.runtime.monotonic_ns()

    async def _tick(self) -> None:
        """Refused items, a program download, and what the ring raised."""
        feed = self._feed
        looked_ns = feed.runtime.monotonic_ns()
        while True:
            await feed.runtime.sleep(TICK_S)
            feed.committer.check()
            now = feed.runtime.monotonic_ns()
            soon = feed.semantics_changed and now - looked_ns > CHANGED_AGAIN_S * 1e9
            if soon or now - looked_ns > REFUSED_AGAIN_S * 1e9:
                looked_ns = now
                await self._look_again()

    async def _look_again(self) -> None:
        """Find a program download that left the connection alone, and try refused items again."""
        feed, before = self._feed, self._session.facts
        if feed.semantics_changed:
            feed.semantics_changed = False
            feed.notice(NoticeKind.TAG, event="the server says that types, units or structure changed: compare with `ebbgate browse`")
        after = await self._session.read_facts(feed.runtime.wall_ns)
        recent = feed.runtime.monotonic_ns() - feed.program_ns < UNSTEADY_S * 1e9  # a start time that moves all the time means nothing
        if after.namespaces != before.namespaces or (after.start_us != before.start_us and not recent):
            what = "namespaces" if after.namespaces != before.namespaces else "start time"
            feed.program_ns = feed.runtime.monotonic_ns()
            feed.notice(NoticeKind.TAG, event="the server has another program now: all items are made anew", changed=what)
            raise SubscriptionLost(f"the server's {what} changed")
        if self._refused:
            await self._create_items(tuple(self._refused))


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Run these side by side until one fails or all ended; end the others and raise what failed: an error of the plant only if there is no other.

    No TaskGroup: one that is failing forgets a stop that comes just then, and counts its own as one (Python 3.11, 3.12).
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look(task: asyncio.Task[None]) -> None:
        failed = not task.cancelled() and task.exception() is not None
        if not over.done() and (failed or all(one.done() for one in tasks)):
            over.set_result(None)

    for task in tasks:
        task.add_done_callback(look)
    try:
        await over
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [one for one in ended if isinstance(one, BaseException) and not isinstance(one, asyncio.CancelledError)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, PlantError | CorruptError))
