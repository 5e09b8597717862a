"""What kill -9 leaves behind is seen in every plot, and the writer keeps the order of what one source hands it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from buffer.last import Reading
from buffer.types import BAD_NO_COMMUNICATION, Flag, Kind, make_columns
from gateway.collect import writer as writer_module
from gateway.collect.absence import markers_after
from gateway.collect.source import Batch
from gateway.collect.writer import Writer
from gateway.runtime import real

NOW = 1_700_000_000 * 10**9


def reading(ts: int, flags: int = 0) -> Reading:
    return Reading(ts, ts, Kind.DOUBLE, 1, 0, flags)


def test_one_marker_per_tag_that_shows_a_value_just_after_the_last_commit() -> None:
    last = {17: reading(NOW - 5), 16: reading(NOW + 10**9), 18: reading(NOW, Flag.MARKER)}
    marks = markers_after(last, NOW)
    assert marks.tag.tolist() == [16, 17]
    assert marks.ts_ns.tolist() == [NOW + 10**9 + 1000, NOW + 1000], "behind the newest reading, also of a source whose clock is ahead"
    assert set(marks.quality.tolist()) == {BAD_NO_COMMUNICATION}
    assert set(marks.flags.tolist()) == {Flag.MARKER}
    assert set(marks.kind.tolist()) == {Kind.NULL}
    assert len(markers_after({}, NOW)) == 0


@pytest.mark.parametrize("committed", [0, 946_684_800 * 10**9])
def test_a_clock_in_1970_or_2000_never_puts_a_marker_before_the_readings(committed: int) -> None:
    assert markers_after({16: reading(NOW)}, committed).ts_ns.tolist() == [NOW + 1000]


class CountingRing:
    def __init__(self) -> None:
        self.appended: list[int] = []

    def append(self, columns, source=None, position=None, gap=None) -> None:
        if source is not None:
            self.appended.append(int.from_bytes(position, "big"))

    def commit(self, now) -> None: ...

    def make_room(self, now) -> None: ...


async def test_a_batch_that_comes_just_as_room_is_made_does_not_overtake_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position that went back would have a message taken twice after kill -9."""
    monkeypatch.setattr(writer_module, "PENDING_READINGS_MAX", 3)
    ring = CountingRing()
    table = SimpleNamespace(source_number=lambda _name: 1)
    writer = Writer(ring, table, real(), lambda: None, 10**6)  # type: ignore[arg-type]
    columns = make_columns([16, 16], [1, 2], [Kind.DOUBLE] * 2, [0, 0], [0, 0])
    tasks: list[asyncio.Task[None]] = []

    def submit() -> None:
        if len(tasks) < 60:
            tasks.append(asyncio.create_task(writer.commit(Batch("plc", columns, len(tasks).to_bytes(4, "big")))))

    class Rush(asyncio.Event):
        def set(self) -> None:
            submit()
            super().set()

    writer._room = Rush()
    for _ in range(10):
        submit()
    run = asyncio.create_task(writer.run())
    while len(tasks) < 60 or not all(task.done() for task in tasks):
        await asyncio.sleep(0.001)
        submit()
    writer.stop()
    await run
    assert ring.appended == list(range(60))
