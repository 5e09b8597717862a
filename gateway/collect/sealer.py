"""Has journals sealed by a child process, one after the other. collect never imports pyarrow: the child does, and ends.

A child that died, hung or could not be started may have met a passing lack of memory, and a disk that refused may heal: the journal is
tried again, ever later, a refusing disk without end. A journal that failed FAILURES_MAX times costs nothing but the segment: it stays a
unit, travels as blocks and is evicted in its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from buffer.errors import CorruptError, StorageFault
from buffer.notice import NoticeKind
from buffer.ring import with_root
from buffer.seal import SealRequest, SealResult, result_from, to_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from buffer.ring import Instant, Ring
    from gateway.collect.writer import Writer
    from gateway.runtime import Runtime

LOOK_S: Final = 1.0
SEAL_SECONDS_MAX: Final = 600  # a million readings take 5 to 20 s on a small box; after this the child hangs
RESULT_BYTES_MAX: Final = 256 * 1024
STDERR_BYTES_MAX: Final = 64 * 1024
RETRY_S: Final = (10.0, 60.0, 300.0, 900.0)
FAILURES_MAX: Final = 4  # of one journal in a row; then it stays as it is until the next start

log = logging.getLogger(__name__)


class ChildFailed(Exception):
    """The sealing child died, hung, could not be started, or made nothing of the journal."""


class Sealer:
    """Seals the journals of one ring, through the writer that owns it."""

    def __init__(self, runtime: Runtime, writer: Writer, ring: Ring, root: Path, instant: Callable[[], Instant], seal_ns: int) -> None:
        self._runtime = runtime
        self._writer = writer
        self._ring = ring
        self._root = root
        self._instant = instant
        self._seal_ns = seal_ns
        self._failures = 0  # in a row
        self.waiting = ""  # why sealing rests, for status

    async def run(self) -> None:
        """Seal until cancelled."""
        while True:
            await self._runtime.sleep(LOOK_S)
            await self._writer.exclusively(lambda: self._ring.roll_if_due(self._instant(), self._seal_ns))
            await self.one()
            await self.spare()

    async def spare(self) -> None:
        """Have the file of the next journal ready: sixteen MiB of zeros in a commit would keep its readings waiting."""
        number = await self._writer.exclusively(self._ring.spare.wanted)
        if number is not None and await self._runtime.offload(partial(self._ring.spare.make, number)):
            await self._writer.exclusively(partial(self._ring.spare.add, number))

    async def catch_up(self) -> None:
        """Seal until the journals of earlier, short lives are few: a crash loop must not fill the ring with them."""
        while self._ring.crowded() and await self.one():
            pass

    async def one(self) -> bool:
        """Seal one journal, if one waits; say whether there is progress. A failure rests for a while."""
        request = await self._writer.exclusively(self._ring.sealable)
        if request is None:
            return False
        try:
            result = await run_child(with_root(request, str(self._root)))
            if result.again:  # the disk refused the child, which says nothing about the journal
                raise StorageFault(result.error, path=request.journals[0])
            if result.error or not result.parts:
                raise ChildFailed(result.error or "the sealing child made nothing")
            published = await self._runtime.offload(partial(self._ring.publish_sealed, request, result))  # beside commits
            await self._writer.exclusively(lambda: self._ring.admit(request, published, self._instant()))
        except (ChildFailed, CorruptError, StorageFault) as fault:
            await self._failed(request, fault)
            return False
        self._failures, self.waiting = 0, ""
        return True

    async def _failed(self, request: SealRequest, fault: ChildFailed | CorruptError | StorageFault) -> None:
        self._failures += 1
        if self._failures >= FAILURES_MAX and not isinstance(fault, StorageFault):
            await self._writer.exclusively(partial(self._ring.seal_failed, request, str(fault)))
            self._writer.notice(NoticeKind.STORAGE, "", event="journal not sealed", why=str(fault), tried=self._failures)
            self._failures, self.waiting = 0, ""
            return
        wait_s = RETRY_S[min(self._failures, len(RETRY_S)) - 1]
        if not self.waiting:
            self._writer.notice(NoticeKind.STORAGE, "", event="sealing waits", why=str(fault), again_in_s=wait_s)
        self.waiting = str(fault)
        log.warning("sealing waits", extra={"data": {"why": str(fault), "again_in_s": wait_s}})
        await self._runtime.sleep(wait_s)


async def run_child(request: SealRequest, command: Sequence[str] = (sys.executable, "-P", "-m", "buffer.sealing")) -> SealResult:
    """Return what the child says; raise ChildFailed if it says nothing. Ends the child by its pid on cancellation."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=RESULT_BYTES_MAX
        )
    except OSError as error:  # no memory or process left
        raise ChildFailed(f"the sealing child cannot be started: {error.strerror or error}") from None
    try:
        async with asyncio.timeout(SEAL_SECONDS_MAX):
            out, err = await process.communicate(to_line(request).encode())
    except TimeoutError:
        raise ChildFailed(f"the sealing child did not end within {SEAL_SECONDS_MAX} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0 and not out:
        last = err[-STDERR_BYTES_MAX:].decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ChildFailed(f"the sealing child ended with code {process.returncode}: {last[0][:300]}")
    try:
        return result_from(out[:RESULT_BYTES_MAX].decode(errors="replace"))
    except CorruptError as error:
        raise ChildFailed(str(error)) from None
