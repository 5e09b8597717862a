"""Rings for benchmarks: the real Ring on a real disk, with a real Ed25519 key and the tag table of the synthetic plant."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from benchmarks.workload import TAGS
from buffer import limits
from buffer.manifest import ObjectType
from buffer.ring import Instant, Ring, RingOptions, with_root
from buffer.storage import PosixStorage, make_directory
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import Columns, take
from gateway.trust.keys import KeyRing, create_signer, spki_der

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buffer.seal import SealRequest
    from gateway.trust.keys import KeySigner

STREAM = "bench.main"
BOOT = bytes(16)


def tag_table(tags: int = TAGS, stream: str = STREAM) -> TagTable:
    """Return a tag table whose ids sort otherwise than their numbers, as plants name things."""
    rows = tuple(
        Tag(limits.TAG_NUMBER_FIRST + i, f"d{i % 20:02d}.t{i:04d}", f"acme/ghent/hall1/d{i % 20:02d}/t{i:04d}", "plc") for i in range(tags)
    )
    return TagTable(stream.partition(".")[0], stream, "acme/ghent", "UTC", ("plc",), rows)


def instant() -> Instant:
    """Return now."""
    return Instant(time.time_ns(), time.monotonic_ns(), BOOT, True)


def open_ring(
    root: Path, *, journal_bytes: int = limits.JOURNAL_BYTES, max_bytes: int = 2**40, table: TagTable | None = None, signer: KeySigner | None = None,
    stream: str = STREAM, statement: bytes | None = None,
) -> Ring:  # fmt: skip
    """Open (recover) the ring in `root` as collect does; its first block, which begins the generation, is committed."""
    make_directory(root)
    if signer is None:
        signer = create_signer(root.parent / f"{root.name}.key")
    verifier = KeyRing()
    verifier.trust(signer.public)
    salts = itertools.count(time.monotonic_ns())
    options = RingOptions(stream, max_bytes, journal_bytes, (spki_der(signer.public),))
    ring = Ring.open(PosixStorage(root), options, signer, verifier, instant(), 1, lambda: next(salts))
    if statement is not None:
        ring.add_object(ObjectType.KEY_STATEMENT, statement)
    ring.use_table(encode_table(table or tag_table(stream=stream)))
    ring.commit(instant())
    return ring


def batches(columns: Columns, size: int) -> Iterator[Columns]:
    """Yield `columns` in batches of `size`, each with arrays of its own, as a source hands them over."""
    for first in range(0, len(columns) - size + 1, size):
        part = take(columns, first, first + size)
        yield Columns(
            part.tag.copy(), part.ts_ns.copy(), part.kind.copy(), part.values.copy(), part.quality.copy(), part.flags.copy(), None, part.texts
        )


def sealable(ring: Ring, root: Path) -> SealRequest | None:
    """Close the active journal and return what the sealing child is to do next."""
    ring.roll_if_due(instant(), 0)
    ring.commit(instant())
    request = ring.sealable()
    return None if request is None else with_root(request, str(root))
