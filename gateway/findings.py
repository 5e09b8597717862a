"""What a check found: one line a person can act on. Shared by check, the tag file and the probes of sources."""

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
