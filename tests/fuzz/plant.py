"""Parsers of the OT side and of what people write, and their seeds: answers as asyncua encodes them, registers of every type, the files of `init`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary, variant_to_binary

from gateway import templates
from gateway.collect.modbus.arrays import decoder_of
from gateway.collect.modbus.decode import Field, parse_type
from gateway.collect.modbus.frame import Answer, Framing, parse_identification, read_pdu, wrap
from gateway.collect.modbus.plan import parse_address, parse_range, restore_cuts
from gateway.collect.opcua import answers
from gateway.collect.opcua.reader import Reader
from gateway.collect.opcua.state import parse_state
from gateway.collect.opcua.variant import read_elements, read_value
from gateway.configfile import GatewayFile, SiteFile, parse_text
from gateway.fillorder import encode_order, parse_order
from gateway.tagfile import parse_tags
from gateway.units import parse_duration_ns, parse_moment, parse_rate_bps, parse_size_bytes

T = ua.VariantType
WHEN = datetime(2026, 11, 23, 6, 0, 0, 123_456, tzinfo=UTC)
HOLDING = read_pdu(3, 0, 4)
REGISTERS = bytes.fromhex("0308 0001 ffff 7fc0 0000".replace(" ", ""))
TYPES = [
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float32",
    "float64",
    "bcd16",
    "bcd32",
    "bool",
    "bit(3)",
    "string(8)",
    "string(8,shift_jis)",
    "string(8,gb18030)",
    "string(8,utf-16-be)",
    "float32[10]",
    "string(4)[3]",
]
TAGS = (
    "id,path,source,address,type,order,scale,offset,unit,low,high,every,deadband,heartbeat,bad_raw,states,description,expand\n"
    'a,hall/a,plc,hr:0,uint16,CDAB,0.1,5,Cel,0,100,500ms,1,10min,0xFFFF,0=off|1=on,"Ölstand, ""oben""",\n'
    "b,hall/b,plc,hr:1.3,bool,,,,,,,,,,,,,8\n"
).encode()


# ---- OPC UA ----


def _values() -> list[Any]:
    made = [(1.5, T.Double), (7, T.Int32), (True, T.Boolean), ("warm ä", T.String), (WHEN, T.DateTime), (b"\x00\xff", T.ByteString)]
    made += [
        ([1.0, 2.0, 3.0], T.Float),
        (["a", None], T.String),
        (ua.QualifiedName("n", 2), T.QualifiedName),
        (ua.LocalizedText("x"), T.LocalizedText),
    ]
    made += [(ua.NodeId("s", 2), T.NodeId), (ua.Range(Low=1.0, High=2.0), T.ExtensionObject), (ua.StatusCode(5), T.StatusCode)]
    return [ua.Variant(value, kind) for value, kind in made]


def _data_values() -> list[Any]:
    return [ua.DataValue(one, SourceTimestamp=WHEN, ServerTimestamp=WHEN) for one in _values()]


def _publish(*bodies: Any) -> bytes:
    response = ua.PublishResponse()
    response.Parameters.SubscriptionId = 7
    response.Parameters.AvailableSequenceNumbers = [1, 2]
    response.Parameters.NotificationMessage.SequenceNumber = 2
    response.Parameters.NotificationMessage.NotificationData = list(bodies)
    return bytes(struct_to_binary(response))


def _changes() -> bytes:
    changes = ua.DataChangeNotification(MonitoredItems=[ua.MonitoredItemNotification(i, one) for i, one in enumerate(_data_values())])
    fields = [ua.Variant(x) for x in (b"\1\2", ua.NodeId(2041), ua.NodeId(1, 2), "press", WHEN, WHEN, ua.LocalizedText("hot"))]
    events = ua.EventNotificationList(Events=[ua.EventFieldList(3, fields)])
    return _publish(changes, events, ua.StatusChangeNotification(ua.StatusCode(0x8000_0000)))


def _read() -> bytes:
    response = ua.ReadResponse()
    response.Results = _data_values()
    return bytes(struct_to_binary(response))


def _history() -> bytes:
    response = ua.HistoryReadResponse()
    response.Results = [ua.HistoryReadResult(ContinuationPoint=b"p", HistoryData=ua.HistoryData(DataValues=_data_values()[:2]))]
    return bytes(struct_to_binary(response))


def _browse() -> bytes:
    response = ua.BrowseResponse()
    response.Results = [ua.BrowseResult(References=[ua.ReferenceDescription(BrowseName=ua.QualifiedName("n", 2))])]
    return bytes(struct_to_binary(response))


def _whole(parse: Callable[[bytes], Any]) -> Callable[[bytes], object]:
    """Parse, and decode what it points to."""
    return lambda data: answers.decode_message(answer.message if hasattr(answer := parse(data), "message") else answer)


