"""The collecting box on virtual time: the product's whole collect process (gateway.collect.service.run with writer, ring, clock, sealer,
scrubber, reloader, Modbus source) over a simulated disk, to be killed, cut off and started again.

What is replaced, and by what: the disk (tests.support.simulated_disk), the connection to a Modbus device (plant.DeviceLink, behind the
product's hub, planner, budget and decoder), the OPC UA source (subscriber.Subscriber), the sealing child's Parquet encoder
(tests.crash.toys), and small files beside the ring, which are written plainly.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from buffer.errors import StorageFault
from buffer.ring import RingOptions
from buffer.storage import PosixReadStorage
from buffer.types import Flag, Kind
from gateway import settings as s
from gateway.collect import reload, scrubber, sealer, service, sources, writer
from gateway.collect.modbus import hub, memory
from gateway.errors import EbbgateError
from gateway.runtime import Runtime
from gateway.trust.keys import KeyRing
from tests.crash import toys
from tests.simulation.plant import FIRST_TAG, Device, Server
from tests.simulation.subscriber import Subscriber
from tests.support.frames import signer
from tests.support.simloop import EPOCH_NS, SimLoop
from tests.support.simulated_disk import Calls, Crash, Medium, SimulatedDisk

STREAM = "hall1.main"
JOURNAL_BYTES = 256 * 1024
RESERVE_BYTES = 16 * 1024
HEARTBEAT_NS = 60 * 10**9


class DigestLog(list):
    """Everything that was done to the disk, in order, as one digest."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def append(self, effect: object) -> None:
        self.digest.update(repr(effect).encode())


