"""Frames from a stick to the receiver: a client like any uploader, on the IT side. Believes nothing on the stick.

Files are opened without following links, only under names that gateway.upload.folder writes, with a cap on count and size; a frame's
stated lengths are checked against the limits before anything is read by them. What a frame is worth, the receiver decides.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from buffer import limits
from buffer.errors import CorruptError, StorageFault
from buffer.frame import HEADER_BYTES, Frame, parse_body, parse_header
from buffer.manifest import FrameKind, chain_next
from gateway.errors import PeerError
from gateway.upload.carrier import CarrierError, altered, explain_status, objects_missing, wrong_key
from gateway.upload.folder import folder_of
from gateway.upload.pathstate import BACKOFF_BASE_NS, jitter_ns
from gateway.wire import request as wire
from gateway.wire.carry import NAME, OBJECTS, STICK_FILE_BYTES_MAX, SUMS, SUMS_BYTES_MAX, parse_sums
from gateway.wire.receipt import Receipt, Verdict, parse_receipt
from gateway.wire.request import FramesTarget, Lane, ObjectTarget

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buffer.cose import Verifier
    from gateway.runtime import Runtime
    from gateway.upload.carrier import Carrier

FILES_MAX: Final = 10_000  # 2.5 TB; a directory filled by mistake or malice ends here
RUN_BLOCKS_MAX: Final = 1_024
RUN_BYTES_MAX: Final = 2 * 1024 * 1024
DEADLINE_SECONDS: Final = 120.0
ATTEMPTS_MAX: Final = 6
_CAP_NS: Final = 15 * 10**9
_CHUNK: Final = 1024 * 1024


@dataclass(slots=True)
class Imported:
    """What became of it. findings: files and frames that a person should look at."""

    files: int = 0
    stored: int = 0  # blocks and objects, as the others
    duplicate: int = 0
    conflict: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)


async def import_folder(runtime: Runtime, folder: Path, stream: str, carrier: Carrier, verifier: Verifier) -> Imported:
    """Send every frame of a stream on the stick; return the verdicts. Raise PeerError if the receiver stops answering: run it again."""
    return await _Import(runtime, folder_of(folder, stream), stream, carrier, verifier).run()


def _open(directory: int, name: str) -> int:
    """Return a descriptor of a plain file of at most STICK_FILE_BYTES_MAX bytes; raise CorruptError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise CorruptError(error.strerror or "cannot be opened", source=name) from None
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > STICK_FILE_BYTES_MAX:
        os.close(fd)
        raise CorruptError("not a plain file of a size that we write", source=name)
    return fd


