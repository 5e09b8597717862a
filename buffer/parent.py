"""A child process that ends when its parent does, however the parent ended: prctl(2), PR_SET_PDEATHSIG. Standard library only."""

from __future__ import annotations

import ctypes
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the thread that started it is gone; nothing happens where it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