class Pauses:
    """Stands for gateway.collect.control.Control."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.fault = ""
        self._told: set[str] = set()

    def poll(self, now_ns: int = 0) -> tuple[dict[str, str], set[str]]:
        new, gone = {name: "asked" for name in sorted(self.names - self._told)}, self._told - self.names
        self._told = set(self.names)
        return new, gone

    def paused(self, source: str) -> bool:
        return source in self.names

    def asked(self, source: str) -> None:
        return None

    def watch(self, names: Iterable[str]) -> None:
        return

    def close(self) -> None:
        return


class Box:
    """One machine. `medium` survives what `start` replaces; `step_ns` is how wrong its clock is."""

    def __init__(
        self, loop: SimLoop, seed: int, directory: Path, statement: bytes, server: Server, devices: list[Device], *, max_bytes: int, seal_s: float
    ) -> None:
        self._loop = loop
        self._rng = random.Random(seed)
        self.server = server
        self.devices = devices
        self.step_ns = 0
        self._booted_s = 0.0
        self._boot_id = self._rng.randbytes(16)
        self.medium = Medium()
        self.slow_s = 0.0
        self.log = DigestLog()
        self.disk = self._new_disk()
        self.pauses = Pauses()
        self.told: set[tuple[int, int]] = set()
        self.left: set[tuple[int, int]] = set()
        self.lives = 0
        self.before_seal: Callable[[], None] = lambda: None  # called where a journal is about to become a segment
        self.links: list[object] = []
        self._life: asyncio.Task[None] | None = None
        self._graveyard: list[asyncio.Task[None]] = []
        self.runtime = self._make_runtime()
        (directory / "data.statement").write_bytes(statement)
        self.settings = self._settings(directory, max_bytes, seal_s)

    # ---- what it is made of ----

    def _settings(self, directory: Path, max_bytes: int, seal_s: float) -> s.GatewaySettings:
        nowhere = Path("/nonexistent")
        receiver = s.Receiver("https://receiver.test:1", "127.0.0.1", nowhere, nowhere, nowhere, nowhere, live_ns=2 * 10**9)
        ring = s.RingSettings(directory / "ring", max_bytes, 10**9, round(seal_s * 1e9))
        rows = [s.TagRow(f"s{n}", f"x/s{n}", "server", f"ns=2;s={n}", number=n) for n in self.server.tags]
        made: list[s.OpcuaSource | s.ModbusSource] = [s.OpcuaSource("server", ("opc.tcp://192.0.2.1:4840",), tags=tuple(rows))]
        for i, device in enumerate(self.devices):
            name = f"plc{i}"
            tags = tuple(
                s.TagRow(f"{name}.{j}", f"x/{name}/{j}", name, f"hr:{2 * j}", "uint32", every_ns=device.every_ns, number=n) for j, n in enumerate(device.tags)
            )
            if device.constant:
                row = s.TagRow(f"{name}.c", f"x/{name}/c", name, "hr:1000", "uint16", every_ns=10**10, heartbeat_ns=HEARTBEAT_NS, number=device.constant)
                tags = (*tags, row)
            load = s.Load(requests_per_s=device.load.rate)
            made.append(s.ModbusSource(name, "modbus-tcp", f"192.0.2.{i + 2}:502", tags=tags, load=load))
        return s.GatewaySettings("hall1", "acme/ghent", "UTC", STREAM, ring, receiver, tuple(made), directory, directory / "data.pem")

    def _new_disk(self) -> SimulatedDisk:
        disk = SimulatedDisk(self.medium)
        disk.calls.log = self.log
        return disk

    def reader(self) -> PosixReadStorage:
        """Return what another process sees of this ring, also after it was replaced."""
        return _Reader(self)

    def _make_runtime(self) -> Runtime:
        rng = random.Random(self._rng.getrandbits(64))
        loop, slow = self._loop, self

        async def offload(work: Callable[[], object]) -> object:
            if slow.slow_s:
                await asyncio.sleep(rng.random() * slow.slow_s)
            return work()

        return Runtime(
            lambda: EPOCH_NS + round(loop.time() * 1e9) + self.step_ns, lambda: round((loop.time() - self._booted_s) * 1e9), asyncio.sleep,
            rng.random, offload, lambda: rng.getrandbits(32), lambda: rng.getrandbits(64), self._boot_id,
        )  # fmt: skip

    # ---- life ----

    def start(self) -> None:
        """Start collect, as its supervisor does: again and again until it runs."""
        self._life = self._loop.create_task(self._supervise(self.disk), name=f"collect {self.lives}")

    async def _supervise(self, disk: SimulatedDisk) -> None:
        while True:
            self.lives += 1
            try:
                await service.run(self.runtime, self.settings)
            except (StorageFault, EbbgateError, OSError):
                await asyncio.sleep(1.0 + self._rng.random() * 4)
            except Crash:
                return

    async def kill(self, *, power_cut: bool = False, after_steps: int = 0) -> None:
        """kill -9 now, or in the middle of the after_steps-th change of the disk from now; power_cut: of the whole box."""
        disk, life = self.disk, self._life
        disk.calls.crash_at = disk.calls.steps + after_steps
        if life is not None and after_steps:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(12.0):
                    await asyncio.shield(life)
        disk.calls.crash_at = 0
        if life is not None:
            life.cancel()
            self._graveyard = [one for one in self._graveyard if not one.done()] + [life]
        for link in self.links:
            link.close()  # type: ignore[attr-defined]
        self.links.clear()
        self._life = None
        after = disk.after_power_cut(self._rng) if power_cut else disk.after_kill()
        self.medium = after.medium
        self.log.append(("power cut" if power_cut else "kill",))
        if power_cut:
            self._booted_s, self._boot_id = self._loop.time(), self._rng.randbytes(16)
        self.runtime = self._make_runtime()
        self.disk = self._new_disk()

    def replace_disk(self, medium: Medium) -> None:
        """Another disk, between two lives."""
        self.medium = medium
        self.disk = self._new_disk()

    def check_alive(self) -> None:
        """Raise what ended collect, where nobody killed it."""
        if self._life is not None and self._life.done():
            self._life.result()
            raise AssertionError("collect ended by itself")

    # ---- the seams ----

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put the simulated parts in the place of the real ones."""
        box = self
        by_port = {f"192.0.2.{i + 2}:502": device for i, device in enumerate(self.devices)}
        make = sources.Maker.make

        class Recording(writer.Writer):
            async def commit(self, batch) -> None:
                await super().commit(batch)
                c = batch.columns
                for tag, kind, value, flags in zip(c.tag.tolist(), c.kind.tolist(), c.values.tolist(), c.flags.tolist(), strict=True):
                    if kind == Kind.INT64 and tag >= FIRST_TAG and not flags & Flag.MARKER:
                        box.told.add((tag, value))

        def made(maker: sources.Maker, one):
            if isinstance(one, s.OpcuaSource):
                return Subscriber(one, maker.runtime, maker.clock, maker.control, box.server, box.left)
            return make(maker, one)

        async def open_link(settings: s.ModbusSource):
            link = await by_port[settings.address].connect()
            box.links = [one for one in box.links if one.is_open] + [link]
            return link

        async def run_child(request):
            disk = box.disk
            box.before_seal()
            await asyncio.sleep(0.5)
            if disk.calls.crash_at >= 0 and disk.calls.steps >= disk.calls.crash_at:
                raise Crash
            keys = KeyRing()
            keys.trust(signer().public)
            try:
                return toys.seal(disk, replace(request, root=""), keys)
            except StorageFault as fault:
                return toys.SealResult((), str(fault), again=True)

        def publish(path: Path, data: bytes, *, durable: bool = True, mode: int = 0) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        def options(stream: str, max_bytes: int, public_keys: tuple[bytes, ...]) -> RingOptions:
            return RingOptions(stream, max_bytes, JOURNAL_BYTES, public_keys, RESERVE_BYTES)

        replaced = [
            (service, "Writer", Recording), (service, "PosixStorage", lambda root: box.disk), (service, "PosixReadStorage", lambda root: box.disk),
            (scrubber, "PosixReadStorage", lambda root: box.disk), (service, "RingOptions", options), (service, "make_directory", lambda path: None),
            (service, "load_signer", lambda path: signer()), (scrubber, "load_signer", lambda path: signer()), (service, "retired", lambda path: []),
            (service, "publish_file", lambda path, data, durable: None), (reload, "publish_file", publish), (memory, "publish_file", publish),
            (scrubber, "publish_file", publish), (service, "Control", lambda *arguments: box.pauses), (sealer, "run_child", run_child),
            (sources.Maker, "make", made), (hub, "open_link", open_link), (service.footprint, "one_heap", lambda: None),
            (service.footprint, "give_back", lambda: None),
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:
            for where, name, what in replaced:
                stack.enter_context(patch.object(where, name, what))
            yield


class _Reader(PosixReadStorage):
    """The ring as another process sees it."""

    def __init__(self, box: Box) -> None:
        super().__init__(Path("/"), Calls(box.medium))
        self._box = box

    def _at(self, path: str) -> str:
        self._os.medium = self._box.medium  # type: ignore[attr-defined]
        return "/" + path
