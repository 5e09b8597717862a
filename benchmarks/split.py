"""Where the time of a commit goes. What is timed runs a little slower for it: a contestant of its own, beside the one that is compared."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from buffer import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buffer.ring import Ring
    from buffer.storage import PosixStorage

STAGES: Final = ("encode", "sign", "write", "sync")


def timed(spent: dict[str, float], stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work`, its wall time added to `spent`."""

    def outer(*args: Any) -> Any:
        begun = time.perf_counter()
        result = work(*args)
        spent[stage] += time.perf_counter() - begun
        return result

    return outer


@contextmanager
def disk(storage: PosixStorage, spent: dict[str, float]) -> Iterator[None]:
    """Time what a storage writes and syncs."""
    with (
        patch.object(storage, "pwrite", timed(spent, "write", storage.pwrite)),
        patch.object(storage, "fdatasync", timed(spent, "sync", storage.fdatasync)),
    ):
        yield


@contextmanager
def commits(ring: Ring, spent: dict[str, float]) -> Iterator[None]:
    """Time the stages of every commit: columns to payload, manifest and signature, pwrite (frame and mark), fdatasync."""
    encode = cut.encode_blocks
    with (
        disk(ring._storage, spent),  # type: ignore[arg-type]  # a benchmark's ring stands on a PosixStorage
        patch.object(cut, "encode_blocks", timed(spent, "encode", lambda columns: list(encode(columns)))),
        patch.object(cut, "seal_frame", timed(spent, "sign", cut.seal_frame)),
    ):
        yield
