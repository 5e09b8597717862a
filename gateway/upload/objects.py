"""Which objects (tag tables, key statements) go to the receiver, and when again. Pure.

An object goes before the first frame that names it. What the receiver asks for in a 424 goes again, but no sooner than
OBJECT_AGAIN_NS after the last time: an unsigned answer must not make us send for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OBJECT_AGAIN_NS: Final = 60 * 10**9


class Objects:
    """`held` is the set that is kept over a restart: objects a landing took, signed."""

    def __init__(self, held: set[bytes]) -> None:
        self._held = held
        self._wanted: dict[bytes, None] = {}  # in order
        self._given: dict[bytes, int] = {}  # when last tried, monotonic ns
        self.statements: tuple[bytes, ...] = ()
        self.refused: set[bytes] = set()

    def in_ring(self, statements: Sequence[bytes]) -> None:
        """Take which key statements the ring holds; they go before everything else."""
        self.statements = tuple(statements)
        self.refused &= set(statements)
        self._want(d for d in statements if d not in self._held and d not in self._given)

    def _want(self, digests: Iterable[bytes]) -> None:
        new = dict.fromkeys(digests)
        self._wanted = {**new, **self._wanted}

    def next(self) -> bytes | None:
        """Return the next object to send."""
        return next(iter(self._wanted), None)

    def need(self, digests: Iterable[bytes]) -> bool:
        """Say whether any of these must go first, and want those."""
        missing = [d for d in sorted(digests) if d not in self._held and d not in self._given]
        self._wanted.update(dict.fromkeys(missing))
        return bool(missing)

    def asked(self, objects: Iterable[bytes], *, keys: bool, now_ns: int) -> bool:
        """The receiver asks for these, unsigned; say whether anything will be sent because of it."""
        named = [*(self.statements if keys else ()), *objects]
        again = [d for d in named if now_ns - self._given.get(d, now_ns - OBJECT_AGAIN_NS) >= OBJECT_AGAIN_NS]
        self._held.difference_update(again)
        self._want(again)
        return bool(again)

    def taken(self, digest: bytes, now_ns: int, *, refused: bool) -> None:
        """A signed verdict came."""
        if refused:
            self.refused.add(digest)
        else:
            self._held.add(digest)
            self.refused.discard(digest)
        self.tried(digest, now_ns)

    def tried(self, digest: bytes, now_ns: int) -> None:
        """It is not in the ring, or was refused: what names it goes without, and gets its own verdict."""
        self._given[digest] = now_ns
        self._wanted.pop(digest, None)

    def forget(self) -> None:
        """The receiver was restored: what it took may be gone."""
        self._held.clear()
        self._given.clear()
        self._want(self.statements)
