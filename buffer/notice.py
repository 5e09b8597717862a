"""Notices: readings on reserved tag numbers, for people and never for accounting.

The tag number is the kind; the value is text, one JSON object: {"source": ..., other details}. Signed, chained and
delivered like every reading.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Final

from buffer import limits
from buffer.types import GOOD, Columns, Kind, make_columns


class NoticeKind(IntEnum):
    """Reserved tag numbers 0..15. Never renumber: old rings hold them."""

    COLLECT = 0  # start, orderly stop, release, host
    SOURCE_DOWN = 1
    SOURCE_UP = 2
    GAP = 3  # opened, filled, unfillable, queue overflow: with times and tags
    CLOCK = 4  # step, trusted or not, offset of a source
    CONFIG = 5  # tag table or configuration changed: digests before and after
    LOAD = 6  # load contract: budget used, back-off
    STORAGE = 7  # failed sync, hole at recovery, eviction, sealing that failed, scrub
    RING = 8  # new disk, restored snapshot, generation opened
    TAG = 9  # a tag refused by the server, its type changed, accepted again
    SECURITY = 10  # refused login, refused write, certificate changed, waiver in force
    FROZEN = 11  # the life bit of a source stands still
    HEALTH = 12  # horizon, flash life, disk, memory
    OPERATOR = 13  # pause, resume, fill by hand


ID_PREFIX: Final = "_ebbgate."
PATH_PREFIX: Final = "_ebbgate/"


def notice_id(kind: NoticeKind) -> str:
    """Return the tag id of a notice, as `_ebbgate.source_down`."""
    return ID_PREFIX + kind.name.lower()


def encode_notice(kind: NoticeKind, ts_ns: int, source: str, detail: dict[str, object]) -> Columns:
    """Return one reading. Details that are not JSON are written as their str()."""
    text = json.dumps({"source": source, **detail}, ensure_ascii=False, sort_keys=True, default=str)
    text = text.encode(errors="replace")[: limits.TEXT_BYTES_MAX].decode(errors="ignore")
    return make_columns([kind], [ts_ns], [Kind.TEXT], [0], [GOOD], texts=(text,))
