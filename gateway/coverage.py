"""Whether the plant was seen: from the notices of a stream, when each source was not covered, and why in one sentence. Pure.

A tag is covered over an interval if its source was connected with its values flowing, reading was not paused, its life bit moved, and
its item was Good without overflow; complete = covered and delivered (gateway.completeness). Notices come in order of commit per
generation, and again after a restore: a notice older than the last one taken of its source and kind changes nothing.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from buffer.notice import NoticeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES_MAX: Final = 1_000  # of one stream
HOLES_MAX: Final = 500  # remembered per source: a source that flaps every minute for a shift
REASON_CHARS_MAX: Final = 200


@dataclass(slots=True)
class Hole:
    """When one source was not covered, wall ns; until_ns 0: still not."""

    source: str
    since_ns: int
    reason: str
    until_ns: int = 0


@dataclass(slots=True)
class SourceState:
    """One source: up, down or unknown so far, and its holes in order."""

    name: str
    heard_ns: int = 0
    open: dict[str, Hole] = field(default_factory=dict)  # by cause: down, paused, frozen
    holes: deque[Hole] = field(default_factory=lambda: deque(maxlen=HOLES_MAX))
    overflows: int = 0

    @property
    def trouble(self) -> str:
        """Why it is not covered now, "" if it is."""
        return next((hole.reason for hole in self.open.values()), "")


_OPENS: Final = {"paused": "paused", "stands still": "frozen"}
_CLOSES: Final = {"resumed": "paused", "moves again": "frozen"}


class Coverage:
    """All sources of one stream."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceState] = {}
        self.events: deque[tuple[int, str, str]] = deque(maxlen=HOLES_MAX)  # ts, kind, text of notices without a source: ring, storage

    def take(self, kind: int, ts_ns: int, text: str) -> None:
        """Take one notice: its number, its time and its JSON."""
        try:
            body = json.loads(text)
        except ValueError:
            body = {}  # cut, or not ours: it is shown, and changes nothing
        if not isinstance(body, dict):
            body = {}
        name = str(body.get("source", ""))[:64]
        if not name:
            self._event(kind, ts_ns, body)
            return
        if name not in self.sources and len(self.sources) >= SOURCES_MAX:
            return
        source = self.sources.setdefault(name, SourceState(name))
        if ts_ns < source.heard_ns:
            return
        source.heard_ns = ts_ns
        self._source(source, kind, ts_ns, body)

    def _event(self, kind: int, ts_ns: int, body: dict[str, Any]) -> None:
        detail = ", ".join(f"{k}: {v}" for k, v in body.items() if k not in ("source", "event") and v not in ("", None))
        text = ": ".join(x for x in (str(body.get("event", "")), detail) if x)[:REASON_CHARS_MAX]
        name = NoticeKind(kind).name.lower() if kind in set(NoticeKind) else f"notice {kind}"
        self.events.append((ts_ns, name, text))
        if kind == NoticeKind.COLLECT and body.get("event") == "stopped in order":
            for source in self.sources.values():
                self._open(source, "stopped", ts_ns, "collecting was stopped in order")
        if kind == NoticeKind.COLLECT and body.get("event") == "started":
            for source in self.sources.values():
                self._close(source, "stopped", ts_ns)

    def _source(self, source: SourceState, kind: int, ts_ns: int, body: dict[str, Any]) -> None:
        event, reason = str(body.get("event", "")), str(body.get("reason", ""))
        if kind == NoticeKind.SOURCE_DOWN:
            since = body.get("since_ns")
            self._open(source, "down", since if type(since) is int and 0 < since <= ts_ns else ts_ns, reason or event or "not reachable")
        elif kind == NoticeKind.SOURCE_UP:
            self._close(source, "down", ts_ns)
        elif kind in (NoticeKind.OPERATOR, NoticeKind.FROZEN) and event in _OPENS:
            paused = f"paused by a person{': ' + reason if reason else ''}"
            self._open(source, _OPENS[event], ts_ns, paused if event == "paused" else f"its life bit {body.get('tag', '')} stands still")
        elif event in _CLOSES:
            self._close(source, _CLOSES[event], ts_ns)
        elif kind == NoticeKind.GAP and event == "queue overflow at the server":
            source.overflows += 1

    def _open(self, source: SourceState, cause: str, ts_ns: int, reason: str) -> None:
        hole = source.open.get(cause)
        if hole is not None:
            hole.reason = reason[:REASON_CHARS_MAX]
            return
        hole = source.open[cause] = Hole(source.name, ts_ns, reason[:REASON_CHARS_MAX])
        source.holes.append(hole)

    def _close(self, source: SourceState, cause: str, ts_ns: int) -> None:
        hole = source.open.pop(cause, None)
        if hole is not None:
            hole.until_ns = max(ts_ns, hole.since_ns)

    def holes(self, since_ns: int, now_ns: int) -> Iterator[Hole]:
        """Yield every hole that reaches into since..now."""
        for source in self.sources.values():
            for hole in source.holes:
                if (hole.until_ns or now_ns) >= since_ns and hole.since_ns <= now_ns:
                    yield hole
