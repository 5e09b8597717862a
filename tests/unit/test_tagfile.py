"""tags.csv as Excel writes it: read, refuse with the cell named, write back, compare."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.findings import Level
from gateway.settings import TagRow
from gateway.tagcells import Dialect, shield, unshield
from gateway.tagfile import TagFileError, compare, parse_tags, read_tags, write_tags

SOURCES = {"mdb1", "press7"}
TEXT = '''id,path,source,address,type,scale,low,high,every,bad_raw,states,description
mdb1.p,util/mdb1/power,mdb1,ir:52,float32,0.001,-10,800.5,500ms,nan|0xFFFF,,Höhe über alles
press7.s,press/press7/state,press7,"s7:""Press7"".""State;x""",,,,,1 s,,0=stopped|1=running,
'''


def plain(rows: tuple[TagRow, ...]) -> list[TagRow]:
    return [replace(row, line=0) for row in rows]


def german() -> str:
    """The same table as a German Excel saves it."""
    rows = [
        "id;path;source;address;type;scale;low;high;every;bad_raw;states;description",
        "mdb1.p;util/mdb1/power;mdb1;ir:52;float32;0,001;-10;800,5;500ms;nan|0xFFFF;;Höhe über alles",
        'press7.s;press/press7/state;press7;"s7:""Press7"".""State;x""";;;;;1 s;;0=stopped|1=running;',
    ]
    return "\r\n".join(rows) + "\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("how", ["comma", "german", "tab", "sep"])
def test_the_same_table_in_every_dress(encoding: str, how: str) -> None:
    text = {"comma": TEXT, "german": german(), "tab": TEXT.replace(",", "\t"), "sep": "sep=;\r\n" + german()}[how]
    rows, dialect = read_tags(text.encode(encoding), SOURCES)
    assert plain(rows) == plain(parse_tags(TEXT.encode(), SOURCES))
    assert dialect.separator == {"comma": ",", "tab": "\t"}.get(how, ";")
    assert dialect.encoding == encoding
    assert rows[0].bad_raw == ("nan", "0xffff")
    assert rows[0].line == 2
    assert rows[1].states == ((0, "stopped"), (1, "running"))
    assert rows[1].address == 's7:"Press7"."State;x"'
    assert plain(parse_tags(write_tags(rows, dialect), SOURCES)) == plain(rows)


def one(column: str, value: str, separator: str = ",") -> list[str]:
    """Return the mistakes of a good row with one cell changed, as texts."""
    cells = {"id": "a", "path": "b/c", "source": "mdb1", "address": "hr:0", column: value}
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells.values()]
    data = f"{separator.join(cells)}\n\n{separator.join(quoted)}\n".encode()
    try:
        parse_tags(data, SOURCES)
    except TagFileError as error:
        assert all(finding.where.startswith("row 3, ") for finding in error.findings)
        assert all(str(finding.where) in str(error) for finding in error.findings)
        return [f"{finding.where} {finding.what} {finding.remedy}" for finding in error.findings]
    return []


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("low", "12-Jan", "date"),
        ("low", "12. Mai", "date"),
        ("low", "Mrz 24", "date"),
        ("high", "01.02.2024", "date"),
        ("address", "2024-01-02", "date"),
        ("scale", "#WERT!", "Excel"),
        ("scale", "########", "Excel"),
        ("address", "4,00E+05", "shortened"),
        ("id", "1.2E+05", "shortened"),
        ("bad_raw", "1,84467E+19", "shortened"),
        ("low", "1,23457E+11", "rounded"),
        ("low", "1,000", "thousand"),
        ("low", "1 000", "thousands"),
        ("low", "5 kW", "not a number"),
        ("low", "1e999", "beyond"),
        ("scale", "0", "every value the same"),
        ("deadband", "-1", "below 0"),
        ("address", "1", "hr:1"),
        ("address", "", "is empty"),
        ("id", "Press 7", "press_7"),
        ("id", "a..b", "Write a.b"),
        ("id", "nul.txt", "device name"),
        ("path", "/a", "empty part"),
        ("path", "a/#", "mean something"),
        ("path", "_ebbgate/x", "mean something"),
        ("path", "a\u202eb", "U+202E"),
        ("description", "a\x07", "U+0007"),
        ("source", "mbd1", "Did you mean mdb1?"),
        ("order", "ABDC", "CDAB"),
        ("every", "1 m", "not one of"),
        ("every", "5", "no unit"),
        ("every", "1ms", "below 10 ms"),
        ("heartbeat", "x", "is not a time"),
        ("bad_raw", "n/a", "0x8000"),
        ("states", "running", "0=stopped"),
        ("states", "1=a|01=b", "twice"),
    ],
)
def test_mistakes_name_cell_value_and_remedy(column: str, value: str, told: str) -> None:
    mistakes = one(column, value)
    assert len(mistakes) == 1
    assert f"{column} (" in mistakes[0]
    assert told in mistakes[0]
    assert repr(value)[:20] in mistakes[0]


def test_decimal_point_and_comma_by_dialect() -> None:
    assert one("low", "1,5") == []
    assert one("low", "0.125") == []
    assert one("low", "1.000") == []
    assert "thousand" in one("low", "1.000", ";")[0]
    assert one("low", "1,000", ";") == []
    assert one("low", "0.001", ";") == []


def test_all_mistakes_at_once_and_at_most_fifty_shown() -> None:
    lines = [f"X{i},p/{i},mdb1,hr:{i}" for i in range(80)] + ["ok,p/ok,nosource,7"]
    with pytest.raises(TagFileError) as caught:
        parse_tags("\n".join(["id,path,source,address", *lines]).encode(), SOURCES)
    assert len(caught.value.findings) == 82
    assert str(caught.value).count("\n") == 52
    assert "and 32 more" in str(caught.value)


def test_duplicates_name_the_other_row() -> None:
    data = b"id,path,source,address\na,p,mdb1,hr:0\n# a comment,,,\n\na,p,mdb1,hr:1\n"
    with pytest.raises(TagFileError) as caught:
        parse_tags(data, SOURCES)
    assert [f.where for f in caught.value.findings] == ["row 5, id (A5)", "row 5, path (B5)"]
    assert "row 2" in caught.value.findings[0].what


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"id,path,source\n", "'address' is missing"),
        (b"id,path,source,adress\n", "did you mean 'address'"),
        (b"id,id,path,source,address\n", "twice"),
        (b'id,path,source,address\na,b,mdb1,"hr:0\n', "not CSV"),
        (b'id,path,source,address\na,b,mdb1,"s7:"x""\n', "twice"),
        (b"id,path,source,address\na,b,mdb1,hr:0,extra\n", "5 cells"),
        (b"id,path\n" + b"\x81", "0x81"),
        (b"PK\x03\x04\x00\x00", "xlsx"),
        (b'id,path,source,address\na,b,mdb1,"' + b"x" * 5000 + b'"', "characters"),
        (b"id,path,source,address\na,b,mdb1\n", "is empty"),
    ],
)
def test_files_that_are_no_table(data: bytes, told: str) -> None:
    with pytest.raises(ConfigError, match=".") as caught:
        parse_tags(data, SOURCES, "x.csv")
    assert told in str(caught.value)
    assert "x.csv" in str(caught.value)


words = st.text("abcXYZ09äöüÉ€°µ§;,:|=\"'/+-@#_.()[]{}%&", min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6).map(float)
ids = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z0-9_]{1,5})?", fullmatch=True)


@st.composite
def tag_rows(draw: st.DrawFn) -> TagRow:
    low = draw(st.none() | numbers)
    return TagRow(
        id=draw(ids),
        path=draw(ids) + "/" + draw(ids),
        source=draw(st.sampled_from(sorted(SOURCES))),
        address="s7:" + draw(words),
        type=draw(st.sampled_from(["", "float32", "string(8)"])),
        order=draw(st.sampled_from(["", "CDAB"])),
        scale=draw(numbers.filter(bool)),
        offset=draw(numbers) + 0.0,
        unit=draw(st.sampled_from(["", "kW", "m3/h", "=1+1", "-", "'=x"])),
        low=low,
        high=draw(st.none() | numbers.filter(lambda x: low is None or x > low)),
        every_ns=draw(st.integers(10**7, 10**13)),
        deadband=abs(draw(numbers)),
        heartbeat_ns=draw(st.integers(0, 10**13)),
        bad_raw=draw(st.lists(st.sampled_from(["nan", "-1", "0x8000", "1.5"]), max_size=3).map(tuple)),
        states=tuple(draw(st.dictionaries(st.integers(-9, 99), words.filter(lambda w: "|" not in w), max_size=4)).items()),
        description=draw(st.just("") | words),
    )


dialects = st.sampled_from([Dialect(), Dialect("cp1252", ";", ","), Dialect("utf-16", "\t", ","), Dialect("utf-8-sig", ";", ".")])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(tag_rows(), max_size=4, unique_by=(lambda r: r.id, lambda r: r.path)), dialects)
def test_what_is_written_is_read_back(rows: list[TagRow], dialect: Dialect) -> None:
    wanted = [replace(row, low=row.low, high=row.high) for row in rows]
    assert plain(parse_tags(write_tags(rows, dialect), SOURCES)) == wanted


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_file_is_read_or_refused(junk: bytes) -> None:
    for data in (junk, b"id,path,source,address,low,every,states\n" + junk):
        try:
            parse_tags(data, SOURCES)
        except ConfigError as error:
            assert error.remedy


@given(st.text())
def test_no_cell_is_a_formula(text: str) -> None:
    assert shield(text)[:1] not in tuple("=+-@")
    assert unshield(shield(text)) == text


# ---- compare ----


def row(identity: str, address: str = "hr:0", **more: object) -> TagRow:
    return replace(TagRow(identity, f"p/{identity}", "mdb1", address), **more)  # type: ignore[arg-type]


def refused(*args: object, **kwargs: object) -> list[str]:
    return [f.where for f in compare(*args, **kwargs) if f.level is Level.REFUSED]  # type: ignore[arg-type]


def test_a_renamed_id_is_refused_unless_meant() -> None:
    before, after = [row("a"), row("b", "hr:1")], [row("a2"), row("b", "hr:1")]
    assert refused(before, after) == ["a"]
    assert refused(before, after, renamed={"a": "a2"}) == []
    assert refused(before, after, retired={"a"}) == []
    assert refused(before, after, renamed={"a": "zzz"}) == ["renamed a = zzz", "a"]
    assert refused(before, after, renamed={"b": "a2"})[0] == "renamed b = a2"
    assert refused(before, [row("b", "hr:1")]) == []
    assert refused(before, [row("a", "hr:9"), row("b", "hr:1"), row("c")]) == []  # moved by hand, id kept


def test_changes_of_meaning_are_warnings_and_paths_are_not() -> None:
    found = compare([row("a")], [row("a", scale=0.1, path="x/y", every_ns=5 * 10**9)])
    assert [(f.level, f.what.split()[0]) for f in found] == [(Level.INFO, "path"), (Level.WARNING, "scale"), (Level.INFO, "every")]
    assert compare([row("a")], [row("a", line=7)]) == ()
