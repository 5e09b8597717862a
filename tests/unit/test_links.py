"""A symbolic link where a file of the ring belongs leads to a file of somebody else: it is neither changed nor taken for ours."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from buffer.errors import StorageFault
from buffer.ring import with_root
from buffer.seal import SealRequest
from buffer.segment import seal
from tests.unit.test_ring import JOURNAL, crash, instant, open_ring, some

FACTS = b"root:x:0:0:root:/root:/bin/bash\n"


@pytest.fixture(scope="module")
def ring_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generations, the first of them sealed."""
    root = tmp_path_factory.mktemp("ring")
    for nonce in (1, 2):
        work(root, nonce)
    return root


def work(root: Path, nonce: int) -> None:
    ring = open_ring(root, nonce)
    try:
        for i in range(10):
            ring._roll = i % 3 == 2
            ring.append(some(i * 100, 100))
            ring.commit(instant(i))
            ring.make_room(instant(i))
        request: SealRequest | None
        while nonce == 1 and (request := ring.sealable()) is not None:
            request = with_root(request, str(root))
            ring.adopt(request, seal(request), instant())
    finally:
        crash(ring)


@pytest.mark.parametrize("size", [0, 1_200, JOURNAL])
def test_what_a_link_leads_to_is_never_changed(ring_root: Path, tmp_path: Path, size: int) -> None:
    names = [p.relative_to(ring_root) for p in sorted(ring_root.rglob("*")) if p.is_file()]
    assert {name.parts[0] for name in names} == {"durable", "journal", "last", "lock", "objects", "segments"}
    content = (FACTS * (size // len(FACTS) + 1))[:size]
    refused = set()
    for number, name in enumerate(names):
        root, victim = tmp_path / str(number), tmp_path / f"{number}.victim"
        shutil.copytree(ring_root, root)
        victim.write_bytes(content)
        (root / name).unlink()
        (root / name).symlink_to(victim)
        with contextlib.suppress(StorageFault):
            try:
                work(root, 3)
            except StorageFault as fault:
                assert "symbolic link" in str(fault), fault
                refused.add(name.parts[0])
                raise
            work(root, 4)
        assert victim.read_bytes() == content, name
        shutil.rmtree(root)
    assert "lock" in refused
