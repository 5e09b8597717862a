"""PostgreSQL and TimescaleDB: rows, cursor and the ranges held, in one transaction.

Once: each reading stands once in ebbgate.readings; key (stream, generation, seq), with ts behind it on TimescaleDB, which
wants the time in every unique key. COPY goes straight into the table, since `new` minus what the target holds has no overlap. A
unique violation means somebody else wrote there: that piece of work goes again through a temporary table, equal rows are left
alone, and rows that differ are counted in ebbgate.conflicts.

Rows a target cannot or should not take (later than `future`, a year beyond 9999, a NUL or half a surrogate pair in a text) go to
ebbgate.quarantine, in the same transaction, as JSON with the offending characters escaped; they count as held. docs/sinks.md has the SQL that
lists, exports and retries them. Names and descriptions of tags are written with such characters replaced.

`tags` chooses by path; notices (paths under _ebbgate/) always come, since they explain the holes of what was chosen.
"""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg import errors as pg_errors
from psycopg import sql

from buffer.notice import PATH_PREFIX
from gateway.deliver.cursor import Cursor, decode_cursor, encode_cursor
from gateway.deliver.patterns import Patterns
from gateway.deliver.sink import Row, SinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.deliver.sink import Work
    from gateway.settings import SinkSettings

CONNECT_SECONDS: Final = 10
STATEMENT_MS_MAX: Final = 300_000  # a COPY of a million rows takes seconds; after this somebody holds a lock
LOCK_MS_MAX: Final = 30_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS: Final = (
    "stream, generation, seq, tag, path, ts, ts_ns, ts_source, value_double, value_int, value_bool, value_string, quality, flags"
)
_TYPES: Final = [
    "text", "int8", "int8", "text", "text", "timestamptz", "int2", "timestamptz", "float8", "int8", "bool", "text", "int8", "int4",
]  # fmt: skip

log = logging.getLogger(__name__)

