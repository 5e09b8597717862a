"""kill -9 of deliver at random moments, with the lake and PostgreSQL as targets: each reading once in both."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from gateway import runtime as world
from gateway.receive import service as receive
from gateway.upload import service as upload
from tests.integration.test_restores import Whole
from tests.integration.test_upload_receive import landed, put, running, until
from tests.support.peers import postgres

pytestmark = pytest.mark.peers

READINGS = 4_000
KILLS = 12


@pytest.fixture(scope="module")
def dsn():
    with postgres() as text:
        yield text


async def test_deliver_killed_while_it_writes_both_targets(tmp_path, dsn):
    site = Whole(tmp_path, dsn)
    ring = site.ring()
    for first in range(0, READINGS, 20):
        put(ring, first, 20)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: len(landed(site)) == READINGS, 90)
    (tmp_path / "receiver.toml").write_text(
        """[receiver]
name = "dmz"
listen = "127.0.0.1:1"
landing = "landing"
deliver = "deliver"
[lake]
path = "lake"
every = "100 ms"
[sink.historian]
kind = "postgres"
dsn_file = "dsn"
[[gateway]]
id = "hall1"
site = "acme/ghent"
"""
    )
    # as a person would run it, but in small pieces of work, so that a kill falls between them
    code = "import gateway.deliver.service as s, sys; s.WORK_RECORDS_MAX = 3; from gateway.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "deliver", "--config", str(tmp_path / "receiver.toml")]
    chance = random.Random(7)
    seen = []
    for _ in range(KILLS):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before = len(site.in_lake()), len(site.in_postgres())
        end = time.monotonic() + 60
        while (len(site.in_lake()), len(site.in_postgres())) == before and before != (READINGS, READINGS) and time.monotonic() < end:
            time.sleep(0.05)  # it works
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.wait()
        seen.append((len(site.in_lake()), len(site.in_postgres())))
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        await until(lambda: site.in_lake() == list(range(READINGS)) and site.in_postgres() == list(range(READINGS)), 120)
    finally:
        process.terminate()
        process.wait(30)
    assert len(set(seen)) > KILLS // 3, seen  # kills fell into the work, not before or after it
