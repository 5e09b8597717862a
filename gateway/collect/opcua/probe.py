"""First contact with an OPC UA server, for `ebbgate trust`, `browse`, `read` and `check`. Obeys and charges the same load contract as collect.

Runs as collect's user, under collect's lock: never beside a running source of the same name (gateway.collect.locks.SourceBusy). Every
request passes the guard; the session is closed at the end. What could be written is found by reading UserAccessLevel, never by trying.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from buffer.storage import publish_file
from buffer.types import Kind
from gateway.collect.clock import NO_TIME
from gateway.collect.load import Budget
from gateway.collect.locks import wait_for_turn
from gateway.collect.opcua.address import parse_address
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.channel import abort, discover, open_channel
from gateway.collect.opcua.guarded import SESSION_TIMEOUT_S
from gateway.collect.opcua.security import parse_security, secret_of
from gateway.collect.opcua.session import DATA_TYPE, LOGIN_REFUSED, USER_ACCESS_LEVEL, VALUE, Session
from gateway.collect.opcua.state import STATE_BYTES_MAX, SourceState, parse_state
from gateway.collect.opcua.throttle import Throttle
from gateway.collect.status import describe
from gateway.errors import ConfigError, EbbgateError, PlantError, TrustError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.collect.opcua.decode import Items
    from gateway.collect.opcua.endpoints import Endpoint
    from gateway.runtime import Runtime
    from gateway.settings import OpcuaSource

WRITE: Final = 0b10  # CurrentWrite bit of UserAccessLevel (OPC 10000-3, 8.57)
_TIMEOUT_NS: Final = int(SESSION_TIMEOUT_S * 1e9)


@dataclass(frozen=True, slots=True)
class Offer:
    """What `trust` shows. chosen: the certificate of the configured security, b"" if it is not offered; refusal: why the server, asked with
    our certificate, opened no channel; None: it did, or was not asked."""

    url: str
    endpoints: tuple[Endpoint, ...]
    chosen: bytes
    refusal: EbbgateError | None


@dataclass(frozen=True, slots=True)
class Shown:
    """One value as a person reads it. age_s: since the source's time, None where it gave none; writable: None where the server does not say."""

    address: str
    node: str
    value: str
    type: str
    quality: int
    age_s: float | None
    writable: bool | None


@asynccontextmanager
async def alone(settings: OpcuaSource, runtime: Runtime, directory: Path) -> AsyncIterator[tuple[SourceState, Throttle]]:
    """Hold the source's lock; give what is remembered of it and its load contract; write down what was asked. Raise SourceBusy."""
    path = directory / f"{settings.name}.json"
    paused = directory.parent / "control" / "pause" / settings.name
    locks = await wait_for_turn(directory, settings.name, lambda _: paused.exists(), runtime.sleep)
    try:
        state = parse_state(path.read_bytes()[:STATE_BYTES_MAX] if path.exists() else None)
        throttle = Throttle(Budget(settings.load, runtime.monotonic_ns(), state.load, runtime.wall_ns()), runtime)
        try:
            yield state, throttle
        finally:
            _save(path, state, throttle, runtime)
    finally:
        locks.release(settings.name)


def _save(path: Path, state: SourceState, throttle: Throttle, runtime: Runtime) -> None:
    state.load = dict(throttle.budget.export(runtime.monotonic_ns(), runtime.wall_ns()))
    publish_file(path, state.encode(), mode=0o600)


@asynccontextmanager
async def contact(settings: OpcuaSource, runtime: Runtime, directory: Path) -> AsyncIterator[Session]:
    """Give a session with the first URL that answers, under the rules for sessions and logins that the source itself obeys.

    A session of collect that may still be at the server (it was killed) is left there, with its subscription and what waits in it.
    """
    async with alone(settings, runtime, directory) as (state, throttle):
        wait = state.wait_for_login_ns(runtime.wall_ns(), secret_of(settings))
        if wait:
            message = f"the login was refused lately and is not tried again for {wait / 60e9:.0f} min, so that nobody locks the account"
            raise PlantError(message, "Correct user or password_file: a changed file is tried at once.")
        session = None
        kept = state.session, dict(state.asked)
        try:
            session = await _first(settings, runtime, directory, state, throttle)
            state.login_accepted()
            await session.read_facts(runtime.wall_ns)
            yield session
        except ServiceFault as fault:
            if session is None and fault.status in LOGIN_REFUSED:
                state.login_refused(runtime.wall_ns(), secret_of(settings))
                state.session, state.asked = kept
            raise
        finally:
            if session is not None and await session.close():
                state.session, state.asked = kept


