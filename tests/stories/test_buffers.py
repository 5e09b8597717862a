"""How the buffers of others failed their users, told to this ring. Each test names the report; docs/stories.md lists them all."""

from __future__ import annotations

import ast
import hashlib
import os
import random
import re
from pathlib import Path

import pytest

from buffer import layout, limits
from buffer.ring import Ring
from buffer.seal import with_root
from buffer.segment import seal
from buffer.storage import PosixStorage
from buffer.tagtable import Tag, TagTable, encode_table
from tests.integration.test_carry import ebbgate
from tests.integration.test_collect import modbus
from tests.support.box import Box
from tests.unit.test_ring import JOURNAL, crash, instant, open_ring, read_all, some

ROOT = Path(__file__).parents[2]


def put(ring: Ring, first: int, n: int) -> None:
    ring.append(some(first, n))
    ring.commit(instant(first))
    ring.make_room(instant(first))


def values(root: Path) -> list[int]:
    return [value for _, _, value in read_all(root)]


def named(ring: Ring) -> set[int]:
    """What the ring says it lost, as values: in these tests value and seq are the same in the first generation."""
    assert ring.state is not None
    return {seq for loss in ring.state.lost for seq in range(loss.first, loss.last + 1)}


def damage(data: bytes, how: str, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(data)), rng.randrange(1, 3 * limits.PAGE_BYTES)
    if how == "cut":
        return data[:at]
    middle = {"zeros": bytes(n), "noise": rng.randbytes(n), "flip": bytes([data[at] ^ 1 << rng.randrange(8)])}[how]
    return (data[:at] + middle + data[at + len(middle) :])[: len(data)]


@pytest.mark.parametrize("how", ["cut", "zeros", "noise", "flip"])
@pytest.mark.parametrize("seed", range(6))
def test_a_broken_record_neither_stops_the_start_nor_what_comes_after(tmp_path: Path, how: str, seed: int) -> None:
    """Vector #17644, #18130, #19759 (stuck or dead after a hardware reset), Telegraf #18528 (panic: log corrupt), Fluent Bit #11847 (looks
    alive, takes nothing), NATS #5876 (files there, stream gone), Telegraf #16314: it starts, says what it lost, keeps the rest, goes on."""
    ring = open_ring(tmp_path)
    for i in range(40):
        put(ring, i * 100, 100)
        ring._roll = i % 8 == 7
    crash(ring)
    rng = random.Random(f"{how} {seed}")
    journals = sorted(p for p in (tmp_path / "journal").iterdir() if layout.parse_journal(p.name))
    path = journals[rng.randrange(len(journals))]
    path.write_bytes(damage(path.read_bytes(), how, rng))
    again = open_ring(tmp_path, nonce=2)
    lost = named(again)
    put(again, 4000, 100)
    there = values(tmp_path)
    assert len(there) == len(set(there)), "a reading twice"
    assert set(there) | lost >= set(range(4100)), "a reading that is neither there nor named"
    crash(again)
    third = open_ring(tmp_path, nonce=3)
    assert named(third) >= lost, "a loss is never taken back"


def test_a_bad_record_does_not_stop_the_oldest_from_going(tmp_path: Path) -> None:
    """Vector #19379 (the buffer grows for ever after a bad record), RocksDB in IoT Edge #2674, #3981: the limit holds over rot."""
    limit = 12 * JOURNAL
    ring = open_ring(tmp_path, max_bytes=limit)
    rng = random.Random(1)
    for i in range(120):
        ring._roll = True
        put(ring, i * 1000, 1000)
        if i % 7 == 3:
            path = tmp_path / ring._journals.closed[-1].name.path
            path.write_bytes(damage(path.read_bytes(), "noise", rng))
            if i % 3 == 1:
                crash(ring)
                ring = open_ring(tmp_path, nonce=i + 2, max_bytes=limit)
        request = ring.sealable()
        if request is not None:
            request = with_root(request, str(tmp_path))
            result = seal(request)
            if result.error:
                ring.seal_failed(request, result.error)
            else:
                ring.adopt(request, result, instant())
        ring.make_room(instant(i))
        assert ring.usage_bytes() <= limit + JOURNAL, i
    assert values(tmp_path)[-1] == 119_999


def test_the_limit_is_counted_from_what_is_there_at_every_start(tmp_path: Path) -> None:
    """Fluent Bit #3060: the counter of the limit began at 0 at every restart, so the disk filled."""
    limit = 8 * JOURNAL
    for nonce in range(1, 31):
        ring = open_ring(tmp_path, nonce, max_bytes=limit)
        for i in range(4):
            ring._roll = True
            put(ring, nonce * 10_000 + i * 1000, 1000)
        crash(ring)
        assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= limit + 2 * JOURNAL, nonce


