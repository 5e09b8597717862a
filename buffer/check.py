"""`ebbgate ring check`: re-reads everything of a ring on another path than the writer's, and says what does not agree.

    journals   walked by buffer.checkwalk; payloads decoded; every block against its manifest
    segments   rows decoded by DuckDB: count, seqs, order, generation, ranges; tags and paths against the tag table; row by row, bit for
               bit, against the blocks that journals still hold
    chain      over blocks and segments of each generation
    account    seqs from `low` to `end` of each generation are held or lost with a reason; `durable` and the state record agree

The oracle of the tests. Reads only; memory is bounded by one journal, the rows of one segment, and a few words a block.
Needs DuckDB and the public keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from buffer import layout
from buffer.checkrows import Duck, SegmentRows, compare_blocks
from buffer.checkwalk import MAGIC, PAGE, Walked, signed_map, walk_frame, walk_journal
from buffer.codec import decode
from buffer.errors import CorruptError
from buffer.intervals import Intervals
from buffer.last import decode_last
from buffer.manifest import format_generation
from buffer.plain import PlainFiles
from buffer.tagtable import TagTable, decode_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buffer.cose import Verifier
    from buffer.layout import DurableMark, JournalName, SegmentName

FINDINGS_MAX: Final = 1_000
TRIES_MAX: Final = 4  # a ring that is written: files that were evicted or sealed while they were read
_HEADER_BYTES: Final = 40


@dataclass(slots=True)
class Report:
    """What was read and what does not agree."""

    stream: str
    segments: int = 0
    journals: int = 0
    blocks: int = 0
    objects: int = 0
    readings: int = 0  # each once
    compared: int = 0  # readings seen both in a block and in a segment, and equal
    findings: list[str] = field(default_factory=list)

    def bad(self, place: str, what: str) -> None:
        """Note a finding."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(f"{place}: {what}")


@dataclass(slots=True)
class _Generation:
    seqs: Intervals = field(default_factory=Intervals)
    points: dict[int, tuple[bytes, str]] = field(default_factory=dict)  # h after a block, and who says so
    state: list[Any] | None = None  # the newest record


def check_ring(root: Path, keys: Verifier) -> Report:
    """Return the report on the ring of one stream, which may be written meanwhile; raise StorageFault where it cannot be read at all.

    Findings on a ring whose files changed under the check are looked for again: an eviction is no loss.
    """
    for _ in range(TRIES_MAX - 1):
        before = _files(root)
        report = _Check(root, keys).run()
        if not report.findings or _files(root) == before:
            return report
    return _Check(root, keys).run()


def _files(root: Path) -> tuple[list[str], ...]:
    storage = PlainFiles(root)
    return tuple(list(storage.list(directory)) for directory in layout.DIRECTORIES)


