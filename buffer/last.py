"""What a start must know without reading the ring: per tag the newest live reading, per source its position, the open gaps.

`LastState.apply` takes one committed block; the live ring and a start use the same function, so both come to the same state.
Published at each seal as `last/<generation>-<seq>`; a start takes the newest good one and applies the blocks after it.

Specification. 32 bytes SHA-256 of the rest, then deterministic CBOR:

    [1, generation, seq, next block, {source: position}, rows, {tag: text}, gaps, {tag table SHA-256: [generation, end seq]},
     {generation: end seq}]
    gaps = [[gap id, source, from ns, progress, rows, {tag: text}, {tag: ns of the first live reading after it}]...]

0 for that ns: no reading yet, and a newer gap owes what is before it. seq and next block: everything committed before them is in it. A tag
table stands with the last place that names it;
a generation with where it ended (at most GENERATIONS_MAX, the newest).
rows: 36 bytes each, little-endian, in order of tag number:

    0  tag u32   4  ts i64   12  ts source i64   20  value u64 (bits; 0 for TEXT and BYTES)   28  quality u32   32  flags u16
    34  kind u8   35  zero

A marker (buffer.types.Flag.MARKER) does not replace a reading; it sets MARKER in its flags until a live reading comes.
History (blocks with `fill`) never touches a newest reading.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from buffer import limits
from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from buffer.types import Flag, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from buffer.manifest import Manifest, OpenGap
    from buffer.tagtable import TagTable
    from buffer.types import Columns

    Own = slice | NDArray[np.intp]  # an index of readings

LAST_BYTES_MAX: Final = 512 * 1024 * 1024  # a million tags and a few gaps; a damaged length reads no more
GENERATIONS_MAX: Final = 4_096  # a crash loop of an hour, each start with readings
_VERSION: Final = 1
_ROW: Final = np.dtype(
    [("tag", "<u4"), ("ts", "<i8"), ("source", "<i8"), ("value", "<u8"), ("quality", "<u4"), ("flags", "<u2"), ("kind", "u1"), ("zero", "u1")]
)
_NOT_YET: Final = np.iinfo(np.int64).min
_NO_SOURCE: Final = -1
_WAITING_MAX: Final = 32_768  # readings whose place among the newest is found together: a commit of a few costs no more than a note
_WAITING_TEXT_CHARS_MAX: Final = 256 * 1024  # of their texts: memory


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest live reading of a tag. value: the 64 bits, or the text for TEXT and BYTES."""

    ts_ns: int
    ts_source_ns: int
    kind: int
    value: int | str
    quality: int
    flags: int


class Readings(Mapping[int, Reading]):
    """Tag number -> newest reading, as of one moment. A copy: it does not change any more."""

    def __init__(self, rows: NDArray[Any], texts: Mapping[int, str]) -> None:
        self.rows = rows
        self.texts = texts
        self._place = {int(tag): i for i, tag in enumerate(rows["tag"])}

    def __getitem__(self, tag: int) -> Reading:
        row = self.rows[self._place[tag]]
        kind = int(row["kind"])
        value: int | str = self.texts[tag] if kind in (Kind.TEXT, Kind.BYTES) else int(row["value"])
        return Reading(int(row["ts"]), int(row["source"]), kind, value, int(row["quality"]), int(row["flags"]))

    def __iter__(self) -> Iterator[int]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


@dataclass(frozen=True, slots=True)
class Gap:
    """An open gap: what history must be asked for, and how far the fill has come."""

    id: int
    from_ns: int
    progress: bytes
    last: Mapping[int, Reading]  # tag number -> newest live reading before the gap
    first_live_ns: Mapping[int, int]  # tag number -> time of the first live reading after it, as the source said it


@dataclass(frozen=True, slots=True)
class Known:
    """What the ring knows of one source: committed, nothing else."""

    position: bytes | None
    last: Mapping[int, Reading]
    gaps: tuple[Gap, ...]


@dataclass(slots=True)
class _GapState:
    id: int
    source: int
    from_ns: int
    last: Readings
    first_live: NDArray[np.int64]  # by tag number; grows with the table
    progress: bytes = b""

    def firsts(self) -> dict[int, int]:
        return {int(tag): int(self.first_live[tag]) for tag in np.flatnonzero(self.first_live != _NOT_YET)}


