"""SQL over a ring, for people (views: buffer.views). DuckDB in a child process without a right to write: `python -m buffer.query`.

One SELECT, WITH or EXPLAIN per call, as DuckDB's own parser sees it. DuckDB with external access off still lets COPY overwrite
what it may read (measured), so the child gives up writing before it imports anything: Landlock with one private
scratch directory, or a user who could not write anyway; neither: it refuses, and nothing overrides that.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from buffer.errors import CorruptError, StorageFault, StoreError
from buffer.landlock import forbid_writes
from buffer.parent import end_with_parent
from buffer.queryfaults import QueryRefused, QueryUnsafe, VanishedError, friendly, meaning, missing
from buffer.storage import PosixStorage
from buffer.views import GAPS, TAGS, VIEWS, create_table, fill_table, gap_rows, readings_view, sql_text, tag_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import duckdb

    from buffer.snapshot import Snapshot

__all__ = ["QueryOptions", "QueryRefused", "QueryUnsafe", "Result", "run_query", "stream_query", "write_query"]

TRIES_MAX: Final = 3  # a segment evicted between listing and reading it
FETCH_ROWS: Final = 4_096
ROWS_MAX: Final = 1_000_000
ROW_CHARS_MAX: Final = 16_000_000  # of one row as JSON: 200 of the longest texts that a ring holds
MEMORY_BYTES_MAX: Final = 2 * 1024**3  # data of the child: DuckDB's 512 MB, its caches, and a batch of rows as Python sees them
RESULT: Final = "result"
FORMS: Final = {  # a dictionary of DuckDB's makes one NaN of all NaNs
    "parquet": "FORMAT parquet, COMPRESSION zstd, DICTIONARY_SIZE_LIMIT 0",
    "csv": "FORMAT csv, HEADER true",
}
COMMAND: Final = (sys.executable, "-P", "-m", "buffer.query")  # -P: nothing is imported from the working directory


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """Bounds of one query."""

    rows_max: int = ROWS_MAX
    memory: str = "512MB"  # DuckDB's; beyond it spills into the scratch directory
    scratch: str = "4GB"
    threads: int = 2
    seconds_max: float = 600.0
    since_ns: int | None = None  # leave out segments sealed before this wall-clock time


@dataclass(frozen=True, slots=True)
class Result:
    """Rows hold None, bool, int, float, str; times as ISO 8601 in UTC with Z; lists and structs as list and dict."""

    columns: tuple[str, ...]
    types: tuple[str, ...]  # DuckDB's names
    rows: list[list[Any]]
    truncated: bool  # there were more than rows_max
    missing: tuple[str, ...] = ()  # readings that the ring should hold and that no file of it gives: stream, generation, first and last


# ---- the caller's side ----


def run_query(ring: Path, sql: str, options: QueryOptions = QueryOptions()) -> Result:  # noqa: B008 -- frozen
    """Return the result of one statement; raise QueryRefused, QueryUnsafe, CorruptError or StorageFault."""
    lines = stream_query(ring, sql, options)
    head = next(lines)
    rows: list[list[Any]] = []
    end: dict[str, Any] = {}
    for line in lines:
        if isinstance(line, list):
            rows.append(line)
        else:
            end |= line
    return Result(tuple(head["columns"]), tuple(head["types"]), rows, bool(end["truncated"]), tuple(end["missing"]))


def stream_query(ring: Path, sql: str, options: QueryOptions = QueryOptions()) -> Iterator[Any]:  # noqa: B008
    """Yield {"columns", "types"}, each row as a list, {"truncated"} and {"missing"}; memory does not grow with the rows. Raises as run_query."""
    with tempfile.TemporaryDirectory(prefix="ebbgate-query-") as scratch:
        yield from _stream(ring, sql, options, Path(scratch), "")


def _stream(ring: Path, sql: str, options: QueryOptions, scratch: Path, form: str) -> Iterator[Any]:
    for text in (sql, str(ring), str(scratch)):
        if any("\ud800" <= c <= "\udfff" for c in text):  # how Python keeps bytes of an argument that are none
            raise QueryRefused(f"not UTF-8: {ascii(text)[:200]}")
    request = json.dumps(
        {"parent": os.getpid(), "ring": str(ring.absolute()), "scratch": str(scratch), "sql": sql, "form": form, "options": asdict(options)}
    )
    child = _start()
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True)
    drain.start()
    watchdog = threading.Timer(options.seconds_max, child.kill)
    watchdog.start()
    try:
        yield from _answers(child, request)
        child.wait()
        if child.returncode != 0:
            late = f"took too long (over {options.seconds_max:g} s): ask for less, as WHERE tag = .. AND ts > .."
            message = f"the query process {late if watchdog.finished.is_set() else f'ended with code {child.returncode}'}"
            raise QueryRefused(f"{message} {''.join(errors)[-500:].strip()}".strip())
    finally:
        watchdog.cancel()
        child.kill()
        child.wait()
        drain.join()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def _start() -> subprocess.Popen[str]:
    """Start the child with the code this process runs, wherever the user happens to stand."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}
    pipe = subprocess.PIPE
    return subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", env=environment)


