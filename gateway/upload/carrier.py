"""The seam between deciding and sending: what a carrier takes, what it brings back, and what each kind of no answer probably means.

A carrier brings at most a status and ANSWER_BYTES_MAX bytes; everything else that can happen is a CarrierError. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from gateway.errors import PeerError
from gateway.wire import request as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.wire.request import Lane


class Cause(StrEnum):
    """What probably stands in the way. For people; the machine looks only at CarrierError.reached."""

    UNREACHABLE = "unreachable"
    PROXY = "proxy"
    TLS_INSPECTION = "tls_inspection"
    TLS = "tls"
    CERTIFICATE_REFUSED = "certificate_refused"
    ALTERED = "answer_altered"
    STATUS = "status"
    SILENT = "silent"
    WRONG_KEY = "wrong_receipt_key"
    BUSY = "receiver_busy"
    OBJECTS = "objects_missing"
    CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a whole body of at most ANSWER_BYTES_MAX bytes. Worth nothing until the machine has judged it."""

    status: int
    body: bytes


class CarrierError(PeerError):
    """No answer. `reached`: somebody took bytes of the request or spoke TLS or HTTP, so trying again costs volume."""

    def __init__(self, cause: Cause, message: str, remedy: str, *, reached: bool) -> None:
        super().__init__(message, remedy)
        self.cause = cause
        self.reached = reached


class Carrier(Protocol):
    """HTTPS in life; in simulation a link that loses, doubles, reorders, truncates and answers nonsense."""

    async def put(
        self, target: str, parts: Sequence[bytes | memoryview], lane: Lane, deadline_s: float, pace: Callable[[int], float] | None
    ) -> Answer:
        """Send one request; raise CarrierError. pace(n) says how many seconds to wait before the next n bytes."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


_STATUS: Final = {
    wire.BAD_REQUEST: (Cause.STATUS, "the receiver does not understand the request", "Bring gateway and receiver to the same release."),
    wire.FORBIDDEN: (
        Cause.CERTIFICATE_REFUSED,
        "403: the receiver, or a device before it, refuses this gateway",
        "On the receiver, check that receiver.toml names this gateway and that its certificate is neither revoked nor past its grace.",
    ),
    404: (Cause.STATUS, "404 to a request with a body: not our receiver", "Check `url` and `address` under [receiver]; ask who answers there."),
    407: (Cause.PROXY, "407: the proxy wants a login", "Give the proxy's user and password in `proxy`, or ask IT to let this box through."),
    413: (
        Cause.STATUS,
        "413: a device between limits the size of requests",
        "Ask IT to allow bodies of 8 MiB for this address (nginx: client_max_body_size).",
    ),
    429: (
        Cause.BUSY,
        "429: faster than the receiver allows this gateway",
        "Nothing to do here; raise `rate` for this gateway in receiver.toml if the link allows.",
    ),
    wire.DEFECT: (
        Cause.BUSY,
        "500: the receiver, or a device before it, failed on this request",
        "It is tried again by itself. If it lasts, look for the event `defect` in the receiver's log and report it.",
    ),
    503: (
        Cause.BUSY,
        "503: the receiver cannot store now",
        "On the receiver, look at `ebbgate status`: most often its disk is below `min_free`.",
    ),
}


def explain_status(status: int) -> CarrierError:
    """Return what a status that is no verdict probably means, with the remedy."""
    if status in _STATUS:
        cause, message, remedy = _STATUS[status]
    elif 300 <= status < 400:  # noqa: PLR2004 -- redirects
        cause, message = Cause.PROXY, f"{status}: a device between redirects us, perhaps to a login page"
        remedy = "Redirects are not followed. Ask IT to let this box through to the receiver without a login page."
    elif status in (502, 504):
        cause, message = Cause.BUSY, f"{status}: a proxy or balancer answers, the receiver behind it does not"
        remedy = "Start the receiver, or look at the balancer before it."
    else:
        cause, message = Cause.STATUS, f"{status} is no answer of a receiver"
        remedy = "A device between answered (web application firewall, proxy): ask IT to let PUT through to the receiver unchanged."
    return CarrierError(cause, message, remedy, reached=True)


def altered(what: str) -> CarrierError:
    """Return: an answer no receiver sends, so something between changed or made it."""
    remedy = "Receipts are short, whole and signed: ask IT to switch off inspection, compression and caching for this address."
    return CarrierError(Cause.ALTERED, f"the answer was altered by a device between: {what}", remedy, reached=True)


def wrong_key() -> CarrierError:
    """Return: the answer is a receipt, signed by a key that is not the configured one."""
    remedy = "If the receiver got a new receipt key, install its public key as `receipt_key`; if not, find out who answers at this address."
    return CarrierError(Cause.WRONG_KEY, "receipts are signed by another key than the one configured", remedy, reached=True)


def objects_missing(what: str) -> CarrierError:
    """Return: the receiver keeps asking for objects we cannot give, or gave already."""
    remedy = "If it names a key, check that this gateway's key statement is signed by the site the receiver trusts (`ebbgate identity`)."
    return CarrierError(Cause.OBJECTS, f"the receiver asks for what this ring does not hold: {what}", remedy, reached=True)
