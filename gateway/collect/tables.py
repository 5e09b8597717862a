"""Configuration -> tag table (travels) and address table (stays on the box). Pure.

Numbers belong to tag ids for the life of a stream: they are taken over from the newest table in the ring.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from buffer.tagtable import Tag, TagTable, renumber
from gateway.settings import OpcuaSource, TagRow
from gateway.tagarrays import place_of

if TYPE_CHECKING:
    from gateway.settings import GatewaySettings, ModbusSource


@dataclass(frozen=True, slots=True)
class Tables:
    """What one start of collect works with."""

    table: TagTable
    sources: tuple[OpcuaSource | ModbusSource, ...]  # with numbered tags
    addresses: bytes  # JSON; its SHA-256 stands in the tag table


def build_tables(settings: GatewaySettings, before: TagTable | None) -> Tables:
    """Return tables whose numbers continue those of `before` (None: a new stream)."""
    rows = [row for source in settings.sources for row in source.tags]
    addresses = _addresses(settings)
    names, tags = renumber(before, [_tag(row) for row in rows], [source.name for source in settings.sources])
    table = TagTable(
        gateway=settings.id,
        stream=settings.stream,
        site=settings.site,
        timezone=settings.timezone,
        sources=names,
        tags=_disclosed(tags, rows) if settings.disclose_addresses else tags,
        addresses=hashlib.sha256(addresses).hexdigest(),
    )
    numbers = {tag.id: tag.number for tag in tags}
    sources = tuple(
        replace(source, tags=tuple(replace(row, number=numbers[row.id]) for row in source.tags)) for source in settings.sources
    )
    return Tables(table, sources, addresses)


def _tag(row: TagRow) -> Tag:
    return Tag(
        number=0,
        id=row.id,
        path=row.path,
        source=row.source,
        type=row.type,
        unit=row.unit,
        low=row.low,
        high=row.high,
        scale=row.scale,
        offset=row.offset,
        states=row.states,
        description=row.description,
        unsigned=row.unsigned,
        every_ns=row.every_ns,
        heartbeat_ns=row.heartbeat_ns,
    )


def _disclosed(tags: tuple[Tag, ...], rows: list[TagRow]) -> tuple[Tag, ...]:
    """Put the address behind the description: the site said it may leave the box."""
    at = {row.id: place_of(row) for row in rows}
    return tuple(replace(tag, description=f"{tag.description} [{at[tag.id]}]".strip()) if tag.id in at else tag for tag in tags)


def _addresses(settings: GatewaySettings) -> bytes:
    body = [
        {
            "source": source.name,
            "address": list(source.urls) if isinstance(source, OpcuaSource) else [source.address],
            "tags": {row.id: place_of(row) for row in source.tags},
        }
        for source in settings.sources
    ]
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False).encode()


# ---- what is in force ----


def encode_rows(settings: GatewaySettings) -> bytes:
    """Return the tags a collect process works with, a JSON object a line, that `decode_rows` reads: what the next table is compared with.

    Row by row, and without what is empty: for 10,000 tags the plain way takes 20 MB for a moment.
    """
    lines = [json.dumps(_told(row), ensure_ascii=False) for source in settings.sources for row in source.tags]
    return "\n".join(lines).encode()


def _told(row: TagRow) -> dict[str, object]:
    return {f.name: value for f in fields(TagRow) if (value := getattr(row, f.name)) != f.default}


def decode_rows(data: bytes) -> tuple[TagRow, ...]:
    """Return the tags; raise ValueError where the file is not one of ours."""
    try:
        return tuple(_row(json.loads(line)) for line in data.splitlines())
    except (KeyError, TypeError, AttributeError) as error:
        message = f"not the tags of a collect process: {error}"
        raise ValueError(message) from error


def _row(told: dict[str, Any]) -> TagRow:
    told["bad_raw"] = tuple(told.get("bad_raw", ()))
    told["states"] = tuple((int(value), str(text)) for value, text in told.get("states", ()))
    return TagRow(**told)


def working_part(source: OpcuaSource | ModbusSource) -> OpcuaSource | ModbusSource:
    """Return the source without what only explains its tags to people: two that are equal here are read in the same way."""
    tags = [replace(row, path="", unit="", low=None, high=None, states=(), description="", line=0) for row in source.tags]
    return replace(source, tags=tuple(sorted(tags, key=lambda row: row.id)))
