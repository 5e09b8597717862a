"""tags.csv <-> settings.TagRow. Pure. Reads what Excel writes (gateway.tagcells); names row, column, value and remedy of every mistake.

Columns, in any order; only the first four must be there:

    id           for ever: [a-z0-9][a-z0-9_.-]{0,63}, never reused          scale, offset  stored value = raw * scale + offset; 1 and 0
    path         site/area/line/..., may change                            unit           UCUM: Cel, bar, kW
    source       a [source.NAME] of gateway.toml                           low, high      engineering range
    address      OPC UA: s7:"DB"."x", ns=2;s=x, nsu=..;s=..                every          1s; how often
                 Modbus: 40001, hr:0, ir:0x10, hr:5.3                      deadband       0; in engineering units, absolute
    type         Modbus: int16 .. float64 bool bit string bcd, int16[8]    heartbeat      0; the last value again after so long
    order        Modbus: ABCD CDAB BADC DCBA; empty: the source's          bad_raw        raw values that mean "not available": 32768|nan
    description  for people                                                states         0=stopped|1=running
    expand       8 makes an array of 8 the tags <id>.0 to <id>.7 (gateway.tagarrays; Modbus: the type is that of one element);
                 empty: an array (OPC UA; Modbus int16[8]) is one tag, its value JSON

A row number is that of the spreadsheet: the header is row 1. Blank rows and rows that begin with # are left out.
"""

from __future__ import annotations

import difflib
import re
import string
import sys
from typing import TYPE_CHECKING, Final

from buffer import limits
from gateway import tagarrays, tagcells
from gateway.errors import ConfigError
from gateway.findings import Finding, Level
from gateway.settings import SECOND, TagRow
from gateway.tagcells import Dialect
from gateway.units import format_duration, parse_duration_ns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

COLUMNS: Final = (
    *("id", "path", "source", "address", "type", "order", "scale", "offset", "unit", "low", "high"),
    *("every", "deadband", "heartbeat", "bad_raw", "states", "description", "expand"),
)
REQUIRED: Final = ("id", "path", "source", "address")
ORDERS: Final = ("ABCD", "CDAB", "BADC", "DCBA")
MISTAKES_SHOWN_MAX: Final = 50  # one screenful; the rest is counted
ROWS_MAX: Final = limits.TAG_NUMBER_MAX - limits.TAG_NUMBER_FIRST
PATH_CHARS_MAX: Final = 400
ID_CHARS_MAX: Final = 64
TEXT_CHARS_MAX: Final = 1_000  # description
WORD_CHARS_MAX: Final = 64  # type, unit
EVERY_MIN_NS: Final = 10 * 10**6  # faster is no longer polling
STATES_MAX: Final = 256
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # file names that Windows refuses
_BARE: Final = re.compile(r"\d{1,4}", re.ASCII)
_RAW: Final = re.compile(r"[+-]?\d{1,25}(\.\d{1,25})?(e[+-]?\d{1,3})?|0x[0-9a-f]{1,16}|nan", re.IGNORECASE | re.ASCII)


class TagFileError(ConfigError):
    """Mistakes in a tag table, all of them: `findings` says where each is."""

    def __init__(self, name: str, findings: Sequence[Finding]) -> None:
        shown = [f"{one.where}: {one.what}" + (f". {one.remedy}" if one.remedy else "") for one in findings[:MISTAKES_SHOWN_MAX]]
        more = len(findings) - len(shown)
        shown += [f"and {more:,} more"] if more else []
        count = "1 mistake" if len(findings) == 1 else f"{len(findings):,} mistakes"
        super().__init__(f"{name}: {count}\n    " + "\n    ".join(shown), "Correct these cells; nothing was taken over.")
        self.findings = tuple(findings)


def parse_tags(data: bytes, sources: Collection[str], name: str = "tags.csv") -> tuple[TagRow, ...]:
    """Return all rows; raise TagFileError with every mistake, or ConfigError where the file cannot be read as a table at all."""
    return read_tags(data, sources, name)[0]


def read_tags(data: bytes, sources: Collection[str], name: str = "tags.csv") -> tuple[tuple[TagRow, ...], Dialect]:
    """Return all rows, and how the file is written, for `write_tags`. Errors as parse_tags."""
    text, encoding = tagcells.decode_file(data, name)
    table, separator = tagcells.split_rows(text, COLUMNS, name)
    if not table or not any(table[0]):
        raise ConfigError(f"{name}: is empty", f"The first row names the columns: {separator.join(COLUMNS)}")
    header = _header(table[0], separator, name)
    findings: list[Finding] = []
    rows = []
    for line, cells in enumerate(table[1:], 2):
        if any(cells) and not cells[0].startswith("#"):
            rows.append(_Row(line, header, cells, separator, findings).parse(sources))
    tags = sum(row.expand or 1 for row in rows)
    if tags > ROWS_MAX:
        raise ConfigError(f"{name}: {tags:,} tags are more than {ROWS_MAX:,}", "Spread them over several gateways.")
    elements = tagarrays.expand_rows(row for row in rows if row.expand)
    _duplicates(sorted([*rows, *elements], key=lambda row: row.line), header, findings)
    if findings:
        raise TagFileError(name, sorted(findings, key=lambda one: int(one.where.split()[1].rstrip(","))))
    decimal = "," if separator == ";" and b"," in data else "."
    return tuple(rows), Dialect(encoding, separator, decimal)


