"""A collector of one OPC UA source in a process of its own, to be killed.

python -m tests.support.opcua_child PORT TAGS DIRECTORY [NAME=SECONDS ..]; NAME: a time limit of the source that a test shortens.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.collect.clock import GatewayClock
from gateway.collect.opcua.source import OpcuaSource
from gateway.runtime import configure_logging, real
from gateway.settings import Load, TagRow
from gateway.settings import OpcuaSource as Settings
from tests.support.collect_child import shorten
from tests.support.sinks import FileSink

MS = 10**6


class Nobody:
    """Asks for no pause."""

    def paused(self, source: str) -> bool:
        return False

    def asked(self, source: str) -> None:
        return None


def settings_for(port: int, count: int, **more: object) -> Settings:
    """Return settings for `count` variables ns=1;s=Tag00000... of the test server.

    every = 0: the server reports each change as it happens. With a sampling timer a busy test machine skips values before anybody asks.
    """
    rows = tuple(TagRow(f"t{i}", f"p/t{i}", "plc", f"ns=1;s=Tag{i:05d}", every_ns=0, number=16 + i) for i in range(count))
    given = {"security": "None", "waiver": "test", "publish_ns": 200 * MS, "load": Load(requests_per_s=50), "tags": rows} | more
    return Settings("plc", (f"opc.tcp://127.0.0.1:{port}",), **given)  # type: ignore[arg-type]


async def main(port: int, tags: int, directory: Path) -> None:
    runtime = real()
    clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), 0, 0)
    sink = FileSink(directory / "committed")
    print("ready", flush=True)
    await OpcuaSource(settings_for(port, tags), runtime, clock, Nobody(), directory).run(sink)


if __name__ == "__main__":
    configure_logging("test")
    for limit in sys.argv[4:]:
        shorten(limit.partition("=")[0], float(limit.partition("=")[2]))
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
