"""RTU on a serial line, through pymodbus: its transport and framer, our guard in both of its trace hooks. The only importer of pymodbus.

Three layers: `request` checks the PDU; `trace_pdu` checks what pymodbus is about to encode; `trace_packet` checks the encoded frame. A hook
that raises stops pymodbus before it writes (transaction.py, pdu_send).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from pymodbus import FramerType
from pymodbus.client import AsyncModbusSerialClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU

from gateway.collect.guard import check_modbus_pdu
from gateway.collect.modbus.frame import BadAnswer, ConnectionLost, Framing, NoAnswer, check_answer, check_wire, wrap

if TYPE_CHECKING:
    from gateway.settings import ModbusSource

_READS: Final = {1: "read_coils", 2: "read_discrete_inputs", 3: "read_holding_registers", 4: "read_input_registers"}
_BITS: Final = (1, 2)


class SerialLine:
    """One open serial device, one request in flight. The same calls as client.Connection."""

    def __init__(self, settings: ModbusSource) -> None:
        self._identify = settings.identify
        self._asking = False
        self._heard = b""  # of the answer under way
        self.bytes_moved = 0
        self.noisy = False
        self._client = AsyncModbusSerialClient(
            settings.address,
            framer=FramerType.RTU,
            baudrate=settings.baud,
            parity=settings.parity,
            stopbits=settings.stop_bits,
            timeout=settings.timeout_ns / 1e9,
            retries=0,
            reconnect_delay=0,
            trace_pdu=self._check_pdu,
            trace_packet=self._check_packet,
        )

    @property
    def is_open(self) -> bool:
        """Whether a request may be tried."""
        return bool(self._client.connected) and not self.noisy

    async def open(self) -> None:
        """Open the device; raise ConnectionLost."""
        try:
            opened = await self._client.connect()
        except Exception as error:  # pyserial lets termios.error and ValueError through
            raise ConnectionLost(f"serial device: {error}") from None
        if not opened:
            device = self._client.comm_params.host
            raise ConnectionLost(f"serial device {device} cannot be opened: absent, in use, or not permitted (group dialout)")

    async def request(self, unit: int, pdu: bytes, timeout_s: float) -> bytes:
        """As client.Connection.request."""
        check_modbus_pdu(pdu, self._identify)
        self._asking, self._heard = True, b""
        self._client.ctx.comm_params.timeout_connect = timeout_s  # pymodbus waits so long for an answer, too
        try:
            answer = await self._ask(unit, pdu)
        except ModbusException as error:
            self.close()  # a late answer must not be taken for the next
            raise NoAnswer(f"no answer within {timeout_s:g} s ({error})") from None
        except BaseException:
            self.close()
            raise
        finally:
            self._asking = False
        function = answer.function_code
        plain = bytes([function]) + (_bits_or_registers(answer) if function in _READS else answer.encode())
        taken = wrap(Framing.RTU, 0, unit, plain)
        if self._client.ctx.recv_buffer or (pdu[0] in _READS and not self._heard.endswith(taken)):  # of two answers pymodbus takes the first
            self.close()
            raise BadAnswer("more bytes came than one answer has")
        check_answer(pdu, plain)
        return plain

    async def _ask(self, unit: int, pdu: bytes) -> ModbusPDU:
        if pdu[0] not in _READS:
            return await self._client.read_device_information(read_code=pdu[2], object_id=pdu[3], device_id=unit)
        start, count = struct.unpack(">HH", pdu[1:])
        answer: ModbusPDU = await getattr(self._client, _READS[pdu[0]])(start, count=count, device_id=unit)
        return answer

    def close(self) -> None:
        """Close the device at once."""
        self._client.close()

    # ---- guard ----

    def _check_pdu(self, sending: bool, pdu: ModbusPDU) -> ModbusPDU:
        if sending:
            check_modbus_pdu(bytes([pdu.function_code]) + pdu.encode(), self._identify)
        return pdu

    def _check_packet(self, sending: bool, packet: bytes) -> bytes:
        if sending:
            check_wire(Framing.RTU, packet, self._identify)
            self.bytes_moved += len(packet)
            return packet
        self.bytes_moved += max(0, len(packet) - len(self._heard))  # pymodbus shows the whole of what has come so far
        self._heard = packet
        self.noisy = self.noisy or not self._asking
        return packet


def _bits_or_registers(answer: Any) -> bytes:  # noqa: ANN401 -- pymodbus' answers share no class with data
    """Return byte count and data as they stood on the wire."""
    if answer.function_code in _BITS:
        bits = [*answer.bits, *([False] * (-len(answer.bits) % 8))]
        data = bytes(sum(bits[i + j] << j for j in range(8)) for i in range(0, len(bits), 8))
    else:
        data = struct.pack(f">{len(answer.registers)}H", *answer.registers)
    return bytes([len(data)]) + data


async def open_serial(settings: ModbusSource) -> SerialLine:
    """Open the serial device of a source; raise ConnectionLost."""
    try:
        line = SerialLine(settings)
    except (RuntimeError, ModbusException, ImportError) as error:
        raise ConnectionLost(f"serial lines need the package pyserial ({error})", "Install ebbgate[ot].") from None
    await line.open()
    return line