def _header(cells: Sequence[str], separator: str, name: str) -> list[str]:
    columns = [cell.lower() for cell in cells]
    while columns and not columns[-1]:
        columns.pop()
    problems = []
    for column in columns:
        if column not in COLUMNS:
            near = difflib.get_close_matches(column, COLUMNS, 1)
            problems.append(f"{column!r} is no column" + (f"; did you mean {near[0]!r}?" if near else ""))
    problems += [f"the column {column!r} is there twice" for column in sorted(set(columns)) if columns.count(column) > 1]
    problems += [f"the column {column!r} is missing" for column in REQUIRED if column not in columns]
    if problems:
        what = {",": "a comma", ";": "a semicolon", "\t": "a tab"}[separator]
        message = f"{name}: row 1, read as separated by {what}: " + "; ".join(problems)
        raise ConfigError(message, f"The first row names the columns: {', '.join(COLUMNS)}")
    return columns


def _place(line: int, column: str, header: Sequence[str]) -> str:
    """Return "row 14, low (K14)"; the cell only where the column is in the file (18 columns: one letter)."""
    return f"row {line}, {column}" + (f" ({string.ascii_uppercase[header.index(column)]}{line})" if column in header else "")


class _Row:
    """One row on its way to a TagRow; mistakes go to `findings`, so that all are found in one pass."""

    def __init__(self, line: int, header: list[str], cells: Sequence[str], separator: str, findings: list[Finding]) -> None:
        self._line = line
        self._header = header
        self._separator = separator
        self._findings = findings
        self._cells = dict(zip(header, map(tagcells.unshield, cells), strict=False))
        if any(cells[len(header) :]):
            what = f"has {len(cells)} cells, the first row names {len(header)} columns"
            remedy = f"Put a text that holds {separator!r} into double quotes."
            findings.append(Finding(Level.REFUSED, f"row {line}", what, remedy))

    def parse(self, sources: Collection[str]) -> TagRow:
        low, high = self._number("low", None), self._number("high", None)
        if low is not None and high is not None and low >= high:
            self._wrong("high", f"is not above low = {low:g}")
        scale, offset, deadband = self._number("scale", 1.0), self._number("offset", 0.0), self._number("deadband", 0.0)
        if scale == 0:
            self._wrong("scale", "makes every value the same", "Leave the cell empty for 1.")
        if deadband is not None and deadband < 0:
            self._wrong("deadband", "is below 0", "Leave the cell empty for every change.")
        every = self._duration("every", SECOND)
        if every < EVERY_MIN_NS:
            self._wrong("every", "is below 10 ms", "Write 100ms or more.")
        return TagRow(
            id=self._id(),
            path=self._path(),
            source=sys.intern(self._source(sources)),  # one object for what many rows say alike: megabytes in collect
            address=self._address(),
            type=sys.intern(self._text("type", WORD_CHARS_MAX)),
            order=self._order(),
            scale=1.0 if scale is None else scale,
            offset=offset or 0.0,
            unit=sys.intern(self._text("unit", WORD_CHARS_MAX)),
            low=low,
            high=high,
            every_ns=every,
            deadband=deadband or 0.0,
            heartbeat_ns=self._duration("heartbeat", 0),
            bad_raw=self._bad_raw(),
            states=self._states(),
            description=self._text("description", TEXT_CHARS_MAX),
            expand=self._expand(),
            line=self._line,
        )

    def _wrong(self, column: str, what: str, remedy: str = "") -> None:
        value = self._cells.get(column, "")
        shown = value if len(value) <= 60 else value[:57] + "..."  # noqa: PLR2004 -- one line of a terminal
        self._findings.append(Finding(Level.REFUSED, _place(self._line, column, self._header), f"{shown!r} {what}", remedy))

    def _text(self, column: str, most: int) -> str:
        text = self._cells.get(column, "")
        if len(text) > most:
            self._wrong(column, f"has {len(text)} characters, at most {most} are kept")
        if hidden := tagcells.invisible(text):
            self._wrong(column, f"holds the invisible character {hidden}; write the cell again by hand")
        return text

    def _word(self, column: str, most: int = WORD_CHARS_MAX) -> str:
        """A text that must be there and that Excel must not have changed."""
        text = self._text(column, most)
        if not text:
            self._wrong(column, "is empty; every tag needs one")
        elif hint := tagcells.damage(text) or tagcells.scientific(text):
            self._wrong(column, hint)
        return text

    def _id(self) -> str:
        before = len(self._findings)
        text = self._word("id")
        if len(self._findings) > before:
            return text
        if not re.fullmatch(limits.ID_PATTERN, text) or ".." in text:
            better = re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9_.-]+", "_", text.lower())).strip("_.-")[:64]
            self._wrong("id", "is no id: 1 to 64 of a-z 0-9 _ . - beginning with a letter or digit", f"Write {better}." if better else "")
        elif _DEVICES.fullmatch(text):
            self._wrong("id", "is a device name of another system; choose another")
        return text

    def _path(self) -> str:
        text = self._word("path", PATH_CHARS_MAX)
        parts = text.split("/")
        if text and not all(part and part == part.strip() and part not in (".", "..") for part in parts):
            self._wrong("path", "has an empty part; write area/line/tag without / at the ends")
        if parts[0].startswith("_ebbgate") or re.search(r"[+#*\\]", text):
            self._wrong("path", r"holds + # * \ or begins with _ebbgate, which mean something elsewhere")
        return text

    def _source(self, sources: Collection[str]) -> str:
        text = self._word("source")
        if text and text not in sources:
            near = difflib.get_close_matches(text, sources, 1)
            remedy = f"Did you mean {near[0]}?" if near else f"Add [source.{text}] to gateway.toml, or correct the cell."
            self._wrong("source", "is no source of gateway.toml", remedy)
        return text

    def _address(self) -> str:
        text = self._word("address", tagcells.CELL_CHARS_MAX)
        if _BARE.fullmatch(text):
            number = int(text)
            remedy = f"Write hr:{number} (counted from 0) or {40_000 + number} (from 1) for a holding register, co:{number} for a coil."
            self._wrong("address", "does not say which table it is in; a spreadsheet also drops leading zeros", remedy)
        return text

    def _order(self) -> str:
        text = self._cells.get("order", "").upper()
        if text and text not in ORDERS:
            self._wrong("order", f"is no byte order; write one of {' '.join(ORDERS)} or leave the cell empty")
        return text

    def _number(self, column: str, empty: float | None) -> float | None:
        text = self._cells.get(column, "")
        if not text:
            return empty
        try:
            return tagcells.number(text, self._separator)
        except ValueError as error:
            self._wrong(column, str(error))
            return empty

    def _duration(self, column: str, empty: int) -> int:
        text = self._cells.get(column, "")
        if not text:
            return empty
        try:
            return parse_duration_ns(re.sub(r"(?<=\d),(?=\d)", ".", text) if self._separator == ";" else text)
        except ValueError as error:
            hint = tagcells.damage(text)
            self._wrong(column, hint or str(error).partition(f"{text!r} ")[2] or str(error))
            return empty or SECOND

    def _expand(self) -> int:
        text = self._cells.get("expand", "")
        if not text:
            return 0
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not 1 <= int(text) <= tagarrays.EXPAND_MAX:
            self._wrong("expand", f"is no number of elements from 1 to {tagarrays.EXPAND_MAX:,}", "Leave the cell empty for a tag that is no array.")
            return 0
        for column, most in (("id", ID_CHARS_MAX), ("path", PATH_CHARS_MAX)):
            room = most - tagarrays.SUFFIX_CHARS_MAX
            if len(self._cells.get(column, "")) > room:
                self._wrong(column, f"leaves no room for the numbers of {text} elements", f"Write at most {room} characters.")
        return int(text)

    def _bad_raw(self) -> tuple[str, ...]:
        text = self._cells.get("bad_raw", "")
        parts = tuple(part.strip().replace(",", ".").lower() for part in text.split("|")) if text else ()
        hint = tagcells.scientific(text)
        if hint or not all(_RAW.fullmatch(part) for part in parts):
            self._wrong("bad_raw", hint or "is no list of raw values; write 32768 or 0x8000 or nan, several as 32768|65535")
        return parts

    def _states(self) -> tuple[tuple[int, str], ...]:
        text = self._text("states", tagcells.CELL_CHARS_MAX)
        pairs = [part.partition("=") for part in text.split("|")] if text else []
        numbers = [left.strip() for left, _, _ in pairs]
        good = all(re.fullmatch(r"-?\d{1,18}", one, re.ASCII) for one in numbers) and all(right.strip() for _, _, right in pairs)
        if not good or len(pairs) > STATES_MAX:
            self._wrong("states", "is no list of states; write 0=stopped|1=running|2=fault")
            return ()
        if len(set(map(int, numbers))) != len(numbers):
            self._wrong("states", "names a number twice")
        return tuple((int(left), right.strip()) for left, _, right in pairs)


