"""The tag table: all tags of a stream at one time, as one content-addressed object.

Specification. The object's payload is a zstandard frame (content size stated, at most TABLE_JSON_BYTES_MAX) of UTF-8 JSON,
keys sorted, no spaces:

    {"addresses": hex SHA-256 of the address file (stays on the box) or "", "gateway": id, "site": text, "sources": [name...],
     "stream": id, "tags": [{"number", "id", "path", "source", "type", "unit", "low", "high", "scale", "offset", "states",
     "description", "unsigned", "every_ns", "heartbeat_ns"}...], "timezone": IANA name, "version": 1}

`number` (16 and up) is what blocks hold. It belongs to the tag id for the life of a stream: a table made after another keeps
the numbers of the ids it kept and never gives the number of a retired id to a new one. A source's number is its place
in `sources`, kept in the same way. Numbers 0..15 are notices (buffer.notice) and stand in no table.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import zstandard

from buffer import limits
from buffer.errors import CorruptError, MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterable

TABLE_JSON_BYTES_MAX: Final = 256 * 1024 * 1024  # a million tags; a bomb stops here
_ID: Final = re.compile(limits.ID_PATTERN)


@dataclass(frozen=True, slots=True)
class Tag:
    """One measured thing. Everything that explains its readings to a person who never saw the plant."""

    number: int
    id: str
    path: str
    source: str
    type: str = ""  # as configured or as the server says: "Double", "float32", "UInt64", ...; "" unknown
    unit: str = ""  # UCUM
    low: float | None = None  # engineering range
    high: float | None = None
    scale: float = 1.0  # stored value = raw * scale + offset
    offset: float = 0.0
    states: tuple[tuple[int, str], ...] = ()
    description: str = ""
    unsigned: bool = False  # value_int holds the bits of a UInt64
    every_ns: int = 0  # sampling asked for; 0: on change
    heartbeat_ns: int = 0  # repeated at least this often while alive; 0: never


@dataclass(frozen=True, slots=True)
class TagTable:
    """See the module's specification. `sources` and `tags` may hold retired rows: `retired` tags have source ""."""

    gateway: str
    stream: str
    site: str
    timezone: str
    sources: tuple[str, ...]
    tags: tuple[Tag, ...]
    addresses: str = ""
    _by_number: dict[int, Tag] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_number = {tag.number: tag for tag in self.tags}
        if len(by_number) != len(self.tags) or len({tag.id for tag in self.tags}) != len(self.tags):
            raise MisuseError("tag table holds a number or an id twice")
        object.__setattr__(self, "_by_number", by_number)

    def tag(self, number: int) -> Tag | None:
        """Return the tag with this number, or None."""
        return self._by_number.get(number)

    def source_number(self, name: str) -> int:
        """Return the number of a source; raise MisuseError if it stands in no row."""
        if name not in self.sources:
            message = f"source {name!r} is not in the tag table"
            raise MisuseError(message)
        return self.sources.index(name)

    def of_source(self, name: str) -> tuple[Tag, ...]:
        """Return the tags of one source, in order of number."""
        return tuple(tag for tag in self.tags if tag.source == name)


def renumber(before: TagTable | None, tags: Iterable[Tag], sources: Iterable[str]) -> tuple[tuple[str, ...], tuple[Tag, ...]]:
    """Return sources and tags with the numbers they had in `before`; new ones get new numbers; retired rows stay."""
    old = {tag.id: tag for tag in before.tags} if before else {}
    names = list(before.sources) if before else []
    names += [name for name in dict.fromkeys(sources) if name not in names]
    free = max((tag.number for tag in old.values()), default=limits.TAG_NUMBER_FIRST - 1) + 1
    out: dict[int, Tag] = {tag.number: _retired(tag) for tag in old.values()}
    for tag in tags:
        number = old[tag.id].number if tag.id in old else free
        free += tag.id not in old
        out[number] = _with_number(tag, number)
    return tuple(names), tuple(out[number] for number in sorted(out))


