"""The sealing child: a journal in, checked Parquet files out. `python -m buffer.sealing`, one request on stdin, one result on stdout.

The only importer of pyarrow in `buffer`, so that collect never carries it. It checks CRC, digest, chain and signature of every block
before; reads the file back past the page cache and compares every row with the journal after; and leaves a temporary file: it
publishes nothing and signs nothing.

Specification of the file: Parquet, rows sorted by (tag, seq), row groups of 524,288, zstd 3, pages of 4 MiB, the columns of buffer.rows:
ts and ts_source as timestamp[us, UTC]; tag, path, value_string and generation dictionary-encoded; an encoding per column is chosen by trying.
Key-value metadata: ebbgate.stream, ebbgate.generation, ebbgate.blocks, ebbgate.seqs, ebbgate.tag_table.
"""

from __future__ import annotations

import hashlib
import itertools
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from buffer import layout, limits
from buffer.codec import decode
from buffer.cose import EDDSA
from buffer.errors import CorruptError, MisuseError, SignatureError, StorageFault, StoreError
from buffer.frame import parse_frame
from buffer.journal import PAGE, Found, parse_journal_header, scan
from buffer.manifest import chain_next, chain_start, format_generation
from buffer.rows import RowColumns, describe, make_rows
from buffer.seal import SealedPart, SealRequest, SealResult, request_from, to_line
from buffer.storage import PosixStorage
from buffer.tagtable import TagTable, decode_table
from buffer.types import Columns, Kind, concat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from buffer.frame import Frame

MEMORY_BYTES_MAX: Final = 3 * 1024**3  # address space; a million readings peak near 0.5 GB resident
NS_PER_US: Final = 1000
# zstandard forgets at the end of a page: tags that share their stamps must stand in one. With pages of 1, 2 and 4 MiB the synthetic plant takes
# 1.98, 1.67 and 1.54 bytes per reading; one tag and one hour cost 57, 70 and 78 ms of CPU. The ring lasts a quarter longer, so 4.
# A row group is the unit that a query leaves out: as many rows as fill one such page. Twice as many take 1.54 instead of 1.61 bytes a reading, and
# 44 instead of 25 ms of CPU for one tag and one hour in five files, 20 instead of 10 for all of one tag.
PAGE_BYTES: Final = 4 * 1024 * 1024
GROUP_ROWS: Final = PAGE_BYTES // 8
DICTIONARY_MAY_COST: Final = 0.05  # of a column: in such groups plain doubles are 4 % smaller than a dictionary and take twice the CPU to read
_COMPRESSION: Final[dict[str, Any]] = {
    "compression": "zstd", "compression_level": 3, "data_page_size": PAGE_BYTES, "max_rows_per_page": limits.SEGMENT_READINGS_MAX,
    "row_group_size": GROUP_ROWS,
}  # fmt: skip
_ENCODINGS: Final[dict[str, tuple[str, ...]]] = {  # tried beside dictionary; the smallest wins
    "ts": ("DELTA_BINARY_PACKED", "PLAIN", "BYTE_STREAM_SPLIT"),
    "ts_source": ("DELTA_BINARY_PACKED",),
    "value_double": ("PLAIN", "BYTE_STREAM_SPLIT"),
    "value_int": ("DELTA_BINARY_PACKED", "PLAIN"),
    "value_string": ("PLAIN",),
    "seq": ("DELTA_BINARY_PACKED",),
}


class PublicKeys:
    """Verifies with keys handed over as SubjectPublicKeyInfo (Ed25519)."""

    def __init__(self, spkis: Sequence[bytes]) -> None:
        self._keys: dict[bytes, Ed25519PublicKey] = {}
        for spki in spkis:
            key = load_der_public_key(spki)
            if isinstance(key, Ed25519PublicKey):
                self._keys[hashlib.sha256(spki).digest()[:8]] = key

    def verify(self, key_id: bytes, algorithm: int, to_be_signed: bytes, signature: bytes) -> None:
        """Return, or raise SignatureError."""
        key = self._keys.get(key_id)
        if key is None or algorithm != EDDSA:
            message = f"key {key_id.hex()} is not known"
            raise SignatureError(message)
        try:
            key.verify(signature, to_be_signed)
        except InvalidSignature:
            message = f"signature by key {key_id.hex()} does not fit"
            raise SignatureError(message) from None


# ---- rows -> Parquet ----