async def _first(settings: OpcuaSource, runtime: Runtime, directory: Path, state: SourceState, throttle: Throttle) -> Session:
    for url in settings.urls:

        def may_create(_gone: bool, url: str = url) -> None:
            wait = state.wait_for_session_ns(runtime.wall_ns(), _TIMEOUT_NS, url)
            if wait:
                seconds = wait / 1e9
                raise PlantError(f"the server may still hold our last session for {seconds:.0f} s", f"Wait {seconds:.0f} s, then try again.")
            saved = state.session
            state.session_asked(runtime.wall_ns(), url)
            state.session = saved
            _save(directory / f"{settings.name}.json", state, throttle, runtime)  # a kill from here on is remembered

        try:
            return await Session.connect(settings, url, throttle, None, may_create)
        except (PlantError, TrustError) as error:
            if url == settings.urls[-1] or (isinstance(error, ServiceFault) and error.status in LOGIN_REFUSED):
                raise
    raise PlantError(f"source {settings.name} has no url", "Write urls.")


async def offer(settings: OpcuaSource, runtime: Runtime, directory: Path, *, ask_with_ours: bool) -> Offer:
    """Return what the first server that answers offers, and what it says to our certificate. Nothing is trusted, no session asked for."""
    async with alone(settings, runtime, directory) as (_, throttle):
        for url in settings.urls:
            try:
                endpoints = await discover(settings, url, throttle)
            except PlantError:
                if url == settings.urls[-1]:
                    raise
                continue
            wanted = " ".join(parse_security(settings.security))
            chosen = next((one.certificate for one in endpoints if one.security == wanted and one.chain), b"")
            refusal = None
            if chosen and ask_with_ours:
                try:
                    abort(await open_channel(settings, url, throttle, chosen))
                except (PlantError, TrustError) as error:
                    refusal = error
            return Offer(url, endpoints, chosen, refusal)
    raise PlantError(f"source {settings.name} has no url", "Write urls.")


async def read(settings: OpcuaSource, runtime: Runtime, directory: Path, address: str) -> Shown:
    """Read one value once. Raise ConfigError for an address that cannot be meant, PlantError for what the server said."""
    place = parse_address(address, settings.namespaces)
    async with contact(settings, runtime, directory) as session:
        node = place.node_id(session.facts.namespaces)
        if node is None:
            raise no_namespace(address, session)
        items = await session.read([node], VALUE)
        types = await session.read([node], DATA_TYPE)
        access = (await session.read([node], USER_ACCESS_LEVEL)).value(0)
        shown = show(node, items, types, 0, runtime.wall_ns())
        return replace(shown, address=address, writable=bool(access & WRITE) if type(access) is int else None)


def no_namespace(address: str, session: Session) -> ConfigError:
    """Return the error of an address whose namespace the server does not have."""
    known = ", ".join(session.facts.namespaces[:NAMESPACES_NAMED_MAX])
    return ConfigError(f"address {address!r}: the server has no namespace of that name", f"It has: {known}")


NAMESPACES_NAMED_MAX: Final = 20


def show(node: str, items: Items, types: Items, row: int, now_ns: int) -> Shown:
    """Return a value as a person reads it."""
    value, source_ns = items.value(row), int(items.source_ns[row])
    kind = Kind(int(items.kind[row])).name.lower()
    type_ = TYPE_NAMES.get(str(types.value(row)), str(types.value(row) or kind))
    digits = 7 if type_ == "Float" else 15  # what the type holds: a count in a Double is shown to its last digit
    text = "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)
    age_s = None if source_ns == NO_TIME else (now_ns - source_ns) / 1e9
    return Shown(node, node, text, type_, int(items.quality[row]), age_s, None)


def quality_text(quality: int) -> str:
    """Return a status in words."""
    return describe(quality)


# OPC 10000-6, table 1, and the abstract types above them (NodeIds.csv)
TYPE_NAMES: Final = {
    f"i={number}": name
    for number, name in enumerate(
        (
            *("Null", "Boolean", "SByte", "Byte", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float", "Double"),
            *("String", "DateTime", "Guid", "ByteString", "XmlElement", "NodeId", "ExpandedNodeId", "StatusCode"),
            *("QualifiedName", "LocalizedText", "Structure", "DataValue", "BaseDataType", "DiagnosticInfo"),
            *("Number", "Integer", "UInteger", "Enumeration"),
        )
    )
}
