"""Arrays that stay one tag (`float32[10]`): decoded element by element, kept as JSON text. Pure.

The elements lie one behind the other, each in the tag's byte order, scaled and judged like a value of its own. The text is as that of an OPC UA
array: numbers as numbers, NaN and infinities as "NaN" "Infinity" "-Infinity"; an element that is no value is null, and the array is then
Uncertain; without any value it is null with the quality of its first element. An array is read whole, within one request.
An array whose elements are tags (`expand`) is no array here: each element is a tag with an address of its own (gateway.collect.modbus.plan).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from buffer.types import UNCERTAIN, Kind
from gateway.collect.modbus.decode import Decoder, Field, Values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def decoder_of(fields: Sequence[Field]) -> Decoder | ArrayDecoder:
    """Return what decodes these fields; without arrays they cost nothing."""
    return ArrayDecoder(fields) if any(one.type.length for one in fields) else Decoder(fields)


class ArrayDecoder:
    """As Decoder, where some of the fields are arrays."""

    def __init__(self, fields: Sequence[Field]) -> None:
        flat: list[Field] = []
        self._arrays: list[tuple[int, slice]] = []  # row, its elements among the flat fields
        rows, places = [], []
        for row, one in enumerate(fields):
            if one.type.length:
                self._arrays.append((row, slice(len(flat), len(flat) + one.type.length)))
                flat += _elements(one)
            else:
                rows.append(row)
                places.append(len(flat))
                flat.append(one)
        self._size = len(fields)
        self._rows, self._places = np.array(rows, np.intp), np.array(places, np.intp)
        self._flat = Decoder(flat)

    def __len__(self) -> int:
        return self._size

    def decode(self, buffer: bytes | bytearray | memoryview) -> Values:
        """Return all values; raise IndexError if the buffer is shorter than the fields."""
        flat = self._flat.decode(buffer)
        n = self._size
        made = Values(np.zeros(n, np.uint8), np.zeros(n, np.uint64), np.zeros(n, np.uint32), np.zeros(n, np.uint16), ())
        for name in ("kind", "values", "quality", "flags"):
            getattr(made, name)[self._rows] = getattr(flat, name)[self._places]
        texts = list(flat.texts)
        for row, where in self._arrays:
            quality = flat.quality[where]
            none = flat.kind[where] == Kind.NULL
            made.flags[row] = np.bitwise_or.reduce(flat.flags[where])
            if none.all():
                made.kind[row], made.quality[row] = Kind.NULL, quality[0]
                continue
            made.kind[row], made.values[row] = Kind.TEXT, len(texts)
            made.quality[row] = UNCERTAIN if quality.any() else 0
            texts.append(_text(flat, where))
        return replace(made, texts=tuple(texts))


def _elements(one: Field) -> list[Field]:
    """Return an array's fields; coils lie a bit apart, registers a width."""
    type_ = one.type.element
    if one.coil >= 0:
        return [replace(one, type=type_, start=one.start + bit // 8, coil=bit % 8) for bit in range(one.coil, one.coil + one.type.length)]
    return [replace(one, type=type_, start=one.start + k * type_.width) for k in range(one.type.length)]


def _text(flat: Values, where: slice) -> str:
    kinds: NDArray[np.uint8] = flat.kind[where]
    bits: NDArray[np.uint64] = flat.values[where]
    plain = [_plain(Kind(int(kind)), bits[k : k + 1], flat.texts) for k, kind in enumerate(kinds)]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _plain(kind: Kind, bits: NDArray[np.uint64], texts: Sequence[str]) -> object:
    if kind is Kind.NULL:
        return None
    if kind is Kind.TEXT:
        return texts[int(bits[0])]
    if kind is Kind.BOOL:
        return bool(bits[0])
    if kind is not Kind.DOUBLE:
        return int(bits.view(np.int64)[0] if kind is Kind.INT64 else bits[0])
    number = float(bits.view(np.float64)[0])
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
