"""What a check found: one line a person can act on. Shared by check, the tag file and the probes of sources; and what a tag shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad. REFUSED stops a start or an apply; WARNING may be meant; INFO is how things are."""

    REFUSED = "refused"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """`where` is a file and cell, a source or a tag; `remedy` is one sentence in the imperative, "" where nothing is to be done."""

    level: Level
    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level} {self.where}: {self.what}" + (f"\n  {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class Live:
    """One tag as it stands now, for `check --values`. Text from the plant: whoever prints it encodes it.

    quality: in words, "Good" or the status; age_s: since the source's time, None where it gave none; sampling_s: as the source revised it
    or as it will be polled; keeps_s: of an outage that the server's queue bridges, 0 for none.
    """

    id: str
    source: str
    address: str
    value: str
    unit: str
    quality: str
    age_s: float | None
    sampling_s: float
    keeps_s: float
