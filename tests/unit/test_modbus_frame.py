"""The parser of answers under any bytes: right or refused, never anything else, whatever the pieces they come in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymodbus.framer import FramerRTU

from gateway.collect.modbus.frame import (
    IDENTIFY_PDU,
    Answer,
    BadAnswer,
    Framing,
    Refused,
    check_answer,
    crc16,
    data_bytes,
    parse_identification,
    read_pdu,
    wrap,
)

REQUESTS = st.one_of(
    st.builds(read_pdu, st.sampled_from([1, 2]), st.integers(0, 60_000), st.integers(1, 2_000)),
    st.builds(read_pdu, st.sampled_from([3, 4]), st.integers(0, 60_000), st.integers(1, 125)),
)
FRAMINGS = st.sampled_from(list(Framing))
UNITS = st.integers(0, 255)
TRANSACTIONS = st.integers(0, 65_535)


def good_pdu(request: bytes, filler: bytes) -> bytes:
    size = data_bytes(request)
    return bytes([request[0], size]) + (filler * size)[:size]


def feed(answer: Answer, pieces: list[bytes]) -> bytes | None:
    for i, piece in enumerate(pieces):
        pdu = answer.feed(piece)
        if pdu is not None:
            assert i == len(pieces) - 1
            return pdu
    return None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(FRAMINGS, REQUESTS, TRANSACTIONS, UNITS, st.binary(min_size=1, max_size=8), st.lists(st.integers(0, 300), max_size=12))
def test_a_good_answer_is_the_same_in_any_pieces(framing: Framing, request: bytes, transaction: int, unit: int, filler: bytes, places: list[int]) -> None:
    pdu = good_pdu(request, filler)
    assert feed(Answer(framing, transaction, unit, request), cut(wrap(framing, transaction, unit, pdu), places)) == pdu


@given(FRAMINGS, REQUESTS, TRANSACTIONS, UNITS, st.integers(1, 255), st.lists(st.integers(0, 300), max_size=3))
def test_an_exception_is_said_in_any_pieces(framing: Framing, request: bytes, transaction: int, unit: int, code: int, places: list[int]) -> None:
    wire = wrap(framing, transaction, unit, bytes([request[0] | 0x80, code]))
    with pytest.raises(Refused) as refused:
        feed(Answer(framing, transaction, unit, request), cut(wire, places))
    assert refused.value.code == code


@given(REQUESTS, TRANSACTIONS, UNITS, st.binary(min_size=1, max_size=8), st.integers(0, 10_000), st.integers(1, 255))
def test_one_wrong_byte_is_never_a_wrong_value(request: bytes, transaction: int, unit: int, filler: bytes, place: int, flip: int) -> None:
    """RTU has a checksum: nothing gets through. MBAP has none: all but the data is known beforehand, and must be it."""
    pdu = good_pdu(request, filler)
    for framing, known in ((Framing.RTU, 10**6), (Framing.MBAP, 9)):
        wire = bytearray(wrap(framing, transaction, unit, pdu))
        at = place % min(len(wire), known)
        wire[at] ^= flip
        try:
            assert Answer(framing, transaction, unit, request).feed(bytes(wire)) is None  # it waits for more, and the deadline comes
        except (BadAnswer, Refused):
            pass


@settings(max_examples=300)
@given(FRAMINGS, st.one_of(REQUESTS, st.just(IDENTIFY_PDU)), TRANSACTIONS, UNITS, st.lists(st.binary(max_size=300), max_size=6))
def test_any_bytes_are_an_answer_of_the_right_form_or_refused(
    framing: Framing, request: bytes, transaction: int, unit: int, pieces: list[bytes]
) -> None:
    answer = Answer(framing, transaction, unit, request)
    try:
        for piece in pieces:
            pdu = answer.feed(piece)
            if pdu is not None:
                check_answer(request, pdu)
                break
    except (BadAnswer, Refused):
        pass


@given(st.binary(max_size=260))
def test_any_identification_is_read_without_a_fault(data: bytes) -> None:
    assert set(parse_identification(data)) <= {"vendor", "product", "revision"}


@given(st.binary(min_size=1, max_size=256))
def test_checksum_against_pymodbus(data: bytes) -> None:
    assert struct.pack("<H", crc16(data)) == struct.pack(">H", FramerRTU.compute_CRC(data))


@pytest.mark.parametrize(
    ("pdu", "told"),
    [
        (bytes([3, 6, 0, 1, 0, 2]), "the answer counts 6 bytes of data and holds 4"),
        (bytes([3, 4, 0, 1]), "2 bytes of data came, 4 were asked for"),
        (bytes([3]), "0 bytes of data came, 4 were asked for"),
    ],
)
def test_a_wrong_length_is_said_as_it_is(pdu: bytes, told: str) -> None:
    with pytest.raises(BadAnswer, match=told):
        check_answer(read_pdu(3, 0, 2), pdu)
