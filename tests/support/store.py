"""A ring on disk without a Ring: journals, segments, objects and `durable`, block by block, with whatever is to be wrong in it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from buffer import layout
from buffer.codec import encode
from buffer.frame import Frame, encode_header, seal_frame
from buffer.journal import JournalHeader, JournalWriter
from buffer.layout import DurableMark, JournalName, SegmentName
from buffer.manifest import FrameKind, Manifest, ObjectType, StateRecord, chain_next, chain_start
from buffer.seal import SealRequest
from buffer.segment import seal
from buffer.storage import PosixStorage
from buffer.tagtable import Tag, TagTable, encode_table, table_digest
from tests.support.keys import Key

STREAM = "g.main"
GENERATION = 7 << 32 | 0x3FA91C02
TABLE = TagTable("g", STREAM, "s", "UTC", ("p",), tuple(Tag(16 + i, f"tag{9 - i}", f"a/b{i}", "p", unsigned=i == 4) for i in range(10)))
JOURNAL_BYTES = 1 << 20


def state_record(block, end, generation=GENERATION, **changes):
    return replace(StateRecord(generation, block, None, end, (generation, 0), (), (), 10**18, 5, bytes(16), True), **changes)


class Store:
    """The ring of one stream. One journal at a time is written; `seal` makes a segment of it."""

    def __init__(self, root: Path, key: Key | None = None, generation: int = GENERATION, table: TagTable = TABLE, predecessor=None) -> None:
        self.root, self.key, self.generation, self.predecessor = root, key or Key(), generation, predecessor
        self.storage = PosixStorage(root)
        for directory in layout.DIRECTORIES:
            self.storage.mkdir(directory)
        self.table = encode_table(table)
        self.add_object(ObjectType.TAG_TABLE, self.table)
        self.block, self.seq, self.chain = 0, 0, chain_start(STREAM, generation)
        self.serial, self.first_of_journal, self.writer = 0, 0, None
        self.frames: list[Frame] = []
        self.names: list[str] = []
        self.roll()

    def add_object(self, kind: ObjectType, payload: bytes) -> Frame:
        digest = hashlib.sha256(payload).digest()
        frame = seal_frame(self.key, Manifest(FrameKind.OBJECT, STREAM, digest, len(payload), object_type=kind), payload)
        self.storage.publish(layout.object_path(digest), [frame.wire()])
        return frame

    def roll(self) -> None:
        """Begin the next journal."""
        name = JournalName(self.generation, self.seq, self.serial)
        header = JournalHeader(STREAM, self.generation, self.seq, self.block, self.serial, 1000 + self.serial)
        self.writer = JournalWriter.create(self.storage, name.path, header, JOURNAL_BYTES)
        self.names.append(name.path)
        self.serial, self.first_of_journal = self.serial + 1, self.block

    def add(self, c, **changes) -> Store:
        """Write one durable block; `changes` replace fields of its manifest."""
        payload = encode(c)
        manifest = Manifest(
            FrameKind.BLOCK, STREAM, hashlib.sha256(payload).digest(), len(payload), generation=self.generation, first_block=self.block,
            last_block=self.block, first_seq=self.seq, count=len(c), tag_table_sha256=table_digest(self.table), chain_before=self.chain,
            arrival_ns=10**18, state=state_record(self.block, self.seq + len(c), self.generation, predecessor=self.predecessor),
        )  # fmt: skip
        return self.write(seal_frame(self.key, replace(manifest, **changes), payload), len(c))

    def write(self, frame: Frame, count: int) -> Store:
        self.writer.append(frame)
        self.writer.sync()
        self.frames.append(frame)
        self.chain = chain_next(frame.manifest.chain_before, frame.cose)
        self.block, self.seq = self.block + 1, self.seq + count
        mark = DurableMark(self.generation, self.serial - 1, self.writer.end, self.seq, self.block)
        self.storage.publish(layout.DURABLE, [layout.encode_durable(mark)])
        return self

    def request(self, **changes) -> SealRequest:
        """What collect would ask the sealing child for the present journal."""
        request = SealRequest(
            str(self.root), STREAM, self.generation, (self.names[-1],), self.first_of_journal, self.block - 1, (Key().spki.hex(),), layout.SEGMENTS
        )
        return replace(request, **changes)

    def seal(self, **changes) -> list[SegmentName]:
        """Make segments of the present journal (of what the changed request says), which stays, and begin the next."""
        result = seal(self.request(**changes))
        assert result.error == "", result.error
        names = [self._publish(part) for part in result.parts]
        self.roll()
        return names

    def _publish(self, part) -> SegmentName:
        data = (self.root / part.path).read_bytes()
        manifest = Manifest(
            FrameKind.SEGMENT, STREAM, hashlib.sha256(data).digest(), len(data), generation=self.generation, first_block=part.first_block,
            last_block=part.last_block, first_seq=part.first_seq, count=part.count, tag_table_sha256=bytes.fromhex(part.tag_table),
            chain_before=bytes.fromhex(part.chain_before), chain_after=bytes.fromhex(part.chain_after), state=self.frames[-1].manifest.state,
        )  # fmt: skip
        frame = seal_frame(self.key, manifest, data)
        name = SegmentName(self.generation, part.first_seq, part.first_seq + part.count - 1)
        self.storage.adopt(part.path, name.parquet)
        self.storage.publish(name.cose, [encode_header(manifest, frame.cose, data, 0), frame.cose])
        return name
