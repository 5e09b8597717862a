"""The life bit of a device: a PLC in STOP goes on answering with frozen values and Good. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.collect.modbus.decode import Values
    from gateway.collect.modbus.group import Group, Poll
    from gateway.settings import Alive


class LifeBit:
    """Frozen when the tag's value has not changed for `within` while the source was connected."""

    def __init__(self, alive: Alive | None) -> None:
        self.tag = alive.tag if alive else ""
        self.frozen = False
        self._within_ns = alive.within_ns if alive else 0
        self._value: object = None
        self._changed_ns = 0

    def restart(self, now_ns: int) -> None:
        """The source came up: time counts from now. What was frozen stays so until the bit moves."""
        self._changed_ns = now_ns

    def look(self, group: Group, poll: Poll, got: Values, now_ns: int) -> bool:
        """Take one poll; return whether `frozen` changed."""
        if not self.tag:
            return False
        row = group.row_of(self.tag)
        if row >= 0 and group.was_read(poll, row):
            value = (int(got.kind[row]), got.texts[int(got.values[row])] if got.texts and group.is_text(row) else int(got.values[row]))
            if self._value is not None and value != self._value:
                self._changed_ns = now_ns
                was, self.frozen, self._value = self.frozen, False, value
                return was
            self._value = value
        was, self.frozen = self.frozen, self.frozen or now_ns - self._changed_ns > self._within_ns
        return was != self.frozen