_SCHEMA: Final[tuple[LiteralString, ...]] = (
    "CREATE SCHEMA IF NOT EXISTS ebbgate",
    """CREATE TABLE IF NOT EXISTS ebbgate.readings (
        stream text NOT NULL, generation bigint NOT NULL, seq bigint NOT NULL, tag text NOT NULL, path text NOT NULL,
        ts timestamptz NOT NULL, ts_ns smallint NOT NULL, ts_source timestamptz,
        value_double double precision, value_int bigint, value_bool boolean, value_string text,
        quality bigint NOT NULL, flags integer NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS readings_tag_ts ON ebbgate.readings (tag, ts)",
    "CREATE TABLE IF NOT EXISTS ebbgate.cursors (sink text, stream text, cursor jsonb NOT NULL, PRIMARY KEY (sink, stream))",
    """CREATE TABLE IF NOT EXISTS ebbgate.quarantine (
        sink text NOT NULL, stream text NOT NULL, generation bigint NOT NULL, seq bigint NOT NULL, reason text NOT NULL,
        row jsonb NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (sink, stream, generation, seq))""",
    """CREATE TABLE IF NOT EXISTS ebbgate.conflicts (
        sink text NOT NULL, stream text NOT NULL, generation bigint NOT NULL, seq bigint NOT NULL, row jsonb NOT NULL,
        at timestamptz NOT NULL DEFAULT now())""",
    """CREATE TABLE IF NOT EXISTS ebbgate.tags (
        stream text NOT NULL, tag text NOT NULL, since timestamptz NOT NULL DEFAULT now(), path text NOT NULL, source text NOT NULL,
        type text NOT NULL, unit text NOT NULL, low double precision, high double precision, states jsonb NOT NULL,
        description text NOT NULL, is_unsigned boolean NOT NULL, site text NOT NULL, PRIMARY KEY (stream, tag, since))""",
)
_NAMES: Final = tuple(f"ebbgate.{name}" for name in ("readings", "readings_identity", "cursors", "quarantine", "conflicts", "tags"))
_VIEWS: Final[tuple[LiteralString, ...]] = (
    """CREATE OR REPLACE VIEW ebbgate.readings_good AS
        SELECT * FROM ebbgate.readings WHERE quality < 1073741824 AND tag NOT LIKE '\\_ebbgate.%'""",
    """CREATE OR REPLACE VIEW ebbgate.last AS
        SELECT DISTINCT ON (stream, tag) * FROM ebbgate.readings WHERE ts <= now() + interval '1 hour'
        ORDER BY stream, tag, ts DESC, generation DESC, seq DESC""",
    """CREATE OR REPLACE VIEW ebbgate.gaps AS
        SELECT * FROM (SELECT stream, tag, path, ts AS since, quality,
            lead(ts) OVER (PARTITION BY stream, tag ORDER BY ts, generation, seq) AS until, flags
            FROM ebbgate.readings) AS each WHERE flags & 32 <> 0""",
    """CREATE OR REPLACE VIEW ebbgate.tags_asof AS
        SELECT *, lead(since) OVER (PARTITION BY stream, tag ORDER BY since) AS until FROM ebbgate.tags""",
    """CREATE OR REPLACE VIEW ebbgate.notices AS
        SELECT stream, generation, seq, substr(tag, 10) AS kind, ts, value_string AS detail FROM ebbgate.readings
        WHERE tag LIKE '\\_ebbgate.%'""",
)


class PostgresSink:
    """Implements gateway.deliver.sink.Sink. One connection, made again after every error."""

    def __init__(self, settings: SinkSettings, wall_ns: Callable[[], int]) -> None:
        self.name = settings.name
        self._settings = settings
        self._wall_ns = wall_ns
        self._wanted = Patterns(settings.tags)
        self._connection: psycopg.Connection[Any] | None = None
        self._tables_written: set[tuple[str, int]] = set()

    # ---- Sink ----

    def cursor(self, stream: str) -> Cursor:
        """Return the cursor that stands in the target."""
        with self._errors(), self._connected() as connection, connection.transaction():
            return self._read_cursor(connection, stream, lock=False)

    def limit(self, cursor: Cursor, lane: str) -> int | None:  # noqa: ARG002 -- rows and cursor share a transaction
        """Return None: nothing is ever half written here."""
        return None

    def write(self, work: Work) -> Cursor:
        """Write rows, ranges and cursor in one transaction."""
        with self._errors(), self._connected() as connection:
            try:
                return self._write(connection, work, through_temporary=False)
            except pg_errors.UniqueViolation:
                log.warning("unique violation, comparing", extra={"data": {"sink": self.name, "stream": work.stream}})
                return self._write(connection, work, through_temporary=True)

    # ---- inside ----

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            self._drop()
            text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SinkError(f"sink {self.name}: {text}", "Check the database and the DSN file; this sink goes on by itself.") from error
        except OSError as error:
            self._drop()
            raise SinkError(f"sink {self.name}: {error}", "Check that the DSN file exists and is readable by deliver.") from error

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection = None
        self._tables_written.clear()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        if self._connection is None or self._connection.closed:
            dsn = self._settings.dsn_file.read_text(encoding="utf-8").strip()
            options = f"-c statement_timeout={STATEMENT_MS_MAX} -c lock_timeout={LOCK_MS_MAX} -c timezone=UTC"
            connection = psycopg.connect(dsn, connect_timeout=CONNECT_SECONDS, autocommit=True, options=options, application_name="ebbgate")
            self._prepare(connection)
            self._connection = connection
        yield self._connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('ebbgate'))")
            if not self._exists(connection):
                self._create(connection)
        if self._settings.views:
            self._create_views(connection)

    def _exists(self, connection: psycopg.Connection[Any]) -> bool:
        """Say whether everything stands already: made by us, or by an owner who lets us only read and insert."""
        found = connection.execute("SELECT count(*) FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL", (list(_NAMES),)).fetchone()
        return found is not None and found[0] == len(_NAMES)

    def _create(self, connection: psycopg.Connection[Any]) -> None:
        for statement in _SCHEMA:
            connection.execute(statement)
        by_time = connection.execute(
            """SELECT 1 FROM pg_extension WHERE extname = 'timescaledb' UNION ALL
               SELECT 1 FROM pg_partitioned_table WHERE partrelid = 'ebbgate.readings'::regclass"""
        ).fetchone()
        key = "stream, generation, seq, ts" if by_time else "stream, generation, seq"
        connection.execute(sql.SQL("CREATE UNIQUE INDEX IF NOT EXISTS readings_identity ON ebbgate.readings ({})").format(sql.SQL(key)))

    def _create_views(self, connection: psycopg.Connection[Any]) -> None:
        try:
            with connection.transaction():
                for statement in _VIEWS:
                    connection.execute(statement)
        except pg_errors.InsufficientPrivilege as error:  # the schema belongs to somebody else: rows go in all the same
            log.warning("views are not ours to make", extra={"data": {"sink": self.name, "error": str(error).strip()}})

    def _read_cursor(self, connection: psycopg.Connection[Any], stream: str, *, lock: bool) -> Cursor:
        if lock:  # also where no row exists yet: two delivers on one target take turns
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s), hashtext(%s))", (f"ebbgate {self.name}", stream))
        row = connection.execute("SELECT cursor FROM ebbgate.cursors WHERE sink = %s AND stream = %s", (self.name, stream)).fetchone()
        return decode_cursor(row[0]) if row else Cursor()

    def _write(self, connection: psycopg.Connection[Any], work: Work, *, through_temporary: bool) -> Cursor:
        with connection.transaction():
            cursor = self._read_cursor(connection, work.stream, lock=True)
            cursor.follow(work.landing, work.since)
            if not work.wanted(cursor):
                return cursor
            bad: list[tuple[Row, str]] = []
            rows = self._rows(cursor, work, bad)
            if through_temporary:
                self._merge(connection, work, rows)
            else:
                self._copy(connection, sql.SQL("ebbgate.readings"), work, rows)
            self._quarantine(connection, work, bad)
            described = self._describe(connection, work)
            work.done(cursor)
            connection.execute(
                "INSERT INTO ebbgate.cursors VALUES (%s, %s, %s) ON CONFLICT (sink, stream) DO UPDATE SET cursor = excluded.cursor",
                (self.name, work.stream, json.dumps(encode_cursor(cursor))),
            )
        self._tables_written |= described
        return cursor

    def _rows(self, cursor: Cursor, work: Work, bad: list[tuple[Row, str]]) -> Iterator[Row]:
        latest_us = self._wall_ns() // 1000 + self._settings.future_ns // 1000
        for part in work.parts:
            ranges = cursor.fresh(part.generation, part.new)
            if not ranges:
                continue
            for row in part.load(ranges):
                reason = _unfit(row, latest_us)
                if reason:
                    bad.append((row, reason))
                elif row.path.startswith(PATH_PREFIX) or self._wanted(row.path):
                    yield row
            cursor.take(part.generation, ranges)

    def _copy(self, connection: psycopg.Connection[Any], table: sql.Composable, work: Work, rows: Iterable[Row]) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, sql.SQL(_COLUMNS))
        with connection.cursor().copy(statement) as copy:
            copy.set_types(_TYPES)
            for row in rows:
                copy.write_row(_binary(work.stream, row))

    def _merge(self, connection: psycopg.Connection[Any], work: Work, rows: Iterable[Row]) -> None:
        connection.execute("CREATE TEMPORARY TABLE incoming (LIKE ebbgate.readings) ON COMMIT DROP")
        self._copy(connection, sql.SQL("incoming"), work, rows)
        connection.execute(
            """INSERT INTO ebbgate.conflicts (sink, stream, generation, seq, row)
               SELECT %s, i.stream, i.generation, i.seq, to_jsonb(i) FROM incoming i JOIN ebbgate.readings r
               USING (stream, generation, seq) WHERE to_jsonb(i) <> to_jsonb(r)""",
            (self.name,),
        )
        connection.execute(
            """INSERT INTO ebbgate.readings SELECT i.* FROM incoming i WHERE NOT EXISTS
               (SELECT 1 FROM ebbgate.readings r WHERE (r.stream, r.generation, r.seq) = (i.stream, i.generation, i.seq))"""
        )

    def _quarantine(self, connection: psycopg.Connection[Any], work: Work, bad: list[tuple[Row, str]]) -> None:
        for row, reason in bad:
            connection.execute(
                "INSERT INTO ebbgate.quarantine (sink, stream, generation, seq, reason, row) VALUES (%s, %s, %s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (self.name, work.stream, row.generation, row.seq, reason, json.dumps(_storable(row))),
            )

    def _describe(self, connection: psycopg.Connection[Any], work: Work) -> set[tuple[str, int]]:
        """Write the tag tables that are new to this target; a row is added only where a tag's description changed. Return which."""
        written = set()
        for table in {id(part.table): part.table for part in work.parts}.values():
            key = (work.stream, hash(table.tags))
            if key in self._tables_written:
                continue
            values = [
                (work.stream, t.id, _plain(t.path), _plain(t.source), _plain(t.type), _plain(t.unit), t.low, t.high,
                 json.dumps({number: _plain(text) for number, text in t.states}), _plain(t.description), t.unsigned, work.site)
                for t in table.tags
            ]  # fmt: skip
            with connection.cursor() as cursor:
                cursor.executemany(
                    """INSERT INTO ebbgate.tags (stream, tag, path, source, type, unit, low, high, states, description, is_unsigned, site)
                       SELECT v.* FROM (VALUES (%s::text, %s::text, %s::text, %s::text, %s::text, %s::text, %s::float8, %s::float8,
                       %s::jsonb, %s::text, %s::boolean, %s::text)) AS v WHERE NOT EXISTS (SELECT 1 FROM (SELECT DISTINCT ON (stream, tag)
                       stream, tag, path, source, type, unit, low, high, states, description, is_unsigned, site FROM ebbgate.tags
                       WHERE stream = v.column1 AND tag = v.column2 ORDER BY stream, tag, since DESC) AS newest
                       WHERE (newest.*)::text = (v.*)::text)""",
                    values,
                )
            written.add(key)
        return written


def _unfit(row: Row, latest_us: int) -> str:
    if row.ts_us > latest_us:
        return "later than the allowed future"
    if not _in_calendar(row.ts_us) or (row.ts_source_us is not None and not _in_calendar(row.ts_source_us)):
        return "outside the years 1 to 9999"
    if any(_plain(text) != text for text in (row.tag, row.path, row.value_string or "")):
        return "text holds a NUL or half a surrogate pair, which PostgreSQL cannot store"
    return ""


def _plain(text: str) -> str:
    """Return text that PostgreSQL can store: NUL and surrogates become U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def _in_calendar(us: int) -> bool:
    return -62_135_596_800_000_000 <= us < 253_402_300_800_000_000  # years 1 to 9999


def _storable(row: Row) -> dict[str, Any]:
    """Return the row as jsonb can hold it: a float as its repr (NaN), a text with what cannot be stored as Python escapes it."""
    body = row._asdict()
    return {k: repr(v) if isinstance(v, float) or (isinstance(v, str) and _plain(v) != v) else v for k, v in body.items()}


def _binary(stream: str, row: Row) -> tuple[Any, ...]:
    ts = _EPOCH + timedelta(microseconds=row.ts_us)
    source = None if row.ts_source_us is None else _EPOCH + timedelta(microseconds=row.ts_source_us)
    return (stream, row.generation, row.seq, row.tag, row.path, ts, row.ts_ns, source, *row[7:])
