"""Every maximum of the store, with its unit in the name and its reason beside it."""

from __future__ import annotations

from typing import Final

# ---- frames ----
MANIFEST_BYTES_MAX: Final = 8 * 1024  # a full state record (32 losses, 64 gaps) is under 4 KiB; a parser allocates no more
BLOCK_PAYLOAD_BYTES_MAX: Final = 1024 * 1024  # a live PUT on a thin link must end within minutes
BLOCK_READINGS_MAX: Final = 65_536  # keeps one commit under about 10 ms of CPU
SEGMENT_PAYLOAD_BYTES_MAX: Final = 6 * 1024 * 1024  # with manifest below the 8 MiB a receiver accepts per PUT
SEGMENT_READINGS_MAX: Final = 1_000_000  # peak memory of the sealing child stays below 400 MB
OBJECT_PAYLOAD_BYTES_MAX: Final = 7 * 1024 * 1024  # about 400,000 tags compressed; below one PUT
PUT_BYTES_MAX: Final = 8 * 1024 * 1024  # what every receiver accepts in one request

# ---- values ----
TEXT_BYTES_MAX: Final = 64 * 1024  # one value; longer is cut and flagged (a PLC can send 16 MiB strings)
SOURCE_NUMBER_MAX: Final = 4_095  # sources per stream
TAG_NUMBER_MAX: Final = 1_000_000  # rows of a tag table; also bounds what a codec may allocate
TAG_NUMBER_FIRST: Final = 16  # 0..15 are notices
POSITION_BYTES_MAX: Final = 64  # a source's position: subscription, message number, a few flags

# ---- state record ----
LOST_RANGES_MAX: Final = 32  # neighbours merge beyond that, so that a manifest stays small
OPEN_GAPS_MAX: Final = 64  # a source; older ones close as unfillable

# ---- journal ----
PAGE_BYTES: Final = 4096  # blocks start on a page: no later commit rewrites a page that holds acknowledged data
JOURNAL_BYTES: Final = 16 * 1024 * 1024  # 15 minutes at 15,000 readings/s
JOURNAL_RESERVE_BYTES: Final = 64 * 1024  # always kept zeroed at the end of a journal for state records
JOURNAL_POOL_FILES_MAX: Final = 4  # recycled journals waiting for reuse: 64 MiB of disk
JOURNAL_KEEP_NS: Final = 3_600 * 10**9  # after its segment is durable, so that the live lane may still read blocks
JOURNAL_KEEP_BYTES: Final = 256 * 1024 * 1024  # of sealed journals, whichever comes first
SECTOR_BYTES: Final = 512  # a torn write keeps whole sectors
COMMIT_INTERVAL_MAX_NS: Final = 10 * 10**9  # an empty block at least this often, so that silence has a meaning
SEAL_INTERVAL_NS: Final = 900 * 10**9  # a journal with readings is sealed after this long at the latest

# ---- ring ----
RING_BYTES_MIN: Final = 128 * 1024 * 1024  # pool, two journals, a segment and room to work
READER_HOLD_NS: Final = 60 * 10**9  # a reader keeps a file open no longer
SCRUB_INTERVAL_NS: Final = 7 * 86_400 * 10**9  # every file is re-read once a week

# ---- names ----
ID_PATTERN: Final = r"[a-z0-9][a-z0-9_.-]{0,63}"  # gateways, streams, tags, sources: safe in paths, URLs, topics
ORDINAL_MAX: Final = 2**31 - 1  # openings of one ring: generation stays below 2**63