def _answers(child: subprocess.Popen[str], request: str) -> Iterator[Any]:
    if child.stdin is None or child.stdout is None:
        return
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(request + "\n")
    for line in child.stdout:
        try:
            answer = json.loads(line)
        except ValueError:
            return  # the process was ended within a line; its exit code says so
        if isinstance(answer, dict) and "error" in answer:
            raise _raised(answer["error"], answer["message"], answer["path"])
        yield answer


def _raised(kind: str, message: str, path: str) -> StoreError:
    if kind == "QueryUnsafe":
        return QueryUnsafe(message)
    if kind == "StorageFault":
        return StorageFault(message, path=path)
    if kind == "CorruptError":
        return CorruptError(message)
    return QueryRefused(message)


def write_query(ring: Path, sql: str, output: Path, options: QueryOptions = QueryOptions()) -> tuple[int, tuple[str, ...]]:  # noqa: B008
    """Write the result to `output` (.parquet or .csv by its name), by rename when it is whole; return how many rows, and Result.missing.

    Raises as run_query.

    The child writes beside `output`, in a scratch directory, and nowhere else; memory does not grow with the rows.
    """
    form = output.suffix.lower().removeprefix(".")
    if form not in FORMS:
        message = f"{output.name}: the name must end in .parquet or .csv"
        raise QueryRefused(message)
    parent = output.absolute().parent
    if not parent.is_dir():
        message = f"{output.parent}: no such directory"
        raise QueryRefused(message)
    if parent.resolve().is_relative_to(ring.resolve()):
        message = f"{output.parent} is a part of the ring, which nobody but collect writes: name another directory"
        raise QueryRefused(message)
    end: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix=".ebbgate-export-", dir=parent) as scratch:
            for line in _stream(ring, sql, options, Path(scratch), form):
                end |= line
            PosixStorage(parent).adopt(f"{Path(scratch).name}/{RESULT}", output.name)
    except OSError as error:
        raise StorageFault(f"cannot be written: {error.strerror or error}", path=str(parent)) from None
    return int(end["rows"]), tuple(end["missing"])


# ---- the child: nothing above this line imports more than the standard library ----


def main() -> None:
    """Serve one request: a line of JSON on stdin, lines of JSON on stdout."""
    request = json.loads(sys.stdin.readline())
    end_with_parent(signal.SIGKILL)  # else a query whose terminal was closed would go on for ever, beside collect
    if os.getppid() != request["parent"]:
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    try:
        protect(Path(request["ring"]), request["scratch"])
        for line in _serve(request):
            text = json.dumps(line, ensure_ascii=False)
            if len(text) > ROW_CHARS_MAX:
                raise QueryRefused(f"a row of {len(text):,} characters; a query shows rows of at most {ROW_CHARS_MAX:,}")
            sys.stdout.write(text + "\n")
    except MemoryError:
        _refuse(QueryRefused(f"the result needs more than the {MEMORY_BYTES_MAX >> 30} GiB that a query gets: ask for less"))
    except OSError as error:
        _refuse(StorageFault(error.strerror or str(error), path=request["scratch"]))
    except StoreError as error:
        _refuse(error)


def _refuse(error: StoreError) -> None:
    kind = next((kind for kind in (QueryUnsafe, StorageFault, CorruptError) if isinstance(error, kind)), QueryRefused)
    message, path = str(error), getattr(error, "path", "")
    sys.stdout.write(json.dumps({"error": kind.__name__, "message": message.removeprefix(f"{path}: "), "path": path}) + "\n")


def protect(ring: Path, scratch: str) -> None:
    """Make sure that this process cannot write what it reads; raise QueryUnsafe where that is not so."""
    if len(os.listdir("/proc/self/task")) != 1:
        raise QueryUnsafe("the query process has threads already: they would keep the right to write")
    try:
        forbid_writes([scratch])
    except StorageFault as fault:
        if _may_write(ring):
            message = (
                f"a query must not be able to write what it reads: {fault}, and this user may write in {ring}. "
                "Run it as a user who may only read the ring (group ebbgate-read)."
            )
            raise QueryUnsafe(message) from fault


def _may_write(ring: Path) -> bool:
    """Say whether this user owns, or may write, anything of the ring."""
    for directory, _, names in os.walk(ring):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            if os.access(path, os.W_OK, effective_ids=True) or os.stat(path).st_uid == os.geteuid():
                return True
    return False


def _serve(request: dict[str, Any]) -> Iterator[Any]:
    import duckdb

    from buffer.snapshot import stream_directories, take_snapshot

    options, scratch, form = QueryOptions(**request["options"]), Path(request["scratch"]), request.get("form", "")
    for attempt in range(1, TRIES_MAX + 1):
        snapshots = [take_snapshot(one, scratch, options.since_ns) for one in stream_directories(Path(request["ring"]))]
        begun = False
        try:
            with _connect(snapshots, scratch, options, writes=bool(form)) as connection:
                check_statement(connection, request["sql"])
                connection.execute("BEGIN TRANSACTION READ ONLY").fetchall()  # WITH x AS (DELETE ..) is a SELECT to the parser
                for line in _copy(connection, request["sql"], scratch, form) if form else _rows(connection, request["sql"], options.rows_max):
                    begun = True
                    yield line
            yield {"missing": missing(snapshots)}
            return
        except duckdb.Error as error:
            fault = meaning(error, snapshots, scratch)
            if not isinstance(fault, VanishedError):
                raise fault from None
            if begun or attempt == TRIES_MAX:
                raise StorageFault(str(fault), path=request["ring"]) from None


