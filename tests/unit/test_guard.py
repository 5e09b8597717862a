"""The allow-list itself, exhaustively: what is on it passes, everything else is refused."""

from __future__ import annotations

import pytest

from gateway.collect import guard
from gateway.errors import WriteRefused

NEVER = {"Write": 673, "HistoryUpdate": 700, "Call": 712, "AddNodes": 488, "DeleteNodes": 500, "RegisterNodes": 560, "SetTriggering": 775}


def test_opcua_list_is_the_23_services_of_the_design() -> None:
    assert len(guard.OPCUA_SERVICES) == 23
    assert not set(NEVER.values()) & set(guard.OPCUA_SERVICES)


def test_every_16_bit_encoding_id_not_on_the_list_is_refused() -> None:
    passed = set()
    for number in range(65_536):
        try:
            guard.check_opcua_body(b"\x01\x00" + number.to_bytes(2, "little") + b"rest")
        except WriteRefused:
            continue
        passed.add(number)
    assert passed == set(guard.OPCUA_SERVICES)


@pytest.mark.parametrize(
    "body", [b"", b"\x01", b"\x01\x00\x77", b"\x00\x77", b"\x01\x01\x77\x02", b"\x02\x00\x00\x77\x02\x00\x00", b"\x03\x00\x00\x77"]
)
def test_other_encodings_of_an_allowed_id_are_refused(body: bytes) -> None:
    with pytest.raises(WriteRefused):
        guard.check_opcua_body(body)


def hello(extra: bytes = b"", claimed: int | None = None) -> bytes:
    url = b"opc.tcp://10.0.0.1:4840"
    body = bytes(20) + len(url).to_bytes(4, "little") + url + extra
    size = 8 + len(body) if claimed is None else claimed
    return b"HELF" + size.to_bytes(4, "little") + body


def test_hello_passes_alone_only() -> None:
    guard.check_opcua_hello(hello())
    write = b"MSGF" + bytes(60)
    for bad in (
        b"",
        b"HELF",
        write,
        hello() + write,
        hello(write, claimed=len(hello())),
        hello(bytes(5000)),
        hello().replace(b"HELF", b"HELC"),
        b"HELF" + hello(write)[4:],
    ):
        with pytest.raises(WriteRefused):
            guard.check_opcua_hello(bad)


@pytest.mark.parametrize("identify", [False, True])
def test_every_modbus_function_code_and_length(identify: bool) -> None:
    for code in range(256):
        for length in range(1, 12):
            pdu = bytes([code]) + b"\x0e\x01\x00\x00\x01\x02\x00\x00\x00\x00"[: length - 1]
            read = code in (1, 2, 3, 4) and length == 5
            named = identify and code == 0x2B and length == 4
            if read or named:
                guard.check_modbus_pdu(pdu, identify)
            else:
                with pytest.raises(WriteRefused):
                    guard.check_modbus_pdu(pdu, identify)


def test_modbus_canopen_tunnel_is_refused_even_with_identify() -> None:
    for pdu in (b"\x2b\x0d\x01\x00", b""):
        with pytest.raises(WriteRefused):
            guard.check_modbus_pdu(pdu, True)
