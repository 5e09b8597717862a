"""Addresses as people write them -> requests that cost the device least. Pure.

Addresses: `hr:0` holding register, `ir:52` input register, `co:0` coil, `di:0` discrete input, counted from 0, also `hr:0x10`; the
classic forms counted from 1, `40001` or `400001` holding, `30001` input, `10001` discrete, `00001` coil (five or six digits); a bit of a
register as `hr:5.3`, 0 the lowest. Any other bare number is refused: nobody can know which table it means.

An element of an array that `expand` made tags of (gateway.tagarrays) lies as many registers, coils or bits further on as stand before it.

A plan reads every value whole, within one request, never more than the device's limits, and never a register that no tag names,
except within `gap` and `allowed`, where the engineer said it may be read: reading resets some meters and corrupts others. Where it may
be read, it is read if that costs less than another request (`Cost`).

A device may refuse a block though it has every single value, or answer nothing for it. `Cuts` remember where blocks were split.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from gateway.collect.modbus.decode import ARRAY_MAX, Type, bad_patterns, parse_type
from gateway.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.settings import ModbusSource, TagRow

ADDRESS_MAX: Final = 65_535
PDU_REGISTERS_MAX: Final = 125  # MODBUS Application Protocol 1.1b3, 6.3
PDU_BITS_MAX: Final = 2_000  # 6.1
CUTS_MAX: Final = 10_000  # of one source; a plan with more is one request per value anyway


class Table(IntEnum):
    """The four tables, by the function code that reads them."""

    COILS = 1
    DISCRETE = 2
    HOLDING = 3
    INPUT = 4

    @property
    def is_bits(self) -> bool:
        """Whether an address of this table is one bit."""
        return self <= Table.DISCRETE


PREFIXES: Final = {"co": Table.COILS, "di": Table.DISCRETE, "hr": Table.HOLDING, "ir": Table.INPUT}
_NAMES: Final = {table: name for name, table in PREFIXES.items()}
_CLASSIC: Final = {"0": Table.COILS, "1": Table.DISCRETE, "3": Table.INPUT, "4": Table.HOLDING}
_ADDRESS: Final = re.compile(r"(?:([a-z]{2}):)?(\d{1,6}|0x[0-9a-f]{1,4})(?:\.(\d{1,2}))?", re.ASCII)
_RANGE: Final = re.compile(r"([a-z]{2}:(?:\d{1,5}|0x[0-9a-f]{1,4}))(?:-(\d{1,5}|0x[0-9a-f]{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A place in a device, counted from 0. bit: of the register, or -1."""

    table: Table
    start: int
    bit: int = -1

    def __str__(self) -> str:
        return f"{_NAMES[self.table]}:{self.start}" + (f".{self.bit}" if self.bit >= 0 else "")


def parse_address(text: str) -> Address:
    """Return the place; raise ValueError that says what to write."""
    match = _ADDRESS.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError("is no Modbus address; write hr:0, ir:52, co:0, di:0 (counted from 0), 40001 (from 1), or hr:5.3 for a bit")
    prefix, digits, bit_text = match.groups()
    if prefix is None:
        table, start = _classic(digits)
    elif prefix in PREFIXES:
        table, start = PREFIXES[prefix], int(digits, 16 if digits.startswith("0x") else 10)
    else:
        raise ValueError(f"names no table: {prefix}; write hr: (holding), ir: (input), co: (coil) or di: (discrete input)")
    if start > ADDRESS_MAX:
        raise ValueError(f"is beyond the last address, {ADDRESS_MAX}")
    bit = int(bit_text) if bit_text else -1
    if bit > 15 or (bit >= 0 and table.is_bits):  # noqa: PLR2004 -- bits of a register
        raise ValueError("names a bit that is not there; a register has the bits .0 to .15, a coil has none")
    return Address(table, start, bit)


def _classic(digits: str) -> tuple[Table, int]:
    if len(digits) not in (5, 6) or digits[0] not in _CLASSIC or digits.startswith("0x"):
        number = int(digits, 16 if digits.startswith("0x") else 10)
        raise ValueError(f"does not say which table it is in; write hr:{number} for a holding register, ir:{number} for an input register")
    if int(digits[1:]) == 0:
        raise ValueError(f"counts from 1; the first is {digits[:-1]}1")
    return _CLASSIC[digits[0]], int(digits[1:]) - 1


def parse_range(text: str) -> tuple[Table, int, int]:
    """Return table, first and last+1 of "hr:0-199" or "hr:7"; raise ValueError."""
    match = _RANGE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError('is no range; write "hr:0-199", counted from 0, the last one included')
    first = parse_address(match[1])
    last = int(match[2], 16 if match[2].startswith("0x") else 10) if match[2] else first.start
    if not first.start <= last <= ADDRESS_MAX:
        raise ValueError(f"ends before it begins, or beyond {ADDRESS_MAX}")
    return first.table, first.start, last + 1