def arrow_table(rows: RowColumns, generation: int) -> pa.Table:
    """Return the rows as a table with the columns of a segment."""
    dictionary = pa.DictionaryArray.from_arrays
    index = pa.array(rows.tag_index, pa.int32())
    stamp = pa.timestamp("us", "UTC")
    text_index = pa.array(rows.text_index, pa.int32(), mask=rows.text_index < 0)
    constant = pa.array(np.zeros(len(rows.seq), np.int32), pa.int32())
    return pa.table(
        {
            "tag": dictionary(index, pa.array(rows.tags, pa.string())),
            "path": dictionary(index, pa.array(rows.paths, pa.string())),
            "ts": pa.array(rows.ts_us, stamp),
            "ts_ns": pa.array(rows.ts_ns, pa.int16()),
            "ts_source": pa.array(rows.ts_source_us, stamp, mask=~rows.has_source),
            "value_double": pa.array(rows.values.view(np.float64), pa.float64(), mask=~rows.has_double),
            "value_int": pa.array(rows.values.view(np.int64), pa.int64(), mask=~rows.has_int),
            "value_bool": pa.array(rows.values != 0, pa.bool_(), mask=~rows.has_bool),
            "value_string": dictionary(text_index, pa.array(rows.texts, pa.string())),
            "quality": pa.array(rows.quality, pa.int64()),
            "flags": pa.array(rows.flags, pa.int32()),
            "seq": pa.array(rows.seq, pa.int64()),
            "generation": dictionary(constant, pa.array([generation], pa.int64())),
        }
    )


def parquet_bytes(table: pa.Table, metadata: dict[str, str], tries: Mapping[str, Sequence[str]] = _ENCODINGS) -> bytes:
    """Return the file, each column of `tries` in the encoding that makes it smallest (others: dictionary)."""
    chosen = {name: _best_encoding(table, name, encodings) for name, encodings in tries.items()}
    plain = {name: encoding for name, encoding in chosen.items() if encoding}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        use_dictionary=[name for name in table.column_names if name not in plain and name != "value_bool"],
        column_encoding=plain or None,
        write_statistics=True,
        write_page_index=True,
        store_schema=True,
        **_COMPRESSION,
    )
    return bytes(sink.getvalue())


def _best_encoding(table: pa.Table, name: str, tries: Sequence[str]) -> str:
    """Return the encoding that makes this column smallest, "" for dictionary, which may be DICTIONARY_MAY_COST larger: it reads faster."""
    column = table.select([name])
    sizes = {encoding: _size(column, name, encoding) * (1.0 if encoding else 1 - DICTIONARY_MAY_COST) for encoding in ("", *tries)}
    return min(sizes, key=lambda encoding: sizes[encoding])


def _size(column: pa.Table, name: str, encoding: str) -> int:
    sink = pa.BufferOutputStream()
    chosen = {name: encoding} if encoding else None
    pq.write_table(column, sink, use_dictionary=not encoding, column_encoding=chosen, **_COMPRESSION)
    return int(sink.getvalue().size)


# ---- the child ----


def read_blocks(storage: PosixStorage, request: SealRequest, verify: PublicKeys) -> list[Frame]:
    """Return the blocks asked for, each checked; raise CorruptError where one is missing or does not fit the chain."""
    frames: dict[int, Frame] = {}
    for path in request.journals:
        size = storage.size(path) or 0
        read = _past_cache(storage, path)
        header = parse_journal_header(read(0, PAGE) or b"")
        for found in scan(read, header.salt, size):
            if isinstance(found, Found) and request.first_block <= found.frame.manifest.first_block <= request.last_block:
                _take(frames, found.frame.verified(verify), request)
    if sorted(frames) != list(range(request.first_block, request.last_block + 1)):
        message = f"blocks {request.first_block}..{request.last_block} are not all there"
        raise CorruptError(message, source=request.journals[0])
    blocks = [frames[number] for number in sorted(frames)]
    start = chain_start(request.stream, request.generation)
    if request.first_block == 0 and blocks[0].manifest.chain_before != start:
        raise CorruptError("block 0 does not begin the chain of its generation", source=request.journals[0])
    for before, after in itertools.pairwise(blocks):
        a, b = before.manifest, after.manifest
        linked = chain_next(a.chain_before, before.cose) == b.chain_before and a.end_seq == b.first_seq
        if not linked or a.tag_table_sha256 != b.tag_table_sha256:
            message = f"block {b.first_block} does not continue block {a.first_block}"
            raise CorruptError(message, source=request.journals[0])
    return blocks


