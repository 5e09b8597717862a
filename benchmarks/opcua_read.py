"""What a polled value costs, against asyncua's read_attributes in the same run (make bench NAME=opcua-read). CPU of this process alone."""

from __future__ import annotations

import asyncio
import logging
import time

from asyncua import Client, ua

from benchmarks.harness import Report, main
from benchmarks.opcua_peers import cost, node_opcua, source_settings
from gateway.collect.load import Budget
from gateway.collect.opcua.session import VALUE, Session
from gateway.collect.opcua.throttle import Throttle
from gateway.runtime import real

TAGS, READS = 1_000, 10


async def measured(read) -> float:
    """Return microseconds of CPU per value."""
    assert await read() == TAGS
    cpu = time.process_time()
    for _ in range(READS):
        await read()
    return (time.process_time() - cpu) / (READS * TAGS) * 1e6


async def compare(rounds: int) -> list[tuple[float, float]]:
    """Return what a value costs us and asyncua, round by round."""
    with node_opcua(tags=TAGS, period_ms=1000, types=5) as port:
        runtime, source = real(), source_settings("plc", port, TAGS, 1000)
        throttle = Throttle(Budget(source.load, runtime.monotonic_ns()), runtime)
        session = await Session.connect(source, source.urls[0], throttle, None, lambda _gone: None)
        await session.read_facts(runtime.wall_ns)
        names = [tag.address for tag in source.tags]

        async def ours() -> int:
            return len(await session.read(names, VALUE))

        async with Client(source.urls[0]) as client:
            nodes = [client.get_node(name) for name in names]

            async def stock() -> int:
                return len(await client.read_attributes(nodes, ua.AttributeIds.Value))

            found = [(await measured(ours), await measured(stock)) for _ in range(rounds)]
        await session.close()
    return found


def run(report: Report) -> None:
    """Compare with asyncua's read_attributes."""
    logging.disable(logging.CRITICAL)
    rounds = asyncio.run(compare(report.options.rounds))
    mine, stock = ([one[i] for one in rounds] for i in range(2))
    cost(report, "value", mine, "asyncua read_attributes", stock, 8, server="node-opcua", nodes_per_request=TAGS, types=5, reads=READS)


if __name__ == "__main__":
    main("opcua_read", run)