# ---- tags ----


@dataclass(frozen=True, slots=True)
class Point:
    """A tag and where it lies: count registers (or bits) of `table` from `start`."""

    tag: TagRow
    table: Table
    start: int
    count: int
    type: Type
    order: str

    @property
    def span(self) -> Span:
        """What must be read for it."""
        return Span(self.table, self.start, self.start + self.count)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Registers or bits first..end-1 of a table."""

    table: Table
    first: int
    end: int

    @property
    def count(self) -> int:
        """How many."""
        return self.end - self.first

    def overlaps(self, other: Span) -> bool:
        """Say whether both hold a register."""
        return self.table == other.table and self.first < other.end and other.first < self.end

    def __str__(self) -> str:
        return f"{_NAMES[self.table]}:{self.first}" + (f"-{self.end - 1}" if self.count > 1 else "")


def compile_tags(settings: ModbusSource) -> tuple[tuple[Point, ...], tuple[Finding, ...]]:
    """Return the points of all good tags, and what is wrong with the others and with the ranges."""
    points: list[Point] = []
    findings: list[Finding] = []
    forbidden = _ranges(settings, "forbidden", findings)
    _ranges(settings, "allowed", findings)
    for tag in settings.tags:
        try:
            point = _point(tag, settings)
            if hit := next((one for one in forbidden if point.span.overlaps(one)), None):
                raise ValueError(f"lies in {hit}, which source.{settings.name}.forbidden names")
            points.append(point)
        except ValueError as error:
            where = f"row {tag.line}, {tag.id}" if tag.line else tag.id
            findings.append(Finding(Level.REFUSED, where, f"{tag.address!r} {error}"))
    return tuple(points), tuple(findings)


def _ranges(settings: ModbusSource, name: str, findings: list[Finding]) -> list[Span]:
    spans = []
    for text in getattr(settings, name):
        try:
            spans.append(Span(*parse_range(text)))
        except ValueError as error:
            findings.append(Finding(Level.REFUSED, f"source.{settings.name}.{name}", f"{text!r} {error}"))
    return spans


def _point(tag: TagRow, settings: ModbusSource) -> Point:
    address = parse_address(tag.address)
    type_ = _type(tag, address)
    if tag.array:
        address, type_ = _element(tag, address, type_)
    if type_.length and tag.deadband:
        raise ValueError(f"is {tag.type}, kept as text: deadband means nothing there; leave the cell empty, or make its elements tags with expand")
    scaled = tag.scale != 1.0 or tag.offset != 0.0
    if type_.name in ("bool", "bit", "string") and (scaled or tag.deadband):
        raise ValueError(f"is {type_.name}: scale, offset and deadband mean nothing there; leave the cells empty")
    _check_bad_raw(type_.element, tag)
    count = max(type_.length, 1) if address.table.is_bits else type_.registers
    if address.start + count > ADDRESS_MAX + 1:
        raise ValueError(f"as {tag.type} reaches beyond the last register")
    if count > (settings.max_bits if address.table.is_bits else settings.max_registers):
        what, most = ("bits", settings.max_bits) if address.table.is_bits else ("registers", settings.max_registers)
        remedy = ": make its elements tags with expand" if type_.length else ""
        raise ValueError(f"needs {count} {what} in one request; the source allows {most}{remedy}")
    return Point(tag, address.table, address.start, count, type_, tag.order or settings.order)


def _check_bad_raw(type_: Type, tag: TagRow) -> None:
    try:
        bad_patterns(type_, tag.bad_raw)
    except ValueError as error:
        raise ValueError(f"has bad_raw {'|'.join(tag.bad_raw)}: {error}") from None


def _element(tag: TagRow, address: Address, type_: Type) -> tuple[Address, Type]:
    """Return where one element lies, and its type."""
    if type_.length:
        raise ValueError(f"is {tag.type} and has expand, too: write the type of one element, or leave expand empty")
    if address.bit >= 0:
        bit = address.bit + tag.element
        return Address(address.table, address.start + bit // 16, bit % 16), Type("bit", bit % 16)
    return Address(address.table, address.start + tag.element * (1 if address.table.is_bits else type_.registers)), type_


def _type(tag: TagRow, address: Address) -> Type:
    if address.table.is_bits or address.bit >= 0:
        length = re.fullmatch(r"(?:bool|bit|boolean)?(?:\[(\d{1,4})\])?", tag.type.strip().lower())
        if length is None:
            raise ValueError(f"is one bit, so its type is bool, not {tag.type}")
        if length[1] and (address.bit >= 0 or not 1 <= int(length[1]) <= ARRAY_MAX):
            raise ValueError(f"is no array of bits that can be kept as one value: write bool, and {length[1]} into expand")
        return Type("bit", address.bit) if address.bit >= 0 else Type("bool", length=int(length[1] or 0))
    if not tag.type:
        raise ValueError("has no type; write uint16, int16, float32 or what the manual says")
    try:
        return parse_type(tag.type)
    except ValueError as error:
        raise ValueError(f"has type {tag.type!r}, which {error}") from None


# ---- requests ----


@dataclass(frozen=True, slots=True)
class Cost:
    """What reading costs the device and the wire, in ns: one more request, and one more register or eight bits in it."""

    request_ns: int
    register_ns: int


TCP_COST: Final = Cost(5_000_000, 2_000)  # a PLC's answer time; a register is two bytes of 100 Mbit/s and a little work


def serial_cost(baud: int, turnaround_ns: int = 5_000_000) -> Cost:
    """Return the cost on a serial line: 13 characters and two silences of 3.5 around each request, 11 bits a character."""
    character_ns = 11 * 10**9 // baud
    return Cost(20 * character_ns + turnaround_ns, 2 * character_ns)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a plan must keep to."""

    max_registers: int = PDU_REGISTERS_MAX
    max_bits: int = PDU_BITS_MAX
    gap: int = 0
    allowed: tuple[Span, ...] = ()
    forbidden: tuple[Span, ...] = ()
    cost: Cost = TCP_COST

    def may_read_along(self, gap: Span) -> bool:
        """Say whether nobody minds that these registers, which no tag names, are read."""
        if any(gap.overlaps(one) for one in self.forbidden):
            return False
        stated = any(one.table == gap.table and one.first <= gap.first and gap.end <= one.end for one in self.allowed)
        worth = gap.count * self.cost.register_ns < self.cost.request_ns * (8 if gap.table.is_bits else 1)
        return (stated or gap.count <= self.gap) and worth


