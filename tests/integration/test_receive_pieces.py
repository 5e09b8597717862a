"""Segments in pieces over real mutual TLS, many at a time: what one uploader has under way never hurts another request of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging

import pytest

from gateway.wire import request as wire
from gateway.wire.receipt import Verdict
from gateway.wire.request import Lane, format_target
from tests.integration.test_receive_tls import Plant, frames, plant, serving
from tests.support.frames import Source

__all__ = ["plant"]

SEGMENTS = 6  # more than an uploader has under way by default


async def slowly(plant: Plant, target, data: bytes, started: asyncio.Event) -> bytes:
    """PUT by hand: half, a pause until all others have begun, the rest."""
    text = format_target(target).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", plant.port, ssl=plant.context("hall1"))
    head = b"PUT " + text + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
    writer.write(head + data[: len(data) // 2])
    await writer.drain()
    await started.wait()
    writer.write(data[len(data) // 2 :])
    answer = await reader.readuntil(b"\r\n")
    writer.close()
    return answer


async def test_more_segments_in_pieces_at_a_time_than_fit_are_all_answered(plant: Plant) -> None:
    source = Source([20] * SEGMENTS)
    bodies = [source.segment(n, n).wire() for n in range(SEGMENTS)]
    async with serving(plant):
        await plant.objects()
        targets = [dataclasses.replace(frames(source, n, n, lane=Lane.BACKFILL), offset=0, length=len(bodies[n])) for n in range(SEGMENTS)]
        started = asyncio.Event()
        tasks = [asyncio.create_task(slowly(plant, targets[n], bodies[n], started)) for n in range(SEGMENTS)]
        await asyncio.sleep(0.5)
        started.set()
        assert [answer.split()[1] for answer in await asyncio.gather(*tasks)] == [b"200"] * SEGMENTS
    records = plant.reader().records(Lane.BACKFILL, 0, 99)
    assert [plant.reader().frame(record).wire() for record in sorted(records, key=lambda r: r.first_block)] == bodies


async def test_the_same_segment_twice_at_a_time_is_stored_once_and_answered_twice(plant: Plant) -> None:
    """An uploader gave up a dead connection and continues on a new one before the receiver has noticed."""
    source = Source([20])
    data = source.segment(0, 0).wire()
    async with serving(plant):
        await plant.objects()
        target = dataclasses.replace(frames(source, 0, 0, lane=Lane.BACKFILL), offset=0, length=len(data))
        started = asyncio.Event()
        old = asyncio.create_task(slowly(plant, target, data, started))
        await asyncio.sleep(0.3)
        at = len(data) // 2
        new = await plant.receipt(dataclasses.replace(target, offset=at), data[at:])
        assert new.verdict == Verdict.STORED
        started.set()
        assert (await old).split()[1] == b"200"
    assert len(plant.reader().records(Lane.BACKFILL, 0, 9)) == 1


async def test_a_large_body_that_is_turned_away_is_read_out_so_that_the_answer_arrives(plant: Plant) -> None:
    source = Source([1])
    target = dataclasses.replace(frames(source, 0, 0, lane=Lane.BACKFILL), offset=0, length=6_000_000)
    async with serving(plant):
        await plant.objects()
        for _ in range(3):
            assert (await plant.receipt(target, bytes(6_000_000))).verdict == Verdict.REFUSED
            ahead = await plant.receipt(dataclasses.replace(target, offset=5), bytes(5_000_000))
            assert (ahead.verdict, ahead.offset) == (Verdict.PARTIAL, 0)


async def test_a_defect_of_ours_is_an_answer_and_an_event(plant: Plant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    source = Source([1])
    async with serving(plant):
        await plant.objects()
        with monkeypatch.context() as patch:
            patch.setattr("gateway.receive.landing.Landing.land", lambda self, arrivals: 1 // 0)
            with caplog.at_level(logging.ERROR):
                status, body = await plant.put(frames(source, 0, 0), source.blocks[0].wire())
        assert (status, body) == (wire.DEFECT, b"")
        events = [record for record in caplog.records if record.getMessage() == "defect" and record.name == "gateway.receive.app"]
        assert len(events) == 1 and events[0].exc_info is not None
        assert json.dumps(events[0].data)  # type: ignore[attr-defined]
        assert (await plant.receipt(frames(source, 0, 0), source.blocks[0].wire())).verdict == Verdict.STORED, "and it goes on"
