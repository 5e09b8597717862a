"""A proxy that lies: what the server says is mangled on its way to us, chunk by chunk (OPC 10000-6, 6.7.2), for as long as a test wants.

Chunk: type (3), F C or A, size u32, channel u32; MSG: token u32, sequence u32, request u32, body.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator, Callable

from tests.support.proxy import Proxy

Mangle = Callable[[bytes, random.Random], AsyncIterator[bytes]]
SIZE, SEQUENCE, REQUEST, BODY = 4, 16, 20, 24


def _with(chunk: bytes, at: int, value: int) -> bytes:
    return chunk[:at] + struct.pack("<I", value & 0xFFFF_FFFF) + chunk[at + 4 :]


def _number(chunk: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", chunk, at)[0])


async def noise(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    yield rng.randbytes(len(chunk))


async def endless_length(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    yield _with(chunk, SIZE, 0xFFFF_FFF0)
    while True:
        await asyncio.sleep(0.001)
        yield bytes(65_536)


async def short_length(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    yield _with(chunk, SIZE, max(8, len(chunk) - 9))


async def wrong_request(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    yield _with(chunk, REQUEST, _number(chunk, REQUEST) + 1000)


async def wrong_sequence(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    yield _with(chunk, SEQUENCE, _number(chunk, SEQUENCE) + 7)


async def aborted(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    body = struct.pack("<Ii", 0x8008_0000, -1)
    yield _with(b"MSGA" + chunk[4:BODY], SIZE, BODY + len(body)) + body


async def chunk_flood(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    """Intermediate chunks for ever: a message that never ends."""
    part = b"MSGC" + chunk[4:BODY] + bytes(100)
    sequence = _number(chunk, SEQUENCE)
    while True:
        parts = []
        for _ in range(500):
            parts.append(_with(_with(part, SIZE, len(part)), SEQUENCE, sequence))
            sequence += 1
        yield b"".join(parts)
        await asyncio.sleep(0)


async def answers_for_ever(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    sequence = _number(chunk, SEQUENCE)
    while True:
        yield _with(chunk, SEQUENCE, sequence)
        sequence += 1
        await asyncio.sleep(0)


async def flipped_bits(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    mangled = bytearray(chunk)
    for _ in range(8):
        mangled[rng.randrange(min(BODY, len(chunk) - 1), len(chunk))] ^= 1 << rng.randrange(8)
    yield bytes(mangled)


async def huge_lengths(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    """Every four bytes of the body in turn claim two billion, minus two, or what the chunk has."""
    at = rng.randrange(BODY, max(BODY + 1, len(chunk) - 4))
    yield _with(chunk, at, rng.choice([0x7FFF_FFFF, 0xFFFF_FFFE, len(chunk)]))


async def dribble(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    for i in range(len(chunk)):
        yield chunk[i : i + 1]
        await asyncio.sleep(0.005)


async def late(chunk: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    await asyncio.sleep(4)
    yield chunk


MODES: dict[str, Mangle] = {
    one.__name__: one
    for one in (
        *(noise, endless_length, short_length, wrong_request, wrong_sequence, aborted, chunk_flood, answers_for_ever),
        *(flipped_bits, huge_lengths, dribble, late),
    )
}


class HostileProxy(Proxy):
    """`mangle`: what happens to the server's messages now; None: nothing."""

    def __init__(self, target: int, seed: int = 1) -> None:
        super().__init__(target)
        self.mangle: Mangle | None = None
        self._rng = random.Random(seed)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        if up:
            await super()._pipe(reader, writer, up)
            return
        with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(8)
                chunk = head + await reader.readexactly(_number(head, SIZE) - 8)
                mangle = self.mangle
                if mangle is None or chunk[:3] != b"MSG":
                    writer.write(chunk)
                else:
                    async for part in mangle(chunk, self._rng):
                        writer.write(part)
                        await writer.drain()
                        if self.mangle is None and mangle in (endless_length, chunk_flood, answers_for_ever):
                            break
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()
