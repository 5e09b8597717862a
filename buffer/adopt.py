"""From what the sealing child left behind to a published segment: checked, signed, .parquet first, .cose last: the commit point.

All of it touches files that nobody else names, so it may be done beside commits; what the ring keeps of it is changed afterwards
(`Ring.admit`), in no time. Where the journal was evicted between the two, the segment stands below `low` and goes as such.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buffer import layout
from buffer.errors import CorruptError, StorageFault
from buffer.frame import encode_header, seal_frame
from buffer.journals import remove
from buffer.layout import SegmentName
from buffer.manifest import FrameKind, Manifest
from buffer.seal import SealRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.cose import Signer
    from buffer.manifest import StateRecord
    from buffer.recovery import JournalFacts, Run
    from buffer.seal import SealedPart
    from buffer.storage import Storage


@dataclass(slots=True)
class Published:
    """Segments that stand on disk and that the ring does not count yet: part, name, bytes of the .cose. fault: why these are not all parts."""

    parts: list[tuple[SealedPart, SegmentName, int]] = field(default_factory=list)
    fault: CorruptError | StorageFault | None = None


def ask(stream: str, journal: JournalFacts, run: Run, public_keys: Sequence[bytes]) -> SealRequest:
    """Return the request to seal one run; the caller fills in `root`."""
    return SealRequest(
        root="",
        stream=stream,
        generation=journal.name.generation,
        journals=(journal.name.path,),
        first_block=run.first_block,
        last_block=run.last_block,
        public_keys=tuple(key.hex() for key in public_keys),
        output=layout.SEGMENTS,
    )


def find(closed: Sequence[JournalFacts], request: SealRequest) -> tuple[JournalFacts | None, Run | None]:
    """Return what a request is about, None where it was evicted. Looks at copies of the lists: another thread may commit."""
    journal = next((j for j in list(closed) if j.name.path == request.journals[0]), None)
    return journal, next((r for r in list(journal.runs) if r.first_block == request.first_block), None) if journal else None


def check_parts(run: Run, parts: Sequence[SealedPart]) -> None:
    """Raise CorruptError unless the parts are exactly the run, in order, each of whole blocks, chained."""
    ends = [(run.first_block, run.first_seq), *((p.last_block + 1, p.first_seq + p.count) for p in parts)]
    begins = [*((p.first_block, p.first_seq) for p in parts), (run.last_block + 1, run.end_seq)]
    chained = all(a.chain_after == b.chain_before for a, b in itertools.pairwise(parts))
    if ends != begins or not chained or any(p.count <= 0 for p in parts):
        raise CorruptError("the sealed files are not the blocks that were asked for", source=parts[0].path if parts else "")


def publish(
    storage: Storage, signer: Signer, request: SealRequest, run: Run | None, parts: Sequence[SealedPart], state: StateRecord | None
) -> Published:
    """Check and publish the parts of a run, in order, up to the first that does not work; remove what was not published."""
    out = Published()
    try:
        if run is not None:  # else evicted meanwhile
            check_parts(run, parts)
            for part in parts:
                out.parts.append((part, *publish_part(storage, signer, request, part, state)))
    except (CorruptError, StorageFault) as fault:
        out.fault = fault
    with contextlib.suppress(StorageFault):
        for part in parts[len(out.parts) :]:
            remove(storage, part.path)
    return out


def publish_part(storage: Storage, signer: Signer, request: SealRequest, part: SealedPart, state: StateRecord | None) -> tuple[SegmentName, int]:
    """Hash, sign and publish one part; return its name and the bytes of its .cose. Raise CorruptError, StorageFault."""
    data = storage.read_direct(part.path, 0, part.length + 1)
    if data is None or len(data) != part.length or hashlib.sha256(data).hexdigest() != part.sha256:
        raise CorruptError("sealed file is not what the child checked", source=part.path)
    name = SegmentName(request.generation, part.first_seq, part.first_seq + part.count - 1)
    manifest = Manifest(
        FrameKind.SEGMENT,
        request.stream,
        bytes.fromhex(part.sha256),
        part.length,
        generation=request.generation,
        first_block=part.first_block,
        last_block=part.last_block,
        first_seq=part.first_seq,
        count=part.count,
        tag_table_sha256=bytes.fromhex(part.tag_table),
        chain_before=bytes.fromhex(part.chain_before),
        chain_after=bytes.fromhex(part.chain_after),
        state=state,
    )
    frame = seal_frame(signer, manifest, data)
    cose_file = encode_header(manifest, frame.cose, data, salt=0) + frame.cose
    storage.adopt(part.path, name.parquet)
    storage.publish(name.cose, [cose_file])
    return name, len(cose_file)
