"""Who a TLS client is: the verdict over a certificate whose chain TLS has checked. Pure."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509

from buffer import limits
from gateway.errors import TrustError
from gateway.trust.certs import GATEWAY_URN, GRACE_DAYS, uris_of


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """Who a TLS client certificate says it is. expired: past its end, within the grace."""

    gateway: str
    serial: int
    expired: bool
    ends_ns: int = field(default=0, compare=False)  # since 1970


@lru_cache(maxsize=1024)  # a gateway shows the same one with every request
def _client_certificate(der: bytes) -> tuple[str, int, dt.datetime, dt.datetime]:
    """Return gateway (empty: none), serial number and when it begins and ends."""
    certificate = x509.load_der_x509_certificate(der)
    uris = uris_of(certificate.extensions)
    gateway = uris[0].removeprefix(GATEWAY_URN) if len(uris) == 1 and uris[0].startswith(GATEWAY_URN) else ""
    return gateway, certificate.serial_number, certificate.not_valid_before_utc, certificate.not_valid_after_utc


def identify_client(
    der: bytes, now: dt.datetime, revoked: frozenset[int], grace: dt.timedelta = dt.timedelta(days=GRACE_DAYS)
) -> ClientIdentity:
    """Return the identity in a certificate whose chain TLS has checked (its times not); raise TrustError if revoked, out of its
    time, or nameless."""
    try:
        gateway, serial, begin, end = _client_certificate(der)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise TrustError(f"client certificate names no gateway: {error}", "Sign it with `ebbgate ca sign`.") from None
    if not re.fullmatch(limits.ID_PATTERN, gateway) or ".." in gateway:
        raise TrustError("client certificate names no gateway", "Sign it with `ebbgate ca sign`.")
    if serial in revoked:
        raise TrustError(f"gateway {gateway}: its certificate {serial:x} is revoked", "Enrol the gateway again if it is yours.")
    if now < begin:
        raise TrustError(f"gateway {gateway}: its certificate begins {begin:%Y-%m-%d %H:%M} UTC, which is not yet", "Set the receiver's clock.")
    if now > end + grace:
        what = f"gateway {gateway}: its certificate expired on {end:%Y-%m-%d}, the grace of {grace.days} days is over"
        raise TrustError(what, "On the gateway: ebbgate identity renew, or ebbgate enroll with a new code.")
    return ClientIdentity(gateway, serial, now > end, int(end.timestamp()) * 10**9)