class _Check:
    def __init__(self, root: Path, keys: Verifier) -> None:
        self._root = root
        self._keys = keys
        self._storage = PlainFiles(root)
        self._duck = Duck()
        self._tables: dict[bytes, TagTable] = {}
        self._generations: dict[int, _Generation] = {}
        self._places: dict[int, dict[int, tuple[str, int, int]]] = {}  # generation -> first seq -> journal, offset, size of a block
        self.report = Report(root.name)

    def run(self) -> Report:
        mark = self._durable()
        self._objects()
        self._last()
        journals = sorted(x for name in self._storage.list(layout.JOURNALS) if (x := layout.parse_journal(name)))
        for at, name in enumerate(journals):
            following = journals[at + 1] if at + 1 < len(journals) and journals[at + 1].generation == name.generation else None
            try:
                self._journal(name, following, mark)
            except CorruptError as error:  # no plain file
                self.report.bad(name.path, error.message)
        for segment in sorted({found[0] for name in self._storage.list(layout.SEGMENTS) if (found := layout.parse_segment(name))}):
            self._segment(segment)
        self._duck.close()
        self._account(mark)
        self.report.readings = sum(g.seqs.count() for g in self._generations.values())
        return self.report

    def _durable(self) -> DurableMark | None:
        try:
            data = self._storage.read(layout.DURABLE, 0, layout.DURABLE_BYTES + 1)
            if data is None and self._begun():
                raise CorruptError("not here: what journals hold cannot be told from what was never acknowledged")
            return layout.decode_durable(data) if data is not None else None
        except CorruptError as error:
            self.report.bad(f"{layout.DURABLE} at byte 0", error.message)
            return None

    def _begun(self) -> bool:
        journals = [name for entry in self._storage.list(layout.JOURNALS) if (name := layout.parse_journal(entry))]
        return bool(self._storage.list(layout.SEGMENTS)) or any(self._storage.read(name.path, PAGE, 4) == MAGIC for name in journals)

    # ---- small files ----

    def _objects(self) -> None:
        for name in self._storage.list(layout.OBJECTS):
            path = f"{layout.OBJECTS}/{name}"
            try:
                data = self._storage.read(path, 0, self._storage.size(path) or 0) or b""
                frame = walk_frame(data, 0, self._keys, 0)
                if frame.end != len(data) or frame.manifest[3].hex() != name:
                    raise CorruptError("the file holds other bytes than its object", offset=0)
                if frame.manifest[15] == 1:
                    self._tables[frame.manifest[3]] = decode_table(frame.payload)
                self.report.objects += 1
            except CorruptError as error:
                self.report.bad(f"{path} at byte {error.offset or 0}", error.message)

    def _last(self) -> None:
        for name in self._storage.list(layout.LAST):
            path = f"{layout.LAST}/{name}"
            if layout.parse_last(name) is not None:
                try:
                    decode_last(self._storage.read(path, 0, self._storage.size(path) or 0) or b"")
                except CorruptError as error:
                    self.report.bad(f"{path} at byte 0", error.message)

    # ---- blocks ----

    def _journal(self, name: JournalName, following: JournalName | None, mark: DurableMark | None) -> None:
        if mark is None or (name.generation, name.serial) > (mark.generation, mark.serial):
            return
        active = (name.generation, name.serial) == (mark.generation, mark.serial)
        size = mark.end_offset if active else self._storage.size(name.path) or 0
        data = self._storage.read(name.path, 0, size) or b""
        if data and not any(data[: layout.DURABLE_BYTES]):
            return  # renamed, not begun
        self.report.journals += 1
        end = name.first_seq
        pending: list[Walked] = []
        for found in walk_journal(data, self._keys):
            if isinstance(found, CorruptError):
                self.report.bad(f"{name.path} at byte {found.offset}", found.message)
                continue
            pending.append(found)
            if 16 not in found.manifest:  # the last block of its commit
                for one in pending:
                    end = max(end, self._block(name, one))
                pending = []
        expected = mark.end_seq if active else following.first_seq if following is not None else end
        if end < expected:
            self.report.bad(name.path, f"ends with reading {end - 1}, acknowledged were readings up to {expected - 1}")

    def _block(self, name: JournalName, found: Walked) -> int:
        m, place = found.manifest, f"{name.path} at byte {found.offset}"
        first, count = int(m[7][0]), int(m[7][1])
        self.report.blocks += 1
        if m[2] != self._root.name or m[5] != name.generation:
            self.report.bad(place, "a block of another stream or generation")
            return first
        try:
            decode(found.payload, count)
        except CorruptError as error:
            self.report.bad(place, error.message)
        if m[8] not in self._tables:
            self.report.bad(place, f"names a tag table that is not here: {m[8].hex()}")
        after = hashlib.sha256(m[9] + hashlib.sha256(found.cose).digest()).digest()
        self._link(m, after, place)
        if count:
            self._places.setdefault(name.generation, {})[first] = (name.path, found.offset, found.end - found.offset)
        return first + count

    def _link(self, m: dict[int, Any], after: bytes, place: str) -> None:
        """Take what a frame holds and says of the chain and of the ring."""
        generation = self._generations.setdefault(m[5], _Generation())
        if m[7][1]:
            generation.seqs.add(m[7][0], m[7][0] + m[7][1] - 1)
        start = hashlib.sha256(m[2].encode() + b"\0" + m[5].to_bytes(8, "big")).digest()
        known = generation.points.setdefault(-1, (start, "the start of the generation"))
        for block, h in ((m[6][0] - 1, m[9]), (m[6][1], after)):
            known = generation.points.setdefault(block, (h, place))
            if known[0] != h:
                self.report.bad(place, f"the chain at block {block} is not what {known[1]} says")
        told = self._generations.setdefault(m[14][0], _Generation())  # a segment repeats the newest record, which may be of a later generation
        if told.state is None or m[14][1] >= told.state[1]:
            told.state = m[14]

    # ---- segments ----

    def _segment(self, name: SegmentName) -> None:
        try:
            cose = self._storage.read(name.cose, 0, 64 * 1024)
            data = self._storage.read(name.parquet, 0, self._storage.size(name.parquet) or 0)
        except CorruptError as error:
            self.report.bad(error.source, error.message)
            return
        if cose is None or data is None:
            return  # evicted meanwhile, or being published
        self.report.segments += 1
        try:
            m = signed_map(cose[_HEADER_BYTES:], self._keys)
            whole = walk_frame(cose + data, 0, self._keys, 0)
            if whole.end != len(cose) + len(data) or (m[5], m[7]) != (name.generation, [name.first, name.last - name.first + 1]):
                raise CorruptError("name, manifest and file contradict each other", offset=0)
        except CorruptError as error:
            self.report.bad(f"{name.cose} at byte {error.offset or 0}", error.message)
            return
        self._link(m, m[10], name.cose)
        table = self._tables.get(m[8])
        if table is None:
            self.report.bad(name.cose, f"names a tag table that is not here: {m[8].hex()}")
            return
        rows = SegmentRows(self._duck, self._root / name.parquet)
        for what in rows.problems(m, table):
            self.report.bad(name.parquet, what)
        for what, compared in compare_blocks(rows, self._within(name), table):
            self.report.compared += compared
            if what:
                self.report.bad(name.parquet, what)

    def _within(self, name: SegmentName) -> Iterator[Walked]:
        """Yield the blocks of a segment that journals hold, read again one by one: nothing is kept."""
        for first, (path, offset, size) in sorted(self._places.get(name.generation, {}).items()):
            if name.first <= first <= name.last:
                try:
                    found = walk_frame(self._storage.read(path, offset, size) or b"", 0, self._keys, None)
                except CorruptError:
                    continue  # recycled meanwhile, or named where it was read
                if (found.manifest[5], found.manifest[7][0]) == (name.generation, first):
                    yield found

    # ---- the account ----

    def _account(self, mark: DurableMark | None) -> None:
        states = {g: one.state for g, one in self._generations.items() if one.state is not None}
        if mark is None:
            return
        said = states.get(mark.generation)
        if said is None:
            self.report.bad(layout.DURABLE, f"speaks of generation {format_generation(mark.generation)}, and no record of it can be read")
        elif (said[3], said[1] + 1) != (mark.end_seq, mark.end_block):
            self.report.bad(layout.DURABLE, "says another end than the newest state record")
        if not states:
            return
        newest = states[max(states)]
        for generation, first, end in _reported(states, newest[4]):
            covered = self._generations.get(generation, _Generation()).seqs.copy()
            for state in states.values():
                for _, a, b, _ in (loss for loss in state[5] if loss[0] == generation):
                    covered.add(a, b)
            for a, b in covered.holes(first, end - 1):
                self.report.bad(format_generation(generation), f"readings {a}-{b} are reported, not lost, and in no file")


def _reported(states: dict[int, list[Any]], low: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (generation, first seq, end) of everything the records report that is not below `low`."""
    ends = {generation: state[3] for generation, state in states.items()}
    for state in states.values():
        if state[2] is not None:
            ends[state[2][0]] = max(state[2][1], ends.get(state[2][0], 0))
    for generation, end in sorted(ends.items()):
        first = low[1] if generation == low[0] else 0
        if generation >= low[0] and first < end:
            yield generation, first, end
