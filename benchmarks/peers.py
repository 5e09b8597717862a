"""Other stores as durable logs of readings, each with the settings that make a commit survive a power cut.

Every peer gets its readings in the form its interface takes, made outside the clock: rows for SQLite, an Arrow table for DuckDB, keys
and values for LMDB and RocksDB, bytes for COPY, Redis and NATS. A reading is 25 bytes: tag u32, ts i64, kind u8, value 64 bits, quality u32.
Servers are started for the run with a directory of their own and ended by their pid; a peer that is not installed is named, never guessed.
`make bench-peers` installs those that pip has.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import numpy as np

from benchmarks.harness import process_cpu_s
from buffer.types import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from buffer.types import Columns

ROW: Final = np.dtype([("tag", "<u4"), ("ts", "<i8"), ("kind", "u1"), ("value", "<u8"), ("quality", "<u4")])
MESSAGE: Final = 500  # readings a message of Redis and NATS: what a careful user packs
POSTGRES: Final = Path("/usr/lib/postgresql/15/bin")
START_S: Final = 20.0


class Peer(Protocol):
    """One store. `prepare` is outside the clock, `commit` returns when the batch is durable."""

    settings: ClassVar[str]

    def prepare(self, batch: Columns, first_seq: int) -> Any:
        """Return the batch in the form the interface takes."""
        ...

    def commit(self, prepared: Any) -> None:
        """Make it durable."""
        ...

    def server_cpu_s(self) -> float:
        """CPU seconds of processes beside this one."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class _Embedded:
    def server_cpu_s(self) -> float:
        return 0.0


def rows(batch: Columns) -> np.ndarray:
    """Return n rows of 25 bytes."""
    out = np.empty(len(batch), ROW)
    out["tag"], out["ts"], out["kind"], out["value"], out["quality"] = batch.tag, batch.ts_ns, batch.kind, batch.values, batch.quality
    return out


def python_values(batch: Columns) -> list[Any]:
    """Return the values as Python has them: float, int, bool as int, text."""
    doubles, integers = batch.values.view(np.float64).tolist(), batch.values.view(np.int64).tolist()
    kinds = batch.kind.tolist()
    out: list[Any] = []
    for kind, double, integer in zip(kinds, doubles, integers, strict=True):
        out.append(double if kind == Kind.DOUBLE else batch.texts[integer] if kind == Kind.TEXT else integer)
    return out


