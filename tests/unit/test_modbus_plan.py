"""Addresses as people write them, and the planner's promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.collect.modbus.decode import parse_type
from gateway.collect.modbus.plan import (
    TCP_COST,
    Address,
    Cost,
    Cuts,
    Rules,
    Span,
    Table,
    compile_tags,
    parse_address,
    parse_range,
    plan,
    restore_cuts,
    rules_of,
    serial_cost,
)
from gateway.settings import ModbusSource, TagRow


@pytest.mark.parametrize(
    ("text", "table", "start", "bit"),
    [
        ("40001", Table.HOLDING, 0, -1),
        ("400001", Table.HOLDING, 0, -1),
        ("465536", Table.HOLDING, 65535, -1),
        ("49999", Table.HOLDING, 9998, -1),
        ("30053", Table.INPUT, 52, -1),
        ("10001", Table.DISCRETE, 0, -1),
        ("00001", Table.COILS, 0, -1),
        ("000017", Table.COILS, 16, -1),
        ("40005.3", Table.HOLDING, 4, 3),
        ("hr:0", Table.HOLDING, 0, -1),
        ("IR:52", Table.INPUT, 52, -1),
        ("co:7", Table.COILS, 7, -1),
        ("di:0xff", Table.DISCRETE, 255, -1),
        ("hr:0x10", Table.HOLDING, 16, -1),
        ("hr:5.15", Table.HOLDING, 5, 15),
        (" hr:65535 ", Table.HOLDING, 65535, -1),
    ],
)
def test_addresses(text: str, table: Table, start: int, bit: int) -> None:
    address = parse_address(text)
    assert address == Address(table, start, bit)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0", "hr:0"),
        ("17", "hr:17"),
        ("0x10", "hr:16"),
        ("50001", "hr:50001"),
        ("20001", "which table"),
        ("40000", "40001"),
        ("400000", "400001"),
        ("hr:65536", "65535"),
        ("465537", "65535"),
        ("xx:1", "hr:"),
        ("hr:5.16", ".15"),
        ("co:5.1", ".15"),
        ("hr:-1", "counted from 0"),
        ("", "counted from 0"),
        ("hr:1e3", "counted from 0"),
        ("4000\u0661", "counted from 0"),
    ],
)
def test_refused_addresses_say_what_to_write(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        parse_address(text)
    assert told in str(caught.value)


def test_ranges() -> None:
    assert parse_range("hr:0-199") == (Table.HOLDING, 0, 200)
    assert parse_range("ir:0x10-0x1f") == (Table.INPUT, 16, 32)
    assert parse_range("co:7") == (Table.COILS, 7, 8)
    for bad in ("0-199", "hr:5-4", "hr:0-65536", "hr:", "hr:0-"):
        with pytest.raises(ValueError, match="."):
            parse_range(bad)


@pytest.mark.parametrize("text", ["int24", "", "bit", "bit(16)", "string", "string(0)", "string(251)", "string(8,ebcdic)", "float32(2)", "bit(1,x)"])
def test_refused_types(text: str) -> None:
    with pytest.raises(ValueError, match="write one of"):
        parse_type(text)


# ---- planner ----


def spans() -> st.SearchStrategy[Span]:
    def build(table: Table, first: int, count: int) -> Span:
        return Span(table, first, first + (1 if table.is_bits else count))

    return st.builds(build, st.sampled_from(Table), st.integers(0, 160), st.integers(1, 8))


rules = st.builds(
    Rules,
    max_registers=st.integers(8, 30),
    max_bits=st.integers(1, 60),
    gap=st.integers(0, 12),
    allowed=st.lists(spans(), max_size=2).map(tuple),
    forbidden=st.lists(spans(), max_size=2).map(tuple),
    cost=st.sampled_from([TCP_COST, serial_cost(19_200), Cost(3, 1)]),
)


def places(span: Span) -> set[tuple[int, int]]:
    return {(span.table, i) for i in range(span.first, span.end)}


@given(st.lists(spans(), max_size=40), rules, st.lists(spans(), max_size=6))
def test_plan_promises(wanted: list[Span], rule: Rules, cut: list[Span]) -> None:
    cuts = Cuts(cut)
    blocks = plan(wanted, rule, cuts)
    assert sorted(value for block in blocks for value in block.values) == sorted(set(wanted))  # every one, once
    for block in blocks:
        assert block.span.count <= (rule.max_bits if block.span.table.is_bits else rule.max_registers)
        read = places(block.span)
        for value in block.values:
            assert places(value) <= read  # never straddled
            assert value not in cuts or value == block.values[0]
        along = read - set().union(*(places(value) for value in block.values))
        assert not along & set().union(*(places(one) for one in rule.forbidden), set())
        stated = set().union(*(places(one) for one in rule.allowed), set())
        if rule.gap == 0:
            assert along <= stated
        run = 0
        for i in range(block.span.first, block.span.end):
            run = run + 1 if (block.span.table, i) in along else 0
            assert run <= rule.gap or {(block.span.table, j) for j in range(i - run + 1, i + 1)} <= stated
            assert run * rule.cost.register_ns < rule.cost.request_ns * 8


@given(st.lists(spans(), max_size=40), rules)
def test_plan_never_costs_more_than_one_request_per_value(wanted: list[Span], rule: Rules) -> None:
    def cost(blocks: list[Span]) -> int:
        return sum(rule.cost.request_ns * 8 + b.count * rule.cost.register_ns * (1 if b.table.is_bits else 8) for b in blocks)

    assert cost([b.span for b in plan(wanted, rule, Cuts())]) <= cost(list(set(wanted)))


def test_default_reads_named_registers_only() -> None:
    wanted = [Span(Table.INPUT, 52, 54), Span(Table.INPUT, 54, 56), Span(Table.INPUT, 70, 72), Span(Table.HOLDING, 52, 53)]
    assert [str(b.span) for b in plan(wanted, Rules(), Cuts())] == ["hr:52", "ir:52-55", "ir:70-71"]
    assert [str(b.span) for b in plan(wanted, Rules(gap=14), Cuts())] == ["hr:52", "ir:52-71"]
    stated = Rules(allowed=(Span(Table.INPUT, 0, 200),))
    assert [str(b.span) for b in plan(wanted, stated, Cuts())] == ["hr:52", "ir:52-71"]
    sick = replace(stated, forbidden=(Span(Table.INPUT, 60, 61),))
    assert [str(b.span) for b in plan(wanted, sick, Cuts())] == ["hr:52", "ir:52-55", "ir:70-71"]


def test_serial_line_reads_along_only_what_is_cheaper_than_a_request() -> None:
    far = [Span(Table.HOLDING, 0, 1), Span(Table.HOLDING, 61, 62)]
    near = [Span(Table.HOLDING, 0, 1), Span(Table.HOLDING, 11, 12)]
    rule = Rules(gap=100, cost=serial_cost(19_200))
    assert len(plan(far, rule, Cuts())) == 2
    assert len(plan(near, rule, Cuts())) == 1
    assert len(plan(far, Rules(gap=100), Cuts())) == 1


@given(st.lists(spans(), min_size=1, max_size=30), rules, st.data())
def test_refused_blocks_are_split_until_only_the_refused_values_are_alone(wanted: list[Span], rule: Rules, data: st.DataObject) -> None:
    """A device with holes: every value outside them is read in the end, and the splitting ends."""
    holes = set().union(*(places(one) for one in data.draw(st.lists(spans(), max_size=4))), set())
    cuts = Cuts()
    for _ in range(4 * len(set(wanted)) + 1):
        blocks = plan(wanted, rule, cuts)
        refused = [block for block in blocks if places(block.span) & holes]
        again = [block for block in refused if cuts.split(block)]
        if not again:
            break
    else:
        raise AssertionError("never ends")
    good = {value for block in blocks if not places(block.span) & holes for value in block.values}
    assert good == {value for value in wanted if not places(value) & holes}
    assert restore_cuts(cuts.export()).export() == cuts.export()


def test_any_saved_cuts_start() -> None:
    assert len(restore_cuts([[3, 0, 2], [9, 0, 2], [3, 5, 2], [3, 0, 99999], "x", [1, 2], [3.0, 1, 2]])) == 1
    assert len(restore_cuts({"a": 1})) == 0


# ---- tags ----


def source(*tags: TagRow, **more: object) -> ModbusSource:
    return replace(ModbusSource("m", "modbus-tcp", "127.0.0.1:502", tags=tags), **more)  # type: ignore[arg-type]


def tag(address: str, type_: str = "uint16", **more: object) -> TagRow:
    return replace(TagRow("t", "p/t", "m", address, type_), **more)  # type: ignore[arg-type]


def test_points() -> None:
    points, findings = compile_tags(source(tag("40001", "REAL"), tag("hr:5.3", ""), tag("co:1", ""), tag("ir:7", "string(5)", order="BADC"), order="CDAB"))
    assert findings == ()
    assert [str(p.span) for p in points] == ["hr:0-1", "hr:5", "co:1", "ir:7-9"]
    assert [(p.type.name, p.type.n, p.order) for p in points] == [("float32", 0, "CDAB"), ("bit", 3, "CDAB"), ("bool", 0, "CDAB"), ("string", 5, "BADC")]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (tag("17"), "hr:17"),
        (tag("hr:1", ""), "has no type"),
        (tag("hr:1", "int17"), "no type"),
        (tag("co:1", "int16"), "type is bool"),
        (tag("hr:1.3", "int16"), "type is bool"),
        (tag("hr:1", "bool", scale=2.0), "scale"),
        (tag("hr:1", "string(4)", deadband=1.0), "deadband"),
        (tag("hr:65535", "float32"), "beyond the last register"),
        (tag("hr:0", "string(40)"), "20 registers"),
        (tag("hr:105", "float32"), "forbidden"),
        (tag("hr:1", "int16", bad_raw=("nan",)), "nan"),
        (tag("hr:1", "int16", bad_raw=("65536",)), "does not fit"),
        (tag("hr:1", "float32", bad_raw=("-1e39",)), "has bad_raw -1e39: '-1e39' does not fit"),
        (tag("hr:1", "bool", bad_raw=("1",)), "leave the cell empty"),
    ],
)
def test_tags_that_cannot_be_read_name_the_row(bad: TagRow, told: str) -> None:
    points, findings = compile_tags(source(tag("hr:0"), replace(bad, line=7), max_registers=16, forbidden=("hr:106-120",)))
    assert len(points) == 1
    assert [f.where for f in findings] == ["row 7, t"]
    assert told in findings[0].what


def test_bad_ranges_are_findings() -> None:
    _, findings = compile_tags(source(allowed=("0-199",), forbidden=("hr:5-1",)))
    assert [f.where for f in findings] == ["source.m.forbidden", "source.m.allowed"]
    assert rules_of(source(kind="modbus-rtu", allowed=("hr:0-9",))).allowed == (Span(Table.HOLDING, 0, 10),)
