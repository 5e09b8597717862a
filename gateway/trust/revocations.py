"""What the site no longer believes: TLS certificates by serial number, data keys by name. A text file that `ebbgate ca revoke` extends.

Specification. One entry a line; empty lines and lines that begin with # are skipped:

    certificate <serial number, hexadecimal>
    key <16 hex digits>                                  nothing it ever signed is believed
    key <16 hex digits> <generation> <seq>               believed up to this reading, inclusive

A file that cannot be read or has another line is an error, never an empty list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.manifest import format_generation, parse_generation
from gateway.errors import TrustError
from gateway.trust.keys import LastGood

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE_BYTES_MAX: Final = 1024 * 1024  # about 20,000 entries
_CERTIFICATE: Final = re.compile(r"certificate ([0-9a-f]{1,40})")
_KEY: Final = re.compile(r"key ([0-9a-f]{16})(?: (\S+) (\d{1,18}))?")


@dataclass(frozen=True, slots=True)
class Revocations:
    """The file, read."""

    certificates: frozenset[int] = frozenset()
    keys: Mapping[bytes, LastGood] = field(default_factory=dict)


def parse_revocations(text: str) -> Revocations:
    """Return the entries; raise TrustError that names the line."""
    certificates: set[int] = set()
    keys: dict[bytes, LastGood] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if found := _CERTIFICATE.fullmatch(line):
            certificates.add(int(found[1], 16))
        elif found := _KEY.fullmatch(line):
            keys[bytes.fromhex(found[1])] = _last_good(found, number)
        else:
            raise _bad(number)
    return Revocations(frozenset(certificates), keys)


def _last_good(found: re.Match[str], number: int) -> LastGood:
    if found[2] is None:
        return LastGood()
    try:
        return LastGood(parse_generation(found[2]), int(found[3]))
    except CorruptError:
        raise _bad(number) from None


def _bad(number: int) -> TrustError:
    remedy = "Write `certificate <serial>`, `key <id>` or `key <id> <generation> <last good seq>`; ebbgate ca revoke does it."
    return TrustError(f"list of revocations, line {number}: not an entry", remedy)


def load_revocations(path: Path | None) -> Revocations:
    """Return what a file says, nothing if no file is configured; raise TrustError if it is absent or unreadable."""
    if path is None:
        return Revocations()
    try:
        data = path.read_bytes()
        if len(data) > FILE_BYTES_MAX:
            raise TrustError(f"{path}: longer than 1 MiB", "Is this the right file?")
        return parse_revocations(data.decode("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise TrustError(f"{path}: {error}", "Restore the list of revocations; an absent list would believe everybody.") from error


def certificate_line(serial: int) -> str:
    """Return the entry that revokes a certificate."""
    return f"certificate {serial:x}\n"


def key_line(name: bytes, last_good: LastGood | None = None) -> str:
    """Return the entry that revokes a key."""
    good = f" {format_generation(last_good.generation)} {last_good.seq}" if last_good else ""
    return f"key {name.hex()}{good}\n"
