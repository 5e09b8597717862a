"""One OPC UA server as a source: connects, keeps at it for ever, and says so when it cannot.

A cut costs nothing while the server's queues last: session and subscription are taken up again with what `state.SourceState` and the
ring's position remember, missing messages are asked for again, and a message is acknowledged only after its commit. Every
reconnect uses a fresh client object. What the server may be asked, and how often, is `load.Budget`, counted across restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from buffer.errors import CorruptError, StorageFault
from buffer.notice import NoticeKind
from buffer.storage import publish_file
from buffer.types import BAD_NO_COMMUNICATION, BAD_OUT_OF_SERVICE
from gateway.collect.load import Budget
from gateway.collect.opcua.address import wrong_addresses
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.byhand import Hand
from gateway.collect.opcua.feed import Feed
from gateway.collect.opcua.guarded import SESSION_TIMEOUT_S, endpoint_of, structure
from gateway.collect.opcua.link import Link, SubscriptionLost, together
from gateway.collect.opcua.redundancy import LOOK_EVERY_S, Urls
from gateway.collect.opcua.security import check_files, secret_of
from gateway.collect.opcua.session import LOGIN_REFUSED, Resume, Session
from gateway.collect.opcua.state import STATE_BYTES_MAX, SourceState, parse_state
from gateway.collect.opcua.throttle import Throttle
from gateway.errors import ConfigError, PlantError, TrustError
from gateway.runtime import full_jitter

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.collect.clock import GatewayClock
    from gateway.collect.source import Sink
    from gateway.fillorder import FillOrder
    from gateway.runtime import Runtime
    from gateway.settings import OpcuaSource as Settings

BACKOFF_BASE_S, BACKOFF_CAP_S = 1.0, 30.0
DOWN_AFTER_S: Final = 10.0  # shorter cuts leave no marker: the queue fills them
LEAVE_S: Final = 0.8  # to say goodbye when paused or stopped; then the connection is cut
DRAIN_S: Final = 5.0  # for the last commits when stopped
POLL_S: Final = 0.2  # of pause files
SAVE_S: Final = 30.0  # of the load counters

log = logging.getLogger(__name__)


class Pauses(Protocol):
    """What people ask: which source to leave alone, what to fill by hand (gateway.collect.control.Control)."""

    def paused(self, source: str) -> bool:
        """Say whether this source is to be left alone now."""
        ...

    def asked(self, source: str) -> FillOrder | str | None:
        """Return the order to fill gaps of this source, or what is wrong with it."""
        ...


class _Paused(Exception):
    """A person wants this source left alone."""


class _NotYet(PlantError):
    """A rule of ours forbids the next step for a while."""

    def __init__(self, message: str, wait_ns: int) -> None:
        super().__init__(message)
        self.wait_s = wait_ns / 1e9


class _Degraded(PlantError):
    """The server is not healthy, and another one may be."""


class OpcuaSource:
    """Implements gateway.collect.source.Source."""

    _feed: Feed  # made by `run`
    _throttle: Throttle

    def __init__(self, settings: Settings, runtime: Runtime, clock: GatewayClock, pauses: Pauses, directory: Path) -> None:
        """directory: <state>/collect, where <source>.json is kept. Raise ConfigError or TrustError for what no waiting will cure."""
        for url in settings.urls:
            endpoint_of(url)
        check_files(settings)
        wrong = wrong_addresses(settings)
        if wrong:
            raise ConfigError(f"source.{settings.name}:\n    " + "\n    ".join(f"{f.where}: {f.what}" for f in wrong), "Correct tags.csv.")
        self.name = settings.name
        self._settings = settings
        self._runtime = runtime
        self._clock = clock
        self._pauses = pauses
        self._path = directory / f"{settings.name}.json"
        self._state = SourceState()
        self._urls = Urls(settings.urls)
        self._session: Session | None = None
        self._down = False
        self._lost_ns = 0  # monotonic: since when nothing is proven
        self._lost_wall_ns = 0
        self._reason = "not connected yet"
        self._attempt = 0
        self._frozen = False
        self._running = False

    def status(self) -> dict[str, object]:
        """Return what `ebbgate status` shows of this source."""
        if not self._running:
            return {"state": "starting"}
        subscription = self._feed.subscription
        return {
            "state": "paused" if self._pauses.paused(self.name) else "down" if self._down else "up" if not self._lost_ns else "connecting",
            "reason": self._reason if self._lost_ns else "",
            "tags": len(self._settings.tags),
            "refused": len(subscription.refused) if subscription else 0,
            "security": self._settings.security,
            "security_waiver": self._settings.waiver,
            "url": self._urls.current,
            "fill": self._feed.hand.result,
            "load": asdict(self._throttle.budget.certificate(self._runtime.monotonic_ns())),
        }

    # ---- the loop ----

    async def run(self, sink: Sink) -> None:
        """Read until cancelled."""
        self._throttle = Throttle(await self._remember(), self._runtime)
        self._feed = Feed(self._settings, self._runtime, self._clock, sink)
        self._feed.structure = structure
        self._feed.hand = Hand(partial(self._pauses.asked, self.name), self._state.hand)
        self._running = True
        if self._settings.waiver:
            self._feed.notice(NoticeKind.SECURITY, event="waiver in force", security=self._settings.security, reason=self._settings.waiver)
        self._lose("not connected yet")
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                watch_failed = watch.done() and watch.exception()
                if watch_failed:
                    raise watch_failed
                await self._once()
        except asyncio.CancelledError:
            await self._leave("stopped")
            raise
        finally:
            watch.cancel()
            self._drop()

    async def _once(self) -> None:
        """One connection, from the first byte to its end."""
        try:
            self._check_pause()
            self._check_login()
            self._check_session()
            await self._until_paused()
        except _Paused:
            await self._pause()
        except _NotYet as wait:
            self._drop()
            self._lose(wait.message)
            if self._urls.several:
                self._urls.failed()
            await self._wait(min(wait.wait_s, BACKOFF_BASE_S) if self._urls.several else wait.wait_s)
        except (PlantError, TrustError, CorruptError) as error:
            await self._failed(error)

    async def _until_paused(self) -> None:
        """Connect and let the link work; leave when it fails or somebody asks for a pause, which thousands of items to be made do not delay."""
        await together(self._watch_pause(), self._connected())

    async def _connected(self) -> None:
        link = await self._connect()
        await together(link.run(), self._poll(), self._watch_level())

    async def _watch_pause(self) -> None:
        while True:
            await self._runtime.sleep(POLL_S)
            self._check_pause()

    async def _poll(self) -> None:
        """Beside the link: the life bit, what must survive a restart."""
        saved_ns = self._runtime.monotonic_ns()
        while True:
            await self._runtime.sleep(POLL_S)
            self._check_alive()
            now = self._runtime.monotonic_ns()
            result = self._feed.hand.lasting or self._state.hand
            changed = self._state.subscription != self._feed.subscription or self._state.hand != result
            self._state.subscription = self._feed.subscription
            if changed or now - saved_ns > SAVE_S * 1e9:
                saved_ns = now
                await self._save()

    async def _connect(self) -> Link:
        settings, state = self._settings, self._state
        url = self._urls.current
        resume = Resume.parse(state.session)
        session = await Session.connect(settings, url, self._throttle, resume, self._may_create)
        self._session = session
        state.session = session.resume().export()
        state.login_accepted()
        await self._save()
        await self._check_level(session)
        link = Link(session, self._feed, state, self._throttle, self._proven)
        await link.prepare()
        state.subscription = self._feed.subscription
        await self._save()
        return link

    def _may_create(self, gone: bool) -> None:
        """Raise unless a new session may be asked for now; note that it is, before it is."""
        url = self._urls.current
        if gone:
            self._state.gone(url)
        self._state.session = None
        self._check_session()
        self._state.session_asked(self._runtime.wall_ns(), url)
        self._store()

    def _check_session(self) -> None:
        wait = self._state.wait_for_session_ns(self._runtime.wall_ns(), int(SESSION_TIMEOUT_S * 1e9), self._urls.current)
        if wait and not self._state.has_session(self._urls.current):
            raise _NotYet("the server may still hold our last session", wait)

    async def _check_level(self, session: Session) -> None:
        """Leave a server that says it is not healthy, where there is another."""
        if not self._urls.several:
            return
        level = await session.service_level()
        if not self._urls.keep(level, self._runtime.monotonic_ns()):
            if await session.close():
                self._state.gone(session.url)
            raise _Degraded(f"{session.url} says its service level is {level}: trying {self._urls.current}")

    async def _watch_level(self) -> None:
        while True:
            await self._runtime.sleep(LOOK_EVERY_S)
            if self._session is not None:
                await self._check_level(self._session)

    # ---- faults and pauses ----

    async def _failed(self, error: PlantError | TrustError | CorruptError) -> None:
        self._drop()
        self._lose(str(error))
        refused = isinstance(error, ServiceFault) and error.status in LOGIN_REFUSED
        if refused:
            self._state.login_refused(self._runtime.wall_ns(), secret_of(self._settings))
            self._state.gone(self._urls.current)
            wait = self._state.wait_for_login_ns(self._runtime.wall_ns(), secret_of(self._settings)) / 1e9
            self._feed.notice(NoticeKind.SECURITY, event="login refused", error=str(error), again_in_s=round(wait))
        elif isinstance(error, TrustError) and self._attempt == 0:
            self._feed.notice(NoticeKind.SECURITY, event="not trusted", error=str(error))
        if not isinstance(error, SubscriptionLost | _Degraded):
            self._urls.failed()
        if isinstance(error, SubscriptionLost):
            self._feed.end()
            self._state.subscription = None
        if refused or isinstance(error, SubscriptionLost):  # a PLC that is off for months wears no flash out
            await self._save()
        delay = full_jitter(self._runtime, self._attempt, BACKOFF_BASE_S, BACKOFF_CAP_S)
        log.info("source lost", extra={"data": {"source": self.name, "error": str(error), "again_in_s": round(delay, 1)}})
        self._attempt += 1
        await self._wait(delay)

    async def _wait(self, seconds: float) -> None:
        """Sleep, but notice a pause."""
        until = self._runtime.monotonic_ns() + seconds * 1e9
        while not self._pauses.paused(self.name):
            left = (until - self._runtime.monotonic_ns()) / 1e9
            if left <= 0:
                return
            await self._runtime.sleep(min(left, POLL_S))

    def _check_pause(self) -> None:
        if self._pauses.paused(self.name):
            raise _Paused

    def _check_login(self) -> None:
        wait = self._state.wait_for_login_ns(self._runtime.wall_ns(), secret_of(self._settings))
        if wait:
            message = f"login refused; next try in {wait / 60e9:.0f} min, or when the password file changes"
            raise _NotYet(message, min(wait, 10**9))

    async def _pause(self) -> None:
        """Leave the server and stay away while the pause lasts."""
        await self._leave("paused")
        while self._pauses.paused(self.name):
            await self._runtime.sleep(POLL_S)
        self._throttle.budget = await self._remember()  # `check` and the like may have asked the server meanwhile
        self._feed.heard_ns = self._runtime.monotonic_ns()
        self._lose("resumed after a pause")

    async def _leave(self, reason: str) -> None:
        """Say goodbye in LEAVE_S, mark every tag, tell people."""
        session, self._session = self._session, None
        if session is not None:
            confirmed = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    confirmed = await session.close()
            session.drop()
            if confirmed:
                self._state.gone(session.url)
        self._feed.end()
        self._state.subscription = None
        await self._save()
        await self._feed.committer.drain(DRAIN_S)
        self._feed.mark(BAD_OUT_OF_SERVICE, self._feed.now()[0])
        self._feed.notice(NoticeKind.SOURCE_DOWN, event=reason)
        self._down = True
        self._reason = reason
        if reason == "stopped":
            await self._feed.committer.drain(DRAIN_S)

    def _drop(self) -> None:
        if self._session is not None:
            self._session.drop()
            self._session = None

    # ---- down and up ----

    def _lose(self, reason: str) -> None:
        """Nothing is proven since the last answer."""
        self._reason = reason
        if not self._lost_ns:
            self._lost_ns = self._feed.heard_ns
            self._lost_wall_ns = self._feed.now()[0] - (self._runtime.monotonic_ns() - self._lost_ns)

    def _proven(self, kept: bool) -> None:
        """Readings flow."""
        seconds = round((self._runtime.monotonic_ns() - self._lost_ns) / 1e9, 1) if self._lost_ns else 0.0
        about = {"after_s": seconds, "subscription_kept": kept, "reason": self._reason, "url": self._urls.current}
        self._feed.notice(NoticeKind.SOURCE_UP, event="readings flow", **about)
        self._down, self._lost_ns, self._attempt = False, 0, 0
        self._feed.alive_changed_ns = self._runtime.monotonic_ns()

    async def _watch(self) -> None:
        """After DOWN_AFTER_S without proof of life: one marker per tag, with the time of the loss, and one notice."""
        while True:
            await self._runtime.sleep(POLL_S)
            if self._down or not self._lost_ns or self._runtime.monotonic_ns() - self._lost_ns < DOWN_AFTER_S * 1e9:
                continue
            self._down = True
            self._feed.mark(BAD_NO_COMMUNICATION, self._lost_wall_ns)
            self._feed.notice(NoticeKind.SOURCE_DOWN, event="no communication", since_ns=self._lost_wall_ns, reason=self._reason)

    def _check_alive(self) -> None:
        """Compare the life bit with its limit."""
        alive, changed = self._settings.alive, self._feed.alive_changed_ns
        if alive is None or changed is None or self._lost_ns:
            return
        frozen = self._runtime.monotonic_ns() - changed > alive.within_ns
        if frozen != self._frozen:
            self._frozen = frozen
            self._feed.notice(NoticeKind.FROZEN, event="stands still" if frozen else "moves again", tag=alive.tag, within_s=alive.within_ns / 1e9)

    # ---- state file ----

    async def _remember(self) -> Budget:
        """Take the state file over; return the budget in it."""
        self._state = parse_state(await self._runtime.offload(self._load))
        return Budget(self._settings.load, self._runtime.monotonic_ns(), self._state.load, self._runtime.wall_ns())

    def _load(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                return file.read(STATE_BYTES_MAX)
        except OSError:
            return None

    def _store(self) -> None:
        now = self._runtime.monotonic_ns()
        self._state.hand = self._feed.hand.lasting or self._state.hand
        self._state.load = dict[str, Any](self._throttle.budget.export(now, self._runtime.wall_ns()))
        publish_file(self._path, self._state.encode(), mode=0o600)

    async def _save(self) -> None:
        """Publish the state file. A disk that refuses costs politeness after a restart, no reading: said, and borne."""
        try:
            await self._runtime.offload(partial(self._store))
        except StorageFault as fault:
            self._feed.notice(NoticeKind.STORAGE, event="state file not written", error=str(fault))