def _take(frames: dict[int, Frame], frame: Frame, request: SealRequest) -> None:
    """Two copies of one block (its sync failed once) are one block; anything else under one number is not."""
    m = frame.manifest
    known = frames.setdefault(m.first_block, frame)
    if (m.stream, m.generation) != (request.stream, request.generation) or known.cose != frame.cose:
        message = f"block {m.first_block} is of another stream or generation, or there are two of it"
        raise CorruptError(message, source=request.journals[0])


def _past_cache(storage: PosixStorage, path: str) -> Callable[[int, int], bytes | None]:
    size = storage.size(path) or 0
    data = storage.read_direct(path, 0, size) or b""
    return lambda offset, length: data[offset : offset + length]


def seal(request: SealRequest) -> SealResult:
    """Return what was made (no parts where the blocks hold no readings); every failure is a result with `error`."""
    storage = PosixStorage(Path(request.root))
    try:
        frames = read_blocks(storage, request, PublicKeys([bytes.fromhex(key) for key in request.public_keys]))
        if not any(frame.manifest.count for frame in frames):
            return SealResult(())
        return SealResult(tuple(_parts(storage, request, frames)))
    except (StoreError, ValueError, pa.ArrowException, MemoryError) as error:
        return SealResult((), f"{type(error).__name__}: {error}", isinstance(error, StorageFault | MemoryError))


def _parts(storage: PosixStorage, request: SealRequest, frames: list[Frame]) -> list[SealedPart]:
    part = _part(storage, request, frames)
    if part is not None:
        return [part]
    if sum(frame.manifest.count > 0 for frame in frames) == 1:
        raise CorruptError("one block makes a file beyond limits.SEGMENT_PAYLOAD_BYTES_MAX", source=request.journals[0])
    half = _half(frames)
    return _parts(storage, request, frames[:half]) + _parts(storage, request, frames[half:])


def _half(frames: list[Frame]) -> int:
    """Return where to cut in two by readings, so that both parts hold some."""
    total, so_far = sum(frame.manifest.count for frame in frames), 0
    for i, frame in enumerate(frames):
        so_far += frame.manifest.count
        if so_far * 2 >= total and so_far < total:
            return i + 1
        if so_far == total:
            return i
    raise MisuseError("no readings to cut in two")


def _part(storage: PosixStorage, request: SealRequest, frames: list[Frame]) -> SealedPart | None:
    """Write and check one file; None if it would be larger than a segment may be."""
    first, last = frames[0].manifest, frames[-1].manifest
    count = last.end_seq - first.first_seq
    if count > limits.SEGMENT_READINGS_MAX:
        return None
    columns = concat([decode(frame.payload, frame.manifest.count) for frame in frames if frame.manifest.count])
    table = _tag_table(storage, first.tag_table_sha256)
    seq = np.arange(first.first_seq, last.end_seq, dtype=np.int64)
    data = parquet_bytes(arrow_table(make_rows(columns, seq, table, by_tag=True), first.generation), _metadata(request, frames))
    if len(data) > limits.SEGMENT_PAYLOAD_BYTES_MAX:
        return None
    name = f"{request.output}/{format_generation(first.generation)}-{first.first_seq}.tmp"
    storage.publish(name, [data])
    digest = hashlib.sha256(data).digest()
    data = storage.read_direct(name, 0, len(data)) or b""
    if hashlib.sha256(data).digest() != digest:
        raise CorruptError("what the device holds is not what was written", source=name)
    compare(data, columns, first.first_seq, first.generation, table)
    return SealedPart(
        path=name,
        sha256=digest.hex(),
        length=len(data),
        first_block=first.first_block,
        last_block=last.last_block,
        first_seq=first.first_seq,
        count=count,
        tag_table=first.tag_table_sha256.hex(),
        chain_before=first.chain_before.hex(),
        chain_after=chain_next(last.chain_before, frames[-1].cose).hex(),
    )


def _tag_table(storage: PosixStorage, digest: bytes) -> TagTable:
    path = layout.object_path(digest)
    data = storage.read(path, 0, storage.size(path) or 0)
    if not data:
        raise CorruptError("the tag table of these blocks is not in the ring", source=path)
    return decode_table(parse_frame(data).payload)


def _metadata(request: SealRequest, frames: list[Frame]) -> dict[str, str]:
    first, last = frames[0].manifest, frames[-1].manifest
    return {
        "ebbgate.stream": request.stream,
        "ebbgate.generation": format_generation(request.generation),
        "ebbgate.blocks": f"{first.first_block}-{last.last_block}",
        "ebbgate.seqs": f"{first.first_seq}-{last.end_seq - 1}",
        "ebbgate.tag_table": first.tag_table_sha256.hex(),
    }


# ---- reading back: its own way from Parquet to readings, shared with nothing that wrote the file ----


