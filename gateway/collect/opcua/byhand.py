"""Fills by hand: holes that a person named (gateway.fillorder), asked from the history as the debts of a gap of their own.

The gap is committed as open together with what it is about, so that a kill leaves both or neither:

    progress (28 bytes) = first 8 bytes of the order's id | progress as of any fill (gateway.collect.opcua.debt), places: of the holes from 1

Nothing twice. A hole lies between two readings that the ring held at a moment of its present generation, and no history of the source was
committed since, or the order is not begun. What is committed later is either live, and newer than all that was held of the tag, or owed
for a gap that opened later, from the newest live reading on: so a hole ends at the newest live reading at the latest (the `last` that the
ring keeps with the gap). While another gap is open nothing is begun, and when one opens the fill gives way: its place is in the ring.
A kill goes on with the order as long as its file is there; where it is gone or another, the gap closes as unfillable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from buffer.notice import NoticeKind
from buffer.types import empty_columns
from gateway.collect.opcua.debt import PROGRESS_BYTES, Debt
from gateway.collect.source import Batch, GapChange, GapStep
from gateway.fillorder import FillOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.collect.opcua.feed import Feed
    from gateway.collect.source import Gap

_ID_BYTES: Final = 8
NOT_BEGUN: Final = "not begun: the ring has gone on since it was written; say `ebbgate fill` again"


def by_hand(gap: Gap) -> bool:
    """Say whether a person asked for this gap."""
    return len(gap.progress) == _ID_BYTES + PROGRESS_BYTES


def first_progress(order: FillOrder) -> bytes:
    """Return what is committed with a gap of a person's asking."""
    return bytes.fromhex(order.id) + bytes(PROGRESS_BYTES)


def split_progress(progress: bytes) -> tuple[bytes, bytes]:
    """Return what goes before every progress of this gap, and how far the fill has come."""
    head, rest = progress[:_ID_BYTES], progress[_ID_BYTES:]
    return head, rest if any(rest) else b""


def debts_by_hand(order: FillOrder, gap: Gap, numbers: Mapping[str, int], nodes: Mapping[int, str], window_ns: int) -> tuple[list[Debt], str]:
    """Return what is owed, in order of time, and whether the window leaves some of it out. numbers: tag id -> number; nodes: of numbers."""
    debts, clipped = [], False
    for place, hole in enumerate(order.holes, 1):
        number = numbers.get(hole.tag, 0)
        last = gap.last.get(number)
        if last is None or number not in nodes:
            continue
        before_ns = min(hole.before_ns, last.ts_source_ns)
        after_ns = max(hole.after_ns, before_ns - window_ns)
        if before_ns - after_ns > 1:
            clipped |= after_ns > hole.after_ns
            debts.append(Debt(number, nodes[number], after_ns, before_ns, place))
    return debts, "older than history_fill" if clipped else ""


class Hand:
    """What people asked of one source, and what came of it."""

    def __init__(self, asked: Callable[[], FillOrder | str | None] = lambda: None, result: Mapping[str, Any] | None = None) -> None:
        """asked: gateway.collect.control.Control. result: of the last order, as `status` shows it."""
        self._asked = asked
        self.result: dict[str, Any] = dict(result or {})
        self._refused = ""
        self.history_ns = 0  # monotonic: when history of this source was last committed

    def order(self) -> FillOrder | None:
        """Return the order that lies there, begun or not."""
        asked = self._asked()
        return asked if isinstance(asked, FillOrder) else None

    def of(self, gap: Gap) -> FillOrder | None:
        """Return the order that an open gap is about; None where its file is gone or another."""
        order = self.order()
        return order if order is not None and bytes.fromhex(order.id) == split_progress(gap.progress)[0] else None

    async def begin(self, feed: Feed) -> None:
        """Open a gap for an order that is new. Call where no gap of the source is open or opening."""
        asked = self._asked()
        if self.result.get("state") == "filling":  # its gap is open no more, and nobody closed it
            self.closed(str(GapStep.UNFILLABLE), "given up: too many gaps were open", self.result["readings"])
        if isinstance(asked, str) and asked != self._refused:
            self._refused = asked
            feed.notice(NoticeKind.OPERATOR, event="fill refused", reason=asked)
        if not isinstance(asked, FillOrder) or asked.id == self.result.get("id"):
            return
        if not asked.fresh or asked.as_of_ns <= self.history_ns:
            self.result = {"id": asked.id, **_about(asked), "state": "refused", "reason": NOT_BEGUN}
            feed.notice(NoticeKind.OPERATOR, event="fill refused", reason=NOT_BEGUN, **_about(asked))
            return
        self.filling(asked)
        feed.notice(NoticeKind.OPERATOR, event="fill begun", **_about(asked))
        await feed.committer.submit(Batch(feed.name, empty_columns(), None, GapChange(GapStep.OPEN, 0, asked.from_ns, first_progress(asked))))

    def filling(self, order: FillOrder) -> None:
        """Note that this order is being paid."""
        if self.result.get("id") != order.id or self.result["state"] != "filling":
            self.result = {"id": order.id, **_about(order), "state": "filling", "reason": "", "asked": 0, "readings": 0}

    def closed(self, state: str, reason: str, readings: int) -> None:
        """Note what came of it. readings: since the last start."""
        self.result |= {"state": state, "reason": reason, "readings": readings}
        self.result.pop("asked", None)

    @property
    def lasting(self) -> dict[str, Any]:
        """What is worth remembering over a restart: an order that is being paid is known by its gap."""
        return self.result if self.result.get("state") not in (None, "filling") else {}


def _about(order: FillOrder) -> dict[str, Any]:
    return {"by": order.by, "from_ns": order.from_ns, "to_ns": order.to_ns, "tags": order.tags, "holes": len(order.holes)}
