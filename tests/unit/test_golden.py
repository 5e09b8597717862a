"""Golden files: written again byte for byte, read by the product, and read by a reader that was written from docs/format.md alone."""

from __future__ import annotations

import ast
import filecmp
import json
from pathlib import Path

import cbor2
import pytest

from buffer.check import check_ring
from gateway.proof import verify_path
from gateway.trust.keys import KeyRing, load_public
from gateway.wire.receipt import Verdict, parse_receipt
from gateway.wire.request import parse_target
from tests.golden import make, reader

FILES = make.FILES
RING, LANDING = FILES / "ring" / make.STREAM, FILES / "landing" / make.STREAM
STICK = FILES / "stick" / f"ebbgate-{make.STREAM}-frames"


def keys() -> reader.Keys:
    return reader.Keys(FILES / "keys/site.pub")


def test_the_files_are_written_again_byte_for_byte(tmp_path):
    make.write(tmp_path / "again")
    old = {str(p.relative_to(FILES)) for p in FILES.rglob("*") if p.is_file()}
    new = {str(p.relative_to(tmp_path / "again")) for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert old == new
    _, different, errors = filecmp.cmpfiles(FILES, tmp_path / "again", sorted(old), shallow=False)
    assert (different, errors) == ([], [])


def test_the_reader_shares_nothing_with_the_product():
    tree = ast.parse(Path(reader.__file__).read_text())
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "hashlib", "json", "re", "struct", "zlib", "pathlib", "cbor2", "numpy", "zstandard", "cryptography", "pcodec"}


def test_the_ring_read_from_the_document_alone_holds_what_was_written():
    found = list(reader.ring(RING, keys()))
    expected = [tuple(row) for row in json.loads((FILES / "expected.json").read_text())["rows"]]
    first = next(rows for m, _, rows in found if m[5] >> 32 == 1 and m[7] == [0, 109])
    assert [(t, ts, k, str(v), q, f) for t, ts, k, v, q, f, _ in first[:9]] == expected
    h = {}
    for m, cose, _ in found:
        assert h.get((m[5], m[6][0] - 1), m[9]) == m[9], "the chain goes on"
        h[m[5], m[6][1]] = reader.chain(m, cose)
    assert any(16 in m for m, _, _ in found) and any(13 in m for m, _, _ in found), "`more` and `fill` are among them"
    newest = found[-1][0]
    assert newest[14][5] == [[newest[5], 0, 0, 2]], "a loss with its reason"
    assert newest[14][6], "an open gap"
    tables = [x for x in reader.objects(RING, keys()).values() if x[:4] == b"\x28\xb5\x2f\xfd"]
    assert [tag["id"] for tag in reader.tag_table(tables[0])["tags"]] == ["flow", "state", "serial", "count"]


def test_the_landing_and_the_stick_read_from_the_document_alone_hold_the_same_chain():
    records = list(reader.landing(LANDING, keys()))
    assert {lane for lane, *_ in records} == {0, 1}
    seqs = {(m[5], seq) for _, _, new, m, _ in records if m for a, b in new for seq in range(a, b + 1)}
    assert {(1 << 32 | 0x3FA91C02, seq) for seq in range(109)} <= seqs
    carried = {(m[5], m[6][1]): reader.chain(m, cose) for m, cose in reader.stick(STICK, keys()) if m[1] != 3}
    landed = {(m[5], m[6][1]): after for _, _, _, m, after in records if m}
    both = carried.keys() & landed.keys()
    assert both and all(carried[place] == landed[place] for place in both)


def test_receipts_and_requests():
    known = KeyRing()
    known.trust(load_public(FILES / "keys/receipt.pub"))
    verdicts = {path.stem: parse_receipt(path.read_bytes(), known).verdict for path in (FILES / "receipts").glob("*.cose")}
    assert verdicts["segment"] == Verdict.STORED
    assert verdicts["offer"] == Verdict.DUPLICATE
    assert verdicts["refused"] == Verdict.REFUSED
    mine = reader.Keys(FILES / "keys/receipt.pub")
    for path in (FILES / "receipts").glob("*.cose"):
        body = mine.open(path.read_bytes())
        assert body[0] == "ebbgate receipt 1" and set(body) >= {0, 1, 2, 3, 4, 5, 6, 8, 10, 11}
    for line in (FILES / "receipts/requests.txt").read_text().splitlines():
        parse_target(line.split()[0])


def test_the_product_verifies_and_checks_them():
    site = KeyRing([load_public(FILES / "keys/site.pub")])
    for path in (FILES / "ring", FILES / "landing", FILES / "stick"):
        assert verify_path(path, site).findings == [], path
    assert check_ring(RING, site).findings == []


@pytest.mark.parametrize("at", [44, 100, 900])
def test_the_reader_refuses_a_flipped_byte(tmp_path, at):
    data = bytearray((STICK / "0000000001-3fa91c02-0000000000000000.frames").read_bytes())
    data[at] ^= 1
    known = keys()
    list(reader.stick(STICK, known))
    with pytest.raises((AssertionError, cbor2.CBORDecodeError)):
        reader.frame(bytes(data), 0, known)
