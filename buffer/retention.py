"""What goes when the ring is full: pure. By size only; no age, no clock of the wall, and never because somebody acknowledged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from buffer import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buffer.layout import JournalName, SegmentName
    from buffer.recovery import JournalFacts


@dataclass(frozen=True, slots=True)
class Unit:
    """One file to evict, and the first reading still there once it is gone (None: nothing sealed or closed is left)."""

    segment: SegmentName | None
    journal: JournalName | None
    next_low: tuple[int, int] | None


def excess_journals(journals: Sequence[JournalFacts], monotonic_ns: int, over_bytes: int) -> list[JournalName]:
    """Return the sealed journals to give back: an hour after their segment is durable, beyond 256 MiB, or when space is short.

    Nothing is lost by it: their readings stand in segments. Journals of empty blocks only are always done.
    """
    sealed = [j for j in journals if j.sealed_at_ns is not None or not j.readings]
    out: list[JournalName] = []
    kept = sum(j.size_bytes for j in sealed)
    for journal in sealed:
        old = not journal.readings or monotonic_ns - (journal.sealed_at_ns or 0) >= limits.JOURNAL_KEEP_NS
        if old or kept > limits.JOURNAL_KEEP_BYTES or over_bytes > 0:
            out.append(journal.name)
            kept -= journal.size_bytes
            over_bytes -= journal.size_bytes
    return out


def oldest_unit(segments: Sequence[SegmentName], journals: Sequence[JournalFacts]) -> Unit | None:
    """Return the oldest segment or unsealed journal, by readings; None if there is none."""
    units: list[tuple[tuple[int, int], SegmentName | None, JournalName | None]] = [((s.generation, s.first), s, None) for s in segments[:2]]
    for journal in journals:
        runs = [run for run in journal.runs if not run.sealed and run.end_seq > run.first_seq]
        if runs:
            units.append(((journal.name.generation, runs[0].first_seq), None, journal.name))
    units.sort(key=lambda unit: unit[0])
    if not units:
        return None
    _, segment, journal_name = units[0]
    return Unit(segment, journal_name, units[1][0] if len(units) > 1 else None)
