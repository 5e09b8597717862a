"""The independent book: what was committed, what lies on the receiver's disk, what counts as new. Shares no module with the product.

It knows one thing about bytes: a reading is the text "<generation in hex.seq.value>", wherever it stands.
"""

from __future__ import annotations

import re

MARK = re.compile(rb"<([0-9a-f]{1,16})\.(\d{1,9})\.(\d{1,9})>")

Reading = tuple[int, int]  # generation, seq


class LedgerError(AssertionError):
    """A promise is broken."""


def on_disk(files: dict[str, bytes]) -> dict[Reading, set[int]]:
    """Return every reading in these files with the values found for it."""
    found: dict[Reading, set[int]] = {}
    for data in files.values():
        for generation, seq, value in MARK.findall(data):
            found.setdefault((int(generation, 16), int(seq)), set()).add(int(value))
    return found


def claimed_is_held(claimed: set[Reading], held: dict[Reading, set[int]]) -> None:
    """The cursor says these were receipted: they must be on the platter."""
    missing = sorted(claimed - held.keys())
    if missing:
        raise LedgerError(f"receipted and not on the receiver's disk: {missing[:3]} ({len(missing)})")


def nothing_missing(committed: list[tuple[int, int, int]], in_ring: set[Reading], held: dict[Reading, set[int]]) -> None:
    """At rest: whatever the ring still holds is at the receiver, and whatever is there is what was committed."""
    truth = {(generation, seq): value for generation, seq, value in committed}
    missing = sorted(in_ring - held.keys())
    if missing:
        raise LedgerError(f"in the ring, link good, never arrived: {missing[:3]} ({len(missing)})")
    for reading, values in held.items():
        if values != {truth.get(reading)}:
            raise LedgerError(f"{reading} has the values {values}, committed was {truth.get(reading)}")


def each_new_once(new: list[tuple[int, int, int]], held: dict[Reading, set[int]]) -> None:
    """`new` ranges (generation, first, last): every reading on the disk counts as new once, and nothing else does."""
    seen: set[Reading] = set()
    for generation, first, last in new:
        for seq in range(first, last + 1):
            if (generation, seq) in seen:
                raise LedgerError(f"({generation}, {seq}) is new twice: it would be delivered twice")
            seen.add((generation, seq))
    if seen - held.keys():
        raise LedgerError(f"new and not on the disk: {sorted(seen - held.keys())[:3]}")
