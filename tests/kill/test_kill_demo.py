"""kill -9 of each of the five processes at random moments of the demo: nothing lost, nothing doubled.

Each process is killed only after it has worked since its last start, and all five at once and on their own (gateway.demo.killer): about
two minutes for a hundred kills. `make kill` runs the campaign; the suite a smoke of it (tests/integration/test_demo.py).
"""

from __future__ import annotations

import pytest

from tests.integration.test_demo import complete, demo

EACH = 20


@pytest.mark.slow
def test_every_process_is_killed_twenty_times():
    summary, stderr = demo("--seconds", "60", "--outage", "10", "--kills", str(EACH), "--seed", "3", seconds=1_300)
    print(summary, flush=True)
    assert complete(summary), (summary, stderr[-2000:])
    assert summary["killed"] == dict.fromkeys(("receive", "deliver", "console", "collect", "upload"), EACH)
    assert summary["generations"] > EACH // 2  # collect is killed before its first commit now and then
