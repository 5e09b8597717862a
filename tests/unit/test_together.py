"""Files published together: nothing is under way any more when the caller hears of a fault, and nothing of it is believed."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from buffer.errors import StorageFault
from buffer.storage import PosixStorage
from buffer.together import at_once, in_turn


@pytest.mark.parametrize("each", [in_turn, at_once(4)], ids=["in turn", "at once"])
def test_all_is_done(each) -> None:
    done: set[int] = set()
    each(done.add, range(20))
    assert done == set(range(20))


def test_a_fault_is_raised_when_nothing_is_under_way_any_more() -> None:
    failed, begun, ended = threading.Event(), [], []

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise OSError(errno.EIO, "the first")
        failed.wait(5)
        threading.Event().wait(0.02)  # still busy when the first is known to have failed
        ended.append(item)

    with pytest.raises(OSError, match="the first"):
        at_once(4)(work, range(4))
    assert sorted(ended) == [item for item in sorted(begun) if item] == [1, 2, 3]


def test_files_published_at_once_are_whole_and_leave_nothing_beside_them(tmp_path) -> None:
    storage = PosixStorage(tmp_path, each=at_once(4))
    storage.mkdir("d")
    files = [(f"d/{i}", bytes([i]) * (i * 1000)) for i in range(12)]
    storage.publish_together(files)
    assert {name: (tmp_path / "d" / name).read_bytes() for name in os.listdir(tmp_path / "d")} == {path[2:]: data for path, data in files}


def test_a_failed_sync_of_one_is_a_fault_of_all(tmp_path) -> None:
    class Failing:
        def __getattr__(self, name: str):
            return getattr(os, name)

        def fsync(self, fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".2.tmp"):
                raise OSError(errno.EIO, "no")
            os.fsync(fd)

    storage = PosixStorage(tmp_path, Failing(), each=at_once(4))
    storage.mkdir("d")
    with pytest.raises(StorageFault) as fault:
        storage.publish_together([(f"d/{i}", b"x") for i in range(4)])
    assert fault.value.path == "d/2"
    assert not [name for name in os.listdir(tmp_path / "d") if name.startswith(".")]
