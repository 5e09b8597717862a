"""A place in the bytes of one OPC UA message. Pure; never believes a length (OPC 10000-6 1.05, section 5.2.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from buffer import limits
from buffer.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH_MAX: Final = 32  # variants in variants, structures in structures: no device nests deeper, a hostile one would
ELEMENTS_MAX: Final = limits.TEXT_BYTES_MAX  # elements of arrays kept while decoding one value: each needs a byte of JSON at least

U16: Final = struct.Struct("<H")
I32: Final = struct.Struct("<i")
U32: Final = struct.Struct("<I")
I64: Final = struct.Struct("<q")
U64: Final = struct.Struct("<Q")
F64: Final = struct.Struct("<d")


class Reader:
    """A place in the bytes of one message. Raises CorruptError rather than read past `end`."""

    __slots__ = ("at", "data", "depth", "elements", "end", "repaired", "structure")

    def __init__(self, data: bytes, at: int, end: int, structure: Callable[[str, bytes], object] | None = None) -> None:
        """Read data[at:end]. structure: NodeId text of an encoding and body -> JSON-able object, None if it knows no such type."""
        if not 0 <= at <= end <= len(data):
            raise CorruptError("a part of the message lies outside it")
        self.data, self.at, self.end = data, at, end
        self.structure = structure
        self.depth = 0
        self.elements = ELEMENTS_MAX
        self.repaired = False

    def skip(self, size: int) -> int:
        """Move over size bytes; return where they begin."""
        at = self.at
        if size < 0 or size > self.end - at:
            raise CorruptError("a length points past the end of the message", offset=at)
        self.at = at + size
        return at

    def byte(self) -> int:
        """Return one byte."""
        return self.data[self.skip(1)]

    def number(self, form: struct.Struct) -> Any:  # noqa: ANN401 -- what struct returns
        """Return one number of a struct of one field."""
        return form.unpack_from(self.data, self.skip(form.size))[0]

    def u32(self) -> int:
        """Return a UInt32."""
        return int(self.number(U32))

    def u32s(self) -> tuple[int, ...]:
        """Return an array of UInt32, null as none."""
        count = self.count()
        return struct.unpack_from(f"<{count}I", self.data, self.skip(4 * count))

    def count(self) -> int:
        """Return the length of an array, null as 0. No element is shorter than a byte, so a hostile count ends here."""
        count = int(self.number(I32))
        if count > self.end - self.at:
            raise CorruptError("an array claims more elements than the message has bytes", offset=self.at)
        return max(count, 0)

    def blob(self) -> bytes | None:
        """Return a ByteString, None if null."""
        size = int(self.number(I32))
        if size == -1:
            return None
        at = self.skip(size)
        return self.data[at : at + size]

    def text(self) -> str | None:
        """Return a String as valid text, None if null; notes in `repaired` whether bytes were replaced."""
        blob = self.blob()
        if blob is None:
            return None
        try:
            return blob.decode()
        except UnicodeDecodeError:
            self.repaired = True
            return blob.decode(errors="replace")

    def deeper(self) -> None:
        """Count one level of nesting."""
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise CorruptError("values nested too deep", offset=self.at)
