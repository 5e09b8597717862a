"""PDUs in their two envelopes, MBAP (Modbus TCP) and RTU with CRC (serial, or over TCP), and what a valid answer is. Pure.

Sources: MODBUS Application Protocol 1.1b3 (4, 6, 7), MODBUS Messaging on TCP/IP 1.0b (3.1.3), MODBUS over Serial Line 1.02 (2.5.1, 6.2.2).
"""

from __future__ import annotations

import struct
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.collect.guard import check_modbus_pdu
from gateway.errors import PlantError, WriteRefused

PDU_BYTES_MAX: Final = 253  # 256 on a serial line less address and CRC
MBAP_BYTES: Final = 7
IDENTIFY_PDU: Final = bytes([0x2B, 0x0E, 0x01, 0x00])  # basic device identification, from object 0
_MEI: Final = 0x2B
_ERROR: Final = 0x80
_BITS: Final = (1, 2)
_MBAP: Final = struct.Struct(">HHHB")
_QUESTIONS_KEPT: Final = 1_024  # 100 bytes each; a source asks the same few again and again


class Framing(StrEnum):
    """How a PDU is wrapped."""

    MBAP = "mbap"
    RTU = "rtu"


_MBAP_FRAMING: Final = Framing.MBAP  # Python 3.11 looks a member up in Python
_LENGTHS: Final = {MBAP_BYTES + size: (size + 1).to_bytes(4, "big") for size in range(1, PDU_BYTES_MAX + 1)}  # of a frame: protocol 0, length


class NoAnswer(PlantError):
    """Nothing usable came within the deadline."""


class ConnectionLost(PlantError):
    """The connection could not be made, or ended."""


class BadAnswer(PlantError):
    """The answer is not one to our question: wrong id, unit, function, length or checksum. The connection is closed."""


class Refused(PlantError):
    """The device answered with an exception: its own word that it will not."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exception {code}: {EXCEPTIONS.get(code, 'unknown')}")
        self.code = code

    @property
    def of_a_part(self) -> bool:
        """Whether it may be about a part of what was asked for: fewer registers may be there."""
        return self.code in _OF_A_PART


def is_silence(fault: PlantError) -> bool:
    """Say whether nobody answered: no answer, a damaged one, or a gateway that speaks for a silent unit."""
    return not isinstance(fault, Refused) or fault.code in _SILENT_BEHIND_GATEWAY


_OF_A_PART: Final = (1, 2, 3, 4)
_SILENT_BEHIND_GATEWAY: Final = (10, 11)  # they speak for a unit, not for the connection
EXCEPTIONS: Final = {
    1: "illegal function: the device does not have this table",
    2: "illegal data address: these registers are not there",
    3: "illegal data value: the device refuses this quantity",
    4: "device failure",
    5: "acknowledge: the device is busy with an earlier request",
    6: "device busy",
    7: "negative acknowledge",
    8: "memory parity error in the device",
    10: "gateway path unavailable: the gateway has no line to this unit",
    11: "gateway target failed to respond: the unit behind the gateway is silent",
}


def read_pdu(function: int, start: int, count: int) -> bytes:
    """Return a read request."""
    return struct.pack(">BHH", function, start, count)


def data_bytes(request: bytes) -> int:
    """Return how many bytes of data the answer to a read request has."""
    count = request[3] << 8 | request[4]
    return (count + 7) // 8 if request[0] in _BITS else 2 * count


def crc16(data: bytes) -> int:
    """Return the CRC of MODBUS over Serial Line 6.2.2."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC: Final = _crc_table()


def wrap(framing: Framing, transaction: int, unit: int, pdu: bytes) -> bytes:
    """Return the bytes for the wire."""
    if framing is _MBAP_FRAMING:
        return _MBAP.pack(transaction, 0, len(pdu) + 1, unit) + pdu
    body = bytes([unit]) + pdu
    return body + struct.pack("<H", crc16(body))


def check_wire(framing: Framing, wire: bytes, identify: bool) -> None:
    """Raise WriteRefused unless these bytes are exactly one frame around one allowed PDU: the last check before the socket."""
    if framing is _MBAP_FRAMING:
        pdu = wire[MBAP_BYTES:]
        whole = wire[2:6] == _LENGTHS.get(len(wire))
    else:
        pdu = wire[1:-2]
        whole = len(wire) > 3 and wire[-2:] == struct.pack("<H", crc16(wire[:-2]))  # noqa: PLR2004 -- unit, function, CRC
    if not whole:
        raise WriteRefused("bytes for the socket that are not one Modbus frame", "Nothing was sent. Keep the log and report it.")
    check_modbus_pdu(pdu, identify)


class Question(NamedTuple):
    """What of a request on Modbus TCP is the same each time it is asked: everything behind the transaction number."""

    wire: bytes
    answer: bytes  # what a good answer begins with
    size: int  # bytes of a good answer, whole; -1: it says so itself