class _Import:
    def __init__(self, runtime: Runtime, directory: Path, stream: str, carrier: Carrier, verifier: Verifier) -> None:
        self._runtime = runtime
        self._path = directory
        self._stream = stream
        self._carrier = carrier
        self._verifier = verifier
        self.done = Imported()

    async def run(self) -> Imported:
        try:
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise CorruptError(f"no frames of {self._stream} here: {error.strerror}", source=str(self._path)) from None
        try:
            sums = self._sums(directory)
            names = sorted(sums, key=lambda name: (name != OBJECTS, name))
            if len(names) > FILES_MAX:
                self.done.findings.append(f"{len(names)} files; only the first {FILES_MAX} are read: run it again on the rest")
            for name in names[:FILES_MAX]:
                await self._file(directory, name, sums[name])
            for name in sorted(os.listdir(directory)):
                if NAME.fullmatch(name) and name not in sums:
                    self.done.findings.append(f"{name}: not in {SUMS}, so the export did not end: not read")
        finally:
            os.close(directory)
        return self.done

    @staticmethod
    def _sums(directory: int) -> dict[str, str]:
        try:
            fd = _open(directory, SUMS)
        except CorruptError as error:
            raise CorruptError(f"{error.message}: the export onto this stick did not end; run `ebbgate export` again", source=SUMS) from None
        try:
            return parse_sums(_pread(fd, SUMS, SUMS_BYTES_MAX, 0).decode("ascii", errors="replace"))
        finally:
            os.close(fd)

    async def _file(self, directory: int, name: str, wanted: str) -> None:
        try:
            fd = _open(directory, name)
        except CorruptError as error:
            self.done.findings.append(str(error))
            return
        try:
            if await self._runtime.offload(lambda: _digest(fd, name)) != wanted:
                self.done.findings.append(f"{name}: damaged, copy it again (its sum is not the one in {SUMS}); its good frames are sent")
            self.done.files += 1
            for run in _runs(_frames(fd, name, self.done.findings)):
                await self._send(run, name)
        except CorruptError as error:
            self.done.findings.append(f"{error}; what follows in this file is not read")
        finally:
            os.close(fd)

    async def _send(self, run: list[Frame], name: str) -> None:
        first, last = run[0].manifest, run[-1].manifest
        if first.stream != self._stream:
            raise CorruptError(f"a frame of stream {first.stream!r}", source=name)
        target: FramesTarget | ObjectTarget
        if first.kind == FrameKind.OBJECT:
            target, chain = ObjectTarget(first.payload_sha256, self._stream), first.payload_sha256
        else:
            target = FramesTarget(self._stream, first.generation, first.first_block, last.last_block, lane=Lane.BACKFILL)
            chain = last.chain_after if last.kind == FrameKind.SEGMENT else chain_next(last.chain_before, run[-1].cose)
        receipt = await self._receipt(target, tuple(frame.wire() for frame in run), chain)
        self._count(receipt, 1 if first.kind == FrameKind.OBJECT else receipt.last - receipt.first + 1)
        left = [frame for frame in run if first.kind != FrameKind.OBJECT and frame.manifest.first_block > receipt.last]
        if left:
            await self._send(left, name)

    def _count(self, receipt: Receipt, count: int) -> None:
        match receipt.verdict:
            case Verdict.STORED:
                self.done.stored += count
            case Verdict.DUPLICATE:
                self.done.duplicate += count
            case Verdict.CONFLICT:
                self.done.conflict += count
            case _:
                self.done.refused += count
                self.done.findings.append(f"refused: blocks {receipt.first}-{receipt.last}, reason {receipt.reason}")

    async def _receipt(self, target: FramesTarget | ObjectTarget, parts: tuple[bytes, ...], chain: bytes) -> Receipt:
        """Return a verified verdict about this request; raise PeerError after ATTEMPTS_MAX tries."""
        failure: PeerError | None = None
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                await self._runtime.sleep(jitter_ns(self._runtime.random, attempt, BACKOFF_BASE_NS, _CAP_NS) / 1e9)
            try:
                answer = await self._carrier.put(wire.format_target(target), parts, Lane.BACKFILL, DEADLINE_SECONDS, None)
                return self._judged(answer.status, answer.body, target, chain)
            except CarrierError as error:
                failure = error
        raise failure or PeerError("no answer")

    def _judged(self, status: int, body: bytes, target: FramesTarget | ObjectTarget, chain: bytes) -> Receipt:
        if status == wire.MISSING_OBJECTS:
            raise objects_missing(body.decode("ascii", errors="replace"))
        if status != wire.OK:
            raise explain_status(status)
        try:
            receipt = parse_receipt(body, self._verifier)
        except CorruptError as error:
            raise (wrong_key() if "key" in error.message else altered(error.message)) from None
        generation, first, last = (target.generation, target.first, target.last) if isinstance(target, FramesTarget) else (0, 0, 0)
        about = (receipt.stream, receipt.generation, receipt.first) == (self._stream, generation, first) and receipt.last <= last
        settled = receipt.verdict in (Verdict.STORED, Verdict.DUPLICATE, Verdict.CONFLICT)
        if not about or (settled and receipt.last == last and receipt.chain != chain):
            raise altered("a receipt for another request")
        return receipt


def _pread(fd: int, name: str, size: int, at: int) -> bytes:
    try:
        return os.pread(fd, size, at)
    except OSError as error:
        message = f"{error.strerror}; what was sent is safe, put the stick back and run it again"
        raise StorageFault(message, path=name, errno=error.errno) from error


def _digest(fd: int, name: str) -> str:
    digest, at = hashlib.sha256(), 0
    while chunk := _pread(fd, name, _CHUNK, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


def _frames(fd: int, name: str, findings: list[str]) -> Iterator[Frame]:
    """Yield the frames of a file, structure and digests checked; raise CorruptError with the place where the next one cannot be found.

    A frame whose header holds and whose body does not is a finding: its length is known, and the next one is good again.
    """
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            header = parse_header(_pread(fd, name, HEADER_BYTES, at))
            body = _pread(fd, name, header.cose_bytes + header.payload_bytes, at + HEADER_BYTES)
            if len(body) != header.cose_bytes + header.payload_bytes:
                raise CorruptError("frame is cut off")
        except CorruptError as error:
            raise error.at(name, at) from None
        try:
            frame = parse_body(header, body[: header.cose_bytes], memoryview(body)[header.cose_bytes :])
        except CorruptError as error:
            findings.append(f"{error.at(name, at)}; not sent")
        else:
            yield frame
        at += header.frame_bytes


def _runs(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    """Group consecutive blocks for one request; a segment or an object goes alone."""
    run: list[Frame] = []
    size = 0
    for frame in frames:
        m = frame.manifest
        length = HEADER_BYTES + len(frame.cose) + len(frame.payload)
        before = run[-1].manifest if run else None
        joins = before is not None and m.kind == before.kind == FrameKind.BLOCK
        joins = joins and before is not None and (before.generation, before.last_block + 1) == (m.generation, m.first_block)
        if run and (not joins or size + length > min(RUN_BYTES_MAX, limits.PUT_BYTES_MAX) or len(run) >= RUN_BLOCKS_MAX):
            yield run
            run, size = [], 0
        run.append(frame)
        size += length
    if run:
        yield run
