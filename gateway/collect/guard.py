"""What may leave towards a plant: reads, browses, subscriptions and the session they need. Pure; imports no library.

An allow-list, never a deny-list: what is not named here is refused, whatever it is. OPC UA is checked three times, by
gateway.collect.opcua.session: the request object, its encoded bytes before encryption, and the socket, which takes only a Hello or
bytes that passed the second check. Modbus is checked on the PDU, the last bytes that are the same on TCP and on a serial line.

Sources: OPC 10000-6 1.05 section 5.2.2.9 (NodeId encoding), 7.1.2.3 (Hello), NodeIds.csv (encoding ids);
MODBUS Application Protocol 1.1b3 sections 4.1, 6 and 6.21.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import WriteRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

# <Service>Request_Encoding_DefaultBinary -> name. Never Call (712), not even for ConditionRefresh; never Write (673), HistoryUpdate (700),
# AddNodes, DeleteNodes, AddReferences, DeleteReferences, RegisterNodes (keeps state in the server), SetTriggering, RegisterServer.
OPCUA_SERVICES: Final[Mapping[int, str]] = {
    422: "FindServers",
    428: "GetEndpoints",
    446: "OpenSecureChannel",
    452: "CloseSecureChannel",
    461: "CreateSession",
    467: "ActivateSession",
    473: "CloseSession",
    527: "Browse",
    533: "BrowseNext",
    554: "TranslateBrowsePathsToNodeIds",
    631: "Read",
    664: "HistoryRead",
    751: "CreateMonitoredItems",
    763: "ModifyMonitoredItems",
    769: "SetMonitoringMode",
    781: "DeleteMonitoredItems",
    787: "CreateSubscription",
    793: "ModifySubscription",
    799: "SetPublishingMode",
    826: "Publish",
    832: "Republish",
    841: "TransferSubscriptions",
    847: "DeleteSubscriptions",
}
HELLO_BYTES_MAX: Final = 32 + 4096  # header and five numbers, then an endpoint URL of at most 4096 bytes (OPC 10000-6, 7.1.2.3)
_HELLO_BYTES_MIN: Final = 32  # header, version, two buffer sizes, two maxima, length of the URL
_FOUR_BYTE_NS0: Final = b"\x01\x00"  # NodeId encoding FourByte, namespace 0: the only one a service request uses

MODBUS_FUNCTIONS: Final = frozenset({1, 2, 3, 4})  # read coils, discrete inputs, holding registers, input registers
_MODBUS_READ_BYTES: Final = 5  # function, address, quantity
_MODBUS_IDENTIFY: Final = (0x2B, 0x0E)  # 43/14 Read Device Identification; 43/13 (CANopen) can write
_MODBUS_IDENTIFY_BYTES: Final = 4

_REMEDY: Final = "Nothing was sent. This is a defect of Ebbgate or an attack on it: keep the log and report it."


def check_opcua_service(encoding_id: int) -> None:
    """Raise WriteRefused unless this is the binary encoding id of an allowed service request."""
    if encoding_id not in OPCUA_SERVICES:
        raise WriteRefused(f"OPC UA request i={encoding_id} is not on the list of reads", _REMEDY)


def check_opcua_body(body: bytes) -> None:
    """Raise WriteRefused unless these plain bytes begin an allowed service request (OPC 10000-6, 5.2.2.9 and 6.1)."""
    if len(body) < 4 or bytes(body[:2]) != _FOUR_BYTE_NS0:  # noqa: PLR2004 -- encoding, namespace, two bytes of identifier
        raise WriteRefused("OPC UA request with an unknown type encoding", _REMEDY)
    check_opcua_service(body[2] | body[3] << 8)


def check_opcua_hello(wire: bytes) -> None:
    """Raise WriteRefused unless these bytes are one Hello message and nothing behind it (OPC 10000-6, 7.1.2.3)."""
    wire = bytes(wire)
    hello = _HELLO_BYTES_MIN <= len(wire) <= HELLO_BYTES_MAX and wire[:4] == b"HELF" and wire[_HELLO_BYTES_MIN:].startswith(b"opc.tcp://")
    whole, url = int.from_bytes(wire[4:8], "little"), int.from_bytes(wire[28:32], "little")
    if not hello or whole != len(wire) or url != len(wire) - _HELLO_BYTES_MIN:
        raise WriteRefused("bytes for the socket that the guard has not seen", _REMEDY)


def check_modbus_pdu(pdu: bytes, identify: bool) -> None:
    """Raise WriteRefused unless this PDU (function code first, no address, no checksum) is a read.

    Function codes 1 to 4 of exactly 5 bytes; 43/14 of exactly 4 bytes, and only with `identify`.
    """
    if len(pdu) == _MODBUS_READ_BYTES and pdu[0] in MODBUS_FUNCTIONS:
        return
    if identify and len(pdu) == _MODBUS_IDENTIFY_BYTES and (pdu[0], pdu[1]) == _MODBUS_IDENTIFY:
        return
    raise WriteRefused(f"Modbus request {bytes(pdu[:2]).hex(' ') or 'without a function code'} is not a read", _REMEDY)