@lru_cache(_QUESTIONS_KEPT)
def question(unit: int, pdu: bytes) -> Question:
    """Return what is sent and expected of this PDU. Checks nothing."""
    wire = wrap(_MBAP_FRAMING, 0, unit, pdu)[2:]
    if pdu[0] == _MEI:
        return Question(wire, b"", -1)
    data = data_bytes(pdu)
    return Question(wire, wrap(_MBAP_FRAMING, 0, unit, bytes([pdu[0], data & 0xFF]) + bytes(data))[2 : MBAP_BYTES + 2], MBAP_BYTES + 2 + data)


class Answer:
    """Collects the answer to one request, byte by byte if need be; holds at most one frame."""

    __slots__ = ("_buffer", "_framing", "_request", "_transaction", "_unit")

    def __init__(self, framing: Framing, transaction: int, unit: int, request: bytes) -> None:
        self._framing = framing
        self._transaction = transaction
        self._unit = unit
        self._request = request
        self._buffer = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return the PDU when it is whole, None while it is not.

        Raise BadAnswer for anything that cannot become our answer (also bytes behind it), Refused for an exception.
        """
        self._buffer += data
        length = self._mbap_length() if self._framing is _MBAP_FRAMING else self._rtu_length()
        if length is None or len(self._buffer) < length:
            return None
        if len(self._buffer) > length:
            raise BadAnswer("more bytes came than one answer has")
        pdu = self._buffer[MBAP_BYTES:] if self._framing is _MBAP_FRAMING else self._rtu_pdu()
        check_answer(self._request, pdu)
        return pdu

    def _mbap_length(self) -> int | None:
        if len(self._buffer) < MBAP_BYTES:
            return None
        transaction, protocol, length, unit = struct.unpack_from(">HHHB", self._buffer)
        if protocol != 0 or not 3 <= length <= PDU_BYTES_MAX + 1:  # noqa: PLR2004 -- unit, function and a byte
            raise BadAnswer("what came is no Modbus TCP")
        if transaction != self._transaction:
            raise BadAnswer(f"the answer has transaction {transaction}, ours is {self._transaction}")
        if unit != self._unit:
            raise BadAnswer(f"unit {unit} answered, unit {self._unit} was asked")
        return 6 + int(length)

    def _rtu_length(self) -> int | None:
        if self._buffer and self._buffer[0] != self._unit:
            raise BadAnswer(f"unit {self._buffer[0]} answered, unit {self._unit} was asked")
        if len(self._buffer) < 3:  # noqa: PLR2004 -- unit, function, and a length or code
            return None
        function = self._buffer[1]
        if function == self._request[0] | _ERROR:
            return 5
        if function != self._request[0]:
            raise BadAnswer(f"function {function} answered, function {self._request[0]} was asked")
        return self._identify_length() if function == _MEI else 5 + self._buffer[2]

    def _identify_length(self) -> int | None:
        """Walk over the objects: the answer does not state its length (1.1b3, 6.21)."""
        at = 8
        if len(self._buffer) < at:
            return None
        for _ in range(self._buffer[7]):
            if len(self._buffer) < at + 2:
                return None
            at += 2 + self._buffer[at + 1]
        if at + 2 > PDU_BYTES_MAX + 3:
            raise BadAnswer("the identification is longer than a frame")
        return at + 2

    def _rtu_pdu(self) -> bytes:
        if self._buffer[-2:] != struct.pack("<H", crc16(self._buffer[:-2])):
            raise BadAnswer("the checksum is wrong: noise, or two answers in one")
        return self._buffer[1:-2]


def check_answer(request: bytes, pdu: bytes) -> None:
    """Raise BadAnswer unless `pdu` has the form of an answer to `request`; Refused if it is an exception to it."""
    if len(pdu) == 2 and pdu[0] == request[0] | _ERROR:  # noqa: PLR2004 -- function and code
        raise Refused(pdu[1])
    if not pdu or pdu[0] != request[0]:
        raise BadAnswer(f"function {pdu[0] if pdu else 'nothing'} answered, function {request[0]} was asked")
    if request[0] == _MEI:
        return
    size = data_bytes(request)
    if len(pdu) != 2 + size:
        raise BadAnswer(f"{max(0, len(pdu) - 2)} bytes of data came, {size} were asked for")
    if pdu[1] != size:
        raise BadAnswer(f"the answer counts {pdu[1]} bytes of data and holds {size}")


def parse_identification(pdu: bytes) -> dict[str, str]:
    """Return what a device says of itself: vendor, product, revision; what is cut off or unknown is left out."""
    names = {0: "vendor", 1: "product", 2: "revision"}
    found: dict[str, str] = {}
    at = 7
    for _ in range(pdu[6] if len(pdu) > 6 else 0):  # noqa: PLR2004 -- number of objects
        head = pdu[at : at + 2]
        if len(head) == 2 and head[0] in names:  # noqa: PLR2004
            found[names[head[0]]] = pdu[at + 2 : at + 2 + head[1]].decode("utf-8", "replace")
        at += 2 + (head[1] if len(head) == 2 else 0)  # noqa: PLR2004
    return found