def test_order_holds_where_numbers_grow_a_digit(tmp_path: Path) -> None:
    """Telegraf PR #15221: files were sorted as text, 10 before 9. Journals, seqs and generations past 9, 99 and 999 stay in order."""
    ring = open_ring(tmp_path)
    for i in range(1100):
        ring._roll = i % 10 == 9
        put(ring, i, 1)
    crash(ring)
    for nonce in range(2, 14):
        ring = open_ring(tmp_path, nonce)
        put(ring, 1100 + nonce, 1)
        crash(ring)
    assert values(tmp_path) == [*range(1100), *range(1102, 1114)]


class _Counting(PosixStorage):
    syncs = 0

    def fdatasync(self, handle: int) -> None:
        type(self).syncs += 1
        super().fdatasync(handle)


def test_a_commit_costs_one_sync_however_many_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telegraf #18085: one sync per metric starved the gathering."""
    monkeypatch.setattr("tests.unit.test_ring.PosixStorage", _Counting)
    ring = open_ring(tmp_path)
    costs = []
    for first, n in ((0, 1), (1, 10), (11, 50_000)):
        before = _Counting.syncs
        put(ring, first, n)
        costs.append(_Counting.syncs - before)
    assert costs == [1, 1, 1]


def test_what_a_dead_process_left_is_sealed_and_read(tmp_path: Path) -> None:
    """Fluent Bit #10530 (orphan chunks were never shipped), Telegraf #15868 (never flushed), NATS #6888 (forgotten after kill -9)."""
    for nonce in range(1, 6):
        ring = open_ring(tmp_path, nonce)
        put(ring, nonce * 100, 100)
        crash(ring)
    ring = open_ring(tmp_path, nonce=9)
    sealed = []
    while (request := ring.sealable()) is not None:
        request = with_root(request, str(tmp_path))
        sealed += ring.adopt(request, seal(request), instant())
    assert [name.generation >> 32 for name in sealed] == [1, 2, 3, 4, 5]
    assert [name.last - name.first for name in sealed] == [99] * 5


def test_a_new_tag_table_again_and_again_costs_no_reading(tmp_path: Path) -> None:
    """ThingsBoard gateway #2124 (the store destroyed at every reconnect by a remote configuration), EdgeX (a change of the pipeline clears what
    was stored), Fledge (unsent data lost when the storage plugin changed)."""
    ring = open_ring(tmp_path)
    for i in range(60):
        tags = tuple(Tag(16 + n, f"t{n}", f"v{i}/t{n}", "p") for n in range(2 + i % 3))
        ring.use_table(encode_table(TagTable("g", "g.main", "s", "UTC", ("p",), tags)))
        put(ring, i * 10, 10)
        if i % 20 == 19:
            crash(ring)
            ring = open_ring(tmp_path, nonce=i + 2)
    assert values(tmp_path) == list(range(600))


def digest(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


BAD = {
    "an unknown key": lambda box: box.config.write_text(box.config.read_text().replace("max_size", "max_sise")),
    "a size that is none": lambda box: box.config.write_text(box.config.read_text().replace('"1 GB"', '"-1 GB"')),
    "not TOML": lambda box: box.config.write_text(box.config.read_text().replace("[ring]", "[ring")),
    "a bad cell": lambda box: box.configure(SOURCE, "s.n,s,hr:0,uint17"),
    "an address that is none": lambda box: box.configure(SOURCE, "s.n,s,hr:seven,uint16"),
    "no tag table": lambda box: (box.root / "tags.csv").unlink(),
}
SOURCE = modbus("s", "127.0.0.1:1")


@pytest.mark.parametrize("mistake", sorted(BAD))
def test_a_bad_configuration_at_the_start_touches_no_file_of_the_ring(tmp_path: Path, mistake: str) -> None:
    """Fluent Bit #2246: a bad configuration at the start deleted the backlog."""
    box = Box(tmp_path)
    box.configure(SOURCE, "s.n,s,hr:0,uint16")
    ring = box.site.ring()
    put(ring, 0, 50)
    crash(ring)
    before = digest(tmp_path / "ring")
    assert len(before) > 3
    BAD[mistake](box)
    said = ebbgate("collect", "--config", box.config, code=2)
    assert "Traceback" not in said
    assert digest(tmp_path / "ring") == before


def told() -> list[tuple[str, str]]:
    """(path, test) of every test that docs/stories.md names."""
    return re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/stories.md").read_text(encoding="utf-8"))


def test_every_story_names_tests_that_are_there() -> None:
    names = told()
    assert len(names) > 20
    for path, test in names:
        source = (ROOT / path).read_text(encoding="utf-8")
        defined = {n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert not test or test in defined, f"{path}::{test}"
    here = {
        n.name for n in ast.parse(Path(__file__).read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
    }
    assert here - {"test_every_story_names_tests_that_are_there"} == {test for path, test in names if test and path == "tests/stories/test_buffers.py"}
    assert os.path.relpath(__file__, ROOT) == "tests/stories/test_buffers.py"