def _duplicates(rows: Iterable[TagRow], header: list[str], findings: list[Finding]) -> None:
    for column in ("id", "path"):
        first: dict[str, int] = {}
        for row in rows:
            value = getattr(row, column)
            line = first.setdefault(value, row.line)
            if value and line != row.line:  # the elements of an array stand in one row
                what = f"{value!r} stands in row {line} already"
                findings.append(Finding(Level.REFUSED, _place(row.line, column, header), what, "Give each tag its own."))


# ---- writing ----


def write_tags(rows: Iterable[TagRow], dialect: Dialect = Dialect()) -> bytes:  # noqa: B008 -- frozen
    """Return the file in the dialect it was read in; reading it gives the same rows."""
    return tagcells.join_rows([COLUMNS, *(_cells(row, dialect) for row in rows)], dialect)


def _cells(row: TagRow, dialect: Dialect) -> list[str]:
    def number(value: float | None, default: float | None) -> str:
        return "" if value is None or value == default else _digits(value).replace(".", dialect.decimal)

    cells = {
        "scale": number(row.scale, 1.0),
        "offset": number(row.offset, 0.0),
        "low": number(row.low, None),
        "high": number(row.high, None),
        "deadband": number(row.deadband, 0.0),
        "every": format_duration(row.every_ns),
        "heartbeat": format_duration(row.heartbeat_ns) if row.heartbeat_ns else "",
        "bad_raw": "|".join(row.bad_raw),
        "expand": str(row.expand or ""),
        "states": tagcells.shield("|".join(f"{value}={text}" for value, text in row.states)),
    }
    return [cells[column] if column in cells else tagcells.shield(getattr(row, column)) for column in COLUMNS]


