"""Settings -> sources. A library of a protocol is imported only where a source of its kind is configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.settings import ModbusSource, OpcuaSource

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.collect.clock import GatewayClock
    from gateway.collect.control import Control
    from gateway.collect.modbus.hub import Hubs
    from gateway.collect.source import Source
    from gateway.runtime import Runtime


@dataclass(slots=True)
class Maker:
    """Makes sources that share connections. directory: <state>/collect."""

    runtime: Runtime
    directory: Path
    clock: GatewayClock
    control: Control
    _hubs: Hubs | None = None

    def make(self, one: OpcuaSource | ModbusSource) -> Source:
        """Return a source, not yet running; raise ConfigError or TrustError for what no waiting will cure."""
        if isinstance(one, OpcuaSource):
            from gateway.collect.opcua import source as opcua

            return opcua.OpcuaSource(one, self.runtime, self.clock, self.control, self.directory)
        from gateway.collect.modbus import source as modbus
        from gateway.collect.modbus.hub import Hubs

        self._hubs = self._hubs or Hubs(self.runtime)
        return modbus.ModbusSource(one, self.runtime, self.clock, self.control, self.directory, self._hubs)

    def forget(self, names: Iterable[str]) -> None:
        """These sources have ended: what they said about a shared connection does not bind those that come."""
        if self._hubs is not None:
            for name in names:
                self._hubs.forget(name)

    def rehearse(self, sources: Iterable[OpcuaSource | ModbusSource]) -> None:
        """Raise what `make` would raise if these were all the sources there are."""
        trial = Maker(self.runtime, self.directory, self.clock, self.control)
        for one in sources:
            trial.make(one)
