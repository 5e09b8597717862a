"""Spreadsheet text -> cells, as Excel and people write it: encodings, separators, numbers, and the damage Excel does. Pure.

Read: UTF-8 with or without BOM, UTF-16 with BOM, Windows-1252; separated by comma, semicolon or tab; an Excel line `sep=;` first.
A cell that a spreadsheet would run as a formula (=, +, -, @ first) is written with an apostrophe before it, which is taken off again.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILE_BYTES_MAX: Final = 512 * 1024 * 1024  # a million tags of 500 characters
CELL_CHARS_MAX: Final = 4_096  # more is a quotation mark that was never closed
SEPARATORS: Final = ",;\t"

_MONTHS: Final = "jan|feb|fév|fev|mar|mär|mrz|mrt|apr|avr|abr|mai|may|mei|jun|jui|jul|aug|aoû|ago|sep|set|okt|oct|out|nov|dez|dec|déc|dic"
_DATE: Final = re.compile(
    rf"\d{{1,2}}[-./ ]{{1,2}}(?:{_MONTHS})[a-zéû]*\.?(?:[-. ]\d{{2,4}})?|(?:{_MONTHS})[a-zéû]*\.?[-. ]\d{{2,4}}"
    r"|\d{1,2}[./]\d{1,2}[./]\d{2,4}|\d{4}-\d\d-\d\d(?: \d\d:\d\d(?::\d\d)?)?",
    re.IGNORECASE,
)
_SCIENTIFIC: Final = re.compile(r"\d[.,]?\d*E[+-]?\d+", re.IGNORECASE)
_ROUNDED: Final = re.compile(r"\d[.,]\d{5}E\+\d+")  # Excel shows six digits of what had more; others write a small e
_ERROR: Final = re.compile(r"#{3,}|#[A-ZÄÖÜ/0-9]+[?!]?", re.IGNORECASE)  # ########, #NAME?, #REF!, #WERT!, #N/A
_NUMBER: Final = re.compile(r"[+-]?\d{1,25}(?:[.,]\d{1,25})?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_THOUSANDS: Final = re.compile(r"[+-]?[1-9]\d{0,2}([.,])\d{3}", re.ASCII)
_FORMULA: Final = re.compile(r"'*[=+\-@]")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is written. decimal is "," only where the separator is not."""

    encoding: str = "utf-8"  # utf-8, utf-8-sig, utf-16, cp1252
    separator: str = ","
    decimal: str = "."


def decode_file(data: bytes, name: str) -> tuple[str, str]:
    """Return text and encoding; raise ConfigError naming the byte that is none of the known encodings."""
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{name}: {len(data):,} bytes are more than a tag table can be", "Name the right file.")
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if data.startswith(mark):
            return _decoded(data, encoding, name), encoding
    if b"\0" in data[:4096]:
        raise ConfigError(f"{name}: holds zero bytes", "Save it from the spreadsheet as 'CSV UTF-8'; .xlsx is not read.")
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return _decoded(data, "cp1252", name), "cp1252"


def _decoded(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"{name}: line {line} holds the byte 0x{data[error.start]:02X}, which is no character in {encoding}"
        raise ConfigError(message, "Save the file from the spreadsheet as 'CSV UTF-8'.") from None


def split_rows(text: str, known: Sequence[str], name: str) -> tuple[list[list[str]], str]:
    """Return rows of stripped cells (row 1 first, blank rows kept so that numbers are those of the spreadsheet), and the separator.

    The separator is the one that finds most of the `known` column names in the first row.
    """
    match = re.match(r"sep=([,;\t])\r?\n", text)
    text = text[match.end() :] if match else text
    head = text.partition("\n")[0].lower()
    separator = match[1] if match else max(SEPARATORS, key=lambda s: len({cell.strip(' "\r') for cell in head.split(s)} & set(known)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append([cell.strip() for cell in row])
            if any(len(cell) > CELL_CHARS_MAX for cell in row):
                message = f"{name}: a cell in row {len(rows)} has more than {CELL_CHARS_MAX} characters"
                raise ConfigError(message, "Is a quotation mark not closed?")
    except csv.Error as error:
        message = f"{name}: row {len(rows) + 1} (line {reader.line_num}) is not CSV: {error}"
        raise ConfigError(message, 'Write a quotation mark inside a quoted cell twice: "s7:""DB"".""x""".') from None
    return rows, separator


def join_rows(rows: Iterable[Sequence[str]], dialect: Dialect) -> bytes:
    """Return the file; every row ends in CRLF, as Excel and RFC 4180 want."""
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=dialect.separator, lineterminator="\r\n").writerows(rows)
    return out.getvalue().encode(dialect.encoding)


def shield(text: str) -> str:
    """Return a text that no spreadsheet runs as a formula."""
    return "'" + text if _FORMULA.match(text) else text


def unshield(text: str) -> str:
    """Take off what `shield` put on."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def damage(text: str) -> str:
    """Return how Excel seems to have damaged a cell that was meant as text or number, or ""."""
    if _DATE.fullmatch(text):
        return "looks like a date that Excel made of it; format the column as Text and write it again"
    if _ERROR.fullmatch(text):
        return "is an error or a filler that Excel wrote instead of the value; widen or correct the cell in the spreadsheet"
    return ""


def scientific(text: str) -> str:
    """Return what is wrong with a text that Excel turned into a number such as 1,2E+05, or ""."""
    if _SCIENTIFIC.fullmatch(text):
        return "is a number that Excel shortened; format the column as Text and write all digits again"
    return ""


def number(text: str, separator: str) -> float:
    """Return a finite number with decimal point or comma; raise ValueError that says what to do."""
    if hint := damage(text):
        raise ValueError(hint)
    if not _NUMBER.fullmatch(text):
        raise ValueError("is not a number; write one as 0.001, without unit and without thousands separators")
    if _ROUNDED.fullmatch(text):
        raise ValueError("is a number that Excel rounded to six digits; format the column as Text and write all digits again")
    thousands = _THOUSANDS.fullmatch(text)
    if thousands and (thousands[1] == ",") != (separator == ";"):
        raise ValueError(f"may be a thousand or a fraction; write {text.replace(',', '').replace('.', '')} or {text.replace(',', '.')}0")
    value = float(text.replace(",", "."))
    if not math.isfinite(value):
        raise ValueError("is beyond what a number can be")
    return value


def invisible(text: str) -> str:
    """Return the name of the first character that no tag table may hold (controls, direction overrides), or ""."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") or "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069":
            return f"U+{ord(character):04X}"
    return ""
