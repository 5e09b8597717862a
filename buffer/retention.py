"""What goes when the ring is full: pure. By size only; no age, no clock of the wall, and never because somebody acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buffer import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buffer.layout import SegmentName
    from buffer.recovery import JournalFacts
    from buffer.state import Place


def spare_journals(
    journals: Sequence[JournalFacts], covered: tuple[int, int], monotonic_ns: int, over_bytes: int, pooled: int = 0
) -> list[JournalFacts]:
    """Return the journals to give back, oldest first; nothing is lost by it: their readings stand in segments.

    An hour after their segment is durable, beyond 256 MiB, or while the ring is over_bytes too large. Never before everything in them
    stands in a `last` file, which holds all before `covered` (generation, block): they also carry positions and gaps. The first `pooled`
    of them are kept as files, and so make up for none of over_bytes.
    """
    spare = [j for j in journals if not j.runs and ((j.name.generation, j.last_block) < covered or _never_used(j))]
    kept = sum(j.size_bytes for j in spare if j.readings)
    out: list[JournalFacts] = []
    for journal in spare:
        old = not journal.readings or monotonic_ns - journal.sealed_at_ns >= limits.JOURNAL_KEEP_NS
        if old or kept > limits.JOURNAL_KEEP_BYTES or over_bytes > 0:
            out.append(journal)
            kept -= journal.size_bytes if journal.readings else 0
            over_bytes -= journal.size_bytes if len(out) > pooled else 0
    return out


def _never_used(journal: JournalFacts) -> bool:
    """Nothing was committed in it: whoever began it was killed."""
    return journal.last_block < 0 and not journal.readings


def units(segments: Sequence[SegmentName], journals: Sequence[JournalFacts]) -> list[tuple[Place, SegmentName | JournalFacts]]:
    """Return what can be evicted, oldest first by readings: segments, and journals that stand in none."""
    out: list[tuple[Place, SegmentName | JournalFacts]] = [((s.generation, s.first), s) for s in segments]
    out += [((j.name.generation, j.runs[0].first_seq), j) for j in journals if j.runs]
    return sorted(out, key=lambda unit: unit[0])


def low_after(
    oldest: Sequence[tuple[Place, SegmentName | JournalFacts]], size: Callable[[SegmentName | JournalFacts], int], free_bytes: int, rest: Place
) -> Place | None:
    """Return the new `low` when the oldest units that together have free_bytes are gone; None if there is nothing to evict.

    rest: the first reading that can not be evicted (in the journal being written, or to come).
    """
    if not oldest:
        return None
    for i, (_, unit) in enumerate(oldest):
        free_bytes -= size(unit)
        if free_bytes <= 0 and i + 1 < len(oldest):
            return oldest[i + 1][0]
    return rest
