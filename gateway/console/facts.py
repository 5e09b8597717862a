"""What the pages show, followed from the landing: newest reading per tag, and when each stream was heard.

Memory is bounded by tags, and by OUTAGES_MAX per stream. Text from a plant stays text here; gateway.console.pages encodes it.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from buffer.codec import decode
from buffer.errors import CorruptError
from buffer.manifest import FrameKind, format_generation
from buffer.rows import describe
from buffer.storage import PosixReadStorage
from buffer.tagtable import TagTable, decode_table
from buffer.types import Flag, Kind
from gateway.landing import LandingReader, stream_names
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from pathlib import Path

    from buffer.types import Columns
    from gateway.landing import Record
    from gateway.settings import SiteSettings

OUTAGE_NS: Final = 5 * 10**9  # between commit and receipt: more means that the link was away
OUTAGES_MAX: Final = 200
CATCH_UP_RECORDS: Final = 2_000  # live records read at a start; older ones change no newest value worth showing


@dataclass(slots=True)
class Newest:
    """The newest reading of one tag."""

    tag: str
    path: str
    unit: str
    ts_ns: int
    value: str
    quality: int
    flags: int


@dataclass(slots=True)
class StreamFacts:
    """One stream as the pages show it."""

    stream: str
    newest: dict[str, Newest] = field(default_factory=dict)
    outages: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=OUTAGES_MAX))  # commit, receipt
    record: Record | None = None
    received: int = 0
    generations: int = 0
    error: str = ""


class Follower:
    """Follows the landing of one stream."""

    def __init__(self, root: Path, stream: str) -> None:
        self.facts = StreamFacts(stream)
        self._reader = LandingReader(PosixReadStorage(root / stream))
        self._next = dict.fromkeys(Lane, -1)
        self._tables: dict[bytes, TagTable] = {}

    def follow(self) -> None:
        """Take what is new; a record that does not read is shown as such."""
        try:
            self._reader.refresh()
            for lane in Lane:
                top = self._reader.state.ends.of(lane)
                if not 0 <= self._next[lane] <= top:
                    self._next[lane] = max(0, top - CATCH_UP_RECORDS)
                for record in self._reader.records(lane, self._next[lane], CATCH_UP_RECORDS):
                    self._take(record)
                    self._next[lane] = record.number + 1
            self.facts.generations = len(self._reader.state.seqs)
            self.facts.error = ""
        except CorruptError as error:
            self.facts.error = str(error)

    def _take(self, record: Record) -> None:
        late = record.received_ns - record.state.wall_ns
        if late > OUTAGE_NS and record.kind == FrameKind.BLOCK:
            self.facts.outages.append((record.state.wall_ns, record.received_ns))
        newest = self.facts.record
        if newest is None or record.received_ns >= newest.received_ns:
            self.facts.record = record
        if record.kind == FrameKind.BLOCK and record.count and record.file:
            self._newest(decode(self._reader.frame(record).payload, record.count), self._table(record.tag_table))

    def _table(self, digest: bytes) -> TagTable:
        if digest not in self._tables:
            frame = self._reader.object_frame(digest)
            if frame is None:
                raise CorruptError("tag table is missing", source=digest.hex())
            self._tables[digest] = decode_table(frame.payload)
        return self._tables[digest]

    def _newest(self, columns: Columns, table: TagTable) -> None:
        last_rows = {int(number): row for row, number in enumerate(columns.tag)}
        for number, row in last_rows.items():
            tag, path = describe(number, table)
            shown = self.facts.newest.get(tag)
            if shown is not None and shown.ts_ns > int(columns.ts_ns[row]):
                continue  # backfill brings what is older
            known = table.tag(number)
            self.facts.newest[tag] = Newest(
                tag, path, known.unit if known else "", int(columns.ts_ns[row]), _text(columns, row, dict(known.states) if known else {}),
                int(columns.quality[row]), int(columns.flags[row]),
            )  # fmt: skip


def _text(columns: Columns, row: int, states: dict[int, str]) -> str:
    kind, bits = columns.kind[row], columns.values[row : row + 1]
    if kind == Kind.NULL:
        return "stopped reading" if columns.flags[row] & Flag.MARKER else "no value"
    if kind == Kind.DOUBLE:
        return f"{float(bits.view(np.float64)[0]):g}"
    if kind in (Kind.TEXT, Kind.BYTES):
        return columns.texts[int(bits[0])]
    if kind == Kind.BOOL:
        return "yes" if bits[0] else "no"
    number = int(bits.view(np.int64)[0]) if kind == Kind.INT64 else int(bits[0])
    return f"{number} {states[number]}" if number in states else str(number)


class Facts:
    """All streams of a site, and what the processes say of themselves."""

    def __init__(self, settings: SiteSettings) -> None:
        self._settings = settings
        self.streams: dict[str, Follower] = {}
        self.receive: dict[str, Any] = {}
        self.deliver: dict[str, Any] = {}

    def refresh(self) -> None:
        """Look again. Blocking; called in a thread."""
        for stream in stream_names(self._settings.landing):
            if stream not in self.streams:
                self.streams[stream] = Follower(self._settings.landing, stream)
            self.streams[stream].follow()
        self.receive = _json(self._settings.landing / "status.json")
        self.deliver = _json(self._settings.deliver / "status.json")

    def as_json(self, now_ns: int) -> dict[str, Any]:
        """Return everything the pages show."""
        out: dict[str, Any] = {"time_ns": now_ns, "site": self._settings.name, "uploaders": self.receive.get("uploaders", {}), "streams": {}}
        for stream, follower in self.streams.items():
            f = follower.facts
            state = f.record.state if f.record else None
            out["streams"][stream] = {
                "newest_received_ns": f.record.received_ns if f.record else None,
                "tags": len(f.newest),
                "outages": [list(x) for x in f.outages],
                "generation": format_generation(state.generation) if state else "",
                "lost": [[x.first, x.last, x.reason.name.lower()] for x in state.lost] if state else [],
                "open_gaps": [[x.id, x.source, x.from_ns] for x in state.open_gaps] if state else [],
                "low": list(state.low) if state else None,
                "end": state.end if state else None,
                "error": f.error,
                "receive": self.receive.get("streams", {}).get(stream, {}),
                "deliver": self.deliver.get("streams", {}).get(stream, {}),
            }
        return out


def _json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