def _opcua() -> dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...]]]:
    variants = tuple(bytes(variant_to_binary(one)) for one in _values())
    return {
        "OPC UA variant": (lambda data: read_value(Reader(data, 0, len(data))), variants),
        "OPC UA array": (lambda data: read_elements(data, 8), variants[6:8]),
        "OPC UA publish": (_whole(answers.parse_publish), (_changes(), _publish())),
        "OPC UA read": (answers.decode_read, (_read(),)),
        "OPC UA history": (answers.decode_history, (_history(),)),
        "OPC UA browse": (lambda data: answers.parse_browse(data, following=False), (_browse(),)),
        "OPC UA created": (answers.parse_created_items, (bytes(struct_to_binary(ua.CreateMonitoredItemsResponse())) + bytes(30),)),
        "OPC UA source state": (parse_state, (b'{"version": 2, "subscription": null, "asked": {}, "load": {}}',)),
    }


# ---- Modbus ----


def _answer(framing: Framing, request: bytes) -> Callable[[bytes], object]:
    """Feed an answer whole and byte by byte: both must judge alike, and what is taken has the size that was asked for."""

    def one(data: bytes, step: int) -> object:
        answer, pdu = Answer(framing, 7, 1, request), None
        for at in range(0, len(data), step):
            if pdu is not None:
                return "more"
            pdu = answer.feed(data[at : at + step])
        return pdu

    def parse(data: bytes) -> object:
        pdu = one(data, max(len(data), 1))
        if isinstance(pdu, bytes) and one(data, 1) != pdu:
            message = "taken whole, and not byte by byte"
            raise AssertionError(message)
        return parse_identification(pdu) if isinstance(pdu, bytes) and request[0] == 0x2B else pdu

    return parse


def _registers(data: bytes) -> object:
    """Decode any bytes as every type in every order."""
    fields = [Field(parse_type(t), order, 0, -1, 1.0, 0.0, ()) for t in TYPES for order in ("ABCD", "CDAB", "BADC", "DCBA")]
    fields += [Field(parse_type(t), "ABCD", 0, -1, 0.1, 5.0, ("0xFFFF",)) for t in ("int16", "uint64", "float32", "float32[4]")]
    return decoder_of(fields).decode(data.ljust(64, b"\0"))


def _modbus() -> dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...]]]:
    identification = bytes([0x2B, 0x0E, 1, 1, 0, 0, 2, 0, 4]) + b"ACME" + bytes([1, 2]) + b"x1"
    who = bytes([0x2B, 0x0E, 1, 0])
    return {
        "Modbus TCP answer": (_answer(Framing.MBAP, HOLDING), (wrap(Framing.MBAP, 7, 1, REGISTERS), wrap(Framing.MBAP, 7, 1, b"\x83\x02"))),
        "Modbus RTU answer": (_answer(Framing.RTU, HOLDING), (wrap(Framing.RTU, 0, 1, REGISTERS), wrap(Framing.RTU, 0, 1, b"\x83\x02"))),
        "Modbus identification": (_answer(Framing.RTU, who), (wrap(Framing.RTU, 0, 1, identification),)),
        "Modbus registers": (_registers, (b"\x12\x34\x56\x78\x7f\xc0\0\0" * 8, "Öl, heiß".encode("utf-16-be"), struct.pack(">d", -0.0))),
        "Modbus address": (lambda data: parse_address(data.decode("latin-1")), (b"40001", b"hr:0x1f.3", b"ir:52", b"400001", b"co:0")),
        "Modbus range": (lambda data: parse_range(data.decode("latin-1")), (b"hr:0-199", b"ir:0x10-0x1f", b"co:7")),
        "Modbus type": (lambda data: parse_type(data.decode("latin-1")), tuple(t.encode() for t in TYPES)),
        "Modbus holes": (lambda data: restore_cuts([list(data[i : i + 3]) for i in range(0, len(data), 3)]), (bytes([3, 0, 4, 4, 1, 9]),)),
    }


# ---- what people write ----


def _written() -> dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...]]]:
    words = {"ID": "hall1", "NAME": "dmz", "SITE": "acme/ghent", "TIMEZONE": "UTC", "URL": "https://it:8443", "ADDRESS": "10.20.0.5"}
    words |= {"LISTEN": "10.20.0.5:8443", "LANDING": "landing", "DELIVER": "deliver"}
    gateway, site = (templates.fill(templates.uncommented(one), **words).encode() for one in (templates.GATEWAY, templates.SITE))
    path = Path("gateway.toml")
    order = encode_order("plc", "anna", (1, 10**18), ("1-3fa91c02", 5), {"a": [(1, 5), (7, 9)]})
    units = (parse_duration_ns, parse_size_bytes, parse_rate_bps, parse_moment)

    def unit(data: bytes) -> object:
        return units[data[0] % 4](data[1:].decode("latin-1")) if data else None

    return {
        "gateway.toml": (lambda data: parse_text(GatewayFile, data.decode("utf-8", "replace"), path), (gateway,)),
        "receiver.toml": (lambda data: parse_text(SiteFile, data.decode("utf-8", "replace"), path), (site,)),
        "tags.csv": (
            lambda data: parse_tags(data, {"plc"}),
            (TAGS, TAGS.decode().encode("utf-16"), TAGS.replace(b"0,1", b"0.1").replace(b",", b";")),
        ),
        "fill order": (parse_order, (order,)),
        "unit": (unit, (b"\x00500 ms", b"\x0125 GB", b"\x025 Mbit/s", b"\x032026-11-23T06:00")),
    }


def plant() -> dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...]]]:
    """Return name -> (parser, seeds)."""
    return _opcua() | _modbus() | _written()
