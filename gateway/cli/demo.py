"""ebbgate demo."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("demo")
@click.option("--seconds", type=click.FloatRange(1, 86_400), default=3600.0, show_default=True, help="To run, from the first reading in the lake on.")
@click.option("--outage", type=click.FloatRange(0, 86_400), default=0.0, help="Cut the link for so many seconds in the middle.")
@click.option("--headless", is_flag=True, help="Print plain lines, end by itself.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, last line.")
@click.option("--state", type=click.Path(path_type=Path), help="Keep everything in this directory (default: a temporary one).")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the simulated plant.")
@click.option("--kills", type=click.IntRange(0, 10_000), default=0, help="kill -9 each of the five processes so often, at random; then it ends.")
def demo_command(seconds: float, outage: float, headless: bool, as_json: bool, state: Path | None, seed: int, kills: int) -> None:
    """A simulated plant (OPC UA and Modbus), the five real processes, a console, and an outage of the link.

    Nothing to set up, nothing left behind. On a terminal the key o cuts and restores the link, q (or Ctrl-C) stops everything in order
    and prints the ledger: what became of every reading.

    \b
    Example:  ebbgate demo --headless --seconds 45 --outage 12 --json
    """
    from gateway import runtime
    from gateway.demo.run import Options, run_demo

    sys.exit(run_demo(runtime.real(), Options(seconds, outage, headless, as_json, state, seed, kills)))
