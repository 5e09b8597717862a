"""The demo's account of a ring is whole, whoever sealed what."""

from __future__ import annotations

from dataclasses import replace

from buffer import limits
from buffer.ring import with_root
from buffer.segment import seal
from gateway.demo.audit import committed
from tests.unit.test_ring import crash, instant, open_ring, some


def test_a_generation_that_the_next_one_sealed_whole_still_counts(tmp_path):
    for nonce in (1, 2):
        ring = open_ring(tmp_path, nonce)
        ring.append(some(10 * nonce, 10))
        ring.commit(instant())
        crash(ring)
    ring = open_ring(tmp_path, 3)
    while (request := ring.sealable()) is not None:
        request = with_root(request, str(tmp_path))
        ring.adopt(request, seal(request), instant())
    later = replace(instant(), monotonic_ns=2 * limits.JOURNAL_KEEP_NS)
    ring.commit(later)
    ring.make_room(later)
    assert {one.generation for one in ring.segments} == {1 << 32 | 1, 2 << 32 | 2}
    assert ring.info(later).journals == 1
    assert sorted(committed(tmp_path).by_generation.values()) == [0, 10, 10]
