"""The campaign: at least 20 kills of each process, over several demos (`make kill`)."""

from __future__ import annotations

import pytest

from tests.integration.test_demo import complete, demo


@pytest.mark.slow
def test_every_process_is_killed_twenty_times():
    killed: dict[str, int] = {}
    for seed in range(1, 12):
        summary, stderr = demo("--seconds", "150", "--outage", "10", "--kills", "30", "--seed", str(seed))
        assert complete(summary), (seed, summary, stderr[-2000:])
        for name, times in summary["killed"].items():
            killed[name] = killed.get(name, 0) + times
        print(seed, summary["committed"], killed, flush=True)
        if len(killed) == 5 and min(killed.values()) >= 20:
            return
    pytest.fail(f"not every process was killed twenty times: {killed}")