def check_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Return if `sql` is one statement that only reads; raise QueryRefused."""
    import duckdb

    try:
        statements = connection.extract_statements(sql)
        if [s.type for s in statements] == [duckdb.StatementType.EXPLAIN]:  # EXPLAIN ANALYZE runs what it explains
            inner = re.sub(r"(?is)^\s*explain\s+(analyze\s+)?(\([^)]*\)\s*)?", "", statements[0].query)
            statements = connection.extract_statements(inner)
    except duckdb.Error as error:
        raise QueryRefused(friendly(str(error))) from None
    if len(statements) != 1:
        message = f"one statement per call, here are {len(statements)}"
        raise QueryRefused(message)
    if statements[0].type != duckdb.StatementType.SELECT:
        message = f"{statements[0].type.name} is refused: a query reads (SELECT, WITH, EXPLAIN) and does nothing else"
        raise QueryRefused(message)


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, rows_max: int) -> Iterator[Any]:
    cursor = connection.execute(sql)
    description = cursor.description or []
    count, batch = 0, cursor.fetchmany(FETCH_ROWS)
    yield {"columns": [d[0] for d in description], "types": [str(d[1]) for d in description]}
    while batch:
        for row in batch[: rows_max - count]:
            yield [_plain(value) for value in row]
        count += len(batch)
        if count > rows_max:
            break
        batch = cursor.fetchmany(FETCH_ROWS)
    yield {"truncated": count > rows_max}


def _bare(sql: str) -> str:
    """Return a statement without the semicolons, and the comments, that may stand behind it."""
    import duckdb

    data = sql.encode()
    for at, kind in reversed(duckdb.tokenize(sql)):  # places in bytes
        if data[at : at + 1] == b";":
            data = data[:at]
        elif kind != duckdb.token_type.comment:
            break
    return data.decode()


def _copy(connection: duckdb.DuckDBPyConnection, sql: str, scratch: Path, form: str) -> Iterator[Any]:
    """Write one checked SELECT into the scratch directory. The text was parsed as a statement of its own before."""
    done = connection.execute(f"COPY (\n{_bare(sql)}\n) TO {sql_text(str(scratch / RESULT))} ({FORMS[form]})").fetchone()
    yield {"rows": int(done[0]) if done else 0}


def _plain(value: Any) -> Any:  # noqa: ANN401, PLR0911 -- one line per type DuckDB hands over
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None).isoformat() + ("Z" if value.tzinfo else "")
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value)


# ---- DuckDB ----


def _connect(snapshots: Sequence[Snapshot], scratch: Path, options: QueryOptions, *, writes: bool = False) -> duckdb.DuckDBPyConnection:
    """Return a session with the views over these snapshots; raise duckdb.Error."""
    import duckdb

    connection = duckdb.connect(":memory:")
    _set(connection, "autoinstall_known_extensions", "false")
    _set(connection, "autoload_known_extensions", "false")
    _set(connection, "parquet_metadata_cache", "true")  # a statement that reads the segments twice opens their footers once
    _set(connection, "TimeZone", "'UTC'")
    _set(connection, "threads", str(options.threads))
    _set(connection, "memory_limit", sql_text(options.memory))
    _set(connection, "temp_directory", sql_text(str(scratch)))
    _set(connection, "max_temp_directory_size", sql_text(options.scratch))
    _table(connection, "tags", TAGS, [row for snapshot in snapshots for row in tag_rows(snapshot)])
    _table(connection, "gaps", GAPS, [row for snapshot in snapshots for row in gap_rows(snapshot)])
    connection.execute(readings_view(snapshots)).fetchall()
    for name, sql in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}").fetchall()
    directories = [str(scratch)] if writes else []
    directories += [str(path.parent) for snapshot in snapshots for path in (*snapshot.segments[:1], *snapshot.tail[:1])]
    _set(connection, "allowed_directories", f"[{', '.join(map(sql_text, directories))}]")
    _set(connection, "enable_external_access", "false")
    _set(connection, "lock_configuration", "true")
    return connection


def _set(connection: duckdb.DuckDBPyConnection, name: str, value: str) -> None:
    connection.execute(f"SET {name} = {value}").fetchall()


def _table(connection: duckdb.DuckDBPyConnection, name: str, columns: dict[str, str], rows: list[list[Any]]) -> None:
    connection.execute(create_table(name, columns)).fetchall()
    if rows:
        connection.execute(fill_table(name, columns), [list(cells) for cells in zip(*rows, strict=True)]).fetchall()


if __name__ == "__main__":
    main()
