"""One connection per device address, shared by all sources behind it: a meter has two to four, and SCADA needs one.

Units behind one gateway and devices on one wire share it by nature: requests wait for each other in order of arrival, so a silent unit
delays its neighbours by one timeout per back-off step, not more.

RTU numbers nothing: an answer that comes late, on a serial line or through a gateway that passes bytes on, looks like the answer to the
next question. After a request that was not answered well, the next one therefore waits until the line was quiet for one timeout
(which a silent unit then costs once more). Modbus TCP numbers its answers and needs no such wait.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from gateway.collect.modbus.client import connect
from gateway.collect.modbus.frame import ConnectionLost, Framing, Refused
from gateway.errors import ConfigError, PlantError

if TYPE_CHECKING:
    from gateway.runtime import Runtime
    from gateway.settings import ModbusSource


class Link(Protocol):
    """What client.Connection and serial.SerialLine are to a source."""

    bytes_moved: int
    noisy: bool  # bytes came that nobody asked for; it is not open any more

    @property
    def is_open(self) -> bool:
        """Whether a request may be tried."""
        ...

    async def request(self, unit: int, pdu: bytes, timeout_s: float) -> bytes:
        """Send one PDU, return the PDU of the answer; raise Refused, NoAnswer, BadAnswer, ConnectionLost."""
        ...

    def close(self) -> None:
        """End it at once."""
        ...


async def open_link(settings: ModbusSource) -> Link:
    """Connect as the settings say; raise ConnectionLost."""
    if settings.kind == "modbus-rtu":
        from gateway.collect.modbus.serial import open_serial  # noqa: PLC0415 -- pymodbus costs 100 ms and 10 MB; few sites need it

        return await open_serial(settings)
    framing = Framing.RTU if settings.kind == "modbus-rtu-tcp" else Framing.MBAP
    return await connect(settings.address, framing, settings.identify, settings.interface, settings.timeout_ns / 1e9)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its answer (PDU, or the fault), monotonic times in ns, bytes both ways."""

    answer: bytes | PlantError
    began_ns: int
    ended_ns: int
    size_bytes: int


class Hub:
    """The connection to one address. Sources `join`, ask, and `leave`; the last one to leave closes it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._turn = asyncio.Lock()  # one request in flight
        self._link: Link | None = None
        self._users: set[str] = set()
        self._doubtful = False  # an answer may still be on its way

    @property
    def is_open(self) -> bool:
        """Whether a connection stands."""
        return self._link is not None and self._link.is_open

    def join(self, name: str) -> None:
        """Say that a source uses this connection."""
        self._users.add(name)

    def leave(self, name: str) -> None:
        """Say that a source is done; closes the connection if nobody else uses it."""
        self._users.discard(name)
        if not self._users:
            self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def ask(self, settings: ModbusSource, pdu: bytes) -> Asked:
        """Wait for the turn, connect if need be, send one request. Faults are in the result, times and bytes too.

        Raise WriteRefused (our own defect) and CancelledError only.
        """
        async with self._turn:
            began = self._runtime.monotonic_ns()
            moved = 0
            try:
                link = await self._ready(settings)
                moved = link.bytes_moved
                began = self._runtime.monotonic_ns()
                self._doubtful = True
                answer: bytes | PlantError = await link.request(settings.unit, pdu, settings.timeout_ns / 1e9)
                self._doubtful = False
            except Refused as refused:
                answer, self._doubtful = refused, False
            except PlantError as error:
                answer = error
            ended = self._runtime.monotonic_ns()
            return Asked(answer, began, ended, (self._link.bytes_moved if self._link else moved) - moved)

    async def _ready(self, settings: ModbusSource) -> Link:
        """Return an open link on which nothing is under way; raise ConnectionLost."""
        self._doubtful = self._doubtful or (self._link is not None and self._link.noisy)
        link = await self._open(settings)
        if settings.kind == "modbus-tcp" or not self._doubtful:
            return link
        for _ in range(QUIET_TRIES_MAX):
            await self._runtime.sleep(settings.timeout_ns / 1e9)
            if link.is_open:
                return link
            link = await self._open(settings)
        raise ConnectionLost("bytes keep coming that nobody asked for: another master on this line, or noise")

    async def _open(self, settings: ModbusSource) -> Link:
        if self._link is None or not self._link.is_open:
            self.close()
            self._link = await open_link(settings)
        return self._link

    async def release(self) -> None:
        """Close the connection when nobody's request is in flight (close_after_poll)."""
        async with self._turn:
            self.close()


QUIET_TRIES_MAX: Final = 5
_SHARED: Final = ("kind", "identify", "baud", "parity", "stop_bits")  # what sources on one connection must agree about


class Hubs:
    """All connections of this process, by address and interface (twin machines share addresses)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._hubs: dict[tuple[str, str], tuple[Hub, dict[str, ModbusSource]]] = {}

    def of(self, settings: ModbusSource) -> Hub:
        """Return the hub of a source's address; raise ConfigError where it disagrees with another source about how to talk to it."""
        hub, users = self._hubs.setdefault((settings.address, settings.interface), (Hub(self._runtime), {}))
        for other in users.values():
            for name in _SHARED:
                if getattr(settings, name) != getattr(other, name):
                    message = f"source.{settings.name} and source.{other.name} share {settings.address} but differ in {name}"
                    raise ConfigError(message, "They are one connection: give both the same.")
        users[settings.name] = settings
        return hub

    def forget(self, name: str) -> None:
        """A source has ended: what it said about its connection binds nobody any more."""
        for key, (_, users) in list(self._hubs.items()):
            users.pop(name, None)
            if not users:
                del self._hubs[key]
