"""tags.csv, byte for byte as spreadsheets of different countries save the same table; and what they do to cells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway import tagfile
from gateway.errors import ConfigError
from gateway.settings import TagRow
from gateway.tagcells import Dialect
from gateway.tagfile import TagFileError, read_tags, write_tags

SOURCES = {"ofen", "zähler", "mdb1"}

# Excel 365, German: "CSV (Trennzeichen-getrennt)": Windows-1252, semicolon, decimal comma, CRLF, quotes only where needed, empty cells kept
GERMAN = (
    b"id;path;source;address;type;scale;low;high;every;deadband;states;description;;\r\n"
    b"ofen.temp;werk/ofen/temperatur;mdb1;hr:12;int16;0,1;-10;1250,5;500ms;0,25;;Ofentemperatur \xfcber alles in \xb0C;;\r\n"
    b'ofen.rezept;werk/ofen/rezept;mdb1;"s7:""DB;1"".""Rezept""";string(16);;;;1 s;;;"Rezept; ""gro\xdf""";;\r\n'
    b"ofen.zustand;werk/ofen/zustand;mdb1;hr:20;uint16;;;;1s;;0=aus|1=l\xe4uft|2=St\xf6rung;;;\r\n"
    b";;;;;;;;;;;;;\r\n"
)
# Excel 365, French: "CSV UTF-8 (délimité par des virgules)", which is delimited by semicolons there, with a byte order mark
FRENCH = (
    b"\xef\xbb\xbfid;path;source;address;type;scale;low;high;every;deadband;states;description;;\r\n"
    b"ofen.temp;werk/ofen/temperatur;mdb1;hr:12;int16;0,1;-10;1250,5;500ms;0,25;;Ofentemperatur \xc3\xbcber alles in \xc2\xb0C;;\r\n"
    b'ofen.rezept;werk/ofen/rezept;mdb1;"s7:""DB;1"".""Rezept""";string(16);;;;1 s;;;"Rezept; ""gro\xc3\x9f""";;\r\n'
    b"ofen.zustand;werk/ofen/zustand;mdb1;hr:20;uint16;;;;1s;;0=aus|1=l\xc3\xa4uft|2=St\xc3\xb6rung;;;\r\n"
)
# Excel 365, English: "CSV (Comma delimited)"
ENGLISH = (
    b"id,path,source,address,type,scale,low,high,every,deadband,states,description,,\r\n"
    b"ofen.temp,werk/ofen/temperatur,mdb1,hr:12,int16,0.1,-10,1250.5,500ms,0.25,,Ofentemperatur \xfcber alles in \xb0C,,\r\n"
    b'ofen.rezept,werk/ofen/rezept,mdb1,"s7:""DB;1"".""Rezept""",string(16),,,,1 s,,,"Rezept; ""gro\xdf""",,\r\n'
    b"ofen.zustand,werk/ofen/zustand,mdb1,hr:20,uint16,,,,1s,,0=aus|1=l\xe4uft|2=St\xf6rung,,,\r\n"
)
# "Unicode Text": UTF-16 little endian with a mark, tabs
UNICODE_TEXT = b"\xff\xfe" + GERMAN.decode("cp1252").replace('"s7:""DB;1""', '"s7:""DB\x00""').replace(";", "\t").replace("DB\x00", "DB;1").replace(
    "Rezept\t ", "Rezept; ").encode("utf-16-le")  # fmt: skip
# LibreOffice: quotes around every text, LF
LIBRE = (
    b'"id";"path";"source";"address";"type";"scale";"low";"high";"every";"deadband";"states";"description"\n'
    b'"ofen.temp";"werk/ofen/temperatur";"mdb1";"hr:12";"int16";0,1;-10;1250,5;"500ms";0,25;;"Ofentemperatur \xc3\xbcber alles in \xc2\xb0C"\n'
    b'"ofen.rezept";"werk/ofen/rezept";"mdb1";"s7:""DB;1"".""Rezept""";"string(16)";;;;"1 s";;;"Rezept; ""gro\xc3\x9f"""\n'
    b'"ofen.zustand";"werk/ofen/zustand";"mdb1";"hr:20";"uint16";;;;"1s";;"0=aus|1=l\xc3\xa4uft|2=St\xc3\xb6rung";\n'
)


def plain(rows: tuple[TagRow, ...]) -> list[TagRow]:
    return [replace(row, line=0) for row in rows]


