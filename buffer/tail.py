"""Blocks that stand in no segment yet -> the bytes of a temporary Parquet file. Apart, because it alone of what a query needs loads pyarrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from buffer.codec import decode
from buffer.rows import make_rows
from buffer.segment import arrow_table, parquet_bytes
from buffer.types import concat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.frame import Frame
    from buffer.tagtable import TagTable


def tail_bytes(frames: Sequence[Frame], table: TagTable) -> bytes:
    """Return the file of these blocks with readings, of one generation and tag table; raise CorruptError."""
    columns = concat([decode(frame.payload, frame.manifest.count) for frame in frames])
    seq = np.concatenate([np.arange(f.manifest.first_seq, f.manifest.end_seq, dtype=np.int64) for f in frames])
    return parquet_bytes(arrow_table(make_rows(columns, seq, table, by_tag=True), frames[0].manifest.generation), {}, tries={})