class Sqlite(_Embedded):
    settings = "journal_mode=WAL, synchronous=FULL, one transaction and executemany per batch, rowid key"

    def __init__(self, directory: Path) -> None:
        self._db = sqlite3.connect(directory / "log.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.execute("CREATE TABLE r (seq INTEGER PRIMARY KEY, tag INTEGER, ts INTEGER, value, quality INTEGER)")

    def prepare(self, batch: Columns, first_seq: int) -> Any:
        seq = range(first_seq, first_seq + len(batch))
        return list(zip(seq, batch.tag.tolist(), batch.ts_ns.tolist(), python_values(batch), batch.quality.tolist(), strict=True))

    def commit(self, prepared: Any) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO r VALUES (?,?,?,?,?)", prepared)
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


class DuckDb(_Embedded):
    settings = "database file, autocommit, INSERT ... SELECT from an Arrow table, 1 thread"

    def __init__(self, directory: Path) -> None:
        import duckdb

        self._db = duckdb.connect(str(directory / "log.duckdb"), config={"threads": 1})
        self._db.execute("CREATE TABLE r (seq BIGINT, tag UINTEGER, ts BIGINT, vd DOUBLE, vi BIGINT, quality UINTEGER)").fetchall()

    def prepare(self, batch: Columns, first_seq: int) -> Any:
        import pyarrow as pa

        double = batch.kind == Kind.DOUBLE
        return pa.table({
            "seq": np.arange(first_seq, first_seq + len(batch)), "tag": batch.tag, "ts": batch.ts_ns,
            "vd": pa.array(batch.values.view(np.float64), mask=~double), "vi": pa.array(batch.values.view(np.int64), mask=double),
            "quality": batch.quality,
        })  # fmt: skip

    def commit(self, prepared: Any) -> None:
        self._db.register("batch", prepared)
        self._db.execute("INSERT INTO r SELECT * FROM batch").fetchall()
        self._db.unregister("batch")

    def close(self) -> None:
        self._db.close()


def _pairs(batch: Columns, first_seq: int) -> list[tuple[bytes, bytes]]:
    raw, size = rows(batch).tobytes(), ROW.itemsize
    return [((first_seq + i).to_bytes(8, "big"), raw[i * size : (i + 1) * size]) for i in range(len(batch))]


class Lmdb(_Embedded):
    settings = "sync=True, metasync=True, one transaction per batch, putmulti append"

    def __init__(self, directory: Path) -> None:
        import lmdb

        self._env = lmdb.open(str(directory / "lmdb"), map_size=2**31, sync=True, metasync=True)

    def prepare(self, batch: Columns, first_seq: int) -> Any:
        return _pairs(batch, first_seq)

    def commit(self, prepared: Any) -> None:
        with self._env.begin(write=True) as txn:
            txn.cursor().putmulti(prepared, append=True)

    def close(self) -> None:
        self._env.close()


class RocksDb(_Embedded):
    settings = "one WriteBatch per batch, WriteOptions.sync = True"

    def __init__(self, directory: Path) -> None:
        import rocksdict

        self._db = rocksdict.Rdict(str(directory / "rocks"), rocksdict.Options(raw_mode=True))
        self._batch = rocksdict.WriteBatch
        self._options = rocksdict.WriteOptions()
        self._options.sync = True

    def prepare(self, batch: Columns, first_seq: int) -> Any:
        return _pairs(batch, first_seq)

    def commit(self, prepared: Any) -> None:
        batch = self._batch(raw_mode=True)
        for key, value in prepared:
            batch.put(key, value)
        self._db.write(batch, self._options)

    def close(self) -> None:
        self._db.close()


# ---- servers ----


def free_port() -> int:
    """Return a port nobody listens at now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when somebody listens; raise RuntimeError where the server ended instead."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    message = f"{process.args!r} did not begin to listen"
    raise RuntimeError(message)


class _Server:
    def __init__(self, command: list[str], port: int, user: str | None = None) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user)
        self.port = port
        wait_for_port(port, self._process)

    def server_cpu_s(self) -> float:
        return process_cpu_s(self._process.pid)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Postgres(_Server):
    settings = "PostgreSQL 15, fsync=on, synchronous_commit=on, shared_buffers=256MB, max_wal_size=4GB, COPY and one commit per batch"

    def __init__(self, directory: Path) -> None:
        import psycopg

        data = directory / "pg"
        user = "postgres" if os.geteuid() == 0 else None
        if user:
            for one in (directory, *directory.parents):
                if one.stat().st_uid == os.geteuid() and not one.stat().st_mode & 1:
                    message = f"{one} is closed to the user postgres"
                    raise RuntimeError(message)
            data.mkdir()
            shutil.chown(data, user)
        subprocess.run([POSTGRES / "initdb", "-D", data, "-U", "bench", "-A", "trust"], check=True, stdout=subprocess.DEVNULL, user=user)
        port = free_port()
        options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "256MB", "max_wal_size": "4GB"}
        super().__init__([str(POSTGRES / "postgres"), "-D", str(data), *(f"--{k}={v}" for k, v in options.items())], port, user)
        until = time.monotonic() + START_S
        while True:
            try:
                self._db = psycopg.connect(host="127.0.0.1", port=port, user="bench", dbname="postgres", autocommit=True)
                break
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        self._db.execute("CREATE TABLE r (seq bigint, tag int, ts bigint, vd float8, vi bigint, vs text, quality bigint)")

    def prepare(self, batch: Columns, first_seq: int) -> Any:
        out = []
        values = python_values(batch)
        for i, (tag, ts, quality) in enumerate(zip(batch.tag.tolist(), batch.ts_ns.tolist(), batch.quality.tolist(), strict=True)):
            value = values[i]
            cells = (value, r"\N", r"\N") if isinstance(value, float) else (r"\N", r"\N", value) if isinstance(value, str) else (r"\N", value, r"\N")
            out.append(f"{first_seq + i}\t{tag}\t{ts}\t{cells[0]}\t{cells[1]}\t{cells[2]}\t{quality}\n")
        return "".join(out).encode()

    def commit(self, prepared: Any) -> None:
        with self._db.cursor().copy("COPY r FROM STDIN") as copy:
            copy.write(prepared)

    def close(self) -> None:
        self._db.close()
        self._process.send_signal(2)  # fast shutdown
        self._process.wait(20)


class Redis(_Server):
    settings = f"Redis Streams, appendonly yes, appendfsync always, XADD of {MESSAGE} packed readings, pipelined per batch"

    def __init__(self, directory: Path) -> None:
        port = free_port()
        options = ["--bind", "127.0.0.1", "--dir", str(directory), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        super().__init__(["redis-server", "--port", str(port), *options], port)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def prepare(self, batch: Columns, first_seq: int) -> Any:  # noqa: ARG002 -- the stream numbers its entries itself
        raw = rows(batch).tobytes()
        size = ROW.itemsize * MESSAGE
        parts = [raw[at : at + size] for at in range(0, len(raw), size)]
        return b"".join(_resp(b"XADD", b"s", b"*", b"d", part) for part in parts), len(parts)

    def commit(self, prepared: Any) -> None:
        data, answers = prepared
        self._socket.sendall(data)
        for _ in range(answers):
            head = self._answers.readline()
            if not head.startswith(b"$"):
                raise RuntimeError(head.decode())
            self._answers.read(int(head[1:]) + 2)

    def close(self) -> None:
        self._socket.close()
        self.end()


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Nats(_Server):
    settings = f"NATS JetStream, file store, 1 replica, sync_interval always, messages of {MESSAGE} packed readings, all of a batch in flight"

    def __init__(self, directory: Path) -> None:
        port = free_port()
        config = directory / "nats.conf"
        config.write_text(f'listen: 127.0.0.1:{port}\njetstream {{ store_dir: "{directory}", sync_interval: always }}\n')
        super().__init__([nats_server(), "-c", str(config)], port)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        self._answers.readline()  # INFO
        stream = b'{"name":"s","subjects":["r"],"storage":"file","num_replicas":1}'
        self._socket.sendall(b'CONNECT {"verbose":false}\r\nSUB inbox 1\r\n' + _publish(b"$JS.API.STREAM.CREATE.s", stream))
        self._acknowledged()

    def _acknowledged(self) -> None:
        while True:
            head = self._answers.readline()
            if head.startswith(b"MSG"):
                body = self._answers.read(int(head.split()[-1]) + 2)
                if b'"error"' in body:
                    raise RuntimeError(body.decode())
                return
            if head.startswith(b"PING"):
                self._socket.sendall(b"PONG\r\n")
            elif not head or head.startswith(b"-ERR"):
                raise RuntimeError(head.decode())

    def prepare(self, batch: Columns, first_seq: int) -> Any:  # noqa: ARG002
        raw = rows(batch).tobytes()
        size = ROW.itemsize * MESSAGE
        parts = [raw[at : at + size] for at in range(0, len(raw), size)]
        return b"".join(_publish(b"r", part) for part in parts), len(parts)

    def commit(self, prepared: Any) -> None:
        data, answers = prepared
        self._socket.sendall(data)
        for _ in range(answers):
            self._acknowledged()

    def close(self) -> None:
        self._socket.close()
        self.end()


def _publish(subject: bytes, payload: bytes) -> bytes:
    return b"PUB %s inbox %d\r\n%s\r\n" % (subject, len(payload), payload)


def nats_server() -> str:
    """Return the path of the server, "" where there is none: on the PATH, or in the wheel that `make bench-peers` installs."""
    found = shutil.which("nats-server")
    if found:
        return found
    for site in map(Path, sys.path):
        for candidate in sorted(site.glob("*nats*/**/nats-server")) if site.name == "site-packages" else ():
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return str(candidate)
    return ""


EMBEDDED: Final[dict[str, Callable[[Path], Peer]]] = {"SQLite": Sqlite, "DuckDB": DuckDb, "LMDB": Lmdb, "RocksDB": RocksDb}
SERVERS: Final[dict[str, Callable[[Path], Peer]]] = {"PostgreSQL COPY": Postgres, "Redis AOF": Redis, "NATS JetStream": Nats}


def missing(name: str) -> str:
    """Return why a peer cannot run here, "" if it can."""
    modules = {"DuckDB": "duckdb", "LMDB": "lmdb", "RocksDB": "rocksdict", "PostgreSQL COPY": "psycopg"}
    if name in modules and importlib.util.find_spec(modules[name]) is None:
        return f"python package {modules[name]} is not installed (make bench-peers)"
    if name == "PostgreSQL COPY" and not (POSTGRES / "postgres").exists():
        return "PostgreSQL 15 is not installed (Debian package postgresql-15)"
    if name == "Redis AOF" and not shutil.which("redis-server"):
        return "redis-server is not installed (Debian package redis-server)"
    if name == "NATS JetStream" and not nats_server():
        return "nats-server is not installed (make bench-peers)"
    return ""
