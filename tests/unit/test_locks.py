"""Who speaks with a source: collect, or a person's check. Real locks, as between processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.collect.control import Control
from gateway.collect.locks import LET_GO_NS, SourceBusy, SourceLocks, wait_for_turn


def controlled(tmp_path: Path) -> tuple[Control, Path]:
    (tmp_path / "control/pause").mkdir(parents=True)
    (tmp_path / "collect").mkdir()
    return Control(tmp_path / "control", SourceLocks(tmp_path / "collect", ["plc", "meter"])), tmp_path / "collect"


async def turn(directory: Path, name: str, paused: bool = False) -> SourceLocks:
    return await wait_for_turn(directory, name, lambda _: paused, lambda _: asyncio.sleep(0))


async def test_collect_has_its_sources_and_gives_up_a_paused_one_when_it_has_left(tmp_path):
    control, directory = controlled(tmp_path)
    control.poll(0)
    assert not control.paused("plc")
    with pytest.raises(SourceBusy, match="ebbgate pause plc"):
        await turn(directory, "plc")
    (tmp_path / "control/pause/plc").write_text("me: look")
    assert control.poll(1) == ({"plc": "me: look"}, set())
    with pytest.raises(SourceBusy):
        await turn(directory, "plc", paused=True)
    control.poll(1 + LET_GO_NS)
    locks = await turn(directory, "plc", paused=True)
    with pytest.raises(SourceBusy):
        await turn(directory, "meter")

    (tmp_path / "control/pause/plc").unlink()
    control.poll(2 + LET_GO_NS)
    assert control.paused("plc"), "resumed, but a person is still at it"
    locks.release("plc")
    assert control.poll(3 + LET_GO_NS) == ({}, {"plc"})
    assert not control.paused("plc")


async def test_collect_that_starts_beside_a_check_waits_for_it(tmp_path):
    control, directory = controlled(tmp_path)
    locks = await turn(directory, "plc")
    new, _ = control.poll(0)
    assert list(new) == ["plc"]
    assert control.paused("plc")
    assert not control.paused("meter")
    locks.release("plc")
    control.poll(1)
    assert not control.paused("plc")
    control.close()
    (await turn(directory, "plc")).release("plc")


async def test_a_source_that_is_no_longer_configured_is_given_up(tmp_path):
    _, directory = controlled(tmp_path)
    locks = SourceLocks(directory, ["plc"])
    assert locks.take("plc")
    locks.watch(["meter"])
    (await turn(directory, "plc")).release("plc")


async def test_a_source_on_the_connection_of_others_waits_until_all_of_them_are_free(tmp_path):
    control, directory = controlled(tmp_path)
    (tmp_path / "control/pause/plc").touch()
    control.poll(0)
    control.poll(LET_GO_NS)
    with pytest.raises(SourceBusy, match="meter on the connection of plc") as told:
        await wait_for_turn(directory, "plc", lambda _: False, lambda _: asyncio.sleep(0), ["meter"])
    assert "pause meter too" in told.value.remedy and "connections = 2" in told.value.remedy
    control.poll(2 * LET_GO_NS)
    (await turn(directory, "plc")).release("plc")  # what was taken was given back
    (tmp_path / "control/pause/meter").touch()
    control.poll(3 * LET_GO_NS)
    control.poll(4 * LET_GO_NS)
    locks = await wait_for_turn(directory, "plc", lambda _: True, lambda _: asyncio.sleep(0), ["meter"])
    with pytest.raises(SourceBusy):
        await turn(directory, "meter")
    for name in locks.names:
        locks.release(name)