def _with_number(tag: Tag, number: int) -> Tag:
    return Tag(number, *(getattr(tag, f.name) for f in fields(Tag)[1:]))


def _retired(tag: Tag) -> Tag:
    return Tag(tag.number, tag.id, tag.path, "", tag.type, tag.unit, description=tag.description, unsigned=tag.unsigned)


def encode_table(table: TagTable) -> bytes:
    """Return the object's payload."""
    rows = []
    for tag in table.tags:
        row = {f.name: getattr(tag, f.name) for f in fields(Tag)}
        row["states"] = {str(number): text for number, text in tag.states}
        rows.append(row)
    body = {
        "version": 1,
        "gateway": table.gateway,
        "stream": table.stream,
        "site": table.site,
        "timezone": table.timezone,
        "sources": list(table.sources),
        "addresses": table.addresses,
        "tags": rows,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return zstandard.ZstdCompressor(level=9, write_content_size=True, write_checksum=True).compress(text.encode())


def table_digest(payload: bytes) -> bytes:
    """Return the SHA-256 that names the object."""
    return hashlib.sha256(payload).digest()


def decode_table(payload: bytes | memoryview) -> TagTable:
    """Return the table; raise CorruptError for anything that is not exactly one, or is larger than the limits."""
    data = bytes(payload)
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if not 0 < size <= TABLE_JSON_BYTES_MAX:
            raise CorruptError("tag table states no size, or one beyond the limit")
        text = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
        body = json.loads(text)
        return _table(body)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, MisuseError, RecursionError) as error:
        message = f"not a tag table: {error}"
        raise CorruptError(message) from error


def _table(body: dict[str, Any]) -> TagTable:
    if body["version"] != 1:
        raise CorruptError("tag table version is not 1: written by a newer release?")
    sources = tuple(_text(x, limits.ID_PATTERN) for x in body["sources"])
    if len(sources) > limits.SOURCE_NUMBER_MAX or len(body["tags"]) > limits.TAG_NUMBER_MAX:
        raise CorruptError("tag table has more rows than the limits allow")
    return TagTable(
        gateway=_text(body["gateway"], limits.ID_PATTERN),
        stream=_text(body["stream"], limits.ID_PATTERN),
        site=_text(body["site"]),
        timezone=_text(body["timezone"]),
        sources=sources,
        tags=tuple(_tag(row) for row in body["tags"]),
        addresses=_text(body["addresses"]),
    )


def _text(value: object, pattern: str = "") -> str:
    if not isinstance(value, str) or (pattern and not re.fullmatch(pattern, value)):
        message = f"{str(value)[:60]!r} is not a text of the wanted form"
        raise CorruptError(message)
    return value


def _number(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CorruptError("a range, scale or offset is not a finite number")
    return float(value)


def _tag(row: dict[str, Any]) -> Tag:
    number = row["number"]
    if type(number) is not int or not limits.TAG_NUMBER_FIRST <= number <= limits.TAG_NUMBER_MAX:
        raise CorruptError("tag number out of range")
    if not _ID.fullmatch(_text(row["id"])):
        raise CorruptError("tag id has characters beyond [a-z0-9_.-]")
    times = (row["every_ns"], row["heartbeat_ns"])
    if any(type(x) is not int or x < 0 for x in times) or type(row["unsigned"]) is not bool:
        raise CorruptError("tag times or unsigned of the wrong type")
    return Tag(
        number=number,
        id=row["id"],
        path=_text(row["path"]),
        source=_text(row["source"]),
        type=_text(row["type"]),
        unit=_text(row["unit"]),
        low=_number(row["low"]),
        high=_number(row["high"]),
        scale=_number(row["scale"]) or 0.0,
        offset=_number(row["offset"]) or 0.0,
        states=tuple(sorted((int(k), _text(v)) for k, v in row["states"].items())),
        description=_text(row["description"]),
        unsigned=row["unsigned"],
        every_ns=times[0],
        heartbeat_ns=times[1],
    )
