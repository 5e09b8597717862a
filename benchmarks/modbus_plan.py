"""make bench NAME=modbus-plan: requests a round with the planner, against one request per tag as most collectors make by default.

1,000 float32 tags on 5 devices, three layouts; every plan is checked: each tag whole in one request, no request beyond 125 registers,
and with gap 0 not one register that no tag names.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Final

from benchmarks.harness import Report, main
from gateway.collect.modbus.plan import TCP_COST, Block, Cuts, Rules, Span, Table, plan, serial_cost

TAGS: Final = 1_000
DEVICES: Final = 5
GOALS: Final = {("dense", 50): 5.0, ("sparse", 50): 2.0}


def layout(span: int, cluster: int, seed: int = 7) -> list[list[Span]]:
    """Return the tags of each device: two registers each, uniform over `span`, or in clusters at the start of every hundred."""
    dice = random.Random(seed)
    devices: list[set[int]] = [set() for _ in range(DEVICES)]
    while sum(map(len, devices)) < TAGS:
        start = dice.randrange(span // 100) * 100 + dice.randrange(cluster) if cluster else dice.randrange(span)
        devices[dice.randrange(DEVICES)].add(start & ~1)
    return [[Span(Table.HOLDING, start, start + 2) for start in sorted(starts)] for starts in devices]


def check(spans: list[Span], blocks: tuple[Block, ...], gap: int) -> None:
    """Stop at a plan that breaks a promise."""
    named = {i for span in spans for i in range(span.first, span.end)}
    for block in blocks:
        assert block.span.count <= 125
        assert all(block.span.first <= value.first and value.end <= block.span.end for value in block.values)
        assert gap or all(i in named for i in range(block.span.first, block.span.end))
    assert sorted(value for block in blocks for value in block.values) == sorted(spans)


def run(report: Report) -> None:
    """Plan each layout without and with a gap."""
    for name, devices in (("dense", layout(4_000, 0)), ("sparse", layout(10_000, 0)), ("clustered", layout(10_000, 40))):
        for gap, wire, cost in ((0, "tcp", TCP_COST), (50, "tcp", TCP_COST), (50, "rtu_19200", serial_cost(19_200))):
            rules = Rules(gap=gap, cost=cost)
            times, plans = [], [plan(spans, rules, Cuts()) for spans in devices]
            for _ in range(report.options.rounds):
                cpu = time.process_time()
                plans = [plan(spans, rules, Cuts()) for spans in devices]
                times.append(time.process_time() - cpu)
            for spans, blocks in zip(devices, plans, strict=True):
                check(spans, blocks, gap)
            requests = sum(map(len, plans))
            read = sum(block.span.count for blocks in plans for block in blocks) / (2 * TAGS)
            goal = GOALS.get((name, gap), 1.0) if wire == "tcp" else 1.0
            report.add(
                f"{name}.gap_{gap}.{wire}", requests, "requests", peer="one request per tag", peer_value=TAGS, ratio=TAGS / requests,
                goal=f"ratio >= {goal:g}", tags=TAGS, devices=DEVICES, registers_read_per_named=read, plan_cpu_ms=statistics.median(times) * 1e3,
            )  # fmt: skip


if __name__ == "__main__":
    main("modbus_plan", run)
