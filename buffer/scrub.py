"""The scrub: re-reads a ring past the page cache, a file a step, and says what the device no longer holds as it was written.

Digests, CRCs and signatures only: nothing is decoded, so collect runs it without pyarrow. It writes nothing and decides nothing about
`lost`: the owner of the ring declares what `Checked.losses` names. Passive: no clock, no sleep; progress survives a restart as JSON.

    objects, last     a digest that does not hold: damage without loss of readings
    segments          .parquet or .cose: all its readings are lost, also where a journal still holds a copy: that goes within the hour
    journals          what lies between its first seq and where it ended, up to `durable`, and is neither in a block that verifies nor in
                      a segment

A file that vanished or was cut to nothing was evicted: a fact, no finding. What does not verify is read again before it is believed.
A signature whose key is not known here is damage to nobody's bytes: named, never lost.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final, Protocol

from buffer import layout, limits
from buffer.cose import Verifier
from buffer.errors import CorruptError, SignatureError, StorageFault
from buffer.frame import COSE_BYTES_MAX, HEADER_BYTES, parse_body, parse_frame, parse_header
from buffer.intervals import Intervals
from buffer.journal import PAGE, Found, Hole, PastCache, find_salt, parse_journal_header, scan
from buffer.manifest import Loss, LossReason
from buffer.reader import RingReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buffer.frame import Frame
    from buffer.layout import JournalName, SegmentName
    from buffer.reader import Inventory
    from buffer.storage import ReadStorage

INTERVAL_NS: Final = limits.SCRUB_INTERVAL_NS
_RANK: Final = {layout.OBJECTS: 0, layout.LAST: 1, layout.SEGMENTS: 2, layout.JOURNALS: 3}
_LAST_BYTES_MAX: Final = 512 * 1024 * 1024
_DIGEST_BYTES: Final = 32


class Keys(Verifier, Protocol):
    """A verifier that can say whether it knows a key: a signature by another key is not rot."""

    def knows(self, name: bytes) -> bool:
        """Say whether a key of this name is known."""
        ...


@dataclass(slots=True)
class Progress:
    """Where a round is. position: path of the newest file checked; "": between two rounds. Times are wall clock, ns."""

    began_ns: int = 0
    finished_ns: int = 0
    position: str = ""
    files: int = 0  # of this round, as the others
    size_bytes: int = 0
    damaged: int = 0


def encode_progress(progress: Progress) -> bytes:
    """Return the JSON that a restart goes on from."""
    return json.dumps(asdict(progress)).encode()


def decode_progress(data: bytes | None) -> Progress:
    """Return the progress; a fresh one for anything that is not exactly one: the round begins again."""
    try:
        body = json.loads(data or b"")
        progress = Progress(**body)
        if all(type(getattr(progress, f.name)) is type(f.default) for f in fields(Progress)):
            return progress
    except (ValueError, TypeError, RecursionError):
        pass
    return Progress()


@dataclass(frozen=True, slots=True)
class Checked:
    """One file. problem "": it is what was written. losses: what must be declared lost."""

    path: str
    size_bytes: int
    problem: str = ""
    losses: tuple[Loss, ...] = ()


def fresh(losses: Iterable[Loss], known: Iterable[Loss]) -> list[Loss]:
    """Return the parts of `losses` that `known` does not name yet."""
    told: dict[int, Intervals] = {}
    for loss in known:
        told.setdefault(loss.generation, Intervals()).add(loss.first, loss.last)
    holes = [(x, told.get(x.generation, Intervals()).holes(x.first, x.last)) for x in losses]
    return [Loss(x.generation, a, b, x.reason) for x, ranges in holes for a, b in ranges]


class Scrub:
    """Walks a ring again and again, INTERVAL_NS from round to round. One caller at a time; may run beside the writer."""

    def __init__(self, storage: ReadStorage, keys: Keys, progress: Progress) -> None:
        self._storage = storage
        self._keys = keys
        self.progress = progress
        self._todo: list[str] | None = None

    def due(self, wall_ns: int) -> bool:
        """Say whether a round is under way or should begin. A clock that went back begins one."""
        p = self.progress
        return bool(p.position) or not p.finished_ns or not 0 <= wall_ns - p.finished_ns < INTERVAL_NS

    def step(self, wall_ns: int) -> Checked | None:
        """Check the next file; None where no round is due, or at the end of one. Raise StorageFault where names cannot be read."""
        if not self.due(wall_ns):
            return None
        if self._todo is None:
            self._begin(wall_ns)
        if not self._todo:
            self.progress.finished_ns, self.progress.position, self._todo = wall_ns, "", None
            return None
        path = self._todo.pop()
        checked = self._check(path)
        p = self.progress
        p.position, p.files, p.size_bytes, p.damaged = path, p.files + 1, p.size_bytes + checked.size_bytes, p.damaged + bool(checked.problem)
        return checked

    def _begin(self, wall_ns: int) -> None:
        if not self.progress.position:
            self.progress = Progress(began_ns=wall_ns, finished_ns=self.progress.finished_ns)
        paths = [f"{directory}/{name}" for directory in _RANK for name in self._storage.list(directory) if _is_ours(directory, name)]
        after = _order(self.progress.position) if self.progress.position else (-1, "")
        self._todo = sorted((path for path in paths if _order(path) > after), key=_order, reverse=True)

    def _check(self, path: str) -> Checked:
        directory, _, name = path.partition("/")
        size = self._storage.size(path) or 0
        if directory == layout.SEGMENTS and (segment := layout.parse_segment(name)) is not None:
            return self._segment(path, segment[0])
        if directory == layout.JOURNALS and (journal := layout.parse_journal(name)) is not None:
            return self._journal(journal)
        problem = self._twice(path, self._object if directory == layout.OBJECTS else self._last_file)
        return Checked(path, size, problem)

    def _twice(self, path: str, judge: _Judge) -> str:
        """Return what is wrong, seen twice, with the file still there; "" otherwise."""
        for _ in range(2):
            problem = _problem(judge, path)
            if not problem or not self._storage.size(path):
                return ""
        return problem

    # ---- small files ----

    def _object(self, path: str) -> None:
        frame = parse_frame(self._read(path, HEADER_BYTES + COSE_BYTES_MAX + limits.OBJECT_PAYLOAD_BYTES_MAX))
        if frame.manifest.payload_sha256.hex() != path.rpartition("/")[2]:
            raise CorruptError("not the object that its name says")
        frame.verified(self._keys)

    def _last_file(self, path: str) -> None:
        data = self._read(path, _LAST_BYTES_MAX)
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
            raise CorruptError("does not match its digest")

    def _read(self, path: str, most: int) -> bytes:
        return self._storage.read_direct(path, 0, min(most, self._storage.size(path) or 0)) or b""

    # ---- segments ----

    def _segment(self, path: str, name: SegmentName) -> Checked:
        size = (self._storage.size(name.parquet) or 0) + (self._storage.size(name.cose) or 0)
        problem = self._twice(path, lambda _: self._whole_segment(name))
        if not problem:
            return Checked(path, size)
        lost = () if problem == _UNKNOWN_KEY else (Loss(name.generation, name.first, name.last, LossReason.BIT_ROT),)
        return Checked(path, size, problem, lost)

    def _whole_segment(self, name: SegmentName) -> None:
        head = self._read(name.cose, HEADER_BYTES + COSE_BYTES_MAX)
        header = parse_header(head)
        payload = self._read(name.parquet, header.payload_bytes + 1)
        frame = parse_body(header, head[HEADER_BYTES : HEADER_BYTES + header.cose_bytes], payload)
        m = frame.manifest
        if (m.generation, m.first_seq, m.end_seq - 1) != (name.generation, name.first, name.last):
            raise CorruptError("its name is not what its manifest says")
        self._signed(frame)

    def _signed(self, frame: Frame) -> None:
        try:
            frame.verified(self._keys)
        except SignatureError:
            if self._keys.knows(frame.sign1.key_id):
                raise
            raise SignatureError(_UNKNOWN_KEY) from None

    # ---- journals ----

    def _journal(self, name: JournalName) -> Checked:
        reader = RingReader(self._storage)
        before = self._storage.size(name.path) or 0
        inventory = reader.inventory()
        end = _expected_end(reader, inventory, name)
        if end is None:
            return Checked(name.path, before)
        held, problems = self._blocks(name, inventory, before)
        later = reader.inventory()
        if name not in later.journals or (self._storage.size(name.path) or 0) != before:
            return Checked(name.path, before)  # evicted or recycled meanwhile
        for segment in later.segments:
            if segment.generation == name.generation:
                held.add(segment.first, segment.last)
        missing = held.holes(name.first_seq, end - 1) if end > name.first_seq else []
        losses = tuple(Loss(name.generation, a, b, LossReason.BIT_ROT) for a, b in missing)
        return Checked(name.path, before, "; ".join(problems) or ("blocks are missing" if losses else ""), losses)

    def _blocks(self, name: JournalName, inventory: Inventory, size: int) -> tuple[Intervals, list[str]]:
        """Return the seqs of blocks that verify, and what does not (ten of them)."""
        mark = inventory.durable
        if mark is not None and (mark.generation, mark.serial) == (name.generation, name.serial):
            size = mark.end_offset
        read = PastCache(self._storage, name.path, size).read
        problems: list[str] = []
        if found := _problem(lambda _: _head(read(0, PAGE)), ""):
            problems.append(found)
        salt = find_salt(read, size, name.generation, name.first_seq, name.serial)
        held = Intervals()
        for piece in scan(read, salt, size) if salt is not None else ():
            if isinstance(piece, Hole):
                problems.append(f"byte {piece.offset}: {piece.reason}")
            elif (problem := self._block(piece, name)) not in ("", _UNKNOWN_KEY):
                problems.append(f"byte {piece.offset}: {problem}")
            elif piece.frame.manifest.count:
                held.add(piece.frame.manifest.first_seq, piece.frame.manifest.end_seq - 1)
        return held, problems[:10]

    def _block(self, found: Found, name: JournalName) -> str:
        if found.frame.manifest.generation != name.generation:
            return "a block of another generation"
        return _problem(lambda _: self._signed(found.frame), "")


class _Judge(Protocol):
    def __call__(self, path: str, /) -> None: ...


_UNKNOWN_KEY: Final = "signed by a key that is not known here"


def _problem(judge: _Judge, path: str) -> str:
    try:
        judge(path)
    except CorruptError as error:
        return error.message
    except StorageFault as fault:
        return f"the disk refuses to give it: {fault}"
    return ""


def _head(page: bytes) -> None:
    if any(page):
        parse_journal_header(page)


def _is_ours(directory: str, name: str) -> bool:
    if name.startswith("."):
        return False
    if directory == layout.SEGMENTS:
        found = layout.parse_segment(name)
        return found is not None and found[1] == "cose"
    if directory == layout.JOURNALS:
        return layout.parse_journal(name) is not None
    return directory == layout.OBJECTS or layout.parse_last(name) is not None


def _order(path: str) -> tuple[int, str]:
    directory, _, name = path.partition("/")
    return _RANK.get(directory, -1), name


def _expected_end(reader: RingReader, inventory: Inventory, name: JournalName) -> int | None:
    """Return one past the last seq that was acknowledged in a journal; None where nothing was, or nobody says."""
    mark = inventory.durable
    if mark is None or (name.generation, name.serial) > (mark.generation, mark.serial):
        return None
    later = [one for one in inventory.journals if one.generation == name.generation and one.serial > name.serial]
    if name.generation == mark.generation:
        later = [one for one in later if one.serial <= mark.serial]
    if later:
        return min(later, key=lambda one: one.serial).first_seq
    return mark.end_seq if name.generation == mark.generation else reader.end_of(inventory, name.generation)
