"""Single keys from a terminal, as long as the demo runs: no Enter, no echo. Where stdin is no terminal, nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def keys(actions: Mapping[str, Callable[[], None]], *, wanted: bool) -> Iterator[bool]:
    """Call the action of each key pressed; yield whether keys are heard. The terminal is as before on return."""
    if not wanted or not sys.stdin.isatty():
        yield False
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        for key in os.read(fd, 64).decode(errors="ignore").lower():
            if key in actions:
                actions[key]()

    tty.setcbreak(fd)
    loop.add_reader(fd, pressed)
    try:
        yield True
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
