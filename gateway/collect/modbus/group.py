"""The tags of a source that are polled together: their requests, and answers -> Columns. Pure.

A value that cannot be read is null with the reason as quality (OPC UA status codes, OPC 10000-6 A.2), for its own tags only:

    1 illegal function        Bad_NotSupported           7 negative acknowledge   Bad_DeviceFailure
    2 illegal data address    Bad_ConfigurationError     8 memory parity error    Bad_DeviceFailure
    3 illegal data value      Bad_OutOfRange            10 gateway path           Bad_NotConnected
    4 device failure          Bad_DeviceFailure         11 gateway target silent  Bad_NoCommunication
    5 acknowledge, 6 busy     Bad_ResourceUnavailable   any other exception       Bad_DeviceFailure
    no answer in time         Bad_Timeout               a damaged answer          Bad_CommunicationError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.types import BAD_DEVICE_FAILURE, BAD_NO_COMMUNICATION, Kind
from gateway.collect.modbus.arrays import decoder_of
from gateway.collect.modbus.change import Reported
from gateway.collect.modbus.decode import Field, Values
from gateway.collect.modbus.frame import NoAnswer, Refused
from gateway.collect.modbus.plan import Block, Cuts, Point, Rules, plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from buffer.types import Columns
    from gateway.collect.source import Reading
    from gateway.errors import PlantError

BAD_COMMUNICATION_ERROR: Final = 0x8005_0000
BAD_TIMEOUT: Final = 0x800A_0000
BAD_RESOURCE_UNAVAILABLE: Final = 0x8004_0000
BAD_OUT_OF_RANGE: Final = 0x803C_0000
BAD_NOT_SUPPORTED: Final = 0x803D_0000
BAD_CONFIGURATION_ERROR: Final = 0x8089_0000
BAD_NOT_CONNECTED: Final = 0x808A_0000

_EXCEPTIONS: Final = {
    1: BAD_NOT_SUPPORTED,
    2: BAD_CONFIGURATION_ERROR,
    3: BAD_OUT_OF_RANGE,
    5: BAD_RESOURCE_UNAVAILABLE,
    6: BAD_RESOURCE_UNAVAILABLE,
    10: BAD_NOT_CONNECTED,
    11: BAD_NO_COMMUNICATION,
}


def quality_of(fault: PlantError) -> int:
    """Return the status code of a request that failed (module docstring)."""
    if isinstance(fault, Refused):
        return _EXCEPTIONS.get(fault.code, BAD_DEVICE_FAILURE)
    return BAD_TIMEOUT if isinstance(fault, NoAnswer) else BAD_COMMUNICATION_ERROR


class Group:
    """Points with one `every`. `plan` is made anew when holes were learned."""

    def __init__(self, every_ns: int, points: Sequence[Point], last: Mapping[int, Reading]) -> None:
        self.every_ns = every_ns
        self.points = tuple(sorted(points, key=lambda point: (point.table, point.start, point.tag.id)))
        self.reported = Reported([point.tag for point in self.points], last)
        self.blocks: tuple[Block, ...] = ()
        self._rows = {point.tag.id: i for i, point in enumerate(self.points)}

    def replan(self, rules: Rules, cuts: Cuts) -> None:
        """Make the requests, and the decoder for the answers in that layout."""
        self.blocks = plan((point.span for point in self.points), rules, cuts)
        block_of = {value: i for i, block in enumerate(self.blocks) for value in block.values}
        sizes = [(b.span.count + 7) // 8 if b.span.table.is_bits else 2 * b.span.count for b in self.blocks]
        self._starts: list[int] = np.cumsum([0, *sizes]).tolist()
        self._block_of = np.array([block_of[point.span] for point in self.points], np.intp)
        self._decoder = decoder_of([self._field(point, block_of[point.span]) for point in self.points])

    def _field(self, point: Point, index: int) -> Field:
        place = point.start - self.blocks[index].span.first
        start, tag = self._starts[index], point.tag
        if point.table.is_bits:
            return Field(point.type, point.order, start + place // 8, place % 8)
        return Field(point.type, point.order, start + 2 * place, -1, tag.scale, tag.offset, tag.bad_raw)

    def row_of(self, tag_id: str) -> int:
        """Return the row of a tag, or -1."""
        return self._rows.get(tag_id, -1)

    def ids_of(self, block: Block) -> list[str]:
        """Return the tags whose values stand in this block."""
        return [point.tag.id for point in self.points if point.span in block.values]

    def begin(self) -> Poll:
        """Start a poll: nothing read yet."""
        return Poll(len(self.blocks), self._starts)

    def decode(self, poll: Poll) -> Values:
        """Return the values of a poll; those of failed blocks are null with the reason."""
        got = self._decoder.decode(poll.buffer)
        failed = poll.quality[self._block_of]
        rows = np.flatnonzero(failed)
        got.kind[rows], got.values[rows], got.quality[rows], got.flags[rows] = Kind.NULL, 0, failed[rows], 0
        return got

    def is_text(self, row: int) -> bool:
        """Say whether a row's value is a place in the texts."""
        type_ = self.points[row].type
        return type_.name == "string" or type_.length > 0

    def finish(self, poll: Poll, got: Values, extra_flags: int) -> Columns | None:
        """Return what is news, or None."""
        return self.reported.take(got, poll.ts_ns[self._block_of], poll.seen[self._block_of], extra_flags)

    def was_read(self, poll: Poll, row: int) -> bool:
        """Say whether this row holds a value that came in this poll."""
        block = self._block_of[row]
        return bool(poll.seen[block]) and not poll.quality[block]


class Poll:
    """The answers to one round of requests, by block."""

    def __init__(self, blocks: int, starts: Sequence[int]) -> None:
        self._starts = starts
        self.buffer = bytearray(starts[-1])
        self.seen = np.zeros(blocks, np.bool_)
        self.quality = np.zeros(blocks, np.uint32)
        self.ts_ns = np.zeros(blocks, np.int64)

    def put(self, index: int, pdu: bytes, ts_ns: int) -> None:
        """Keep the data of a good answer (its form was checked against the request)."""
        start, end = self._starts[index], self._starts[index + 1]
        if len(pdu) - 2 != end - start:
            raise ValueError(index, len(pdu))
        self.buffer[start:end] = pdu[2:]
        self.seen[index], self.ts_ns[index] = True, ts_ns

    def fail(self, index: int, quality: int, ts_ns: int) -> None:
        """Note that a block was asked for and cannot be had."""
        self.seen[index], self.quality[index], self.ts_ns[index] = True, quality, ts_ns

    @property
    def refused_all(self) -> bool:
        """Whether every block was asked for and the device itself refused it."""
        silence = (BAD_TIMEOUT, BAD_COMMUNICATION_ERROR)
        return bool(self.seen.all() and (self.quality != 0).all() and not np.isin(self.quality, silence).any())

    @property
    def good(self) -> int:
        """Number of blocks that were read."""
        return int((self.seen & (self.quality == 0)).sum())
