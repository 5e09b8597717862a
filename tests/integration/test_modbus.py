"""A Modbus source from registers to batches: against an asyncio device that records everything, and against libmodbus in C."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buffer.errors import StorageFault
from buffer.notice import NoticeKind
from buffer.types import BAD_NO_COMMUNICATION, BAD_OUT_OF_SERVICE, GOOD, UNCERTAIN, Flag, Kind
from gateway.checks import check_all
from gateway.collect.clock import GatewayClock
from gateway.collect.modbus import outbox, probe
from gateway.collect.modbus import source as source_module
from gateway.collect.modbus.group import BAD_CONFIGURATION_ERROR, BAD_TIMEOUT
from gateway.collect.modbus.hub import Hubs
from gateway.collect.modbus.source import ModbusSource
from gateway.collect.source import Batch, Known, Reading
from gateway.errors import ConfigError, PlantError
from gateway.findings import Level
from gateway.runtime import real
from gateway.settings import Alive, Load, TagRow
from gateway.settings import ModbusSource as Settings
from gateway.tagarrays import expand_rows
from tests.support.libmodbus import Server, free_port, pty_pair
from tests.support.modbus_device import Device, running
from tests.support.site import Site

PATIENCE_S = 30.0  # a hang ends here; nothing is measured
FAST = Load(requests_per_s=500.0, duty=1.0)


class RecordingSink:
    """Implements gateway.collect.source.Sink in memory."""

    def __init__(self, last: dict[int, Reading] | None = None) -> None:
        self.batches: list[Batch] = []
        self.notices: list[tuple[NoticeKind, dict[str, Any]]] = []
        self.last = last or {}
        self.fault: StorageFault | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, batch: Batch) -> None:
        await self.gate.wait()
        if self.fault:
            raise self.fault
        self.batches.append(batch)

    def known(self, source: str) -> Known:
        return Known(None, self.last, ())

    def notice(self, kind: int, source: str, **detail: object) -> None:
        self.notices.append((NoticeKind(kind), {"source": source, **detail}))

    def rows(self, number: int) -> list[tuple[int, int, int, int, int]]:
        """Return kind, value, quality, flags, ts of one tag, in order."""
        out = []
        for batch in self.batches:
            c = batch.columns
            for i in range(len(c)):
                if c.tag[i] == number:
                    out.append((int(c.kind[i]), int(c.values[i]), int(c.quality[i]), int(c.flags[i]), int(c.ts_ns[i])))
        return out

    def events(self, *kinds: NoticeKind) -> list[Any]:
        return [detail.get("event") or detail.get("state") for kind, detail in self.notices if kind in kinds]


class Switch:
    """Implements the pause protocol."""

    on = False

    def paused(self, source: str) -> bool:
        return self.on


def tag(number: int, address: str, type_: str = "uint16", **more: object) -> TagRow:
    row = TagRow(f"t{number}", f"p/{number}", "m", address, type_, number=number, every_ns=50_000_000)
    return replace(row, **more)  # type: ignore[arg-type]


def settings(address: str, *tags: TagRow, **more: object) -> Settings:
    base = Settings("m", "modbus-tcp", address, timeout_ns=200_000_000, load=FAST, tags=tags)
    return replace(base, **more)  # type: ignore[arg-type]


def build(one: Settings, folder: Path, switch: Switch | None = None, hubs: Hubs | None = None) -> ModbusSource:
    runtime = real()
    clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), 0, 0)
    return ModbusSource(one, runtime, clock, switch or Switch(), folder, hubs or Hubs(runtime))


@asynccontextmanager
async def polling(source: ModbusSource, sink: RecordingSink) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(source.run(sink))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BACK_OFF_S", (0.05, 0.1, 0.2, 0.3))


# ---- values ----


async def test_values_of_all_tables_with_the_time_of_their_request(tmp_path: Path) -> None:
    device = Device()
    device.delay_s = 0.1
    seen_ns: list[int] = []
    real_answer = device.answer

    def answer(pdu: bytes, unit: int) -> bytes | None:
        seen_ns.append(time.time_ns())
        return real_answer(pdu, unit)

    device.answer = answer  # type: ignore[method-assign]
    sink = RecordingSink()
    async with running(device) as address:
        tags = (tag(16, "hr:7"), tag(17, "ir:52", "int32"), tag(18, "co:3", ""), tag(19, "di:3", ""), tag(20, "hr:5.2", ""))
        async with polling(build(settings(address, *tags), tmp_path), sink):
            await until(lambda: sink.batches)
    got = {n: sink.rows(n)[0] for n in range(16, 21)}
    assert {n: row[:3] for n, row in got.items()} == {
        16: (Kind.INT64, 7, GOOD),
        17: (Kind.INT64, 1052 << 16 | 1053, GOOD),
        18: (Kind.BOOL, 1, GOOD),
        19: (Kind.BOOL, 1, GOOD),
        20: (Kind.BOOL, 1, GOOD),
    }
    assert all(row[3] == Flag.INITIAL for row in got.values())
    assert {row[1:3] for row in (r[1:] for r in device.requests)} == {(1, 3), (2, 3), (3, 5), (3, 7), (4, 52)}
    order = [18, 19, 20, 16, 17]  # by function and address; the middle lies after the request came and before its answer went
    for arrived, number in zip(seen_ns, order, strict=False):
        assert arrived - 20_000_000 < got[number][4] < arrived + 100_000_000


async def test_only_changes_are_committed_and_equal_to_the_ring_is_nothing(tmp_path: Path) -> None:
    device = Device()
    sink = RecordingSink({16: Reading(5, 5, Kind.INT64, 7, GOOD, 0)})
    async with running(device) as address:
        source = build(settings(address, tag(16, "hr:7"), tag(17, "hr:8", heartbeat_ns=150_000_000)), tmp_path)
        async with polling(source, sink):
            await until(lambda: len(sink.rows(17)) >= 3)
            assert sink.rows(16) == []
            device.registers[3, 7] = 99
            await until(lambda: sink.rows(16))
    assert sink.rows(16)[0][1] == 99
    assert [row[3] for row in sink.rows(17)[:3]] == [Flag.INITIAL, Flag.REPEATED, Flag.REPEATED]


async def test_gap_registers_are_never_read(tmp_path: Path) -> None:
    device = Device()
    sink = RecordingSink()
    async with running(device) as address:
        tags = [tag(16 + i, f"hr:{a}") for i, a in enumerate((0, 1, 3, 10, 11, 40))]
        async with polling(build(settings(address, *tags), tmp_path), sink):
            await until(lambda: len(device.requests) > 12)
    assert {(r[3], r[4]) for r in device.requests} == {(0, 2), (3, 1), (10, 2), (40, 1)}


# ---- outages ----


async def test_down_marks_every_tag_once_and_up_brings_every_value_back(tmp_path: Path) -> None:
    device = Device()
    sink = RecordingSink()
    port = free_port()
    tags = (tag(16, "hr:1"), tag(17, "hr:9", every_ns=10**11))
    source = build(settings(f"127.0.0.1:{port}", *tags), tmp_path)
    async with polling(source, sink):
        await until(lambda: sink.rows(17))
        await asyncio.sleep(0.6)
        assert [row[2] for row in sink.rows(16)] == [BAD_NO_COMMUNICATION]
        assert [row[2] for row in sink.rows(17)] == [BAD_NO_COMMUNICATION]
        assert sink.rows(16)[0][3] == Flag.MARKER
        async with running(device, port):
            await until(lambda: len(sink.rows(16)) > 1)
        await until(lambda: len(sink.rows(16)) > 2)
        assert [row[2] for row in sink.rows(16)] == [BAD_NO_COMMUNICATION, GOOD, BAD_NO_COMMUNICATION]
    assert sink.events(NoticeKind.SOURCE_DOWN, NoticeKind.SOURCE_UP) == ["down", "up", "down"]
    assert "refused the connection" in sink.notices[0][1]["reason"]
    assert [row[2] for row in sink.rows(16)][-1] == BAD_OUT_OF_SERVICE


async def test_one_lost_answer_is_no_outage(tmp_path: Path) -> None:
    device = Device()
    sink = RecordingSink()
    async with running(device) as address:
        async with polling(build(settings(address, tag(16, "hr:1")), tmp_path), sink):
            await until(lambda: sink.rows(16))
            device.lose = 1
            await until(lambda: device.lose == 0)
            device.registers[3, 1] = 50
            await until(lambda: len(sink.rows(16)) == 2)
    assert [row[1] for row in sink.rows(16)[:2]] == [1, 50]
    assert sink.events(NoticeKind.SOURCE_DOWN) == []


async def test_a_silent_device_costs_one_timeout_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BACK_OFF_S", (0.3, 0.3, 0.3, 0.3))
    device = Device()
    device.silent_units = {1}
    sink = RecordingSink()
    async with running(device) as address:
        async with polling(build(settings(address, *(tag(16 + i, f"hr:{3 * i}") for i in range(20))), tmp_path), sink):
            await until(lambda: len(device.requests) == 4)
    starts = [request[0] for request in device.requests]
    assert all(b - a >= 0.2 + 0.3 * 0.75 - 0.05 for a, b in zip(starts, starts[1:], strict=False))


async def test_orderly_stop_and_pause_write_out_of_service(tmp_path: Path) -> None:
    device, sink, switch = Device(), RecordingSink(), Switch()
    async with running(device) as address:
        async with polling(build(settings(address, tag(16, "hr:1")), tmp_path, switch), sink):
            await until(lambda: sink.rows(16))
            assert device.open == 1
            switch.on = True
            await asyncio.sleep(1.0)  # the promise: within a second
            assert device.open == 0
            asked = len(device.requests)
            await asyncio.sleep(0.3)
            assert len(device.requests) == asked
            switch.on = False
            await until(lambda: len(sink.rows(16)) == 3)
    assert [row[2] for row in sink.rows(16)] == [GOOD, BAD_OUT_OF_SERVICE, GOOD, BAD_OUT_OF_SERVICE]
    assert sink.events(NoticeKind.SOURCE_DOWN, NoticeKind.SOURCE_UP) == ["up", "paused", "up"]


async def test_pause_does_not_wait_for_a_slow_answer(tmp_path: Path) -> None:
    device, sink, switch = Device(), RecordingSink(), Switch()
    device.delay_s = 20.0
    async with running(device) as address:
        async with polling(build(settings(address, tag(16, "hr:1"), timeout_ns=30 * 10**9), tmp_path, switch), sink):
            await until(lambda: device.requests)
            switch.on = True
            await asyncio.sleep(1.0)
            assert sink.rows(16)[0][2] == BAD_OUT_OF_SERVICE


# ---- holes ----


async def test_refused_registers_are_bad_alone_and_remembered(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    device.missing = {(3, 5)}
    tags = [tag(16 + i, f"hr:{i}") for i in range(12)]
    async with running(device) as address:
        async with polling(build(settings(address, *tags), tmp_path), sink):
            await until(lambda: sink.rows(27))
            device.registers[3, 11] = 77
            await until(lambda: len(sink.rows(27)) == 2)
            settled = len(device.requests)
            await until(lambda: len(device.requests) > settled + 6)
            assert not any(r[3] <= 5 < r[3] + r[4] for r in device.requests[settled:])  # at rest
        for i in range(12):
            assert sink.rows(16 + i)[0][2] == (BAD_CONFIGURATION_ERROR if i == 5 else GOOD), i
        told = [detail for kind, detail in sink.notices if kind is NoticeKind.TAG]
        assert [(d["event"], d["tags"]) for d in told] == [("refused", ["t21"])]
        device.requests.clear()
        again = RecordingSink()
        async with polling(build(settings(address, *tags), tmp_path), again):
            await until(lambda: again.rows(21))
        first_round = [(r[3], r[4]) for r in device.requests[: len({(r[3], r[4]) for r in device.requests})]]
        assert (5, 1) in first_round  # asked for alone at once: the split was remembered
        assert not any(start < 5 < start + count for start, count in first_round)


async def test_a_device_that_refuses_everything_is_up_bad_and_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.collect.modbus import holes

    monkeypatch.setattr(holes, "REST_NS", (200_000_000, 200_000_000, 200_000_000))
    device, sink = Device(), RecordingSink()
    device.exception = 4
    tags = [tag(16 + i, f"hr:{i}") for i in range(8)]
    async with running(device) as address:
        source = build(settings(address, *tags), tmp_path)
        async with polling(source, sink):
            await until(lambda: source.status()["refused"] == 8)
            await until(lambda: sink.rows(16))
            asked = len(device.requests)
            await asyncio.sleep(0.7)
            assert len(device.requests) - asked <= 4  # one block, once per rest, not split again
            device.exception = 0
            device.requests.clear()
            await until(lambda: len(sink.rows(23)) == 2)
            assert source.status()["refused"] == 0
    assert {(r[3], r[4]) for r in device.requests} == {(0, 8)}
    assert sink.events(NoticeKind.SOURCE_DOWN) == []


async def test_a_block_that_is_silent_while_others_answer_is_split_not_an_outage(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    tags = [tag(16, "ir:0"), *(tag(17 + i, f"hr:{20 + i}") for i in range(4))]
    async with running(device) as address:
        async with polling(build(settings(address, *tags, timeout_ns=50_000_000), tmp_path), sink):
            await until(lambda: sink.rows(20))
            device.silent = {(3, 21)}
            await until(lambda: "t18" in str(sink.notices))
            device.registers = {(3, 20): 5, (3, 22): 5, (3, 23): 5, (4, 0): 5}
            await until(lambda: all(sink.rows(n)[-1][1:3] == (5, GOOD) for n in (16, 17, 19, 20)))
            assert sink.rows(18)[-1][2] == BAD_TIMEOUT
    told = [detail for kind, detail in sink.notices if kind is NoticeKind.TAG]
    assert [d["tags"] for d in told] == [["t18"]]
    assert sink.events(NoticeKind.SOURCE_DOWN) == []


async def test_the_only_block_silent_for_one_value_is_found_out(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    device.silent = {(3, 2)}
    async with running(device) as address:
        tags = [tag(16 + i, f"hr:{i}") for i in range(4)]
        async with polling(build(settings(address, *tags, timeout_ns=50_000_000), tmp_path), sink):
            await until(lambda: all(sink.rows(n) and sink.rows(n)[-1][2] == GOOD for n in (16, 17, 19)))


# ---- load ----


async def test_the_device_sees_no_more_than_the_contract_also_over_restarts(tmp_path: Path) -> None:
    device = Device()
    tags = [tag(16 + i, f"hr:{3 * i}") for i in range(10)]
    load = Load(requests_per_s=20.0, duty=1.0)
    async with running(device) as address:
        began = time.monotonic()
        for _ in range(6):
            async with polling(build(settings(address, *tags, load=load), tmp_path), RecordingSink()):
                await asyncio.sleep(0.25)
        with suppress(PlantError):
            await probe.check(settings(address, *tags, load=load), real(), tmp_path)
        elapsed = time.monotonic() - began
    assert len(device.requests) <= elapsed * 20 + 1
    assert len(device.requests) >= 12


async def test_late_polls_are_skipped_counted_and_said_never_made_up_for(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    device.delay_s = 0.12
    async with running(device) as address:
        source = build(settings(address, tag(16, "hr:1"), timeout_ns=10**9), tmp_path)
        async with polling(source, sink):
            await until(lambda: len(device.requests) >= 4)
            device.delay_s = 0.0
            before = len(device.requests)
            await asyncio.sleep(0.4)
            assert len(device.requests) - before <= 10  # 8 due times and the edges: nothing is caught up
    assert source.status()["polls_skipped"] >= 4  # type: ignore[operator]
    assert sink.events(NoticeKind.LOAD) == ["polls skipped"]


async def test_polls_that_a_tolerated_silence_costs_are_counted_and_said(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    async with running(device) as address:
        source = build(settings(address, tag(16, "hr:1"), timeout_ns=10**8), tmp_path)
        async with polling(source, sink):
            await until(lambda: len(device.requests) >= 4 and source.status()["state"] == "up")
            before = source.status()["polls_skipped"]
            device.lose = 1
            await until(lambda: device.lose == 0)
            asked = len(device.requests)
            await until(lambda: len(device.requests) > asked)
            assert source.status()["polls_skipped"] >= before + 2  # type: ignore[operator] -- the timeout alone is two periods
    assert "polls skipped" in sink.events(NoticeKind.LOAD)
    assert sink.events(NoticeKind.SOURCE_DOWN) == []


async def test_blocks_that_nobody_asked_for_after_a_silence_count_as_a_poll_missed(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    async with running(device) as address:
        source = build(settings(address, *(tag(16 + i, f"hr:{100 * i}", every_ns=10**9) for i in range(3)), timeout_ns=10**8), tmp_path)
        async with polling(source, sink):
            await until(lambda: len(device.requests) >= 6)
            device.silent = {(3, 100)}
            await until(lambda: source.status()["polls_skipped"] >= 1)  # type: ignore[operator]
            device.silent = set()
    assert "polls skipped" in sink.events(NoticeKind.LOAD)


async def test_a_ring_that_does_not_take_stops_the_polling_not_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "READINGS_MAX", 5)
    device, sink = Device(), RecordingSink()
    sink.gate.clear()
    async with running(device) as address:
        source = build(settings(address, tag(16, "hr:1")), tmp_path)
        async with polling(source, sink):
            async with asyncio.timeout(PATIENCE_S):
                while len(device.requests) < 6 and source.status()["polls_skipped"] == 0:
                    device.registers[3, 1] = device.registers.get((3, 1), 0) + 1
                    await asyncio.sleep(0.02)
                for _ in range(20):
                    device.registers[3, 1] += 1
                    await asyncio.sleep(0.02)
            asked = len(device.requests)
            await asyncio.sleep(0.3)
            assert len(device.requests) == asked
            sink.gate.set()
            await until(lambda: len(device.requests) > asked)
    assert len(sink.rows(16)) >= 5


async def test_a_disk_that_failed_for_good_stops_the_source(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    sink.fault = StorageFault("gone", path="ring")
    async with running(device) as address:
        with pytest.raises(StorageFault):
            async with asyncio.timeout(PATIENCE_S):
                await build(settings(address, tag(16, "hr:1")), tmp_path).run(sink)


# ---- sharing, options ----


async def test_two_units_share_one_connection_and_a_dead_one_does_not_stop_the_other(tmp_path: Path) -> None:
    device = Device()
    device.silent_units = {9}
    runtime = real()
    hubs = Hubs(runtime)
    good, bad = RecordingSink(), RecordingSink()
    async with running(device) as address:
        one = settings(address, tag(16, "hr:1"))
        two = replace(one, name="n", unit=9, tags=(tag(17, "hr:1"),))
        async with polling(build(one, tmp_path, hubs=hubs), good), polling(build(two, tmp_path, hubs=hubs), bad):
            await until(lambda: bad.rows(17))
            before = len([r for r in device.requests if r[1] == 1])
            await until(lambda: len([r for r in device.requests if r[1] == 1]) > before + 10)
            assert device.open <= 1
    assert good.events(NoticeKind.SOURCE_DOWN) == []
    assert bad.rows(17)[0][2] == BAD_NO_COMMUNICATION
    with pytest.raises(ConfigError, match="share"):
        hubs.of(replace(two, kind="modbus-rtu-tcp"))


async def test_a_gateway_that_answers_for_a_silent_unit_keeps_its_connection(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    device.exception = 11
    async with running(device) as address:
        async with polling(build(settings(address, tag(16, "hr:1")), tmp_path), sink):
            await until(lambda: sink.rows(16))
            await until(lambda: len(device.requests) >= 4)
            device.exception = 0
            await until(lambda: len(sink.rows(16)) == 2)
    assert device.connections == 1
    assert [row[2] for row in sink.rows(16)[:2]] == [BAD_NO_COMMUNICATION, GOOD]
    assert "silent" in sink.notices[0][1]["reason"]


async def test_close_after_poll(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    async with running(device) as address:
        async with polling(build(settings(address, tag(16, "hr:1", every_ns=300_000_000), close_after_poll=True), tmp_path), sink):
            await until(lambda: device.connections >= 3)
            await until(lambda: device.open == 0)
    assert sink.events(NoticeKind.SOURCE_DOWN) == []


@pytest.mark.parametrize("identify", [False, True])
async def test_identification_only_where_it_is_allowed(tmp_path: Path, identify: bool) -> None:
    device, sink = Device(), RecordingSink()
    async with running(device) as address:
        async with polling(build(settings(address, tag(16, "hr:1"), identify=identify), tmp_path), sink):
            await until(lambda: sink.rows(16))
    assert (b"\x2b\x0e" in device.received) == identify
    up = next(detail for kind, detail in sink.notices if kind is NoticeKind.SOURCE_UP)
    assert up.get("device") == ({"vendor": "ACME", "product": "M1"} if identify else None)


async def test_a_life_bit_that_stands_still_makes_good_uncertain(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    async with running(device) as address:
        one = settings(address, tag(16, "hr:1"), tag(17, "hr:9"), alive=Alive("t16", 200_000_000))
        async with polling(build(one, tmp_path), sink):
            await until(lambda: len(sink.rows(17)) == 2)
            device.registers[3, 1] = 2
            await until(lambda: len(sink.rows(17)) == 3)
    assert [row[2] for row in sink.rows(17)[:3]] == [GOOD, UNCERTAIN, GOOD]
    assert sink.events(NoticeKind.FROZEN)[:2] == ["stands still", "moves again"]


async def test_an_untrusted_clock_is_flagged(tmp_path: Path) -> None:
    device, sink = Device(), RecordingSink()
    runtime = real()
    clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), runtime.wall_ns() + 10**18, 0)
    async with running(device) as address:
        source = ModbusSource(settings(address, tag(16, "hr:1")), runtime, clock, Switch(), tmp_path, Hubs(runtime))
        async with polling(source, sink):
            await until(lambda: sink.rows(16))
    assert sink.rows(16)[0][3] == Flag.INITIAL | Flag.CLOCK_UNTRUSTED
    assert sink.rows(16)[0][4] > runtime.wall_ns() + 10**17


def test_tags_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"t16: '17'[\s\S]*t17: 'hr:1' has no type"):
        build(settings("127.0.0.1:502", tag(16, "17"), tag(17, "hr:1", "")), tmp_path)


# ---- first contact ----


async def test_check_finds_refused_tags_cost_and_silence(tmp_path: Path) -> None:
    device = Device()
    device.missing = {(3, 2)}
    async with running(device) as address:
        one = settings(address, *(tag(16 + i, f"hr:{i}", line=2 + i) for i in range(4)), identify=True)
        found = await probe.check(one, real(), tmp_path)
        assert [f.where for f in found if f.level is Level.REFUSED] == ["row 4, t18"]
        assert "from 0 or from 1" in next(f.remedy for f in found if f.level is Level.REFUSED)
        assert any("4 tags in 1 requests" in f.what for f in found)
        assert any("ACME" in f.what for f in found)
        slow = replace(one, load=Load(requests_per_s=1.0))
        assert any("polls will be skipped" in f.what for f in await probe.check(slow, real(), tmp_path, contact=False))
    found = await probe.check(settings("127.0.0.1:1", tag(16, "hr:1")), real(), tmp_path)
    assert "refused the connection" in found[-1].what
    found = await probe.check(settings("127.0.0.1:1", tag(16, "17")), real(), tmp_path, contact=False)
    assert "hr:17" in found[0].what


async def test_check_says_what_would_keep_collect_from_starting(tmp_path: Path) -> None:
    one = settings("127.0.0.1:502", tag(16, "hr:1"))
    other = replace(one, name="other", kind="modbus-rtu-tcp")
    found = await check_all(replace(Site(tmp_path, 0).gateway(1), sources=(one, other)), real(), contact=False)
    assert [f.where for f in found if "share 127.0.0.1:502 but differ in kind" in f.what and f.level is Level.REFUSED] == ["source.other"]


async def test_read_shows_every_way_to_understand_it(tmp_path: Path) -> None:
    device = Device()
    device.registers = {(3, 0): 0x0000, (3, 1): 0x41C8, (3, 2): 0x4142, (3, 3): 0x4300}
    async with running(device) as address:
        one = settings(address, order="CDAB")
        shown = await probe.read(one, real(), tmp_path, "40001", "float32")
        assert [(s.type, s.order, s.value, s.raw) for s in shown] == [("float32", "CDAB", "25", "00 00 41 c8")]
        every = await probe.read(one, real(), tmp_path, "hr:0", all_orders=True)
        assert ("float32", "CDAB", "25") in [(s.type, s.order, s.value) for s in every]
        assert {s.order for s in every} >= {"ABCD", "CDAB", "BADC", "DCBA"}
        assert (await probe.read(one, real(), tmp_path, "co:3"))[0].value == "1"
        device.missing = {(3, i) for i in range(3, 20)}
        assert any(s.value == "25" for s in await probe.read(one, real(), tmp_path, "hr:0"))
        with pytest.raises(ConfigError, match="hr:5"):
            await probe.read(one, real(), tmp_path, "5")
        with pytest.raises(ConfigError, match="forbidden"):
            await probe.read(replace(one, forbidden=("hr:0-9",)), real(), tmp_path, "hr:5")
        asked = len(device.requests)
        await probe.read(replace(one, forbidden=("hr:2",)), real(), tmp_path, "hr:0")
        assert [(r[3], r[4]) for r in device.requests[asked:]] == [(0, 2)]
        with pytest.raises(PlantError, match="exception 2"):
            await probe.read(one, real(), tmp_path, "hr:9", "uint16")


async def test_check_shows_the_neighbours_of_a_refused_value_and_goes_on_behind_a_silent_one(tmp_path: Path) -> None:
    device, live = Device(), []
    device.missing, device.silent = {(3, 2)}, {(3, 10)}
    device.registers[3, 20] = 7
    async with running(device) as address:
        tags = [tag(16 + i, f"hr:{i}", line=2 + i) for i in (0, 1, 2, 10, 20)]
        found = await probe.check(settings(address, *tags, timeout_ns=200_000_000), real(), tmp_path, live=live)
    refused = [f for f in found if f.level is Level.REFUSED]
    assert [f.where for f in refused] == ["row 4, t18", "row 12, t26"]
    assert refused[1].what == "hr:10: no answer within 0.2 s" and "answers other requests" in refused[1].remedy
    assert [one.value for one in live] == ["0", "1", "", "", "7"]
    assert [one.quality.partition(" ")[0] for one in live] == ["Good", "Good", "BadConfigurationError", "BadTimeout", "Good"]


@pytest.mark.parametrize(("code", "asked"), [(2, 4), (6, 1), (11, 1)])
async def test_check_tries_the_parts_only_of_what_may_be_refused_for_a_part(tmp_path: Path, code: int, asked: int) -> None:
    device = Device()
    device.exception = code
    async with running(device) as address:
        found = await probe.check(settings(address, *(tag(16 + i, f"hr:{i}") for i in range(3))), real(), tmp_path)
    assert len(device.requests) == asked
    assert any(f"exception {code}" in f.what for f in found if f.level is Level.REFUSED)


@pytest.mark.parametrize(
    ("address", "type_", "told"),
    [
        ("hr:0", "uint16[126]", "in one request"),
        ("hr:65535", "float32", "beyond the last register"),
        ("co:3", "uint16", "is one bit"),
        ("hr:5.3", "float32", "is one bit"),
    ],
)
async def test_read_asks_for_nothing_that_no_tag_could(tmp_path: Path, address: str, type_: str, told: str) -> None:
    device = Device()
    async with running(device) as where:
        with pytest.raises(ConfigError, match=told):
            await probe.read(settings(where), real(), tmp_path, address, type_)
        assert device.requests == []
        await probe.read(settings(where, max_registers=2), real(), tmp_path, "hr:0")
        await probe.read(settings(where), real(), tmp_path, "hr:65534")
        assert (await probe.read(settings(where), real(), tmp_path, "hr:7.2"))[0].value == "1"
    assert [request[3:] for request in device.requests] == [(0, 2), (65534, 2), (7, 1)]


async def test_read_shows_all_digits(tmp_path: Path) -> None:
    device = Device()
    device.registers = dict(zip([(3, i) for i in range(4)], struct.unpack(">4H", struct.pack(">d", 12345678.9)), strict=True))
    device.registers |= dict(zip([(3, i) for i in range(4, 6)], struct.unpack(">2H", struct.pack(">f", 0.1)), strict=True))
    async with running(device) as address:
        assert (await probe.read(settings(address), real(), tmp_path, "hr:0", "float64"))[0].value == "12345678.9"
        assert (await probe.read(settings(address), real(), tmp_path, "hr:4", "float32"))[0].value == "0.1"


# ---- libmodbus ----


@pytest.mark.peers
async def test_libmodbus_is_read_killed_restarted_and_never_written(tmp_path: Path) -> None:
    port = free_port()
    sink = RecordingSink()
    tags = [
        *(tag(16 + i, f"hr:{i}") for i in range(150)),
        tag(200, "ir:5", "int32"),
        tag(201, "co:3", ""),
        tag(202, "di:4", ""),
        tag(203, "hr:1998", "uint16"),
        tag(204, "hr:2000", "uint16"),
    ]
    server = Server("tcp", str(port))
    asked = []
    try:
        async with polling(build(settings(f"127.0.0.1:{port}", *tags), tmp_path), sink):
            await until(lambda: sink.rows(204))
            assert [sink.rows(16 + i)[0][1] for i in range(150)] == list(range(150))
            assert (sink.rows(200)[0][1], sink.rows(201)[0][1], sink.rows(202)[0][1]) == (1005 << 16 | 1006, 1, 0)
            assert sink.rows(203)[0][2] == GOOD
            assert sink.rows(204)[0][2] == BAD_CONFIGURATION_ERROR
            asked += server.stop()
            await until(lambda: len(sink.rows(16)) == 2)
            assert sink.rows(16)[1][2] == BAD_NO_COMMUNICATION
            server = Server("tcp", str(port))
            await until(lambda: len(sink.rows(16)) == 3)
            assert sink.rows(16)[2][:3] == (Kind.INT64, 0, GOOD)
    finally:
        asked += server.stop()
    assert {row[0] for row in asked} == {1, 2, 3, 4}
    assert {row[1] for row in asked} == {1}
    wanted = {(3, i) for i in (*range(150), 1998, 2000)} | {(4, 5), (4, 6), (1, 3), (2, 4)}
    assert {(f, i) for f, _, start, count in asked for i in range(start, start + count)} == wanted


@pytest.mark.peers
async def test_arrays_from_libmodbus_as_text_and_as_tags_of_their_elements(tmp_path: Path) -> None:
    """130 elements of two registers do not fit one answer: no request begins or ends within one of them."""
    port = free_port()
    sink = RecordingSink()
    wave = tag(300, "hr:501", "int32", id="wave", expand=130)
    elements = [replace(row, number=300 + row.element) for row in expand_rows([wave])]
    bits = [replace(row, number=500 + row.element) for row in expand_rows([tag(500, "hr:5.14", "", id="bits", expand=4)])]
    tags = [tag(16, "hr:10", "int16[4]", scale=0.1), tag(17, "ir:7", "uint32[2]", order="CDAB"), tag(18, "co:5", "bool[9]"), *elements, *bits]
    server = Server("tcp", str(port))
    try:
        async with polling(build(settings(f"127.0.0.1:{port}", *tags), tmp_path), sink):
            await until(lambda: all(sink.rows(one.number) for one in tags))
    finally:
        asked = server.stop()
    texts = {text for batch in sink.batches for text in batch.columns.texts}
    assert texts == {"[1.0,1.1,1.2,1.3]", f"[{1008 << 16 | 1007},{1010 << 16 | 1009}]", "[false,true,false,false,true,false,false,true,false]"}
    assert [sink.rows(300 + k)[0][1] for k in range(130)] == [(501 + 2 * k) << 16 | 502 + 2 * k for k in range(130)]
    assert [sink.rows(500 + k)[0][1] for k in range(4)] == [0, 0, 0, 1], "bits 14 and 15 of register 5, 0 and 1 of register 6"
    for _, _, start, count in asked:
        inside = range(501, 761)
        assert start not in inside or (start - 501) % 2 == 0
        assert start + count not in inside or (start + count - 501) % 2 == 0
    assert {(start, count) for function, _, start, count in asked if function == 3} == {(5, 2), (10, 4), (501, 124), (625, 124), (749, 12)}


@pytest.mark.peers
async def test_rtu_over_a_serial_line_with_libmodbus(tmp_path: Path) -> None:
    sink = RecordingSink()
    with pty_pair(tmp_path) as (ours, theirs):
        server = Server("rtu", theirs)
        asked = []
        try:
            tags = (tag(16, "hr:7"), tag(17, "ir:5", "int32"), tag(18, "co:3", ""), tag(19, "hr:1999", "int32"))
            one = settings(ours, *tags, kind="modbus-rtu", parity="N", timeout_ns=300_000_000)
            async with polling(build(one, tmp_path), sink):
                await until(lambda: sink.rows(19))
                asked += server.stop()
                await until(lambda: len(sink.rows(16)) == 2)
                server = Server("rtu", theirs)
                await until(lambda: len(sink.rows(16)) == 3)
        finally:
            asked += server.stop()
    assert (sink.rows(16)[0][1], sink.rows(17)[0][1], sink.rows(18)[0][1]) == (7, 1005 << 16 | 1006, 1)
    assert sink.rows(19)[0][2] == BAD_CONFIGURATION_ERROR
    assert [row[2] for row in sink.rows(16)[:3]] == [GOOD, BAD_NO_COMMUNICATION, GOOD]
    assert {row[0] for row in asked} == {1, 3, 4}