@pytest.mark.parametrize(
    ("data", "dialect"),
    [
        (GERMAN, Dialect("cp1252", ";", ",")),
        (FRENCH, Dialect("utf-8-sig", ";", ",")),
        (ENGLISH, Dialect("cp1252", ",", ".")),
        (UNICODE_TEXT, Dialect("utf-16", "\t", ".")),
        (LIBRE, Dialect("utf-8", ";", ",")),
    ],
    ids=["german", "french", "english", "unicode-text", "libreoffice"],
)
def test_the_same_table_whoever_saved_it(data: bytes, dialect: Dialect) -> None:
    rows, found = read_tags(data, SOURCES)
    assert found == dialect
    one, two, three = rows
    assert (one.scale, one.low, one.high, one.deadband, one.every_ns) == (0.1, -10.0, 1250.5, 0.25, 500 * 10**6)
    assert one.description == "Ofentemperatur über alles in °C"
    assert (two.address, two.description) == ('s7:"DB;1"."Rezept"', 'Rezept; "groß"')
    assert three.states == ((0, "aus"), (1, "läuft"), (2, "Störung"))
    assert [row.line for row in rows] == [2, 3, 4]
    assert plain(read_tags(write_tags(rows, found), SOURCES)[0]) == plain(rows)


@pytest.mark.parametrize(
    ("column", "cell", "told"),
    [
        ("low", b"1\xa0250,5", "thousands"),  # French, cp1252: no-break space
        ("low", "1\u202f250,5".encode(), "thousands"),  # French, UTF-8: narrow no-break space
        ("low", b"1.250,5", "thousands"),
        ("low", b"12-janv.", "date"),
        ("low", "01-f\u00e9vr.".encode("cp1252"), "date"),
        ("low", b"12. Jan", "date"),
        ("low", b"Mrz 24", "date"),
        ("address", b"#WERT!", "Excel wrote"),
        ("address", b"#NOM?", "Excel wrote"),
        ("id", b"1,23E+08", "shortened"),
        ("address", b"40001,5", ""),
    ],
)
def test_what_excel_does_to_a_cell_is_named_with_row_and_column(column: str, cell: bytes, told: str) -> None:
    cells = {"id": b"a", "path": b"b/c", "source": b"mdb1", "address": b"hr:0", "low": b"", "high": b""} | {column: cell}
    data = ";".join(cells).encode() + b"\r\n\r\n" + b";".join(cells.values()) + b"\r\n"
    if not told:
        assert read_tags(data, SOURCES)[0][0].address == cell.decode()  # what an address means is the source's to say
        return
    with pytest.raises(TagFileError) as caught:
        read_tags(data, SOURCES)
    letter = "ABCDEF"[list(cells).index(column)]
    assert [one.where for one in caught.value.findings] == [f"row 3, {column} ({letter}3)"]
    assert told in str(caught.value)


def test_a_line_break_inside_a_cell_keeps_the_row_numbers_of_the_spreadsheet() -> None:
    data = b'id;path;source;address;description\r\na;a/b;mdb1;hr:0;"zwei\nZeilen"\r\nb;b/c;mdb9;hr:1;\r\n'
    with pytest.raises(TagFileError) as caught:
        read_tags(data, SOURCES)
    assert [one.where for one in caught.value.findings] == ["row 2, description (E2)", "row 3, source (C3)"]


def test_too_many_rows_and_too_much_in_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"id,path,source,address,description\n"
    with pytest.raises(ConfigError, match="cell in row 2 has more than 4096"):
        read_tags(head + b"a,b/c,mdb1,hr:0," + b"x" * 5000, SOURCES)
    with pytest.raises(TagFileError, match="1500 characters, at most 1000"):
        read_tags(head + b"a,b/c,mdb1,hr:0," + b"x" * 1500, SOURCES)
    monkeypatch.setattr(tagfile, "ROWS_MAX", 3)
    with pytest.raises(ConfigError, match="4 tags are more than 3"):
        read_tags(head + b"".join(b"t%d,p/%d,mdb1,hr:%d,\n" % (i, i, i) for i in range(4)), SOURCES)


def test_windows_1252_has_holes_and_they_are_named() -> None:
    with pytest.raises(ConfigError, match="line 2 holds the byte 0x81"):
        read_tags(b"id;path;source;address\r\na;b/\x81;mdb1;hr:0\r\n", SOURCES)
