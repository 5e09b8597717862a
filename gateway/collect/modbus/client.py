"""Modbus TCP and RTU over TCP: one connection, one request in flight, and nothing but reads on the wire.

Two layers of guard: `request` checks the PDU, and the only way to the socket (`_only_reads`) checks the finished frame again. A late
answer is never taken for the next one: after a missed deadline, a cancelled request, or any byte that does not belong to the answer, the
connection is closed. Memory: one frame. Never pipelined: servers with Nagle and delayed ACK answer two at once slower than one by one, and
some answer only one (measured on libmodbus and two others).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
from typing import TYPE_CHECKING, Final, cast

from gateway.collect.guard import check_modbus_pdu
from gateway.collect.modbus.frame import (
    MBAP_BYTES,
    Answer,
    BadAnswer,
    ConnectionLost,
    Framing,
    NoAnswer,
    Refused,
    check_wire,
    question,
    wrap,
)
from gateway.errors import ConfigError, EbbgateError

if TYPE_CHECKING:
    from collections.abc import Callable

KEEPALIVE_S: Final = 30  # idle before the first probe: stateful firewalls forget connections after minutes
PROBE_S: Final = 10
PROBES: Final = 3
USER_TIMEOUT_MS: Final = 20_000  # unacknowledged bytes for this long end the connection
INBOX_BYTES: Final = 512  # more than a frame; what does not fit comes with the next read
_TRANSACTIONS: Final = 65_536
_MBAP: Final = Framing.MBAP  # Python 3.11 looks a member up in Python


def parse_host_port(text: str) -> tuple[str, int]:
    """Return a literal IP address and a port of "192.168.10.40:502" or "[::1]:502"; raise ConfigError. No names: no DNS on this box."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:  # noqa: PLR2004 -- the width of a TCP port
            raise ValueError
    except ValueError:
        raise ConfigError(f"{text!r} is no address of a Modbus device", "Write a literal IP address and a port, as 192.168.10.40:502.") from None
    return str(address), int(port)


def _only_reads(transport: asyncio.Transport, framing: Framing, identify: bool) -> Callable[[bytes], None]:
    """Return the only way to write to this transport: one frame at a time, checked again."""

    def send(wire: bytes) -> None:
        check_wire(framing, wire, identify)
        transport.write(wire)

    return send


