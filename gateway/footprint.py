"""Memory of a long-lived process on a small box: what was needed for a moment goes back to the system (glibc; elsewhere nothing happens).

Measured with 10,000 Modbus tags: a change of the tag table by SIGHUP left 126 MB resident without, and less than 100 MB with; deliver after
a piece of work 376 MiB without (and with an allocator of Arrow's own), 170 with. Arrow's allocator must be named before its library is loaded:
set later, Parquet and the kernels go on with the built-in one, whose 1 GiB arena is never given back (175 MiB grew to 194 in 20 pieces of work).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from functools import cache
from typing import Final

_M_ARENA_MAX: Final = -8  # mallopt(3): each thread would else keep a heap of its own


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # each is a class of its own, in cycles


def one_heap() -> None:
    """Have all threads share one heap, Arrow's too. Call before threads start and before pyarrow is imported."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    with contextlib.suppress(AttributeError, OSError):
        _libc().mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return freed memory to the system; some milliseconds. Call after a start and after a change.

    What lives now is set apart from later collections: Python looks at all of it so rarely that the cycles of dead connections, a buffer of
    256 KiB in each, would lie about for hours. Looking at what came after alone, it finds them soon.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.collect()  # tells the collector how little there is to look at from now on
    trim()


def sweep() -> None:
    """Find the cycles that connections left which ended since the last time: once a minute, one or two milliseconds behind `give_back`.

    Left to itself the collector comes when enough was made: in thirty minutes with twenty cuts, upload kept four buffers of 256 KiB.
    """
    gc.collect()
    trim()


def trim() -> None:
    """Return what is free to the system. glibc gives back by itself only what lies at the end of its heap."""
    with contextlib.suppress(AttributeError, OSError):
        _libc().malloc_trim(0)
