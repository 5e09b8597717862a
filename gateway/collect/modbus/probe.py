"""First contact with a Modbus device, for `ebbgate check` and `ebbgate read`. Obeys and charges the same load contract as collect.

Runs as collect's user, under collect's lock: never beside a running source of the same name (gateway.collect.locks.SourceBusy).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from buffer.types import Kind
from gateway.collect.locks import SourceBusy, wait_for_turn
from gateway.collect.modbus.arrays import decoder_of
from gateway.collect.modbus.decode import Field
from gateway.collect.modbus.frame import IDENTIFY_PDU, Refused, is_silence, parse_identification, read_pdu
from gateway.collect.modbus.group import Group, quality_of
from gateway.collect.modbus.hub import Hub
from gateway.collect.modbus.memory import Memory
from gateway.collect.modbus.plan import Cuts, compile_tags, parse_address, rules_of
from gateway.collect.status import describe
from gateway.errors import ConfigError, PlantError
from gateway.findings import Finding, Level, Live
from gateway.settings import TagRow
from gateway.tagfile import ORDERS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from gateway.collect.modbus.decode import Values
    from gateway.collect.modbus.plan import Block, Point, Span
    from gateway.runtime import Runtime
    from gateway.settings import ModbusSource

EVERY_TYPE: Final = ("uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64", "bcd16", "bcd32", "string(8)")
TAGS_NAMED_MAX: Final = 5  # in one finding
FINDINGS_MAX: Final = 50  # then the device is simply another one than the tag table thinks

Ask = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Shown:
    """One way to understand what stands at an address."""

    address: str
    type: str
    order: str
    value: str  # as a person reads it; "" where it is no such value
    raw: str  # the bytes as the device sent them, hex


@asynccontextmanager
async def _contact(settings: ModbusSource, runtime: Runtime, directory: Path, line: Iterable[ModbusSource]) -> AsyncIterator[Ask]:
    """Give a function that sends one PDU when the load contract lets it, and raises what goes wrong."""
    beside = () if _spare(settings) else tuple(one.name for one in line if one.name != settings.name and _where_of(one) == _where_of(settings))
    paused = directory.parent / "control" / "pause"
    locks = await wait_for_turn(directory, settings.name, lambda name: (paused / name).exists(), runtime.sleep, beside)
    memory = Memory(directory / f"{settings.name}.json", settings.load, runtime)
    hub = Hub(runtime)
    hub.join(settings.name)

    async def ask(pdu: bytes) -> bytes:
        now = runtime.monotonic_ns()
        while (left := memory.budget.ready_ns(now) - now) > 0:
            await runtime.sleep(left / 1e9)
            now = runtime.monotonic_ns()
        memory.budget.begin(now)
        asked = await hub.ask(settings, pdu)
        failed = isinstance(asked.answer, PlantError) and not isinstance(asked.answer, Refused)
        memory.budget.spent(asked.ended_ns, asked.ended_ns - asked.began_ns, asked.size_bytes, failed=failed)
        if isinstance(asked.answer, PlantError):
            raise asked.answer
        return asked.answer

    try:
        yield ask
    finally:
        hub.leave(settings.name)
        await memory.save()
        for name in locks.names:
            locks.release(name)


def _spare(settings: ModbusSource) -> bool:
    """Say whether the device has a connection to spare beside the one of collect; a wire never has."""
    return settings.kind == "modbus-tcp" and settings.load.sessions > 1


def _where_of(settings: ModbusSource) -> tuple[str, str]:
    return settings.address, settings.interface


async def check(
    settings: ModbusSource,
    runtime: Runtime,
    directory: Path,
    *,
    contact: bool = True,
    live: list[Live] | None = None,
    line: Iterable[ModbusSource] = (),
) -> tuple[Finding, ...]:
    """Return what is wrong with the tags of a source, what its plan costs, and (contact) what the device refuses.

    directory: <state>/collect. With contact every block of the plan is read once, and refused blocks value by value. live: takes what
    every tag shows. line: the sources that may share its connection. Raise SourceBusy if collect reads one of them now.
    """
    points, found = compile_tags(settings)
    findings = list(found)
    if any(one.where.startswith("source.") for one in found):
        return tuple(findings)
    groups = [Group(every, [p for p in points if p.tag.every_ns == every], {}) for every in sorted({p.tag.every_ns for p in points})]
    for group in groups:
        group.replan(rules_of(settings), Cuts())
    findings += _cost(settings, groups)
    if contact:
        try:
            async with _contact(settings, runtime, directory, line) as ask:
                findings += await _try_all(settings, groups, ask, live)
        except SourceBusy:
            raise
        except PlantError as error:
            findings.append(Finding(Level.REFUSED, f"source.{settings.name}", error.message, "Check address, cable, switch and firewall."))
    return tuple(findings)


def _cost(settings: ModbusSource, groups: list[Group]) -> list[Finding]:
    where = f"source.{settings.name}"
    wanted = sum(len(group.blocks) * 1e9 / group.every_ns for group in groups)
    blocks = sum(len(group.blocks) for group in groups)
    what = f"{sum(len(group.points) for group in groups)} tags in {blocks} requests, {wanted:.2f} requests/s of {settings.load.requests_per_s:g}"
    if wanted > settings.load.requests_per_s:
        remedy = "Read less often, state in `gap` or `allowed` what may be read along, or raise load.requests_per_s after asking the machine's owner."
        return [Finding(Level.WARNING, where, what + ": polls will be skipped", remedy)]
    return [Finding(Level.INFO, where, what)]


async def _try_all(settings: ModbusSource, groups: list[Group], ask: Ask, live: list[Live] | None) -> list[Finding]:
    findings: list[Finding] = []
    if settings.identify:
        try:
            said = parse_identification(await ask(IDENTIFY_PDU))
            findings.append(Finding(Level.INFO, f"source.{settings.name}", f"the device says it is {said}"))
        except PlantError as fault:
            findings.append(Finding(Level.INFO, f"source.{settings.name}", f"the device does not identify itself: {fault.message}"))
    answered = False
    for group in groups:
        got: dict[Span, bytes | PlantError] = {}
        for block in group.blocks:
            if len(findings) >= FINDINGS_MAX:
                findings.append(Finding(Level.REFUSED, f"source.{settings.name}", "and more", "Is it the right unit, and the right device?"))
                return findings
            got[block.span] = data = await _answer(block.span, ask)
            if isinstance(data, PlantError) and is_silence(data) and not answered:
                raise data
            answered = True
            if _is_of_a_part(data):
                findings += await _try_values(group, block, ask, got)
            elif isinstance(data, PlantError):
                remedy = "The device answers other requests. Look at it, and compare these addresses with the manual."
                findings.append(Finding(Level.REFUSED, _where(group, block.values), f"{block.span}: {data.message}", remedy))
        if live is not None:
            live += _lives(settings, group, _decoded(settings, group, got))
    return findings


async def _try_values(group: Group, block: Block, ask: Ask, got: dict[Span, bytes | PlantError]) -> list[Finding]:
    """Name the values of a refused block that are refused alone too; what each gives goes to `got`."""
    findings = []
    for value in block.values:
        if value not in got:
            got[value] = await _answer(value, ask)
        fault = got[value]
        if isinstance(fault, PlantError):
            what = f"{value}: {fault.message}"
            findings.append(Finding(Level.REFUSED, _where(group, [value]), what, "Compare the address with the manual: from 0 or from 1?"))
    return findings or [Finding(Level.INFO, str(block.span), "is refused as one block; collect will read it in parts")]


def _where(group: Group, values: Collection[Span]) -> str:
    tags = [point.tag for point in group.points if point.span in values]
    named = [f"row {tag.line}, {tag.id}" if tag.line else tag.id for tag in tags[:TAGS_NAMED_MAX]]
    return ", ".join(named) + (f" and {len(tags) - len(named)} more" if len(tags) > len(named) else "")


async def _answer(span: Span, ask: Ask) -> bytes | PlantError:
    try:
        return await ask(read_pdu(span.table, span.first, span.count))
    except PlantError as fault:
        return fault


def _is_of_a_part(data: bytes | PlantError) -> bool:
    return isinstance(data, Refused) and data.of_a_part


def _decoded(settings: ModbusSource, group: Group, got: Mapping[Span, bytes | PlantError]) -> Values:
    """Return the values of a group in the parts in which it was asked for."""
    alone = [value for block in group.blocks if _is_of_a_part(got[block.span]) for value in block.values]
    group.replan(rules_of(settings), Cuts([*alone, *(block.values[0] for block in group.blocks)]))
    poll = group.begin()
    for index, block in enumerate(group.blocks):
        data = got[block.span]
        if isinstance(data, PlantError):
            poll.fail(index, quality_of(data), 0)
        else:
            poll.put(index, data, 0)
    return group.decode(poll)


def _lives(settings: ModbusSource, group: Group, got: Values) -> list[Live]:
    made = []
    for row, point in enumerate(group.points):
        tag, quality = point.tag, int(got.quality[row])
        made.append(Live(tag.id, settings.name, tag.address, show(got, row), tag.unit, describe(quality), None, tag.every_ns / 1e9, 0.0))
    return made


async def read(
    settings: ModbusSource,
    runtime: Runtime,
    directory: Path,
    address: str,
    type_: str = "",
    *,
    all_orders: bool = False,
    line: Iterable[ModbusSource] = (),
) -> tuple[Shown, ...]:
    """Read one address once; return it as `type_` in the source's order, or (all_orders) in every type and order that fits.

    Without a type up to four registers are read, no more than the source allows and those in `forbidden` never.
    Raise ConfigError for what cannot be meant, PlantError for what the device or the network said.
    """
    points = _readings_of(settings, address, type_)
    table, start = points[0].table, points[0].start
    async with _contact(settings, runtime, directory, line) as ask:
        data = await _longest(table, start, sorted({point.count for point in points}), ask)
    orders = ORDERS if all_orders and not table.is_bits else (settings.order,)
    shown = []
    for point in points:
        width = (point.count + 7) // 8 if table.is_bits else point.type.width
        for order in orders if width <= len(data) else ():
            got = decoder_of([Field(point.type, order, 0, 0 if table.is_bits else -1)]).decode(data)
            shown.append(Shown(str(parse_address(address)), point.tag.type, order, show(got, 0), data[:width].hex(" ")))
    return tuple({(one.type, one.value): one for one in reversed(shown)}.values())[::-1]


def _readings_of(settings: ModbusSource, address: str, type_: str) -> list[Point]:
    """Return what may be read at an address: as this type, or as each that fits; raise ConfigError. What holds for a tag holds here."""
    names = (type_,) if type_ else (*EVERY_TYPE, "bool")  # the last for coils and bits alone: a register that is not 0 says little
    rows = tuple(TagRow(id=name, path=name, source=settings.name, address=address, type=name) for name in names)
    points, findings = compile_tags(replace(settings, tags=rows))
    wanted = [point for point in points if type_ or point.tag.type != "bool" or point.table.is_bits or point.type.name == "bit"]
    wrong = [one.what for one in findings if one.where.startswith("source.")] or [one.what for one in findings if not wanted]
    if wrong:
        raise ConfigError(wrong[-1], "Read another address, or as another type.")
    return wanted


async def _longest(table: int, start: int, counts: list[int], ask: Ask) -> bytes:
    """Read the most registers that the device gives from here: the last ones of a table have no neighbours."""
    for i, count in enumerate(reversed(counts)):
        try:
            return (await ask(read_pdu(table, start, count)))[2:]
        except Refused as refused:
            if i == len(counts) - 1 or not refused.of_a_part:
                raise
    return b""


def show(got: Values, row: int) -> str:
    """Return one value as a person reads it; "" for null."""
    kind, bits = Kind(int(got.kind[row])), got.values[row : row + 1]
    if kind is Kind.DOUBLE:
        return _digits(float(bits.view("f8")[0]))
    if kind is Kind.TEXT:
        return repr(got.texts[int(bits[0])])
    if kind is Kind.NULL:
        return ""
    return str(int(bits.view("i8")[0] if kind is Kind.INT64 else bits[0]))


def _digits(number: float) -> str:
    """Return the fewest digits that say this number and no other: 12345678.9 is no 1.234568e+07; 0.1 where a float32 is nearest to it."""
    with np.errstate(over="ignore"):
        short = np.float32(number)
    return str(short if float(short) == number else number).removesuffix(".0")
