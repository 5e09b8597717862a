"""upload/state.db: what the uploader remembers. Private to its process; SQLite in WAL mode, synchronous NORMAL, written every 5 s.

Losing it costs offers, nothing else: a file that is lost, damaged or of another release is replaced. SQLite has no checksum over
its content, so each save also keeps the SHA-256 of all rows; a file that says more was receipted than really was would lose data.

    piece   (generation, first, last, live, backfill)   receipted blocks and the newest ends of their receipts
    doubt   (generation, first, last)                   to be offered before they are sent
    parked  (generation, first, last, reason, since)    refused by the receiver
    object  (digest)                                    objects the landing took
    fact    (key, value)                                landing, day, sent, resent, receipt, restored, restored_blocks, forgotten,
                                                        conflicts, fresh, stream, version, digest
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from typing import TYPE_CHECKING, Final

from buffer.errors import StoreError
from buffer.storage import remove_file
from gateway.upload.memory import Day, Memory, Parked
from gateway.wire.receipt import Ends

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1
SAVE_NS: Final = 5 * 10**9  # between two saves: a synced write per receipt would out-write the ring (13 kB for 300 bytes)
_CACHE_KIB: Final = 512

Row = tuple[int | str | bytes, ...]
Rows = dict[str, set[Row]]

_TABLES: Final = {
    "piece": ("generation INTEGER, first INTEGER, last INTEGER, live INTEGER, backfill INTEGER, PRIMARY KEY (generation, first)", 2),
    "doubt": ("generation INTEGER, first INTEGER, last INTEGER, PRIMARY KEY (generation, first)", 2),
    "parked": (
        "generation INTEGER, first INTEGER, last INTEGER, reason INTEGER, since INTEGER, PRIMARY KEY (generation, first, last)",
        3,
    ),
    "object": ("digest BLOB PRIMARY KEY", 1),
    "fact": ("key TEXT PRIMARY KEY, value INTEGER", 1),
}

log = logging.getLogger(__name__)


class UnusableError(Exception):
    """The file is not a state we wrote."""


class StateStore:
    """The file. One thread at a time."""

    def __init__(self, path: Path, stream: str) -> None:
        self._path = path
        self._stream = stream
        self._db: sqlite3.Connection | None = None
        self._saved: Rows = {table: set() for table in _TABLES}

    def load(self) -> Memory:
        """Return what was kept; a fresh memory where nothing usable was. Raise StorageFault if the old file cannot be removed."""
        try:
            return self._load()
        except (sqlite3.Error, UnusableError, OSError) as error:
            log.warning("upload state replaced; the receiver is asked what it holds", extra={"data": {"file": str(self._path), "why": str(error)}})
        self._replace()
        return Memory()

    def _replace(self) -> None:
        self.close()
        for suffix in ("-wal", "-shm", ""):
            remove_file(self._path.with_name(self._path.name + suffix))
        self._saved = {table: set() for table in _TABLES}

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
            self._db = db
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            for table, (columns, _) in _TABLES.items():
                db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns}) WITHOUT ROWID")
        return self._db

    def _load(self) -> Memory:
        if not self._path.exists():
            return Memory()
        db = self._open()
        if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise UnusableError("the file is damaged")
        rows: Rows = {table: set(db.execute(f"SELECT * FROM {table}")) for table in _TABLES}  # noqa: S608 -- our own names
        facts = {str(row[0]): row[1] for row in rows["fact"]}
        if not facts:
            return Memory()
        digest = facts.pop("digest", None)
        rows["fact"] = {(key, value) for key, value in facts.items()}
        if digest != _digest(rows):
            raise UnusableError("the rows do not match their digest")
        if (facts["version"], facts["stream"]) != (VERSION, self._stream):
            raise UnusableError("written by another release, or for another stream")
        self._saved = rows
        return from_rows(rows)

    def rows(self, memory: Memory) -> Rows:
        """Return what is to be kept: taken on the loop, written by a thread."""
        return to_rows(memory, self._stream)

    def write(self, rows: Rows) -> str:
        """Write what changed, in one transaction. Return what went wrong (a full disk): then nothing is lost but the progress since."""
        if rows == self._saved:
            return ""
        try:
            self._transact(self._open(), rows)
        except sqlite3.Error as error:
            return f"{self._path}: {error}"
        self._saved = rows
        return ""

    def _transact(self, db: sqlite3.Connection, rows: Rows) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            for table, (_, keys) in _TABLES.items():
                self._write(db, table, keys, self._saved[table] - rows[table], rows[table] - self._saved[table])
            db.execute("INSERT OR REPLACE INTO fact VALUES ('digest', ?)", (_digest(rows),))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    @staticmethod
    def _write(db: sqlite3.Connection, table: str, keys: int, gone: set[Row], new: set[Row]) -> None:
        names = [column[1] for column in db.execute(f"PRAGMA table_info({table})")][:keys]
        where = " AND ".join(f"{name} = ?" for name in names)
        db.executemany(f"DELETE FROM {table} WHERE {where}", [row[:keys] for row in gone])  # noqa: S608 -- our own names
        for row in new:
            db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608

    def close(self) -> None:
        """Give the file back."""
        if self._db is not None:
            self._db.close()
            self._db = None


def to_rows(memory: Memory, stream: str) -> Rows:
    """Return the tables that stand for a memory."""
    m = memory
    facts: dict[str, int | str] = {
        "version": VERSION, "stream": stream, "landing": m.landing, "day": m.day.number, "sent": m.day.sent_bytes,
        "resent": m.day.resent_bytes, "receipt": m.receipt_ns, "restored": m.restored_ns, "restored_blocks": m.restored_blocks,
        "forgotten": m.forgotten_ns, "conflicts": m.conflicts, "fresh": int(m.fresh),
    }  # fmt: skip
    return {
        "piece": {(p.generation, p.first, p.last, p.ends.live, p.ends.backfill) for p in m.cursor.pieces()},
        "doubt": set(m.cursor.doubts()),
        "parked": {tuple(p) for p in m.parked.values()},
        "object": {(digest,) for digest in m.objects},
        "fact": set(facts.items()),
    }


def _digest(rows: Rows) -> str:
    content = [(table, sorted(rows[table], key=repr)) for table in _TABLES]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def from_rows(rows: Rows) -> Memory:
    """Return the memory of these tables; raise UnusableError."""
    facts = {str(row[0]): row[1] for row in rows["fact"]}
    m = Memory(fresh=bool(facts["fresh"]))
    try:
        m.landing = int(facts["landing"])
        m.day = Day(int(facts["day"]), int(facts["sent"]), int(facts["resent"]))
        m.receipt_ns, m.restored_ns, m.restored_blocks = int(facts["receipt"]), int(facts["restored"]), int(facts["restored_blocks"])
        m.forgotten_ns, m.conflicts = int(facts.get("forgotten", 0)), int(facts["conflicts"])
        for generation, first, last, live, backfill in sorted(_integers(rows["piece"])):
            m.cursor.receipted(generation, first, last, Ends(live, backfill))
        for generation, first, last in _integers(rows["doubt"]):
            m.cursor.doubtful(generation, first, last)
        for row in _integers(rows["parked"]):
            parked = Parked(*row)
            m.parked[parked[:3]] = parked
        m.objects = {row[0] for row in rows["object"] if isinstance(row[0], bytes)}
    except (KeyError, ValueError, TypeError, StoreError) as error:
        raise UnusableError(str(error)) from error
    return m


def _integers(rows: set[Row]) -> list[tuple[int, ...]]:
    return [tuple(int(x) for x in row) for row in rows]
