"""The sealing child: a journal in, a checked Parquet file out. `python -m buffer.segment`, one request on stdin, one result on stdout.

The only importer of pyarrow in `buffer`, so that collect never carries it. It checks CRC, digest, chain and signature of every block
before, decodes the file again and compares all rows after, re-reads it past the page cache, and leaves a temporary file: it
publishes nothing and signs nothing.

Specification of the file: Parquet, rows sorted by (tag, seq), one row group, zstd 3, the columns of buffer.rows with ts and
ts_source as timestamp[us, UTC] and tag, path, generation as dictionaries; an encoding per column is chosen by trying. Key-value
metadata: ebbgate.stream, ebbgate.generation, ebbgate.blocks, ebbgate.seqs, ebbgate.tag_table.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from buffer import layout, limits
from buffer.codec import decode
from buffer.cose import EDDSA
from buffer.errors import CorruptError, SignatureError, StorageFault, StoreError
from buffer.frame import parse_frame
from buffer.journal import PAGE, Found, parse_journal_header, scan
from buffer.manifest import chain_next, format_generation
from buffer.rows import RowColumns, make_rows
from buffer.seal import SealedPart, SealRequest, SealResult, request_from, to_line
from buffer.storage import PosixStorage
from buffer.tagtable import TagTable, decode_table
from buffer.types import Columns, Kind, concat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.frame import Frame

MEMORY_BYTES_MAX: Final = 3 * 1024**3  # address space; a million readings peak near 0.5 GB resident
NICE: Final = 19
_ENCODINGS: Final[dict[str, tuple[str, ...]]] = {  # tried beside dictionary; the smallest wins
    "ts": ("DELTA_BINARY_PACKED", "PLAIN"),
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


# ---- rows -> Arrow ----


def arrow_table(rows: RowColumns, generation: int) -> pa.Table:
    """Return the rows as the table a segment and the lake hold."""
    dictionary = pa.DictionaryArray.from_arrays
    index = pa.array(rows.tag_index, pa.int32())
    stamp = pa.timestamp("us", "UTC")
    signed = rows.values.view(np.int64)
    constant = pa.array(np.zeros(len(rows.seq), np.int32), pa.int32())
    return pa.table(
        {
            "tag": dictionary(index, pa.array(rows.tags, pa.string())),
            "path": dictionary(index, pa.array(rows.paths, pa.string())),
            "ts": pa.array(rows.ts_us, stamp),
            "ts_ns": pa.array(rows.ts_ns, pa.int16()),
            "ts_source": pa.array(rows.ts_source_us, stamp, mask=rows.ts_source_null),
            "value_double": pa.array(rows.values.view(np.float64), pa.float64(), mask=~rows.is_kind(Kind.DOUBLE)),
            "value_int": pa.array(signed, pa.int64(), mask=~rows.is_kind(Kind.INT64, Kind.UINT64)),
            "value_bool": pa.array(rows.values != 0, pa.bool_(), mask=~rows.is_kind(Kind.BOOL)),
            "value_string": pa.array(rows.strings, pa.string()),
            "quality": pa.array(rows.quality, pa.int64()),
            "flags": pa.array(rows.flags, pa.int32()),
            "seq": pa.array(rows.seq, pa.int64()),
            "generation": dictionary(constant, pa.array([generation], pa.int64())),
        }
    )


def write_parquet(table: pa.Table, path: Path, metadata: dict[str, str]) -> None:
    """Write one row group, encodings chosen by trying each column alone."""
    chosen = {name: _best_encoding(table, name, tries) for name, tries in _ENCODINGS.items()}
    plain = {name: encoding for name, encoding in chosen.items() if encoding}
    use_dictionary = [name for name in table.column_names if name not in plain and name != "value_bool"]
    pq.write_table(
        table.replace_schema_metadata(metadata),
        path,
        compression="zstd",
        compression_level=3,
        use_dictionary=use_dictionary,
        column_encoding=plain or None,
        row_group_size=limits.SEGMENT_READINGS_MAX,
        write_statistics=True,
        write_page_index=True,
        store_schema=True,
    )


def _best_encoding(table: pa.Table, name: str, tries: Sequence[str]) -> str:
    """Return the encoding that makes this column smallest, "" for dictionary."""
    column = table.select([name])
    sizes = {"": _size(column, None)} | {encoding: _size(column, {name: encoding}) for encoding in tries}
    return min(sizes, key=lambda encoding: sizes[encoding])


def _size(column: pa.Table, encoding: dict[str, str] | None) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(column, sink, compression="zstd", compression_level=3, use_dictionary=encoding is None, column_encoding=encoding)
    return int(sink.getvalue().size)


# ---- the child ----


def read_blocks(storage: PosixStorage, request: SealRequest, verify: PublicKeys) -> list[Frame]:
    """Return the blocks asked for, each checked; raise CorruptError where one is missing or does not fit the chain."""
    frames: list[Frame] = []
    for path in request.journals:
        size = storage.size(path) or 0
        read = _past_cache(storage, path)
        header = parse_journal_header(read(0, PAGE) or b"")
        for found in scan(read, header.salt, size):
            if isinstance(found, Found) and request.first_block <= found.frame.manifest.first_block <= request.last_block:
                frames.append(found.frame.verified(verify))
    numbers = [frame.manifest.first_block for frame in frames]
    if numbers != list(range(request.first_block, request.last_block + 1)):
        message = f"blocks {request.first_block}..{request.last_block} are not all there"
        raise CorruptError(message, source=request.journals[0])
    for before, after in itertools.pairwise(frames):
        a, b = before.manifest, after.manifest
        linked = chain_next(a.chain_before, before.cose) == b.chain_before and a.end_seq == b.first_seq
        if not linked or a.tag_table_sha256 != b.tag_table_sha256 or a.generation != b.generation:
            message = f"block {b.first_block} does not continue block {a.first_block}"
            raise CorruptError(message, source=request.journals[0])
    return frames


def _past_cache(storage: PosixStorage, path: str) -> Callable[[int, int], bytes | None]:
    size = storage.size(path) or 0
    data = storage.read_direct(path, 0, size) or b""
    return lambda offset, length: data[offset : offset + length]


def seal(request: SealRequest) -> SealResult:
    """Return what was made; every failure is a result with `error`."""
    storage = PosixStorage(Path(request.root))
    try:
        frames = read_blocks(storage, request, PublicKeys([bytes.fromhex(key) for key in request.public_keys]))
        return SealResult(tuple(_parts(storage, request, frames)))
    except StoreError as error:
        return SealResult((), str(error))
    except (pa.ArrowException, MemoryError) as error:
        return SealResult((), f"{type(error).__name__}: {error}")


def _parts(storage: PosixStorage, request: SealRequest, frames: list[Frame]) -> list[SealedPart]:
    part = _part(storage, request, frames)
    if part is not None:
        return [part]
    if len(frames) == 1:
        raise CorruptError("one block makes a file beyond limits.SEGMENT_PAYLOAD_BYTES_MAX", source=request.journals[0])
    half = _half(frames)
    return _parts(storage, request, frames[:half]) + _parts(storage, request, frames[half:])


def _half(frames: list[Frame]) -> int:
    """Cut in two by readings, so that neither part is empty of them."""
    total, so_far = sum(f.manifest.count for f in frames), 0
    for i, frame in enumerate(frames[:-1], 1):
        so_far += frame.manifest.count
        if so_far * 2 >= total:
            return i
    return len(frames) - 1


def _part(storage: PosixStorage, request: SealRequest, frames: list[Frame]) -> SealedPart | None:
    """Write and check one file; None if it came out larger than a segment may be."""
    first, last = frames[0].manifest, frames[-1].manifest
    columns = concat([decode(f.payload, f.manifest.count) for f in frames if f.manifest.count])
    table = _tag_table(storage, first.tag_table_sha256)
    seq = np.arange(first.first_seq, first.first_seq + len(columns), dtype=np.int64)
    arrow = arrow_table(make_rows(columns, seq, table, by_tag=True), first.generation)
    name = f"{request.output}/{format_generation(first.generation)}-{first.first_seq}.tmp"
    path = Path(request.root) / name
    write_parquet(arrow, path, _metadata(request, frames))
    storage.sync_file(name)
    length = storage.size(name) or 0
    if length > limits.SEGMENT_PAYLOAD_BYTES_MAX or len(columns) > limits.SEGMENT_READINGS_MAX:
        storage.unlink(name)
        return None
    data = storage.read_direct(name, 0, length) or b""
    _compare(data, columns, seq, table, name)
    return SealedPart(
        path=name,
        sha256=hashlib.sha256(data).hexdigest(),
        length=length,
        first_block=first.first_block,
        last_block=last.last_block,
        first_seq=first.first_seq,
        count=len(columns),
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


def _compare(data: bytes, columns: Columns, seq: Any, table: TagTable, name: str) -> None:  # noqa: ANN401 -- an int64 array
    """Read the file back and compare every row with the journal, in arrival order; raise CorruptError."""
    back = pq.read_table(pa.BufferReader(data)).combine_chunks()
    order = np.argsort(back["seq"].to_numpy(), kind="stable")
    want = arrow_table(make_rows(columns, seq, table, by_tag=False), 0)
    back = back.take(pa.array(order))
    for column in want.column_names:
        if column == "generation":
            continue
        if not _same(want[column], back[column]):
            message = f"column {column} read back differs from the journal"
            raise CorruptError(message, source=name)


def _same(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    a, b = (x.cast(pa.string()) if pa.types.is_dictionary(x.type) else x for x in (a, b))
    if a.null_count != b.null_count or not a.is_null().equals(b.is_null()):
        return False
    if pa.types.is_float64(a.type):  # NaN payloads and -0.0 count
        bits = [x.fill_null(0.0).to_numpy().view(np.uint64) for x in (a, b)]
        return bool(np.array_equal(*bits))
    return bool(a.equals(b))


def main() -> None:
    """Serve one request."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    pa.set_cpu_count(1)
    try:
        result = seal(request_from(sys.stdin.readline()))
    except (CorruptError, StorageFault) as error:
        result = SealResult((), str(error))
    sys.stdout.write(to_line(result))


if __name__ == "__main__":
    main()
