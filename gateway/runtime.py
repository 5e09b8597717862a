"""The world, handed to every service: clock, sleep, randomness, threads, log lines. The only importer of time and random.

In life `real()`; in simulation the same fields on virtual time. Logs are standard logging, one JSON object a line to stderr.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_BOOT_ID_PATH: Final = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a service may ask of the world."""

    wall_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    sleep: Callable[[float], Awaitable[None]]
    random: Callable[[], float]  # 0 <= x < 1; for jitter, never for keys
    offload: Callable[[Callable[[], Any]], Awaitable[Any]]  # a thread in life, inline in simulation
    nonce32: Callable[[], int]  # 32 random bits for generations
    nonce64: Callable[[], int]  # 64 random bits for salts
    boot_id: bytes  # 16 bytes; changes with every start of the kernel


def real() -> Runtime:
    """Return the world as it is."""
    return Runtime(
        wall_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
        sleep=asyncio.sleep,
        random=random.random,
        offload=asyncio.to_thread,
        nonce32=lambda: int.from_bytes(os.urandom(4), "big"),
        nonce64=lambda: int.from_bytes(os.urandom(8), "big"),
        boot_id=read_boot_id(),
    )


def read_boot_id() -> bytes:
    """Return the kernel's boot id, or 16 zero bytes where there is none."""
    try:
        with open(_BOOT_ID_PATH, encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def full_jitter(runtime: Runtime, attempt: int, base_s: float, cap_s: float) -> float:
    """Return how long to wait before try number `attempt` (from 0): uniform in 0..min(cap, base * 2**attempt)."""
    return runtime.random() * min(cap_s, base_s * float(2 ** min(attempt, 30)))


class JsonLines(logging.Formatter):
    """One JSON object per record: ts, level, logger, event, and what stood in `extra={"data": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        event |= getattr(record, "data", {})
        if record.exc_info:
            event["error"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)


class Budget(logging.Filter):
    """At most `per_minute` records a minute per logger and message; what was left out is counted in the next one, as `left_out`."""

    def __init__(self, per_minute: int = 20) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._window = -1
        self._seen: dict[tuple[str, str], int] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        window = int(record.created // 60)
        if window != self._window:
            self._left_out = {key: n - self._per_minute + self._left_out.get(key, 0) for key, n in self._seen.items() if n > self._per_minute}
            self._window, self._seen = window, {}
        key = (record.name, str(record.msg)[:80])
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] > self._per_minute:
            return False
        if left_out := self._left_out.pop(key, 0):
            record.data = {**getattr(record, "data", {}), "left_out": left_out}
        return True


def configure_logging(process: str, verbose: bool = False) -> None:
    """Send JSON lines to stderr; libraries that shout about normal faults are kept at CRITICAL."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(Budget())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    quiet()
    logging.getLogger(process)


def quiet() -> None:
    """Keep libraries that shout about normal faults of a plant from shouting: what they raise is said by us, once."""
    for name in ("asyncua", "pymodbus", "pymodbus.logging"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)): READY=1, WATCHDOG=1, STATUS=... Does nothing where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
