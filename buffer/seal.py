"""What collect asks of the sealing child, and what comes back: two JSON lines over its stdin and stdout. No pyarrow here.

The child (`python -m buffer.sealing`) reads a journal, writes Parquet to a temporary file and signs nothing; collect hashes,
signs and publishes (`Ring.adopt`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from buffer.errors import CorruptError


@dataclass(frozen=True, slots=True)
class SealRequest:
    """Seal whole blocks of one generation and one tag table. Paths are relative to `root`, the ring of one stream."""

    root: str
    stream: str
    generation: int
    journals: tuple[str, ...]  # in order
    first_block: int
    last_block: int
    public_keys: tuple[str, ...]  # hex SubjectPublicKeyInfo, DER: blocks must be signed by one of them
    output: str  # directory for temporary files, relative to root


@dataclass(frozen=True, slots=True)
class SealedPart:
    """One Parquet file the child left behind, fully checked against the journal and re-read past the page cache."""

    path: str  # relative to root
    sha256: str
    length: int
    first_block: int
    last_block: int
    first_seq: int
    count: int
    tag_table: str  # hex SHA-256
    chain_before: str
    chain_after: str


@dataclass(frozen=True, slots=True)
class SealResult:
    """All parts in order (more than one when a file would exceed 6 MiB), or the reason why there are none."""

    parts: tuple[SealedPart, ...]
    error: str = ""
    again: bool = False  # the disk refused, not the journal: to be tried again later


def with_root(request: SealRequest, root: str) -> SealRequest:
    """Return the request with the directory filled in (the ring itself knows only relative paths)."""
    return replace(request, root=root)


def to_line(message: SealRequest | SealResult) -> str:
    """Return one line of JSON."""
    return json.dumps(asdict(message), separators=(",", ":")) + "\n"


def request_from(line: str) -> SealRequest:
    """Return the request; raise CorruptError."""
    try:
        body = json.loads(line)
        return SealRequest(**body | {"journals": tuple(body["journals"]), "public_keys": tuple(body["public_keys"])})
    except (ValueError, TypeError, KeyError) as error:
        message = f"not a seal request: {error}"
        raise CorruptError(message) from error


def result_from(line: str) -> SealResult:
    """Return the result; raise CorruptError."""
    try:
        body = json.loads(line)
        return SealResult(tuple(SealedPart(**part) for part in body["parts"]), str(body["error"]), body.get("again") is True)
    except (ValueError, TypeError, KeyError) as error:
        message = f"not a seal result: {error}"
        raise CorruptError(message) from error
