"""Times, sizes and rates as people write them -> whole base units (ns, bytes, bits/s), and moments. Pure.

    "500 ms"  "1s"  "10 min"  "1h"  "30 d"      ns us ms s min h d w; "m" is refused (minute or month or milli?)
    "25 GB"  "64 KiB"  "4096"                   B, k M G T (1000) and Ki Mi Gi Ti (1024); bare: bytes
    "5 Mbit/s"  "64 kbit/s"  "1 MB/s"           bits per second; bytes are multiplied by 8
    "2026-11-23"  "2026-11-23T06:00"            UTC, unless an offset says otherwise

Every function raises ValueError that says what to write instead.
"""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from functools import lru_cache
from typing import Final

DURATION_NS_MAX: Final = 10 * 366 * 86_400 * 10**9  # ten years; more is a slip of the hand
SIZE_BYTES_MAX: Final = 2**60  # an exbibyte
RATE_BPS_MAX: Final = 10**12  # a terabit per second

_TEXT: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([^\d\s.].*?)?\s*", re.ASCII)
_NS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3_600 * 10**9,
    "d": 86_400 * 10**9,
    "w": 7 * 86_400 * 10**9,
}
_PREFIX: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@lru_cache(256)  # 10,000 tags say few different ones
def parse_duration_ns(text: str) -> int:
    """Return nanoseconds of "500 ms", "1s", "10 min", "1 h", "30 d"; "0" needs no unit."""
    number, unit = _split(text, 'a time, as "500 ms", "1 s", "10 min" or "1 h"')
    if not unit and number == 0:
        return 0
    factor = _NS.get(unit.lower())
    if factor is None:
        hint = "has no unit" if not unit else f"has the unit {unit!r}, which is not one of ms s min h d"
        raise ValueError(f'{text.strip()!r} {hint}: write a time, as "500 ms", "1 s", "10 min" or "1 h"')
    return _whole(text, number * factor, DURATION_NS_MAX, "10 years")


def parse_size_bytes(text: str) -> int:
    """Return bytes of "25 GB" (decimal), "64 KiB" (binary) or a bare number of bytes."""
    number, unit = _split(text, 'a size, as "25 GB" or "64 KiB"')
    factor = _PREFIX.get(unit.lower().removesuffix("b")) if unit.lower().endswith("b") or not unit else None
    if factor is None:
        raise ValueError(f'{text.strip()!r} is not a size: write one as "25 GB" or "64 KiB"')
    return _whole(text, number * factor, SIZE_BYTES_MAX, "1 EiB")


def parse_rate_bps(text: str) -> int:
    """Return bits per second of "5 Mbit/s" or "1 MB/s"; a rate always needs its unit."""
    number, unit = _split(text, 'a rate, as "5 Mbit/s"')
    match = re.fullmatch(r"([kmgt]?i?)(bit|b)(?:/s|ps)", unit, re.IGNORECASE)
    # "Mbps" means bits wherever networks are sold; "MB/s" means bytes.
    factor = _PREFIX.get(match[1].lower()) if match else None
    if match is None or factor is None or (match[2] == "b" and unit.endswith("/s")):
        raise ValueError(f'{text.strip()!r} is not a rate: write one as "5 Mbit/s" or "1 MB/s"')
    bits = 8 if match[2] == "B" and unit.endswith("/s") else 1
    return _whole(text, number * factor * bits, RATE_BPS_MAX, "1 Tbit/s")


def parse_moment(text: str) -> datetime.datetime:
    """Return a moment of "2026-11-23" or "2026-11-23T06:00[:00][+01:00]", in UTC."""
    try:
        at = datetime.datetime.fromisoformat(text)
        return at.replace(tzinfo=datetime.UTC) if at.tzinfo is None else at.astimezone(datetime.UTC)
    except (ValueError, OverflowError):  # an offset may lead out of the years that there are
        raise ValueError(f"{text[:40]!r} is not a time: write one as 2026-11-23 or 2026-11-23T06:00 (UTC)") from None


def format_duration(ns: int) -> str:
    """Return the shortest exact text that parse_duration_ns reads back, as "500ms", "10min", "0s"."""
    if ns == 0:
        return "0s"
    for unit in ("w", "d", "h", "min", "s", "ms", "us"):
        if ns % _NS[unit] == 0:
            return f"{ns // _NS[unit]}{unit}"
    return f"{ns}ns"


def _split(text: str, wanted: str) -> tuple[Decimal, str]:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text.strip()[:60]!r} is not {wanted}")
    return Decimal(match[1]), match[2] or ""


def _whole(text: str, value: Decimal, most: int, most_text: str) -> int:
    if value > most:
        raise ValueError(f"{text.strip()!r} is more than {most_text}")
    if value != int(value):
        raise ValueError(f"{text.strip()!r} is not a whole number of the smallest unit")
    return int(value)
