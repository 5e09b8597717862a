"""docs/format.md against the code: its framed parts are the specifications, and its numbers and names are those of the code."""

from __future__ import annotations

import re

import numpy as np
import pytest

from buffer import codec, frame, journal, layout, manifest, packing
from buffer.last import _ROW
from buffer.rows import make_rows
from buffer.segment import arrow_table
from buffer.tagtable import Tag, TagTable, encode_table
from buffer.types import make_columns
from gateway.landing import index
from gateway.wire import receipt, request
from tests.golden.format_doc import PAGE, render, spec
from tests.golden.make import TABLE
from tests.golden.reader import tag_table

TEXT = PAGE.read_text(encoding="utf-8")


def keys(module: str) -> dict[int, str]:
    """Rows "<number>  <words>" of a specification."""
    return {int(m[1]): m[2] for m in re.finditer(r"^ +(\d+)  +([a-z][a-z0-9 ]*?)(?:  | uint|$)", spec(module), re.MULTILINE)}


def test_the_page_is_what_the_code_says():
    assert render(TEXT) == TEXT, "run: python -m tests.golden.format_doc"
    assert render(TEXT.replace("magic \"EBBF\"", "magic \"EBBX\"")) == TEXT, "a planted difference is put right"


def test_manifest_keys():
    used = set().union(*(need | may for need, may in manifest._KEYS.values()))
    assert set(keys("buffer.manifest")) == used
    for kind, letter in ((manifest.FrameKind.BLOCK, "b"), (manifest.FrameKind.SEGMENT, "s"), (manifest.FrameKind.OBJECT, "o")):
        rows = re.findall(r"^ +(\d+)  +[a-z0-9 ]+?  +((?:b )?(?:s )?o?|b s o|[bso])(?: |$)", spec("buffer.manifest"), re.MULTILINE)
        said = {int(number) for number, kinds in rows if letter in kinds.split()}
        need, may = manifest._KEYS[kind]
        assert said == need | may, kind


def test_receipt_fields():
    assert set(keys("gateway.wire.receipt")) == receipt._NEED | receipt._MAY


def test_codec_columns_and_codecs():
    assert list(keys("buffer.codec")) == list(range(1, 14))
    assert keys("buffer.codec")[codec.TEXTS] == "texts"
    assert keys("buffer.codec")[codec.IS_DECIMAL] == "is decimal"
    numbers = [int(x) for x in re.findall(r"^ +(\d)      \S", spec("buffer.packing"), re.MULTILINE)]
    assert numbers == [packing.RAW, packing.ZSTD, packing.PCODEC, packing.RUNS, packing.RUNS_ZSTD]


@pytest.mark.parametrize(
    ("magic", "size", "code"),
    [("EBBF", 40, frame.HEADER_BYTES), ("EBBD", 64, layout.DURABLE_BYTES), ("EBBI", 64, index.PART_HEADER_BYTES), ("EBBJ", 4096, journal.PAGE)],
)
def test_magic_and_sizes(magic, size, code):
    assert f'"{magic}"' in TEXT
    assert size == code


def test_rows_of_a_segment_and_of_last():
    table = TagTable("g", "g.main", "s", "UTC", ("p",), (Tag(16, "a", "x/a", "p"),))
    rows = make_rows(make_columns([16], [1], [0], [0], [0]), np.zeros(1, np.int64), table, by_tag=True)
    schema = arrow_table(rows, 1).schema
    said = [name for m in re.finditer(r"^((?:[a-z_]+, )*[a-z_]+)(?: +(?:text|int\d+)\b|:)", spec("buffer.rows"), re.MULTILINE) for name in m[1].split(", ")]
    assert said == schema.names
    assert _ROW.itemsize == 36 and "36 bytes each" in TEXT


def test_keys_of_a_tag_table():
    body = tag_table(encode_table(TABLE))
    said = set(re.findall(r'"([a-z_]+)"', spec("buffer.tagtable")))
    assert said == set(body) | set(body["tags"][0])


def test_statuses_of_the_receiver():
    said = {int(x) for x in re.findall(r"\b([2-5]\d\d)\b", spec("gateway.wire.request").split("status  meaning")[1])}
    code = {v for k, v in vars(request).items() if k.isupper() and isinstance(v, int) and 200 <= v < 600 and not k.endswith("MAX")}
    assert said == code


def test_every_builtin_type_has_a_row():
    names = ["Boolean", "SByte", "Byte", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float", "Double", "String", "DateTime", "Guid", "ByteString", "XmlElement", "NodeId", "ExpandedNodeId", "StatusCode", "QualifiedName", "LocalizedText", "ExtensionObject", "DataValue", "Variant", "DiagnosticInfo"]
    assert len(names) == 25
    assert [name for name in names if not re.search(rf"\b{name}\b", spec("gateway.collect.opcua.variant"))] == []