def compare(data: bytes, columns: Columns, first_seq: int, generation: int, table: TagTable) -> None:
    """Raise CorruptError unless the file holds exactly these readings, bit for bit, sorted by (tag, seq)."""
    back = pq.read_table(pa.BufferReader(data), read_dictionary=["tag", "path", "value_string"]).combine_chunks()
    row = back["seq"].to_numpy() - first_seq
    if len(row) != len(columns) or not np.array_equal(np.sort(row), np.arange(len(columns))):
        raise CorruptError("seqs read back from the segment are not those of the journal")
    kind = columns.kind[row]
    wrong = [
        name
        for name, same in (
            ("tag, path or order", _same_tags(back, columns.tag[row], row, table)),
            ("ts", _same_times(back, columns, row)),
            ("value_double", _same_bits(back["value_double"], np.isin(kind, [Kind.DOUBLE]), columns.values[row])),
            ("value_int", _same_bits(back["value_int"], np.isin(kind, [Kind.INT64, Kind.UINT64]), columns.values[row])),
            ("value_bool", _same_bits(back["value_bool"], np.isin(kind, [Kind.BOOL]), columns.values[row])),
            ("value_string", _same_texts(back["value_string"], np.isin(kind, [Kind.TEXT, Kind.BYTES]), columns, row)),
            ("quality", np.array_equal(back["quality"].to_numpy(), columns.quality[row])),
            ("flags", np.array_equal(back["flags"].to_numpy(), columns.flags[row])),
            ("generation", pc.unique(back["generation"]).to_pylist() == [generation]),
        )
        if not same
    ]
    if wrong:
        message = f"columns read back from the segment differ from the journal: {', '.join(wrong)}"
        raise CorruptError(message)


def _same_tags(back: pa.Table, tag: NDArray[np.uint32], row: NDArray[np.int64], table: TagTable) -> bool:
    id_code, ids = _codes(back["tag"])
    path_code, paths = _codes(back["path"])
    starts = np.flatnonzero(np.concatenate(([True], id_code[1:] != id_code[:-1])))  # sorted: one run per tag
    ends = np.append(starts[1:], len(id_code))
    names = [(ids[id_code[at]], paths[path_code[at]]) for at in starts]
    if names != [describe(int(tag[at]), table) for at in starts] or any(a >= b for (a, _), (b, _) in itertools.pairwise(names)):
        return False
    return all(
        bool((tag[a:b] == tag[a]).all() and (path_code[a:b] == path_code[a]).all() and (np.diff(row[a:b]) > 0).all())
        for a, b in zip(starts, ends, strict=True)
    )


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Return a dictionary column as numbers and what they stand for."""
    whole = column.combine_chunks()
    return whole.indices.to_numpy(), whole.dictionary.to_pylist()


def _same_times(back: pa.Table, columns: Columns, row: NDArray[np.int64]) -> bool:
    ts = columns.ts_ns[row]
    source = ts if columns.ts_source_ns is None else columns.ts_source_ns[row]
    below = back["ts_ns"].to_numpy().astype(np.int64)
    us = back["ts"].cast(pa.int64()).to_numpy()
    source_us = pc.fill_null(back["ts_source"].cast(pa.int64()), 0).to_numpy()
    differs = back["ts_source"].is_valid().to_numpy()
    whole = bool(((below >= 0) & (below < NS_PER_US)).all()) and np.array_equal(us * NS_PER_US + below, ts)
    return whole and np.array_equal(differs, source != ts) and np.array_equal(source_us[differs], source[differs] // NS_PER_US)


def _same_bits(column: pa.ChunkedArray, wanted: NDArray[np.bool_], values: NDArray[np.uint64]) -> bool:
    if not np.array_equal(column.is_valid().to_numpy(), wanted):
        return False
    held = column.drop_null().to_numpy()
    bits = held.astype(np.uint64) if held.dtype == np.bool_ else held.view(np.uint64)
    return np.array_equal(bits, values[wanted])


def _same_texts(column: pa.ChunkedArray, wanted: NDArray[np.bool_], columns: Columns, row: NDArray[np.int64]) -> bool:
    if not np.array_equal(column.is_valid().to_numpy(), wanted):
        return False
    return bool(column.drop_null().to_pylist() == [columns.texts[int(i)] for i in columns.values[row[wanted]]])


def main() -> None:
    """Serve one request."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    pa.set_cpu_count(1)
    try:
        result = seal(request_from(sys.stdin.readline()))
    except (CorruptError, StorageFault) as error:
        result = SealResult((), str(error))
    sys.stdout.write(to_line(result))