def _grown(data: NDArray[Any], size: int, value: Any) -> NDArray[Any]:  # noqa: ANN401 -- of the array's type
    if size <= len(data):
        return data
    new = np.full(max(size, 2 * len(data)), value, data.dtype)
    new[: len(data)] = data
    return new


def _own(part: Columns) -> tuple[Own, NDArray[np.intp] | None]:
    """Return which readings are the source's own (in nearly every block: all), and which are markers on its tags, if any."""
    notices, marked = int(part.tag.min()) < limits.TAG_NUMBER_FIRST, part.flags.any()
    if not notices and not marked:
        return slice(None), None
    of_source = part.tag >= limits.TAG_NUMBER_FIRST
    marker = (part.flags & np.uint16(Flag.MARKER)) != 0
    return np.flatnonzero(of_source & ~marker), np.flatnonzero(of_source & marker)


@dataclass(slots=True)
class LastState:
    """Rows by tag number, so that a commit of a thousand readings costs microseconds; readings are looked through many commits at a time.

    `known` may be called while another thread is in `apply`; everything else has one caller at a time.
    """

    positions: dict[int, bytes] = field(default_factory=dict)
    gaps: dict[int, _GapState] = field(default_factory=dict)
    tables: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    _texts: dict[int, str] = field(default_factory=dict)
    _rows: NDArray[Any] = field(default_factory=lambda: np.zeros(0, _ROW))
    _present: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    _source_of: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: list[Columns] = field(default_factory=list)  # live readings not yet among the rows; the same gaps and table hold for all
    _waiting_readings: int = 0
    _waiting_chars: int = 0

    def use_table(self, table: TagTable) -> None:
        """Learn which tag belongs to which source; later blocks name this table."""
        numbers = {name: i for i, name in enumerate(table.sources)}
        self.use_sources({tag.number: numbers.get(tag.source, _NO_SOURCE) for tag in table.tags})

    def use_sources(self, source_of: Mapping[int, int]) -> None:
        """Learn the number of the source of each tag number."""
        by_tag = np.full(max(source_of, default=-1) + 1, _NO_SOURCE, np.int32)
        by_tag[list(source_of)] = list(source_of.values())
        with self._lock:
            self._settle()
            self._source_of = by_tag

    def apply(self, manifest: Manifest, columns: Columns | None) -> None:
        """Take one committed block, in order. columns: its readings, None if it has none."""
        with self._lock:
            self.positions.update(manifest.positions)
            self.tables[manifest.tag_table_sha256] = (manifest.generation, manifest.end_seq)
            if manifest.end_seq:
                self.ends[manifest.generation] = manifest.end_seq
            if manifest.state is not None:
                self._gaps(manifest.state.open_gaps)
            self._readings(columns, manifest.fill)

    def take(self, columns: Columns | None, open_gaps: tuple[OpenGap, ...], fill: tuple[int, bytes] | None = None) -> None:
        """Take readings alone, as `apply` does: the gaps open with them, and the gap they are the history of."""
        with self._lock:
            self._gaps(open_gaps)
            self._readings(columns, fill)

    def _readings(self, columns: Columns | None, fill: tuple[int, bytes] | None) -> None:
        if fill is None:
            if columns is not None and len(columns):
                self._wait(columns)
        elif fill[0] in self.gaps:
            self.gaps[fill[0]].progress = fill[1]

    def _wait(self, columns: Columns) -> None:
        self._waiting.append(columns)
        self._waiting_readings += len(columns)
        self._waiting_chars += sum(map(len, columns.texts))
        if self._waiting_readings >= _WAITING_MAX or self._waiting_chars >= _WAITING_TEXT_CHARS_MAX:
            self._settle()

    def _settle(self) -> None:
        """Bring what waits into the rows. Before anybody looks, and before gaps or sources change."""
        if self._waiting:
            parts, self._waiting = self._waiting, []
            self._waiting_readings = self._waiting_chars = 0
            self._live(parts)

    def _gaps(self, now_open: tuple[OpenGap, ...]) -> None:
        if [gap.id for gap in now_open] == list(self.gaps):
            return
        self._settle()
        for gap in now_open:
            if gap.id not in self.gaps:
                self._hand_over(gap.source)
                first_live = np.full(len(self._source_of), _NOT_YET, np.int64)
                self.gaps[gap.id] = _GapState(gap.id, gap.source, gap.from_ns, self._of_source(gap.source), first_live)
        for identity in self.gaps.keys() - {gap.id for gap in now_open}:
            del self.gaps[identity]

    def _hand_over(self, source: int) -> None:
        """A gap is about to open: where a tag has had no live reading since an older one, the new one owes all of it, and only the new one."""
        for gap in self.gaps.values():
            if gap.source == source:
                rows = gap.last.rows
                gap.first_live = _grown(gap.first_live, max(len(self._source_of), int(rows["tag"].max(initial=0)) + 1), _NOT_YET)
                none = np.flatnonzero((self._source_of == source) & (gap.first_live[: len(self._source_of)] == _NOT_YET))
                none = none[~np.isin(none, rows["tag"])]  # without a newest reading, either: a moment before all there can be says the same
                gap.first_live[none] = 0
                waiting = gap.first_live[rows["tag"]] == _NOT_YET
                gap.first_live[rows["tag"][waiting]] = rows["source"][waiting]

    def _live(self, parts: Sequence[Columns]) -> None:
        """Take live readings in order. Places are counted over all parts, so that no part is copied to find the newest of each tag."""
        size = 1 + max(int(part.tag.max()) for part in parts)
        self._rows, self._present = _grown(self._rows, size, 0), _grown(self._present, size, False)
        newest = np.full(size, -1, np.int64)  # place of the newest reading of each tag that is the source's own
        bounds, markers = [0], []
        for part in parts:
            tag, place = part.tag.astype(np.intp), np.arange(bounds[-1], bounds[-1] + len(part))  # intp: what numpy indexes with
            own, marker = _own(part)
            newest[tag[own]] = place[own]
            if marker is not None:
                markers.append((tag[marker], place[marker]))
            if self.gaps:
                self._first_live(part, own)
            bounds.append(bounds[-1] + len(part))
        places = np.sort(newest[newest >= 0])
        for part, first, (begin, end) in zip(parts, bounds, pairwise(np.searchsorted(places, bounds).tolist()), strict=False):
            if begin < end:
                self._replace(part, places[begin:end] - first)
        for tag, place in markers:
            self._rows["flags"][tag[newest[tag] < place]] |= np.uint16(Flag.MARKER)
        self._present[np.flatnonzero(newest >= 0)] = True

    def _replace(self, columns: Columns, place: NDArray[np.int64]) -> None:
        """Take the readings at these places, of different tags: whole rows at once, and texts only where they are the newest."""
        new = np.zeros(len(place), _ROW)
        new["tag"], new["ts"], new["kind"] = columns.tag[place], columns.ts_ns[place], columns.kind[place]
        new["source"] = new["ts"] if columns.ts_source_ns is None else columns.ts_source_ns[place]
        new["quality"], new["flags"], new["value"] = columns.quality[place], columns.flags[place], columns.values[place]
        texts = np.flatnonzero((new["kind"] == Kind.TEXT) | (new["kind"] == Kind.BYTES))
        for tag, index in zip(new["tag"][texts].tolist(), new["value"][texts].tolist(), strict=True):
            self._texts[tag] = columns.texts[index]
        new["value"][texts] = 0
        self._rows[new["tag"]] = new

    def _first_live(self, columns: Columns, own: Own) -> None:
        # the source's time, as its history tells it: ts may be the gateway's, and a value that is only repeated came into being before
        ts = (columns.ts_ns if columns.ts_source_ns is None else columns.ts_source_ns)[own]
        tag = columns.tag[own]
        for gap in self.gaps.values():
            gap.first_live = _grown(gap.first_live, len(self._source_of), _NOT_YET)
            known = tag < min(len(self._source_of), len(gap.first_live))
            mine = np.flatnonzero(known)[(self._source_of[tag[known]] == gap.source) & (gap.first_live[tag[known]] == _NOT_YET)]
            gap.first_live[tag[mine[::-1]]] = ts[mine[::-1]]  # the earliest is written last

    def _of_source(self, source: int) -> Readings:
        size = min(len(self._source_of), len(self._present))
        tags = np.flatnonzero((self._source_of[:size] == source) & self._present[:size])
        return self._copy(tags)

    def _copy(self, tags: NDArray[np.int64]) -> Readings:
        rows = self._rows[tags]
        of_text = (rows["kind"] == Kind.TEXT) | (rows["kind"] == Kind.BYTES)
        return Readings(rows, {int(tag): self._texts[int(tag)] for tag in rows["tag"][of_text]})

    def known(self, source: int) -> Known:
        """Return the committed state of one source."""
        with self._lock:
            self._settle()
            mine = sorted((g for g in self.gaps.values() if g.source == source), key=lambda g: g.id)
            gaps = tuple(Gap(g.id, g.from_ns, g.progress, g.last, g.firsts()) for g in mine)
            return Known(self.positions.get(source), self._of_source(source), gaps)

    def tags(self) -> Readings:
        """Return the newest reading of every tag that has one."""
        with self._lock:
            self._settle()
            return self._copy(np.flatnonzero(self._present))

    def tag(self, number: int) -> Reading | None:
        """Return the newest live reading of a tag, or None."""
        with self._lock:
            self._settle()
            present = number < len(self._present) and self._present[number]
            return self._copy(np.array([number]))[number] if present else None


