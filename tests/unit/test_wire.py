"""One request has one spelling, one receipt has one encoding; whatever else comes is refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from buffer import limits
from buffer.cose import decode_cbor, encode_cbor, parse_sign1, sign1
from buffer.errors import CorruptError, SignatureError
from gateway.trust.keys import KeyRing, KeySigner
from gateway.wire import receipt as r
from gateway.wire import request as q

SIGNER = KeySigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RING = KeyRing()
RING.trust(SIGNER.public)

INT63 = st.integers(0, 2**63 - 1)
STREAM = st.from_regex(rf"\A{limits.ID_PATTERN}\Z").filter(lambda x: ".." not in x)
GENERATION = st.integers(0, 2**63 - 1)
DIGEST = st.binary(min_size=32, max_size=32)


@st.composite
def targets(draw: st.DrawFn) -> q.Target:
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return q.StatusTarget()
    if kind == 1:
        return q.ObjectTarget(draw(DIGEST), draw(STREAM), draw(GENERATION))
    first, last = sorted((draw(INT63), draw(INT63)))
    partial = draw(st.none() | st.tuples(INT63, INT63))
    return q.FramesTarget(
        draw(STREAM), draw(GENERATION), first, last, draw(GENERATION), draw(st.sampled_from(q.Lane)), draw(st.none() | DIGEST),
        partial[0] if partial else None, partial[1] if partial else None,
    )  # fmt: skip


@st.composite
def receipts(draw: st.DrawFn) -> r.Receipt:
    verdict = draw(st.sampled_from(r.Verdict))
    first, last = sorted((draw(INT63), draw(INT63)))
    ends = r.Ends(draw(INT63), draw(INT63))
    landing, asked = draw(GENERATION), draw(GENERATION)
    lane = draw(st.sampled_from(q.Lane))
    return r.Receipt(
        verdict, draw(STREAM), draw(GENERATION), first, last, draw(DIGEST), landing, ends, asked, draw(INT63),
        (lane, ends.of(lane) - 1) if ends.of(lane) and draw(st.booleans()) else None,
        None if asked == landing else r.Ends(draw(INT63), draw(INT63)),
        draw(st.sampled_from(r.Refusal)) if verdict == r.Verdict.REFUSED else None,
        draw(INT63) if verdict == r.Verdict.PARTIAL else None,
    )  # fmt: skip


@given(targets())
def test_a_request_comes_back_as_it_was_written(target: q.Target) -> None:
    assert q.parse_target(q.format_target(target)) == target


@given(st.text(max_size=200))
def test_any_text_is_a_request_in_its_one_spelling_or_refused(text: str) -> None:
    try:
        target = q.parse_target(text)
    except CorruptError:
        return
    assert q.format_target(target) == text


GOOD = "/v1/streams/hall1.main/7-3fa91c02/10-12?landing=2-00000001&chain=" + "ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("10-12", "12-10"), GOOD.replace("10-12", "010-12"), GOOD.replace("10-12", "10-99999999999999999999"),
        GOOD.replace("hall1", "Hall1"), GOOD.replace("hall1.", "hall1.."), GOOD.replace("hall1", ".."), GOOD.replace("ab", "AB"),
        GOOD + "&x=1", GOOD + "&lane=live", GOOD + "&lane=fast", GOOD + "&offset=1", GOOD + "#", GOOD + "&" + GOOD[40:], GOOD + "&",
        GOOD.replace("/v1/", "/v2/"), GOOD.replace("?", "/?"), "/v1/objects/" + "ab" * 32, "/v1/status?x=1", "/v1/status/", "",
        "/v1/objects/" + "ab" * 31 + "?stream=a", "//v1/status", "/v1/./status", "/v1/%73tatus",
    ],
)  # fmt: skip
def test_other_spellings_are_refused(text: str) -> None:
    q.parse_target(GOOD)
    with pytest.raises(CorruptError):
        q.parse_target(text)


@given(receipts())
def test_a_receipt_comes_back_and_fits(receipt: r.Receipt) -> None:
    message = r.encode_receipt(SIGNER, receipt)
    assert len(message) <= r.RECEIPT_BYTES_MAX
    assert r.parse_receipt(message, RING) == receipt


EXAMPLE = r.Receipt(r.Verdict.STORED, "hall1.main", 7 << 32 | 5, 3, 4, bytes(32), 2 << 32, r.Ends(8, 1), 0, 1, (q.Lane.LIVE, 7), r.Ends())


def test_every_flipped_bit_and_every_cut_of_a_receipt_is_refused() -> None:
    message = r.encode_receipt(SIGNER, EXAMPLE)
    for at in range(len(message)):
        with pytest.raises(CorruptError):
            r.parse_receipt(message[:at], RING)
        for bit in range(8):
            bad = bytearray(message)
            bad[at] ^= 1 << bit
            with pytest.raises(CorruptError):
                r.parse_receipt(bytes(bad), RING)
    with pytest.raises(CorruptError):
        r.parse_receipt(message + b"\0", RING)


def test_a_receipt_of_another_key_is_refused() -> None:
    with pytest.raises(SignatureError):
        r.parse_receipt(r.encode_receipt(KeySigner(Ed25519PrivateKey.generate()), EXAMPLE), RING)


@pytest.mark.parametrize(
    "change",
    [
        {1: 6}, {1: True}, {2: "UP"}, {3: -1}, {3: 2**63}, {4: [4, 3]}, {4: [1]}, {5: b"short"}, {7: [2, 0]}, {7: [0, 8]}, {8: [1]},
        {9: None}, {10: 2 << 32}, {12: 1}, {13: 5}, {1: 5}, {1: 4}, {0: "ebbgate receipt 2"}, {99: 1}, {11: 1.5}, {"x": 1},
    ],
)  # fmt: skip
def test_a_signed_receipt_outside_the_specification_is_refused(change: dict[object, object]) -> None:
    fields = decode_cbor(parse_sign1(r.encode_receipt(SIGNER, EXAMPLE)).payload)
    assert r.parse_receipt(sign1(SIGNER, encode_cbor(fields)), RING) == EXAMPLE
    with pytest.raises(CorruptError):
        r.parse_receipt(sign1(SIGNER, encode_cbor(fields | change)), RING)


@pytest.mark.parametrize("field", [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11])
def test_a_receipt_that_lacks_a_field_is_refused(field: int) -> None:
    fields = decode_cbor(parse_sign1(r.encode_receipt(SIGNER, EXAMPLE)).payload)
    del fields[field]
    with pytest.raises(CorruptError):
        r.parse_receipt(sign1(SIGNER, encode_cbor(fields)), RING)


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_garbage_is_no_receipt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        r.parse_receipt(data, RING)


def test_missing_objects_and_keys_are_named_within_512_bytes() -> None:
    objects, keys = [bytes([n]) * 32 for n in range(9)], [b"12345678"]
    assert q.parse_missing(q.format_missing(objects[:2], keys)) == (tuple(objects[:2]), tuple(keys))
    assert len(q.format_missing(objects, keys)) <= q.ANSWER_BYTES_MAX
    for bad in (b"", b"object " + b"A" * 64, b"x" * 513, q.format_missing(objects[:1]) + b"\n", b"\xff"):
        with pytest.raises(CorruptError):
            q.parse_missing(bad)


