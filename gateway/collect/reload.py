"""SIGHUP: a new configuration and tag table for a collect process that goes on. Nothing is lost, nothing doubled.

Everything that can be wrong is found before anything is touched: the files are read, the change of tags is judged (gateway.tagfile.compare),
every source is made once for trial. A mistake leaves the old configuration running and is said in the log, in status and as a notice.

Then the sources that changed are stopped in order (their last readings and markers are committed under the table they were read
under), the ring takes the new table (it begins a new journal), and the changed and new sources start. Sources whose settings and
tags are the same go on without noticing. What belongs to the process (ring, keys, identity) needs a restart and is refused here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from buffer.errors import CorruptError, StorageFault
from buffer.notice import NoticeKind
from buffer.storage import publish_file
from buffer.tagtable import encode_table, table_digest
from gateway.collect.tables import build_tables, encode_rows, working_part
from gateway.errors import ConfigError, EbbgateError
from gateway.findings import Level
from gateway.tagfile import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.ring import Ring
    from gateway.collect.crew import Crew
    from gateway.collect.sources import Maker
    from gateway.collect.tables import Tables
    from gateway.collect.writer import Writer
    from gateway.findings import Finding
    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings, TagRow

T = TypeVar("T")
FINDINGS_SHOWN_MAX: Final = 20  # in one notice
_NEEDS_RESTART: Final = ("id", "stream", "group", "ring", "state", "data_key")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What a new configuration means for the sources, by name."""

    stop: tuple[str, ...]  # changed or gone
    start: tuple[str, ...]  # changed or new
    same: tuple[str, ...]


def change_of(before: Tables, after: Tables) -> Change:
    """Return which sources must stop and start. Pure."""
    old = {one.name: one for one in before.sources}
    new = {one.name: one for one in after.sources}
    same = {name for name in old if name in new and working_part(old[name]) == working_part(new[name])}
    return Change(tuple(name for name in old if name not in same), tuple(name for name in new if name not in same), tuple(sorted(same)))


def sharing(after: Tables, before: Tables) -> Tables:
    """Return `after` with the very objects of `before` where they are equal: sources that go on hold them anyway, and one that is kept among
    many that are dropped would keep their memory from the system. Pure.
    """
    old = {one.name: one for one in before.sources}
    rows = {row.id: row for one in before.sources for row in one.tags}
    tags = {tag.number: tag for tag in before.table.tags}
    return replace(
        after,
        table=replace(after.table, tags=tuple(_older(tags.get(tag.number), tag) for tag in after.table.tags)),
        sources=tuple(
            _older(old.get(one.name), replace(one, tags=tuple(_older(rows.get(row.id), row) for row in one.tags))) for one in after.sources
        ),
    )


def _older(before: T | None, after: T) -> T:
    return before if before is not None and before == after else after


def judge(before: GatewaySettings, after: GatewaySettings) -> tuple[Finding, ...]:
    """Return what the new tag table changes; raise ConfigError for what must not happen by accident, or needs a restart. Pure."""
    fixed = [name for name in _NEEDS_RESTART if getattr(before, name) != getattr(after, name)]
    if fixed:
        raise ConfigError(f"changed while collect runs: {', '.join(fixed)}", "Restart collect for these; everything else was left as it is.")
    findings = tag_changes(_rows(before), _rows(after), after)
    refused = [str(one) for one in findings if one.level == Level.REFUSED]
    if refused:
        raise ConfigError("the tag table\n    " + "\n    ".join(refused[:FINDINGS_SHOWN_MAX]), "Nothing was changed.")
    return findings


def tag_changes(old: Sequence[TagRow], new: Sequence[TagRow], said: GatewaySettings) -> tuple[Finding, ...]:
    """Return what a new tag table changes, in the light of what [gateway] renamed and retired say. Pure."""
    ids, now = {row.id for row in old}, {row.id for row in new}
    renamed = {a: b for a, b in said.renamed.items() if a in ids and a not in now and b in now}  # others were done long ago
    return compare(old, new, renamed, {one for one in said.retired if one in ids and one not in now})


def _rows(settings: GatewaySettings) -> list[TagRow]:
    return [row for source in settings.sources for row in source.tags]


class Reloader:
    """Applies one new configuration after another. `running` and `tables` are what is in force; `fault` why the last was refused."""

    def __init__(
        self, runtime: Runtime, settings: GatewaySettings, tables: Tables, load: Callable[[], GatewaySettings], ring: Ring, writer: Writer
    ) -> None:
        self._runtime = runtime
        self._load = load
        self._ring = ring
        self._writer = writer
        self.running = replace(settings, sources=tables.sources)
        self.tables = tables
        self.fault = ""
        self.applied_ns = runtime.wall_ns()

    async def apply(self, crew: Crew, maker: Maker) -> None:
        """Read the configuration again and go over to it, or stay and say why."""
        try:
            wanted = await self._runtime.offload(self._load)
            findings = judge(self.running, wanted)
            tables = sharing(build_tables(wanted, self.tables.table), self.tables)
            wanted = replace(wanted, sources=tables.sources)
            maker.rehearse(tables.sources)
            change = change_of(self.tables, tables)
            payload = encode_table(tables.table)
            await self._change(wanted, tables, payload, change, crew, maker)
        except (EbbgateError, StorageFault, CorruptError, OSError, ValueError) as error:
            self.fault = f"the new configuration was refused: {error}"
            log.error("configuration refused; the old one goes on", extra={"data": {"why": str(error)}})  # noqa: TRY400
            self._writer.notice(NoticeKind.CONFIG, "", event="refused", why=str(error))
            return
        self.fault, self.applied_ns = "", self._runtime.wall_ns()
        told: dict[str, object] = {
            "stopped": [name for name in change.stop if name not in change.start],
            "started": [name for name in change.start if name not in change.stop],
            "restarted": [name for name in change.start if name in change.stop],
            "kept": len(change.same),
            "tags": [f"{one.where}: {one.what}" for one in findings[:FINDINGS_SHOWN_MAX]],
            "tags_changed": len(findings),
        }
        log.info("configuration applied", extra={"data": told})
        self._writer.notice(NoticeKind.CONFIG, "", event="applied", table=table_digest(payload).hex(), **told)

    async def _change(self, wanted: GatewaySettings, tables: Tables, payload: bytes, change: Change, crew: Crew, maker: Maker) -> None:
        late = await crew.stop(change.stop)
        if late:
            log.warning("sources did not stop in time", extra={"data": {"sources": late}})
        maker.forget(change.stop)
        settings = {one.name: one for one in tables.sources}
        try:
            await self._writer.exclusively(partial(self._ring.use_table, payload))
        except (StorageFault, CorruptError):
            settings = {one.name: one for one in self.tables.sources}
            for name in change.stop:
                crew.start(maker.make(settings[name]))
            raise
        self._writer.use_table(tables.table)
        self.running, self.tables = wanted, tables
        for name in change.start:
            crew.start(maker.make(settings[name]))
        await self.publish()

    async def publish(self) -> None:
        """Keep on the box what travels only as a digest, and what the next table is compared with. A disk that refuses is said, no more."""
        directory = self.running.state / "collect"
        files = {
            directory / f"addresses-{self.tables.table.addresses[:16]}.json": self.tables.addresses,
            self.running.tags_in_force: encode_rows(self.running),
        }
        for path, data in files.items():
            try:
                await self._runtime.offload(partial(publish_file, path, data, mode=0o600))
            except StorageFault as fault:
                log.error("file not saved", extra={"data": {"path": str(path), "fault": str(fault)}})  # noqa: TRY400