def rules_of(settings: ModbusSource) -> Rules:
    """Return the rules of a source whose ranges compile_tags found good."""
    return Rules(
        max_registers=settings.max_registers,
        max_bits=settings.max_bits,
        gap=settings.gap,
        allowed=tuple(Span(*parse_range(text)) for text in settings.allowed),
        forbidden=tuple(Span(*parse_range(text)) for text in settings.forbidden),
        cost=serial_cost(settings.baud) if settings.kind == "modbus-rtu" else TCP_COST,
    )


@dataclass(frozen=True, slots=True)
class Block:
    """One request, and the values taken from its answer."""

    span: Span
    values: tuple[Span, ...]


class Cuts:
    """Where blocks must not reach across: learned from refusals. A cut is a value's span: no block begins before it and holds it too."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans = set(spans)

    def __contains__(self, span: Span) -> bool:
        return span in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def copy(self) -> Cuts:
        """Return the same cuts, apart."""
        return Cuts(self._spans)

    def export(self) -> list[list[int]]:
        """Return JSON that `restore` reads."""
        return [[int(span.table), span.first, span.end] for span in sorted(self._spans)]

    def split(self, block: Block) -> bool:
        """Learn that `block` was refused; return False if there is nothing left to split (one value alone).

        First what was read along is given up, all of it; then the values are halved.
        """
        values = block.values
        new = {span for span, before in zip(values[1:], _reach(values), strict=False) if span.first > before}
        new = new or set(values[len(values) // 2 :][:1] if len(values) > 1 else ())
        if not new or len(self._spans) + len(new) > CUTS_MAX:
            return False
        self._spans |= new
        return True


def restore_cuts(saved: object) -> Cuts:
    """Return what `export` gave; whatever else is there is left out."""
    rows = saved if isinstance(saved, list) else []
    good = [row for row in rows[:CUTS_MAX] if isinstance(row, list) and len(row) == 3 and all(type(x) is int for x in row)]  # noqa: PLR2004
    return Cuts(Span(Table(t), a, b) for t, a, b in good if t in tuple(map(int, Table)) and 0 <= a < b <= ADDRESS_MAX + 1)


def _reach(spans: Sequence[Span]) -> list[int]:
    """Return, for each place, the highest end so far."""
    out: list[int] = []
    for span in spans:
        out.append(max(span.end, out[-1] if out else 0))
    return out


def plan(spans: Iterable[Span], rules: Rules, cuts: Cuts) -> tuple[Block, ...]:
    """Return the blocks to read, in order of table and address; each value lies whole in the one block that names it."""
    groups: list[tuple[Span, list[Span]]] = []
    for span in sorted(set(spans)):
        if groups and _joins(groups[-1][0], span, rules, cuts):
            block, values = groups.pop()
            values.append(span)
            groups.append((Span(block.table, block.first, max(block.end, span.end)), values))
        else:
            groups.append((span, [span]))
    return tuple(Block(block, tuple(values)) for block, values in groups)


def _joins(block: Span, span: Span, rules: Rules, cuts: Cuts) -> bool:
    if span.table != block.table or span in cuts:
        return False
    most = rules.max_bits if block.table.is_bits else rules.max_registers
    if max(block.end, span.end) - block.first > most:
        return False
    return span.first <= block.end or rules.may_read_along(Span(block.table, block.end, span.first))
