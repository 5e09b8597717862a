"""The receiver's signed statement about frames. Pure; the only thing that comes back and is believed.

Specification. COSE_Sign1 (buffer.cose) of at most 512 bytes over a deterministic CBOR map:

    key  field      type
     0   type       text "ebbgate receipt 1"
     1   verdict    1 stored, 2 duplicate, 3 conflict, 4 partial, 5 refused
     2   stream     text
     3   generation uint; 0 for an object
     4   blocks     [first, last] that this receipt speaks of: what was asked, or a prefix of it; [0, 0] for an object
     5   chain      32 bytes: h after `last`; for an object its SHA-256; zeros where the receiver could not know it (refused)
     6   landing    uint: generation of the landing that answers
     7   number     [lane, n] of the last index record made; absent where nothing new was stored. Lane 0 live, 1 backfill
     8   ends       [live, backfill]: one past the highest landing number of this stream in each lane
     9   since      [live, backfill]: least start of the landing's openings after `asked` (0 where the landing does not know
                    `asked`); absent where `asked` is `landing`
    10   asked      uint: the landing generation that the request named, 0 for none
    11   time       int: receiver's wall clock, ns since 1970; advisory
    12   reason     only in refused: 1 this certificate may not send this stream, 2 key revoked, 3 beyond limits,
                    4 not a frame, or its signature is wrong, 5 key statement that nobody we trust signed
    13   offset     only in partial: bytes of the frame held so far; go on there

What a reader does with it: anything receipted with `ends` above a `since` of the same lane is offered again (the receiver was
restored); a receipt whose `asked` is not the landing generation now known is no answer. Only refused parks a frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from buffer import limits
from buffer.cose import decode_cbor, encode_cbor, parse_sign1, sign1
from buffer.errors import CorruptError
from gateway.wire.request import Lane

if TYPE_CHECKING:
    from buffer.cose import Signer, Verifier

RECEIPT_BYTES_MAX: Final = 512
NO_CHAIN: Final = bytes(32)
_TYPE: Final = "ebbgate receipt 1"
_INT64_MAX: Final = 2**63 - 1
_LANES: Final = (Lane.LIVE, Lane.BACKFILL)
_NEED: Final = {0, 1, 2, 3, 4, 5, 6, 8, 10, 11}
_MAY: Final = {7, 9, 12, 13}
_Enum = TypeVar("_Enum", bound=IntEnum)


class Verdict(IntEnum):
    """What became of the frames."""

    STORED = 1
    DUPLICATE = 2
    CONFLICT = 3
    PARTIAL = 4
    REFUSED = 5


class Refusal(IntEnum):
    """Why frames were refused. The sender parks them."""

    WRONG_STREAM = 1
    REVOKED_KEY = 2
    BEYOND_LIMITS = 3
    NOT_A_FRAME = 4
    UNTRUSTED_STATEMENT = 5


class Ends(NamedTuple):
    """A landing number per lane: one past the highest in use, or where an opening began."""

    live: int = 0
    backfill: int = 0

    def of(self, lane: Lane) -> int:
        """Return the number of one lane."""
        return self.live if lane == Lane.LIVE else self.backfill


@dataclass(frozen=True, slots=True)
class Receipt:
    """The fields of the specification; None where a field is absent."""

    verdict: Verdict
    stream: str
    generation: int
    first: int  # block numbers, inclusive
    last: int
    chain: bytes
    landing: int
    ends: Ends
    asked: int
    time_ns: int
    number: tuple[Lane, int] | None = None
    since: Ends | None = None
    reason: Refusal | None = None
    offset: int | None = None


def encode_receipt(signer: Signer, receipt: Receipt) -> bytes:
    """Return the signed bytes, at most RECEIPT_BYTES_MAX."""
    r = receipt
    fields: dict[int, Any] = {
        0: _TYPE,
        1: int(r.verdict),
        2: r.stream,
        3: r.generation,
        4: [r.first, r.last],
        5: r.chain,
        6: r.landing,
        8: list(r.ends),
        10: r.asked,
        11: r.time_ns,
    }
    if r.number is not None:
        fields[7] = [_LANES.index(r.number[0]), r.number[1]]
    if r.since is not None:
        fields[9] = list(r.since)
    if r.reason is not None:
        fields[12] = int(r.reason)
    if r.offset is not None:
        fields[13] = r.offset
    return sign1(signer, encode_cbor(fields))


def parse_receipt(message: bytes, verifier: Verifier) -> Receipt:
    """Return a receipt; raise SignatureError if it is not signed by a key of `verifier`, CorruptError if not of this form."""
    if len(message) > RECEIPT_BYTES_MAX:
        raise CorruptError("receipt is longer than 512 bytes")
    f = decode_cbor(parse_sign1(message).verified(verifier))
    if type(f) is not dict or not _NEED <= f.keys() <= _NEED | _MAY or any(type(key) is not int for key in f) or f[0] != _TYPE:
        raise CorruptError("not a receipt of this release")
    receipt = Receipt(
        verdict=_member(Verdict, f[1]),
        stream=_stream(f[2]),
        generation=_uint(f[3]),
        first=_pair(f[4])[0],
        last=_pair(f[4])[1],
        chain=_digest(f[5]),
        landing=_uint(f[6]),
        ends=Ends(*_pair(f[8])),
        asked=_uint(f[10]),
        time_ns=_uint(f[11]),
        number=_number(f[7]) if 7 in f else None,
        since=Ends(*_pair(f[9])) if 9 in f else None,
        reason=_member(Refusal, f[12]) if 12 in f else None,
        offset=_uint(f[13]) if 13 in f else None,
    )
    _check(receipt)
    return receipt


def _check(r: Receipt) -> None:
    consistent = (
        r.first <= r.last
        and (r.reason is not None) == (r.verdict == Verdict.REFUSED)
        and (r.offset is not None) == (r.verdict == Verdict.PARTIAL)
        and (r.since is None) == (r.asked == r.landing)
        and (r.number is None or r.number[1] < r.ends.of(r.number[0]))
    )
    if not consistent:
        raise CorruptError("receipt contradicts itself")


def _uint(value: Any) -> int:  # noqa: ANN401 -- decoded CBOR
    if type(value) is not int or not 0 <= value <= _INT64_MAX:
        raise CorruptError("receipt: not an integer below 2**63")
    return value


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401
    if type(value) is not list or len(value) != 2:  # noqa: PLR2004
        raise CorruptError("receipt: not a pair")
    return _uint(value[0]), _uint(value[1])


def _number(value: Any) -> tuple[Lane, int]:  # noqa: ANN401
    lane, number = _pair(value)
    if lane >= len(_LANES):
        raise CorruptError("receipt: unknown lane")
    return _LANES[lane], number


def _digest(value: Any) -> bytes:  # noqa: ANN401
    if type(value) is not bytes or len(value) != len(NO_CHAIN):
        raise CorruptError("receipt: not 32 bytes")
    return value


def _stream(value: Any) -> str:  # noqa: ANN401
    if type(value) is not str or not re.fullmatch(limits.ID_PATTERN, value) or ".." in value:
        raise CorruptError("receipt: not a stream id")
    return value


def _member(kind: type[_Enum], value: Any) -> _Enum:  # noqa: ANN401
    if type(value) is not int or value not in {int(x) for x in kind}:
        message = f"receipt: unknown {kind.__name__.lower()}"
        raise CorruptError(message)
    return kind(value)