# ---- the file ----


def encode_last(state: LastState, generation: int, seq: int, block: int) -> bytes:
    """Return the file."""
    every = state.tags()  # and with it, all that waited
    gaps = [
        [g.id, g.source, g.from_ns, g.progress, g.last.rows.tobytes(), dict(g.last.texts), g.firsts()]
        for g in sorted(state.gaps.values(), key=lambda g: g.id)
    ]
    tables = {digest: list(where) for digest, where in state.tables.items()}
    ends = {g: state.ends[g] for g in sorted(state.ends)[-GENERATIONS_MAX:]}
    rows, texts = every.rows.tobytes(), dict(every.texts)
    body = encode_cbor([_VERSION, generation, seq, block, state.positions, rows, texts, gaps, tables, ends])
    return hashlib.sha256(body).digest() + body


def decode_last(data: bytes) -> tuple[LastState, int, int, int]:
    """Return state, generation, seq, next block; raise CorruptError. The state has no table yet (`use_table`)."""
    if len(data) > LAST_BYTES_MAX or hashlib.sha256(data[32:]).digest() != data[:32]:
        raise CorruptError("`last` file does not match its digest")
    try:
        version, generation, seq, block, positions, rows, texts, gaps, tables, ends = decode_cbor(data[32:])
        if version != _VERSION:
            raise CorruptError("`last` file of another release")
        named = {digest: (g, end) for digest, (g, end) in tables.items()}
        state = LastState(positions=dict(positions), tables=named, ends=dict(ends))
        every = _rows_of(rows)
        size = int(every["tag"].max()) + 1 if len(every) else 0
        state._rows, state._present = np.zeros(size, _ROW), np.zeros(size, np.bool_)
        state._rows[every["tag"]] = every
        state._present[every["tag"]] = True
        state._texts = dict(texts)
        for identity, source, from_ns, progress, before, before_texts, firsts in gaps:
            if not all(0 <= tag <= limits.TAG_NUMBER_MAX for tag in firsts):
                raise CorruptError("`last` file names a tag beyond the limits")
            first_live = np.full(max(firsts, default=-1) + 1, _NOT_YET, np.int64)
            for tag, ts in firsts.items():
                first_live[tag] = ts
            last = Readings(_rows_of(before), dict(before_texts))
            state.gaps[identity] = _GapState(identity, source, from_ns, last, first_live, progress)
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        message = f"not a `last` file: {error}"
        raise CorruptError(message) from error
    return state, generation, seq, block


def _rows_of(data: bytes) -> NDArray[Any]:
    """Return rows whose tag numbers are within the limits: arrays are sized by them."""
    rows = np.frombuffer(data, _ROW)
    if len(rows) and int(rows["tag"].max()) > limits.TAG_NUMBER_MAX:
        raise CorruptError("`last` file names a tag beyond the limits")
    return rows
