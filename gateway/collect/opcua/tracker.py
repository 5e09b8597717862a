"""Message numbers of one subscription: what is missing, what came twice, what may be acknowledged. Pure.

Numbers count from 1 and wrap from 2**32 - 1 to 1 (OPC 10000-4, 5.14.1.1 and 7.14); a keep-alive carries the next number. A message is
acknowledged only after its readings are committed; until then the server keeps it for Republish.

Position (16 bytes): the first 8 bytes of SHA-256 over the subscription's identity, its id, the last message number; big-endian. Behind
it, where a source has event tags, ns up to which its events are settled (gateway.collect.opcua.eventdebt).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

NUMBER_MAX: Final = 2**32 - 1
REPUBLISH_MAX: Final = 1_000  # numbers asked for after one gap: more than any server keeps
ACKNOWLEDGE_MAX: Final = 1_000  # in one PublishRequest
_POSITION: Final = struct.Struct(">8sII")
_SETTLED: Final = struct.Struct(">q")


def next_number(number: int) -> int:
    """Return the number after this one."""
    return 1 if number >= NUMBER_MAX else number + 1


def distance(first: int, last: int) -> int:
    """Return how many steps `last` is after `first`, negative if it is before; at most half the circle."""
    steps = (last - first) % NUMBER_MAX
    return steps if steps <= NUMBER_MAX // 2 else steps - NUMBER_MAX


def make_position(identity: str, subscription: int, number: int) -> bytes:
    """Return the position after message `number`."""
    return _POSITION.pack(hashlib.sha256(identity.encode()).digest()[:8], subscription, number)


def with_settled(position: bytes | None, settled_ns: int) -> bytes:
    """Return a position (None: before the first message) that says how far events are settled."""
    return (position or bytes(_POSITION.size))[: _POSITION.size] + _SETTLED.pack(settled_ns)


def settled_of(position: bytes | None) -> int | None:
    """Return ns up to which a committed position says that events are settled; None where it says nothing."""
    whole = position is not None and len(position) == _POSITION.size + _SETTLED.size
    return int(_SETTLED.unpack(position[_POSITION.size :])[0]) if position is not None and whole else None


def position_number(position: bytes | None, identity: str, subscription: int) -> int:
    """Return the last message number a committed position names for this subscription, 0 if it names another one."""
    if position is None or len(position) not in (_POSITION.size, _POSITION.size + _SETTLED.size):
        return 0
    digest, number_of, number = _POSITION.unpack_from(position)
    return number if (digest, number_of) == _POSITION.unpack(make_position(identity, subscription, 0))[:2] else 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a message: first ask again for `missing`, then take it unless it is a duplicate."""

    missing: tuple[int, ...]
    duplicate: bool
    skipped: int  # numbers beyond REPUBLISH_MAX that are given up unasked


class Tracker:
    """One subscription over any number of connections of this process."""

    def __init__(self, last: int) -> None:
        """last: number of the last committed message; 0 for a new subscription."""
        self.expected = next_number(last)
        self._committed = last
        self._acknowledge: list[int] = []
        self._fresh = True

    def reconnected(self) -> None:
        """Acknowledgements of the last connection may not have arrived: believe the server's list once."""
        self._fresh = True

    def arrived(self, number: int, available: tuple[int, ...]) -> Verdict:
        """Judge the number of a message or keep-alive; call `took` for what is then taken."""
        if self._fresh:
            self._fresh = False
            old = (n for n in available if n and distance(n, self._committed) >= 0)
            self._acknowledge += [n for n in old if n not in self._acknowledge]
        ahead = distance(self.expected, number)
        if ahead < 0:
            if distance(number, self._committed) >= 0 and number not in self._acknowledge:
                self._acknowledge.append(number)
            return Verdict((), True, 0)
        skipped = max(0, ahead - REPUBLISH_MAX)
        first = self.expected
        for _ in range(skipped):
            first = next_number(first)
        missing = []
        for _ in range(ahead - skipped):
            missing.append(first)
            first = next_number(first)
        return Verdict(tuple(missing), False, skipped)

    def took(self, number: int) -> None:
        """Note that this message was taken, or given up."""
        self.expected = next_number(number)

    def level(self, number: int) -> None:
        """Note a keep-alive: the next message will have this number."""
        self.expected = number

    def committed(self, number: int) -> None:
        """Note that everything up to this message is durable; acknowledge it with the next PublishRequest."""
        if distance(self._committed, number) > 0:
            self._committed = number
        self._acknowledge.append(number)

    def take_acknowledgements(self) -> list[int]:
        """Return numbers to acknowledge now, oldest first; each is returned once."""
        taken, self._acknowledge = self._acknowledge[:ACKNOWLEDGE_MAX], self._acknowledge[ACKNOWLEDGE_MAX:]
        return taken
