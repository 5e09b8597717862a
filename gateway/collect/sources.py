"""Settings -> sources. A library of a protocol is imported only where a source of its kind is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.settings import ModbusSource, OpcuaSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.collect.clock import GatewayClock
    from gateway.collect.control import Control
    from gateway.collect.source import Source
    from gateway.runtime import Runtime
    from gateway.settings import GatewaySettings


def make_sources(
    runtime: Runtime, settings: GatewaySettings, sources: Sequence[OpcuaSource | ModbusSource], clock: GatewayClock, control: Control
) -> list[Source]:
    """Return one source per setting; raise ConfigError or TrustError for what no waiting will cure."""
    made: list[Source] = []
    if any(isinstance(one, ModbusSource) for one in sources):
        from gateway.collect.modbus import source as modbus
        from gateway.collect.modbus.hub import Hubs

        hubs = Hubs(runtime)
        for one in sources:
            if isinstance(one, ModbusSource):
                made.append(modbus.ModbusSource(one, runtime, clock, control, settings.state / "collect", hubs))
    if any(isinstance(one, OpcuaSource) for one in sources):
        from gateway.collect.opcua import source as opcua

        for one in sources:
            if isinstance(one, OpcuaSource):
                made.append(opcua.OpcuaSource(one, runtime, clock, control, settings.state / "collect"))
    return made
