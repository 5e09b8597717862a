"""collect, upload, receive, deliver, console, run: the processes. Each imports only its own side."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from gateway.settings import GatewaySettings

GATEWAY_TOML = "/etc/ebbgate/gateway.toml"
SITE_TOML = "/etc/ebbgate/receiver.toml"

config_gateway = click.option("--config", "config", type=click.Path(path_type=Path), default=Path(GATEWAY_TOML), show_default=True)
config_site = click.option("--config", "config", type=click.Path(path_type=Path), default=Path(SITE_TOML), show_default=True)
group_option = click.option("--group", default="", help="The sources of [group.NAME] instead of those in no group.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Log more.")


def serve(
    name: str, verbose: bool, service: Callable[[], Coroutine[Any, Any, None]], on_hangup: Callable[[], None] | None = None,
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:  # fmt: skip
    """Run a service until SIGTERM or SIGINT, then let it stop in order. on_hangup: what SIGHUP does instead of stopping."""
    import asyncio

    from gateway.runtime import configure_logging

    configure_logging(name, verbose)

    async def run() -> None:
        task = asyncio.create_task(service())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        loop.add_signal_handler(signal.SIGHUP, on_hangup or task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(run())
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _nothing_to_hang_up() -> None:
    """What SIGHUP asks for, a start does anyway: until `serve` listens to it, it must not end the process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def fast_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of uvloop where `pip install ebbgate[fast]` put it, else of asyncio: a Modbus request costs a third less CPU."""
    import asyncio

    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


@click.command("collect")
@config_gateway
@group_option
@verbose_option
def collect_command(config: Path, group: str, verbose: bool) -> None:
    """Read the sources into the ring, read-only, until stopped.

    SIGTERM stops in order. SIGHUP reads gateway.toml and tags.csv again and goes over to them: sources that did not change go on
    without noticing; a mistake leaves everything as it was and is said in log, status and notices. Ask `ebbgate check` first.
    """
    _nothing_to_hang_up()
    import asyncio

    from gateway import apart, runtime
    from gateway.collect.service import run

    def load() -> GatewaySettings:
        return apart.load_gateway(config, group)

    asked = asyncio.Event()
    serve("collect", verbose, lambda: run(runtime.real(), load(), load, asked), asked.set, fast_loop)


@click.command("upload")
@config_gateway
@verbose_option
def upload_command(config: Path, verbose: bool) -> None:
    """Push the ring to the receiver over mutual TLS, until stopped."""
    from gateway import runtime
    from gateway.config import load_gateway
    from gateway.groups import without_tags
    from gateway.upload.service import run

    settings = without_tags(load_gateway(config, pinned=False))
    serve("upload", verbose, lambda: run(runtime.real(), settings))


@click.command("receive")
@config_site
@verbose_option
def receive_command(config: Path, verbose: bool) -> None:
    """Take batches from gateways, verify and land them, until stopped."""
    from gateway import runtime
    from gateway.config import load_site
    from gateway.receive.service import run

    settings = load_site(config)
    serve("receive", verbose, lambda: run(runtime.real(), settings))


@click.command("deliver")
@config_site
@verbose_option
def deliver_command(config: Path, verbose: bool) -> None:
    """Fill the lake and the historians from the landing, each reading once, until stopped."""
    from gateway import footprint

    footprint.one_heap()  # before the next lines import pyarrow
    from gateway import runtime
    from gateway.config import load_site
    from gateway.deliver.service import run

    settings = load_site(config)
    serve("deliver", verbose, lambda: run(runtime.real(), settings))


@click.command("console")
@config_site
@verbose_option
def console_command(config: Path, verbose: bool) -> None:
    """Serve the read-only pages on the loopback, until stopped."""
    from gateway import runtime
    from gateway.config import load_site
    from gateway.console.service import run

    settings = load_site(config)
    serve("console", verbose, lambda: run(runtime.real(), settings))


@click.group("run")
def run_command() -> None:
    """Start the processes of one side together and keep them running. Real installs use one unit and one user each."""


def _together(names: dict[str, tuple[str, ...]], config: Path, verbose: bool, hangup: tuple[str, ...] = ()) -> None:
    """Run commands, given by name and arguments, until stopped; SIGHUP goes on to those named in `hangup`."""
    import asyncio

    from gateway import runtime
    from gateway.supervise import Command, Supervisor

    more = ("--config", str(config), *(("-v",) if verbose else ()))
    commands = [Command(name, (sys.executable, "-P", "-m", "gateway.cli", *arguments, *more)) for name, arguments in names.items()]
    supervisor = Supervisor(runtime.real(), commands)

    async def run() -> None:
        supervisor.start()
        try:
            await asyncio.Event().wait()
        finally:
            await supervisor.stop_all()

    serve("run", verbose, run, (lambda: supervisor.send(hangup, signal.SIGHUP)) if hangup else None)


@run_command.command("gateway")
@config_gateway
@verbose_option
def run_gateway(config: Path, verbose: bool) -> None:
    """collect, one process per group, and upload. SIGHUP: collect takes gateway.toml and tags.csv anew; a new group needs a restart."""
    _nothing_to_hang_up()
    from gateway.config import load_gateway
    from gateway.groups import collecting

    names = {f"collect {one.group}".strip(): ("collect", *(("--group", one.group) if one.group else ())) for one in collecting(load_gateway(config))}
    _together(names | {"upload": ("upload",)}, config, verbose, tuple(names))


@run_command.command("site")
@config_site
@verbose_option
def run_site(config: Path, verbose: bool) -> None:
    """receive, deliver and console."""
    from gateway.config import load_site

    load_site(config)
    _together({name: (name,) for name in ("receive", "deliver", "console")}, config, verbose)
