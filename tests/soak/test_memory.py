"""Memory of the processes behind the ring does not rise with what has passed through them: real processes at full speed, round after round.

A round commits blocks as a collect of 10,000 tags does, cuts the link once, and waits until all of it is in the lake (and in PostgreSQL). The
first half of the rounds is warm-up; what the processes hold in the second half is compared with itself. The 30 minutes are `make soak`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from buffer import limits
from buffer.manifest import ObjectType
from buffer.ring import Instant, Ring, RingOptions
from buffer.storage import PosixStorage, make_directory
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import Columns, Kind
from gateway.demo.link import Link
from gateway.demo.setup import STREAM, make_keys
from gateway.trust.keys import KeyRing, load_signer, spki_der
from tests.soak.run import Soak, memory_mib
from tests.support.libmodbus import free_port
from tests.support.peers import postgres

TAGS = 10_000
ROUNDS = 30
BLOCKS = 5  # of a round
GROWN_MAX_MIB = {"upload": 1.0, "receive": 0.5, "deliver": 1.0}  # a connection more or less is 0.3
PATIENCE_S = 120.0  # a hang ends here


def instant() -> Instant:
    return Instant(time.time_ns(), time.monotonic_ns(), bytes(16), True)


class Plant:
    """A ring that is written as fast as asked."""

    def __init__(self, root: Path) -> None:
        signer, verifier, salts = load_signer(root / "pki" / "data.key"), KeyRing(), itertools.count(1)
        verifier.trust(signer.public)
        make_directory(root / "ring" / STREAM)
        options = RingOptions(STREAM, 2**30, 2**22, (spki_der(signer.public),))
        self.ring = Ring.open(PosixStorage(root / "ring" / STREAM), options, signer, verifier, instant(), 1, lambda: next(salts))
        self.ring.add_object(ObjectType.KEY_STATEMENT, (root / "pki" / "data.statement").read_bytes())
        tags = tuple(Tag(limits.TAG_NUMBER_FIRST + i, f"d{i // 1000}.r{i}", f"soak/d{i // 1000}/r{i}", f"d{i // 1000}") for i in range(TAGS))
        sources = tuple(dict.fromkeys(tag.source for tag in tags))
        self.ring.use_table(encode_table(TagTable("demo", STREAM, "demo/plant", "UTC", sources, tags)))
        self.ring.commit(instant())
        self.readings = 0

    def commit(self) -> None:
        tag = np.arange(TAGS, dtype=np.uint32) + limits.TAG_NUMBER_FIRST
        stamp, value = np.full(TAGS, time.time_ns()), np.full(TAGS, self.readings, np.uint64)
        none = np.zeros(TAGS, np.uint16)
        self.ring.append(Columns(tag, stamp, np.full(TAGS, Kind.INT64, np.uint8), value, none.astype(np.uint32), none, None, ()))
        self.ring.commit(instant())
        self.readings += TAGS


def sinks_done(root: Path, readings: int) -> bool:
    try:
        sinks = json.loads((root / "deliver" / "status.json").read_bytes())["streams"][STREAM]
    except (OSError, KeyError):
        return False
    return all(sink["rows"] >= readings for sink in sinks.values())


async def rounds(root: Path, dsn: str) -> dict[str, list[float]]:
    """Return what each process held after each round, in MiB."""
    make_keys(root)
    port = free_port()
    link = Link(("127.0.0.1", port))
    Soak(root, 1, 0, 1).write_config([free_port()], await link.start(), port)
    if dsn:
        (root / "dsn").write_text(dsn)
        with (root / "receiver.toml").open("a") as file:
            file.write(f'\n[sink.historian]\nkind = "postgres"\ndsn_file = "{root / "dsn"}"\n')
    plant, held = Plant(root), {name: [] for name in GROWN_MAX_MIB}
    running = {}
    try:
        for name in held:
            config = root / ("gateway.toml" if name == "upload" else "receiver.toml")
            running[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.cli", name, "--config", str(config), stderr=asyncio.subprocess.DEVNULL
            )
        for _ in range(ROUNDS):
            for _ in range(BLOCKS):
                plant.commit()
                await asyncio.sleep(0.05)
            link.cut()
            plant.commit()
            link.restore()
            async with asyncio.timeout(PATIENCE_S):
                while not sinks_done(root, plant.readings):
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1.5)  # what a piece of work took is given back
            for name, process in running.items():
                held[name].append(memory_mib(process.pid)[1])
    finally:
        for process in running.values():
            process.terminate()
            await process.wait()
        await link.stop()
        plant.ring.close()
    return held


@pytest.mark.slow
@pytest.mark.parametrize("historian", [False, pytest.param(True, marks=pytest.mark.peers)])
def test_the_later_rounds_need_no_more_than_the_earlier(tmp_path: Path, historian: bool) -> None:
    with postgres() if historian else contextlib.nullcontext("") as dsn:
        held = asyncio.run(rounds(tmp_path, dsn))
    later = {name: mib[ROUNDS // 2 :] for name, mib in held.items()}
    third = ROUNDS // 6
    grown = {name: round(min(mib[-third:]) - min(mib[:third]), 2) for name, mib in later.items()}
    assert all(grown[name] <= most for name, most in GROWN_MAX_MIB.items()), (grown, held)
