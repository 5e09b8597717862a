"""Segments that come in pieces over a link that lives for seconds: the verified head and the bytes so far, in memory, bounded.

Not durable and not promised: a `partial` receipt says where to go on, nothing else. What is here longer than a day, or is pushed
out by others, begins again at 0.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.frame import HEADER_BYTES
from gateway.receive.verify import Refused, segment_head
from gateway.wire.receipt import Refusal

if TYPE_CHECKING:
    from gateway.trust.keys import KeyRing
    from gateway.wire.request import FramesTarget

KEEP_NS: Final = 24 * 3_600 * 10**9
PARTIALS_MAX: Final = 16  # of 8 MiB: 128 MiB of memory
STREAM_PARTIALS_MAX: Final = 2  # one stream pushes out its own before those of others

_Key = tuple[str, int, int, int, int]


@dataclass(slots=True)
class _Partial:
    length: int
    began_ns: int
    data: bytearray = field(default_factory=bytearray)
    verified: bool = False


class Partials:
    """By (stream, generation, first, last, length). One event loop; no thread."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._all: OrderedDict[_Key, _Partial] = OrderedDict()

    def held(self, target: FramesTarget, now_ns: int) -> int:
        """Return how many bytes of the frame are here."""
        self._forget(now_ns)
        found = self._all.get(_key(target))
        return len(found.data) if found else 0

    def add(self, target: FramesTarget, offset: int, piece: bytes, now_ns: int) -> None:
        """Take bytes that begin at `offset`, which must not lie beyond what is held. Raises Refused or Missing: then all is forgotten."""
        key = _key(target)
        one = self._all.get(key)
        if one is None:
            one = self._all[key] = _Partial(key[4], now_ns)
            self._bound(target.stream)
        if offset > len(one.data):
            raise CorruptError("a piece beyond what is held")
        one.data += piece[len(one.data) - offset :]
        try:
            if len(one.data) > one.length:
                raise Refused(Refusal.NOT_A_FRAME, target.last, "more bytes than the frame has")
            if not one.verified and len(one.data) >= HEADER_BYTES:
                one.verified = segment_head(target, bytes(one.data), self._keys) is not None
        except Exception:
            del self._all[key]
            raise

    def take_whole(self, target: FramesTarget) -> bytes | None:
        """Return the whole frame and forget it, None while it is not whole."""
        one = self._all.get(_key(target))
        if one is None or len(one.data) < one.length or not one.verified:
            return None
        del self._all[_key(target)]
        return bytes(one.data)

    def _forget(self, now_ns: int) -> None:
        for key in [key for key, one in self._all.items() if not 0 <= now_ns - one.began_ns < KEEP_NS]:
            del self._all[key]

    def _bound(self, stream: str) -> None:
        own = [key for key in self._all if key[0] == stream]
        if len(own) > STREAM_PARTIALS_MAX:
            del self._all[own[0]]
        while len(self._all) > PARTIALS_MAX:
            self._all.popitem(last=False)


def _key(target: FramesTarget) -> _Key:
    return (target.stream, target.generation, target.first, target.last, target.length or 0)
