"""A small plant that behaves: tanks with level control, pumps, a press with recipes, energy meters. Pure; one seed, one history.

Every variable is written once, in `Plant`: id, path, type, unit, range, description, and how it moves in a step of dt seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

Value = float | int | bool | str

TANKS: Final = 4
PUMPS: Final = 8
PRESSES: Final = 5
METERS: Final = 8
RECIPES: Final = ("Größe 12", "Recipe 12 / step 4", "CIP rinse", "Leerlauf")
STATES: Final = "0=stopped|1=running|2=fault|3=setup"


@dataclass(slots=True)
class Variable:
    """One measured thing. modbus: first holding register, or None for OPC UA."""

    id: str
    path: str
    type: str  # Double, Int32, UInt32, UInt64, Boolean, String for OPC UA; float32, uint32, uint16 for Modbus
    unit: str
    low: float | None
    high: float | None
    every: str
    description: str
    read: Callable[[], Value]
    states: str = ""
    modbus: int | None = None


@dataclass(slots=True)
class Tank:
    """Level under inflow, outflow and a two-point controller."""

    level: float
    setpoint: float = 60.0
    inflow: float = 0.0
    outflow: float = 1.0
    temperature: float = 40.0
    valve: bool = False

    def step(self, dt: float, rng: random.Random) -> None:
        self.valve = self.level < self.setpoint - 5 or (self.valve and self.level < self.setpoint + 5)
        self.inflow = 2.4 + rng.gauss(0, 0.02) if self.valve else 0.0
        self.outflow = max(0.0, self.outflow + rng.gauss(0, 0.01))
        self.level = min(100.0, max(0.0, self.level + (self.inflow - min(self.outflow, 2.0)) * dt))
        self.temperature += (55.0 * self.valve + 35.0 * (not self.valve) - self.temperature) * 0.01 * dt + rng.gauss(0, 0.05)


@dataclass(slots=True)
class Pump:
    """Current and vibration of a running pump; hours add up."""

    running: bool = True
    current: float = 12.0
    vibration: float = 1.2
    hours: float = 1000.0
    starts: int = 17

    def step(self, dt: float, rng: random.Random) -> None:
        if rng.random() < 0.004 * dt:
            self.running = not self.running
            self.starts += self.running
        self.current += ((12.0 if self.running else 0.0) - self.current) * 0.5 * dt + rng.gauss(0, 0.05) * self.running
        self.vibration = max(0.0, (1.2 if self.running else 0.05) + rng.gauss(0, 0.03))
        self.hours += dt / 3600 * self.running


@dataclass(slots=True)
class Press:
    """A press that runs batches: heating, pressing, cooling; counts parts; sometimes fails."""

    state: int = 1
    phase: float = 0.0
    temperature: float = 180.0
    setpoint: float = 180.0
    force: float = 0.0
    good: int = 0
    rejects: int = 0
    recipe: str = RECIPES[0]
    life: int = 0
    total: int = 2**53 + 1  # a counter that a double cannot hold

    def step(self, dt: float, rng: random.Random) -> None:
        self.life += 1
        if rng.random() < 0.01 * dt:
            self.state = rng.choice((0, 1, 1, 1, 2, 3))
        if rng.random() < 0.005 * dt:
            self.setpoint = rng.choice((170.0, 180.0, 190.0))
            self.recipe = rng.choice(RECIPES)
        self.temperature += (self.setpoint - self.temperature) * 0.05 * dt + rng.gauss(0, 0.1)
        if self.state != 1:
            self.force = 0.0
            return
        self.phase += dt / 4.0
        self.force = round(800.0 * max(0.0, math.sin(self.phase)), 1)
        if self.phase >= math.pi:
            self.phase -= math.pi
            self.total += 1
            if rng.random() < 0.03:
                self.rejects += 1
            else:
                self.good += 1


@dataclass(slots=True)
class Meter:
    """An energy meter: power, voltage, current, frequency, energy."""

    power: float = 42.0
    voltage: float = 230.0
    frequency: float = 50.0
    energy: float = 123_456.0
    alarms: int = 0

    def step(self, dt: float, rng: random.Random) -> None:
        self.power = max(0.0, self.power + rng.gauss(0, 0.8))
        self.voltage += (230.0 - self.voltage) * 0.1 * dt + rng.gauss(0, 0.2)
        self.frequency += (50.0 - self.frequency) * 0.2 * dt + rng.gauss(0, 0.005)
        self.energy += self.power * dt / 3600
        self.alarms = (self.alarms ^ 4) if rng.random() < 0.01 * dt else self.alarms


@dataclass(slots=True)
class Plant:
    """All machines and the list of variables that show them."""

    seed: int = 1
    tanks: list[Tank] = field(default_factory=list)
    pumps: list[Pump] = field(default_factory=list)
    presses: list[Press] = field(default_factory=list)
    meters: list[Meter] = field(default_factory=list)
    rng: random.Random = field(default_factory=random.Random)
    variables: list[Variable] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)  # noqa: S311 -- a plant, not a key
        self.tanks = [Tank(level=self.rng.uniform(30, 90)) for _ in range(TANKS)]
        self.pumps = [Pump() for _ in range(PUMPS)]
        self.presses = [Press() for _ in range(PRESSES)]
        self.meters = [Meter() for _ in range(METERS)]
        self.variables = [*self._tanks(), *self._pumps(), *self._presses(), *self._meters()]

    def step(self, dt: float) -> None:
        """Move everything by dt seconds."""
        for machines in (self.tanks, self.pumps, self.presses, self.meters):
            for machine in machines:
                machine.step(dt, self.rng)

    def _tanks(self) -> list[Variable]:
        out = []
        for i, t in enumerate(self.tanks, 1):
            p, d = f"process/tank{i}", f"tank{i}"
            out += [
                Variable(f"{d}.level", f"{p}/level", "Double", "%", 0, 100, "1 s", f"Level of tank {i}", lambda t=t: round(t.level, 2)),
                Variable(f"{d}.setpoint", f"{p}/setpoint", "Double", "%", 0, 100, "1 s", "Level setpoint", lambda t=t: t.setpoint),
                Variable(f"{d}.inflow", f"{p}/inflow", "Double", "L/s", 0, 5, "500 ms", "Inflow", lambda t=t: round(t.inflow, 3)),
                Variable(f"{d}.outflow", f"{p}/outflow", "Double", "L/s", 0, 5, "500 ms", "Outflow", lambda t=t: round(t.outflow, 3)),
                Variable(f"{d}.temp", f"{p}/temperature", "Double", "Cel", 0, 120, "1 s", "Temperature", lambda t=t: round(t.temperature, 1)),
                Variable(f"{d}.valve", f"{p}/valve_open", "Boolean", "", None, None, "500 ms", "Inlet valve", lambda t=t: t.valve),
                Variable(f"{d}.high", f"{p}/alarm_high", "Boolean", "", None, None, "1 s", "Level above 90 %", lambda t=t: t.level > 90),
                Variable(f"{d}.low", f"{p}/alarm_low", "Boolean", "", None, None, "1 s", "Level below 10 %", lambda t=t: t.level < 10),
            ]
        return out

    def _pumps(self) -> list[Variable]:
        out = []
        for i, m in enumerate(self.pumps, 1):
            p, d = f"process/pump{i}", f"pump{i}"
            out += [
                Variable(f"{d}.run", f"{p}/running", "Boolean", "", None, None, "500 ms", "Running", lambda m=m: m.running),
                Variable(f"{d}.current", f"{p}/current", "Double", "A", 0, 20, "250 ms", "Motor current", lambda m=m: round(m.current, 2)),
                Variable(f"{d}.vib", f"{p}/vibration", "Double", "mm/s", 0, 10, "250 ms", "Vibration", lambda m=m: round(m.vibration, 3)),
                Variable(f"{d}.hours", f"{p}/hours", "Double", "h", 0, None, "5 s", "Running hours", lambda m=m: round(m.hours, 3)),
                Variable(f"{d}.starts", f"{p}/starts", "UInt32", "1", 0, None, "1 s", "Starts", lambda m=m: m.starts),
                Variable(f"{d}.text", f"{p}/status", "String", "", None, None, "1 s", "Status", lambda m=m: "läuft" if m.running else "steht"),
            ]
        return out

    def _presses(self) -> list[Variable]:
        out = []
        for i, m in enumerate(self.presses, 1):
            p, d = f"press/press{i}", f"press{i}"
            out += [
                Variable(f"{d}.life", f"{p}/life", "UInt32", "", None, None, "1 s", "Life counter", lambda m=m: m.life),
                Variable(f"{d}.state", f"{p}/state", "Int32", "", None, None, "500 ms", "Machine state", lambda m=m: m.state, STATES),
                Variable(f"{d}.temp", f"{p}/platen_temperature", "Double", "Cel", 0, 250, "500 ms", "Platen", lambda m=m: round(m.temperature, 2)),
                Variable(f"{d}.set", f"{p}/platen_setpoint", "Double", "Cel", 0, 250, "1 s", "Platen setpoint", lambda m=m: m.setpoint),
                Variable(f"{d}.force", f"{p}/force", "Double", "kN", 0, 1000, "250 ms", "Force", lambda m=m: m.force),
                Variable(f"{d}.good", f"{p}/good_parts", "UInt32", "1", 0, None, "1 s", "Good parts", lambda m=m: m.good),
                Variable(f"{d}.bad", f"{p}/rejects", "UInt32", "1", 0, None, "1 s", "Rejects", lambda m=m: m.rejects),
                Variable(f"{d}.total", f"{p}/strokes", "UInt64", "1", 0, None, "1 s", "Strokes since 1998", lambda m=m: m.total),
                Variable(f"{d}.recipe", f"{p}/recipe", "String", "", None, None, "1 s", "Recipe", lambda m=m: m.recipe),
                Variable(f"{d}.fault", f"{p}/fault", "Boolean", "", None, None, "500 ms", "Fault lamp", lambda m=m: m.state == 2),
            ]
        return out

    def _meters(self) -> list[Variable]:
        out = []
        for i, m in enumerate(self.meters, 1):
            p, d = f"utilities/meter{i}", f"meter{i}"
            at = [
                ("p", "active_power", "kW", 0.0, 100.0, "Active power", lambda m=m: m.power),
                ("u1", "voltage_l1", "V", 200.0, 260.0, "Voltage L1", lambda m=m: m.voltage),
                ("u2", "voltage_l2", "V", 200.0, 260.0, "Voltage L2", lambda m=m: m.voltage + 0.4),
                ("u3", "voltage_l3", "V", 200.0, 260.0, "Voltage L3", lambda m=m: m.voltage - 0.3),
                ("i1", "current_l1", "A", 0.0, 200.0, "Current L1", lambda m=m: m.power * 1.45),
                ("f", "frequency", "Hz", 45.0, 55.0, "Frequency", lambda m=m: m.frequency),
                ("e", "energy_import", "kW.h", 0.0, None, "Imported energy", lambda m=m: m.energy),
            ]
            for k, (short, name, unit, low, high, text, read) in enumerate(at):
                out.append(Variable(f"{d}.{short}", f"{p}/{name}", "float32", unit, low, high, "1 s", text, read, modbus=16 * (i - 1) + 2 * k))
            last = 16 * (i - 1) + 14
            out.append(Variable(f"{d}.alarms", f"{p}/alarms", "uint16", "", None, None, "1 s", "Alarm bits", lambda m=m: m.alarms, modbus=last))
        return out
