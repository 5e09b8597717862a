"""What a start must know without reading the ring: per tag the newest live reading, per source its position, the open gaps.

Published at each seal as `last/<generation>-<seq>` (everything committed before that seq is in it); a start takes the newest
good one and replays the blocks after it. Specification: 32 bytes SHA-256 of the rest, then deterministic CBOR

    [1, generation, seq, next block, {source: position}, {tag: reading}, [[gap id, source, from ns, progress, {tag: reading},
    {tag: first live ts}]...]]   with reading = [ts ns, ts source ns | null, kind, 64 bits or text, quality, flags]

Markers (buffer.types.Flag.MARKER) do not replace a reading; they set MARKER in its flags, until a live reading comes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from buffer import limits
from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from buffer.types import Columns, Flag, Kind

LAST_BYTES_MAX: Final = 512 * 1024 * 1024  # a million tags; a damaged length reads no more


@dataclass(frozen=True, slots=True)
class Stored:
    """The newest live reading of a tag. value: the 64 bits, or the text for TEXT and BYTES."""

    ts_ns: int
    ts_source_ns: int | None
    kind: int
    value: int | str
    quality: int
    flags: int


@dataclass(slots=True)
class GapState:
    """An open gap: what history must be asked for, and how far the fill has come."""

    id: int
    source: int
    from_ns: int
    progress: bytes = b""
    last: dict[int, Stored] = field(default_factory=dict)
    first_live_ns: dict[int, int] = field(default_factory=dict)


class LastState:
    """Dense columns by tag number, so that a commit of a thousand readings costs microseconds."""

    def __init__(self) -> None:
        self.positions: dict[int, bytes] = {}
        self.gaps: dict[int, GapState] = {}
        self._texts: dict[int, str] = {}
        self._ts = np.zeros(0, np.int64)
        self._source = np.zeros(0, np.int64)
        self._kind = np.zeros(0, np.uint8)
        self._value = np.zeros(0, np.uint64)
        self._quality = np.zeros(0, np.uint32)
        self._flags = np.zeros(0, np.uint16)
        self._present = np.zeros(0, np.bool_)

    def _grow(self, size: int) -> None:
        if size <= len(self._ts):
            return
        for name in ("_ts", "_source", "_kind", "_value", "_quality", "_flags", "_present"):
            old = getattr(self, name)
            new = np.zeros(max(size, 2 * len(old), 64), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def take(self, columns: Columns) -> None:
        """Note live readings, in order."""
        if not len(columns):
            return
        self._grow(int(columns.tag.max()) + 1)
        marker = (columns.flags & np.uint16(Flag.MARKER)) != 0
        real = (columns.tag >= limits.TAG_NUMBER_FIRST) & ~marker
        tag = columns.tag[real]
        self._ts[tag] = columns.ts_ns[real]
        self._source[tag] = (columns.ts_ns if columns.ts_source_ns is None else columns.ts_source_ns)[real]
        self._kind[tag] = columns.kind[real]
        self._value[tag] = columns.values[real]
        self._quality[tag] = columns.quality[real]
        self._flags[tag] = columns.flags[real]
        self._present[tag] = True
        for row in np.flatnonzero(real & ((columns.kind == Kind.TEXT) | (columns.kind == Kind.BYTES))):
            self._texts[int(columns.tag[row])] = columns.texts[int(columns.values[row])]
        self._flags[columns.tag[marker]] |= np.uint16(Flag.MARKER)
        for gap in self.gaps.values():
            self._first_live(gap, columns, real)

    def _first_live(self, gap: GapState, columns: Columns, real: Any) -> None:  # noqa: ANN401 -- a boolean array
        for row in np.flatnonzero(real):
            number = int(columns.tag[row])
            if number in gap.last and number not in gap.first_live_ns:
                gap.first_live_ns[number] = int(columns.ts_ns[row])

    def tag(self, number: int) -> Stored | None:
        """Return the newest live reading of a tag, or None."""
        if number >= len(self._present) or not self._present[number]:
            return None
        kind = int(self._kind[number])
        value: int | str = self._texts[number] if kind in (Kind.TEXT, Kind.BYTES) else int(self._value[number])
        ts, source = int(self._ts[number]), int(self._source[number])
        return Stored(ts, None if source == ts else source, kind, value, int(self._quality[number]), int(self._flags[number]))

    def put(self, number: int, reading: Stored) -> None:
        """Set the newest reading of a tag (reading a `last` file)."""
        self._grow(number + 1)
        self._ts[number] = reading.ts_ns
        self._source[number] = reading.ts_ns if reading.ts_source_ns is None else reading.ts_source_ns
        self._kind[number] = reading.kind
        if isinstance(reading.value, str):
            self._texts[number] = reading.value
        else:
            self._value[number] = reading.value
        self._quality[number] = reading.quality
        self._flags[number] = reading.flags
        self._present[number] = True

    def tags(self) -> dict[int, Stored]:
        """Return the newest reading of every tag that has one."""
        return {int(n): stored for n in np.flatnonzero(self._present) if (stored := self.tag(int(n))) is not None}

    def open_gap(self, identity: int, source: int, from_ns: int, tags: tuple[int, ...]) -> None:
        """Remember a gap of a source, with the newest reading of each of its tags."""
        last = {n: stored for n in tags if (stored := self.tag(n)) is not None}
        self.gaps[identity] = GapState(identity, source, from_ns, last=last)


def _row(r: Stored) -> list[Any]:
    return [r.ts_ns, r.ts_source_ns, r.kind, r.value, r.quality, r.flags]


def encode_last(state: LastState, generation: int, seq: int, block: int) -> bytes:
    """Return the file."""
    gaps = [
        [g.id, g.source, g.from_ns, g.progress, {n: _row(r) for n, r in g.last.items()}, g.first_live_ns]
        for g in sorted(state.gaps.values(), key=lambda g: g.id)
    ]
    body = encode_cbor([1, generation, seq, block, state.positions, {n: _row(r) for n, r in state.tags().items()}, gaps])
    return hashlib.sha256(body).digest() + body


def decode_last(data: bytes) -> tuple[LastState, int, int, int]:
    """Return state, generation, seq, next block; raise CorruptError."""
    if len(data) > LAST_BYTES_MAX or hashlib.sha256(data[32:]).digest() != data[:32]:
        raise CorruptError("`last` file does not match its digest")
    try:
        version, generation, seq, block, positions, tags, gaps = decode_cbor(data[32:])
        if version != 1:
            raise CorruptError("`last` file of another release")
        state = LastState()
        state.positions = dict(positions)
        for number, row in tags.items():
            state.put(number, Stored(*row))
        for identity, source, from_ns, progress, last, first in gaps:
            before = {n: Stored(*row) for n, row in last.items()}
            state.gaps[identity] = GapState(identity, source, from_ns, progress, before, dict(first))
    except (TypeError, ValueError, AttributeError) as error:
        message = f"not a `last` file: {error}"
        raise CorruptError(message) from error
    return state, generation, seq, block