def _digits(value: float) -> str:
    """Return a number that reads back equal and that no spreadsheet takes for a thousand: 1.5, 1e-05, 250."""
    text = repr(value).removesuffix(".0")
    return text + "0" if re.fullmatch(r"-?[1-9]\d{0,2}\.\d{3}", text) else text


# ---- what changed ----


def compare(
    before: Iterable[TagRow], after: Iterable[TagRow], renamed: Mapping[str, str] | None = None, retired: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Return what a new table changes. REFUSED: an id vanished while its source and address live on under another id.

    renamed: old id -> new id, meant; retired: ids given up on purpose. An id is never reused: to change a name, change the path.
    """
    old, rows = {row.id: row for row in before}, list(after)
    findings = list(vanished({row.id: (row.source, tagarrays.place_of(row)) for row in old.values()}, rows, renamed or {}, retired))
    findings += [change for row in rows if row.id in old for change in _changes(old[row.id], row)]
    findings += [Finding(Level.INFO, row.id, "is new") for row in rows if row.id not in old and row.id not in (renamed or {}).values()]
    return tuple(findings)


def vanished(
    before: Mapping[str, tuple[str, str]], after: Iterable[TagRow], renamed: Mapping[str, str], retired: Collection[str]
) -> Iterator[Finding]:
    """Yield what became of ids that are gone. before: id -> (source, address); the rest as in `compare`."""
    new = {row.id: row for row in after}
    for a, b in renamed.items():
        if a not in before or a in new or b not in new:
            what = "names an id that was not there before or is not there now"
            yield Finding(Level.REFUSED, f"renamed {a} = {b}", what, "Correct [gateway] renamed.")
    at = {(row.source, tagarrays.place_of(row)): row.id for row in new.values() if row.id not in before}
    for identity, place in before.items():
        if identity in new:
            continue
        if renamed.get(identity) in new or identity in retired:
            yield Finding(Level.INFO, identity, f"becomes {renamed[identity]}" if identity in renamed else "is retired")
        elif other := at.get(place):
            remedy = f'Keep the id and change its path; or write [gateway] renamed = {{ "{identity}" = "{other}" }}, or retired = ["{identity}"].'
            what = f"vanished, and {other} now reads {place[0]} {place[1]}: its history would end"
            yield Finding(Level.REFUSED, identity, what, remedy)
        else:
            yield Finding(Level.WARNING, identity, "is no longer read", f'If that is meant, write [gateway] retired = ["{identity}"].')


def _changes(old: TagRow, new: TagRow) -> Iterable[Finding]:
    for column in COLUMNS[1:]:
        field = {"every": "every_ns", "heartbeat": "heartbeat_ns"}.get(column, column)
        a, b = getattr(old, field), getattr(new, field)
        if a != b:
            meaning = column in ("type", "order", "scale", "offset", "unit", "low", "high", "bad_raw", "states")
            remedy = "Old readings keep the old meaning; check that the new one is right." if meaning else ""
            yield Finding(Level.WARNING if meaning else Level.INFO, old.id, f"{column} changes from {a!r} to {b!r}", remedy)