class Connection(asyncio.Protocol, asyncio.BufferedProtocol):
    """One open connection. Made by `connect`.

    asyncio's own loop takes it for a BufferedProtocol: for the other kind it asks the system for 256 KiB before each read, and gives them back
    behind it, three calls and a page fault (13 us of 40 a request). uvloop, which does not, takes it for a Protocol.
    """

    def __init__(self, framing: Framing, identify: bool) -> None:
        self._framing = framing
        self._numbered = framing is _MBAP
        self._identify = identify
        self._loop = asyncio.get_running_loop()
        self._send: Callable[[bytes], None] = self._not_open
        self._abort: Callable[[], None] = lambda: None
        self._transaction = 0
        self._asked = (0, b"")  # unit and PDU of the request in flight
        self._good, self._size = b"", -1  # how its good answer begins, and how long it is: nearly always it comes in one piece
        self._answer: Answer | None = None  # one that did not
        self._inbox = memoryview(bytearray(INBOX_BYTES))
        self._waiter: asyncio.Future[bytes] | None = None
        self._ended: EbbgateError | None = None
        self._timeout_s = 0.0
        self._deadline = 0.0  # of the request in flight, loop time
        self._timer: asyncio.TimerHandle | None = None  # one for many requests: a timer for each costs a tenth of a read
        self._rings = math.inf  # when
        self.bytes_moved = 0  # both ways, for the load contract
        self.noisy = False  # bytes came that nobody asked for

    @property
    def is_open(self) -> bool:
        """Whether a request may be tried."""
        return self._ended is None

    async def request(self, unit: int, pdu: bytes, timeout_s: float) -> bytes:
        """Send one PDU, return the PDU of the answer.

        Raise WriteRefused (nothing sent), Refused (an exception; the connection stays), NoAnswer, BadAnswer, ConnectionLost (closed).
        """
        check_modbus_pdu(pdu, self._identify)
        if self._ended is not None:
            raise self._ended
        if self._waiter is not None:
            raise BadAnswer("a second request while one is in flight")
        self._transaction = transaction = (self._transaction + 1) % _TRANSACTIONS
        self._asked = (unit, pdu)
        if self._numbered:
            tail, good, self._size = question(unit, pdu)
            number = transaction.to_bytes(2, "big")
            wire, self._good = number + tail, number + good
        else:
            wire = wrap(self._framing, transaction, unit, pdu)
        waiter: asyncio.Future[bytes] = self._loop.create_future()
        self._waiter = waiter
        self._timeout_s = timeout_s
        self._deadline = deadline = self._loop.time() + timeout_s
        if deadline < self._rings:
            self._ring(deadline)
        try:
            self._send(wire)
            self.bytes_moved += len(wire)
            return await waiter
        except asyncio.CancelledError:
            self._end(ConnectionLost("the request was given up"))
            raise
        finally:
            self._answer = self._waiter = None

    def _ring(self, at: float) -> None:
        """Have `_look` called at this loop time, and not before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings = self._loop.call_at(at, self._look), at

    def _look(self) -> None:
        """The timer went off: for the request in flight, or for one that was answered long ago."""
        self._timer, self._rings = None, math.inf
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() >= self._deadline:
            self._end(NoAnswer(f"no answer within {self._timeout_s:g} s"))
        else:
            self._ring(self._deadline)

    def close(self) -> None:
        """End the connection at once; nothing more is sent."""
        self._end(ConnectionLost("the connection was closed here"))

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, behind the guard."""
        stream = cast("asyncio.Transport", transport)  # uvloop's is one without being an instance
        self._send = _only_reads(stream, self._framing, self._identify)
        self._abort = stream.abort

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 -- an answer is short
        """Say where to put what comes."""
        return self._inbox

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        self.data_received(bytes(self._inbox[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Feed the answer; whatever is not part of it ends the connection."""
        self.bytes_moved += len(data)
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.noisy = True
            self._end(BadAnswer("bytes came that nobody asked for"))
        elif len(data) == self._size and self._answer is None and data.startswith(self._good):
            waiter.set_result(data[MBAP_BYTES:])
        else:
            self._feed(data, waiter)

    def _feed(self, data: bytes, waiter: asyncio.Future[bytes]) -> None:
        """Take what is a part of the answer, an exception, or wrong."""
        if self._answer is None:
            self._answer = Answer(self._framing, self._transaction, *self._asked)
        try:
            pdu = self._answer.feed(data)
        except Refused as refused:
            waiter.set_exception(refused)
        except BadAnswer as error:
            self._end(error)
        else:
            if pdu is not None:
                waiter.set_result(pdu)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the waiting request."""
        self._end(ConnectionLost(f"the connection broke: {exc}" if exc else "the device closed the connection"))

    def _end(self, why: EbbgateError) -> None:
        if self._ended is not None:
            return
        self._ended = ConnectionLost(why.message)
        if self._timer is not None:
            self._timer.cancel()
        self._send = self._not_open
        self._abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(why)

    @staticmethod
    def _not_open(wire: bytes) -> None:
        raise ConnectionLost(f"not connected; {len(wire)} bytes were not sent")


async def connect(address: str, framing: Framing, identify: bool, interface: str, timeout_s: float) -> Connection:
    """Open one connection; raise ConnectionLost saying what the network said."""
    host, port = parse_host_port(address)
    sock = _socket(host, interface)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, (host, port))
            _, connection = await loop.create_connection(lambda: Connection(framing, identify), sock=sock)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):  # TimeoutError too
            raise ConnectionLost(_explain(address, error, timeout_s)) from None
        raise
    return connection


def _explain(address: str, error: OSError, timeout_s: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        hint = "the port is closed, or all connections of this device are taken (ours from before a power cut may still count)"
        return f"{address} refused the connection: {hint}"
    if isinstance(error, TimeoutError) and not error.errno:
        return f"{address} did not answer within {timeout_s:g} s: switched off, another network, or a firewall between"
    return f"{address}: {error.strerror or error}"


def _socket(host: str, interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_KEEPIDLE, KEEPALIVE_S),
            (socket.TCP_KEEPINTVL, PROBE_S),
            (socket.TCP_KEEPCNT, PROBES),
            (socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError as error:
        with contextlib.suppress(OSError):
            sock.close()
        raise ConnectionLost(f"network interface {interface or 'default'}: {error.strerror}") from None
    return sock
