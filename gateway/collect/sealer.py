"""Runs the sealing child, hands what it made to the ring. collect never imports pyarrow: the child does, and ends.

A child that dies, hangs or finds the journal unreadable costs nothing but the segment: the journal stays a unit, travels as
blocks and is evicted in its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError
from buffer.seal import SealRequest, SealResult, result_from, to_line

if TYPE_CHECKING:
    from collections.abc import Sequence

SEAL_SECONDS_MAX: Final = 600  # a million readings take 5 to 20 s on a small box; after this the child hangs
RESULT_BYTES_MAX: Final = 256 * 1024
STDERR_BYTES_MAX: Final = 64 * 1024

log = logging.getLogger(__name__)


async def run_child(request: SealRequest, command: Sequence[str] = (sys.executable, "-m", "buffer.segment")) -> SealResult:
    """Return what the child says; a failure of any kind is a result with `error`. Ends the child by its pid on cancellation."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=RESULT_BYTES_MAX
    )
    try:
        async with asyncio.timeout(SEAL_SECONDS_MAX):
            out, err = await process.communicate(to_line(request).encode())
    except TimeoutError:
        return SealResult((), f"the sealing child did not end within {SEAL_SECONDS_MAX} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0 and not out:
        last = err[-STDERR_BYTES_MAX:].decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        return SealResult((), f"the sealing child ended with code {process.returncode}: {last[0][:300]}")
    try:
        return result_from(out[:RESULT_BYTES_MAX].decode(errors="replace"))
    except CorruptError as error:
        return SealResult((), str(error))
