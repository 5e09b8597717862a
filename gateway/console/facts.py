"""What the pages show, followed from the landing of each stream, and what the processes say of themselves.

Bounded: by TAGS_MAX tags and by what gateway.coverage and gateway.completeness keep; a start looks at FIRST_RECORDS of each lane, serves, and
then goes back through the index (gateway.console.history) a little every second. Text from a plant stays text here;
gateway.console.pages encodes it.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError, StorageFault
from buffer.intervals import Intervals
from buffer.manifest import FrameKind
from buffer.storage import PosixReadStorage
from buffer.tagtable import TagTable, decode_table
from gateway.completeness import Account, Days, account
from gateway.console.readings import Newest, Notice, is_hole, read
from gateway.console.trend import Trend
from gateway.console.waited import Waited
from gateway.coverage import Coverage
from gateway.landing import LandingReader, stream_names
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.landing import Record
    from gateway.settings import SiteSettings

LATE_NS: Final = 5 * 10**9  # between commit and receipt of a block: more means that the link was away
SILENCE_NS: Final = 20 * 10**9  # between two live records: a block is committed at least every 10 s
FIRST_RECORDS: Final = 100  # of each lane, read before anything is served
STEP_RECORDS: Final = 500  # of each lane, in one look
TAGS_MAX: Final = 100_000  # shown of one stream
TRENDS_MAX: Final = 10_000  # 10 MB of points
TABLES_MAX: Final = 16  # tag tables decoded at a time
NOTICES_MAX: Final = 5_000  # kept of one stream
_SECOND: Final = 10**9


@dataclass(slots=True)
class StreamFacts:
    """One stream as the pages show it."""

    stream: str
    newest: dict[str, Newest] = field(default_factory=dict)
    trends: dict[str, Trend] = field(default_factory=dict)
    untold: dict[str, Newest] = field(default_factory=dict)  # tags of the table without a reading so far
    late: Intervals = field(default_factory=Intervals)  # seconds in which data was committed that came late
    coverage: Coverage = field(default_factory=Coverage)
    days: Days = field(default_factory=Days)
    account: Account | None = None
    waited: Waited = field(default_factory=Waited)
    record: Record | None = None  # the one received last
    sources: tuple[str, ...] = ()
    generations: int = 0
    looked_back_ns: int = 0  # commits since then are in `late` and `days`
    told_since_ns: int = 0  # and in `coverage`
    looking_back: bool = True
    error: str = ""


class Follower:
    """Follows the landing of one stream."""

    def __init__(self, root: Path, stream: str) -> None:
        self.facts = StreamFacts(stream)
        self.root = root / stream
        self._reader = LandingReader(PosixReadStorage(self.root))
        self._next: dict[Lane, int] = {}
        self.began: dict[Lane, int] = {}  # numbers from here on were followed; history takes those before
        self._landing = 0
        self._tables: dict[bytes, TagTable] = {}
        self._notices: list[Notice] = []

    def follow(self) -> None:
        """Take what is new; a record that does not read is shown as such, and what follows it is taken all the same."""
        try:
            self._reader.refresh()
            self.facts.error = ""
            for lane in Lane:
                self._lane(lane)
        except (CorruptError, StorageFault) as error:
            self.facts.error = str(error)
            return
        state = self._reader.state
        self.facts.generations = len(state.seqs)
        self.facts.account = account(self.facts.stream, state)

    def _lane(self, lane: Lane) -> None:
        state = self._reader.state
        top = state.ends.of(lane)
        if state.landing != self._landing:  # opened anew: numbers may mean something else
            since = state.since(self._landing) if self._landing else None
            self._next = {one: min(n, since.of(one)) for one, n in self._next.items()} if since else {}
            self._landing = state.landing
        if lane not in self._next:
            self._next[lane] = self.began[lane] = max(0, top - FIRST_RECORDS)
        for record in self._reader.records(lane, self._next[lane], STEP_RECORDS):
            self.index(record)
            try:
                self.values(record)
            except CorruptError as error:
                self.facts.error = str(error)
            self._next[lane] = record.number + 1

    # ---- one record ----

    def index(self, record: Record) -> None:
        """Take what the index says of a record: when, how late."""
        facts = self.facts
        facts.days.take(record)
        facts.waited.take(record)
        at, came = record.state.wall_ns // _SECOND, record.received_ns // _SECOND
        if record.received_ns - record.state.wall_ns > LATE_NS and record.kind == FrameKind.BLOCK:
            facts.late.add(at, came)
        newest = facts.record
        if newest is None or record.received_ns >= newest.received_ns:
            if newest is not None:
                self.silence(newest.received_ns, record.received_ns)
            facts.record = record
        if not facts.looked_back_ns or record.state.wall_ns < facts.looked_back_ns:
            facts.looked_back_ns = record.state.wall_ns

    def silence(self, before_ns: int, after_ns: int) -> None:
        """Note that nothing came between two records received one after the other."""
        if after_ns - before_ns > SILENCE_NS:
            self.facts.late.add(before_ns // _SECOND, after_ns // _SECOND)

    def values(self, record: Record, *, live: bool = True) -> None:
        """Take what a record holds; raise CorruptError."""
        if not record.count or not record.file or not record.new:
            return
        facts, table = self.facts, self._table(record.tag_table)
        told = len(self._notices)
        for one in read(self._reader.frame(record), table):
            if isinstance(one, Notice):
                self._notices.append(one)
                if live:
                    facts.coverage.take(one.kind, one.ts_ns, one.text)
            else:
                self._newest(one)
        if not facts.told_since_ns or record.state.wall_ns < facts.told_since_ns:
            facts.told_since_ns = record.state.wall_ns
        if len(self._notices) > told and not live:
            self._tell_again()

    def _tell_again(self) -> None:
        """Notices of earlier came to light: all of them once more, in order."""
        self._notices = sorted(self._notices, key=lambda n: n.ts_ns)[-NOTICES_MAX:]
        self.facts.coverage = Coverage()
        for one in self._notices:
            self.facts.coverage.take(one.kind, one.ts_ns, one.text)

    def _newest(self, one: Newest) -> None:
        facts = self.facts
        shown = facts.newest.get(one.tag)
        if shown is not None and shown.ts_ns > one.ts_ns:
            return  # backfill brings what is older
        if shown is None and len(facts.newest) >= TAGS_MAX:
            return
        facts.newest[one.tag] = one
        facts.untold.pop(one.tag, None)
        if one.tag in facts.trends or (len(facts.trends) < TRENDS_MAX and one.number == one.number):
            facts.trends.setdefault(one.tag, Trend()).add(one.ts_ns, float("nan") if is_hole(one) else one.number)

    def _table(self, digest: bytes) -> TagTable:
        table = self._tables.get(digest)
        if table is None:
            frame = self._reader.object_frame(digest)
            if frame is None:
                raise CorruptError("tag table is missing", source=digest.hex())
            table = self._tables[digest] = decode_table(frame.payload)
            if len(self._tables) > TABLES_MAX:
                del self._tables[next(iter(self._tables))]
            self._declare(table)
        return table

    def _declare(self, table: TagTable) -> None:
        """Tags that have said nothing so far are shown as that."""
        facts = self.facts
        facts.sources = table.sources
        for tag in table.tags[:TAGS_MAX]:
            if tag.source and tag.id not in facts.newest:
                facts.untold[tag.id] = Newest(tag.id, tag.path, tag.unit, 0, "", 0, 0, tag.source)


class Facts:
    """All streams of a site, and what the processes say of themselves. `lock` guards everything: pages are made in other threads."""

    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self.lock = threading.Lock()
        self.streams: dict[str, Follower] = {}
        self.receive: dict[str, Any] = {}
        self.deliver: dict[str, Any] = {}

    def refresh(self) -> None:
        """Look again. Blocking; called in a thread."""
        receive, deliver = _json(self.settings.landing / "status.json"), _json(self.settings.deliver / "status.json")
        names = stream_names(self.settings.landing)
        with self.lock:
            self.receive, self.deliver = receive, deliver
            for stream in names:
                if stream not in self.streams:
                    self.streams[stream] = Follower(self.settings.landing, stream)
        for follower in list(self.streams.values()):
            with self.lock:
                follower.follow()


def _json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
