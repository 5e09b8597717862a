"""Segments that come in pieces over a link that lives for seconds: the verified head and the bytes so far, in memory, bounded.

Not durable and not promised: a `partial` receipt says where to go on, nothing else. What nobody sends at the moment begins again at
0 where it is here longer than a day or is pushed out by others. What a request is sending is never pushed out: the door bounds
those (gateway.receive.app.BODIES_BYTES_MAX), and counts each with the whole length of its frame.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer.errors import invariant
from buffer.frame import HEADER_BYTES
from gateway.receive.verify import Refused, segment_head
from gateway.wire.receipt import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.trust.keys import KeyRing
    from gateway.wire.request import FramesTarget

KEEP_NS: Final = 24 * 3_600 * 10**9
PARTIALS_MAX: Final = 16  # that nobody sends now, of 8 MiB: 128 MiB of memory
STREAM_PARTIALS_MAX: Final = 8  # as many as one uploader may have under way; a stream pushes out its own before those of others

_Key = tuple[str, int, int, int, int]


@dataclass(slots=True)
class Partial:
    """One frame that is coming. Requests that send the same frame at a time share it; its bytes are only ever added to."""

    target: FramesTarget
    keys: KeyRing
    began_ns: int
    data: bytearray = field(default_factory=bytearray)
    verified: bool = False
    users: int = 0

    def add(self, offset: int, piece: bytes) -> None:
        """Take bytes that begin at `offset`, at most what is held. Raises Refused or Missing: the bytes held so far are worth nothing."""
        invariant(offset <= len(self.data), "a piece beyond what is held")
        new = memoryview(piece)[len(self.data) - offset :]
        if len(self.data) + len(new) > (self.target.length or 0):
            raise Refused(Refusal.NOT_A_FRAME, self.target.last, "more bytes than the frame has")
        if new:
            self.data += new
        if not self.verified and len(self.data) >= HEADER_BYTES:
            self.verified = segment_head(self.target, self.data, self.keys) is not None

    @property
    def whole(self) -> bool:
        """Say whether all of it is here."""
        return self.verified and len(self.data) == self.target.length


class Partials:
    """By (stream, generation, first, last, length). One event loop; no thread."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._all: OrderedDict[_Key, Partial] = OrderedDict()

    def held(self, target: FramesTarget, now_ns: int) -> int:
        """Return how many bytes of the frame are here."""
        self._forget_old(now_ns)
        found = self._all.get(_key(target))
        return len(found.data) if found else 0

    @contextmanager
    def sending(self, target: FramesTarget, now_ns: int) -> Iterator[Partial]:
        """Give what is held of the frame, empty at first; it stays until the end of the block, and after it as long as there is room."""
        self._forget_old(now_ns)
        one = self._all.setdefault(_key(target), Partial(target, self._keys, now_ns))
        one.users += 1
        try:
            yield one
        finally:
            one.users -= 1
            if not one.data:
                self.forget(one)
            self._bound(target.stream)

    def forget(self, one: Partial) -> None:
        """It is landed, or was never what it said."""
        if self._all.get(_key(one.target)) is one:
            del self._all[_key(one.target)]

    def _forget_old(self, now_ns: int) -> None:
        for one in [one for one in self._all.values() if not one.users and not 0 <= now_ns - one.began_ns < KEEP_NS]:
            self.forget(one)

    def _bound(self, stream: str) -> None:
        idle = [one for one in self._all.values() if not one.users]
        own = [one for one in idle if one.target.stream == stream]
        out = own[: max(0, len(own) - STREAM_PARTIALS_MAX)]
        left = [one for one in idle if one not in out]
        for one in [*out, *left[: max(0, len(left) - PARTIALS_MAX)]]:
            self.forget(one)


def _key(target: FramesTarget) -> _Key:
    return (target.stream, target.generation, target.first, target.last, target.length or 0)
