"""A ring with many segments without waiting for days: real Parquet, real signed manifests, names and numbers as if it had been committed.

What is not real: the blocks before the segments never were in a journal, and where `link` is given the payload is a hard link to one file,
so that its inner seqs are those of the first. Used only where nobody opens the payload (recovery, names and manifests).
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from benchmarks.rings import BOOT, STREAM, instant, tag_table
from buffer import layout
from buffer.frame import encode_header, seal_frame
from buffer.layout import LastName, SegmentName
from buffer.manifest import FrameKind, Manifest, ObjectType, StateRecord, chain_start
from buffer.storage import PosixStorage
from buffer.tagtable import encode_table

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.trust.keys import KeySigner

GENERATION = 1 << 32 | 0xBE7C
BLOCKS = 1_000  # a segment: one a second of a thousand tags


class Fabric:
    """Adds segments one after another to the ring in `root`, which must be new."""

    def __init__(self, root: Path, signer: KeySigner, readings: int) -> None:
        self.root, self._signer, self._readings = root, signer, readings
        self._storage = PosixStorage(root)
        for directory in layout.DIRECTORIES:
            self._storage.mkdir(directory)
        payload = encode_table(tag_table())
        self._table = hashlib.sha256(payload).digest()
        manifest = Manifest(FrameKind.OBJECT, STREAM, self._table, len(payload), object_type=ObjectType.TAG_TABLE)
        self._storage.publish(layout.object_path(self._table), [seal_frame(signer, manifest, payload).wire()])
        self._chain = chain_start(STREAM, GENERATION)
        self.segments = 0

    def add(self, data: bytes, digest: bytes, link: Path | None = None) -> SegmentName:
        """Add one segment of these bytes (and this SHA-256), written or, from a file that holds them, linked. Not synced: scenery."""
        n, first = self.segments, self.segments * self._readings
        name = SegmentName(GENERATION, first, first + self._readings - 1)
        after = hashlib.sha256(self._chain + digest).digest()
        now = instant()
        state = StateRecord(
            GENERATION, (n + 1) * BLOCKS - 1, None, first + self._readings, (GENERATION, 0), (), (), now.wall_ns, now.monotonic_ns, BOOT, True
        )
        manifest = Manifest(
            FrameKind.SEGMENT, STREAM, digest, len(data), generation=GENERATION, first_block=n * BLOCKS, last_block=(n + 1) * BLOCKS - 1,
            first_seq=first, count=self._readings, tag_table_sha256=self._table, chain_before=self._chain, chain_after=after, state=state,
        )  # fmt: skip
        frame = seal_frame(self._signer, manifest, data)
        if link is None:
            (self.root / name.parquet).write_bytes(data)
        else:
            os.link(link, self.root / name.parquet)
        (self.root / name.cose).write_bytes(encode_header(manifest, frame.cose, data, salt=0) + frame.cose)
        self._chain = after
        self.segments += 1
        return name

    def last_name(self) -> LastName:
        """Return the name that a `last` file of now would have."""
        return LastName(GENERATION, self.segments * self._readings)
