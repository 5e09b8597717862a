"""ebbgate fill: what a server's history still has of a time that the ring has nothing of, asked for by hand."""

from __future__ import annotations

import datetime
import getpass
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import emit, printable
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING, ConfigError, EbbgateError

if TYPE_CHECKING:
    from gateway.settings import GatewaySettings

STALE_S: Final = 30.0  # collect says how it is once a second
LOOK_S: Final = 0.5  # between looks with --wait
TAKEN_UP_S: Final = 300.0  # with --wait: until collect takes an order up; a source that is down keeps it waiting


@click.command("fill")
@click.argument("source")
@config_gateway
@click.option("--from", "begin", default="", help="First time, UTC, as 2026-11-23 or 2026-11-23T06:00.")
@click.option("--to", "end", default="", help="Up to this time.")
@click.option("--longer-than", default="10 s", show_default=True, help="Only where the ring has nothing of a tag for longer than this.")
@click.option("--dry-run", is_flag=True, help="Say what would be asked, and ask nothing.")
@click.option("--wait", is_flag=True, help="Wait for the result; exit code 1 if the history did not have everything.")
@click.option("--cancel", is_flag=True, help="Take the order back; what is filled by then stays.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def fill_command(
    source: str, config: Path, begin: str, end: str, longer_than: str, dry_run: bool, wait: bool, cancel: bool, as_json: bool
) -> None:
    """Fill holes of an OPC UA source from the server's own history: gaps that closed as unfillable, or that nobody noticed.

    Looks into the ring which tags have nothing between --from and --to, and writes an order that collect takes up when no other gap is
    open, within its load contract. What the ring holds is never asked for again; a hole that reaches out of the window is filled whole.
    One order spans at most history_fill of the source. `ebbgate status` shows how far it is; a notice says what came of it.

    \b
    Examples:  ebbgate fill press7 --from 2026-11-23T06:00 --to 2026-11-23T07:30
               ebbgate fill press7 --from 2026-11-23 --to 2026-11-24 --longer-than "5 min" --wait
    """
    from gateway import fillplan
    from gateway.config import load_gateway
    from gateway.groups import all_streams

    settings = load_gateway(config, pinned=False)
    wanted = fillplan.fillable(settings, source)
    path = settings.state / "control" / "fill" / source
    if cancel:
        _cancel(path, source)
        return
    window, longer_ns = _window(begin, end), _longer(longer_than)
    fillplan.check_window(wanted, *window, int(time.time() * 1e9))
    own = next(one for one in all_streams(settings) if any(other.name == source for other in one.sources))
    _check_running(own, source)
    root = own.ring.path / own.stream
    as_of = fillplan.moment_of(root, wanted, window[0])
    holes = fillplan.find_holes(root, wanted, *window, longer_ns)
    about = _about(holes)
    if not holes or dry_run:
        nothing = f"{source}: the ring has no such hole between {begin} and {end}"
        emit({"id": None, **about}, as_json, [f"{source}: {_words(about)}; nothing was asked" if holes else nothing])
        return
    identity = _write(path, source, window, as_of, holes)
    if not wait:
        said = f"{source}: {_words(about)}; collect asks the history for them (ebbgate status shows how far it is)"
        emit({"id": identity, **about}, as_json, [said])
        return
    result = _await(own.collect_status, source, identity)
    why = f" ({result['reason']})" if result["reason"] else ""
    emit(result | about, as_json, [printable(f"{source}: {result['state']}{why}; {result.get('readings', 0):,} readings; {_words(about)}")])
    if result["state"] != "filled":
        raise SystemExit(EXIT_FINDING)


def _window(begin: str, end: str) -> tuple[int, int]:
    from gateway.units import parse_moment

    if not begin or not end:
        raise click.UsageError("give --from and --to")
    try:
        return _ns(parse_moment(begin)), _ns(parse_moment(end))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _ns(at: datetime.datetime) -> int:
    return (at - datetime.datetime.fromtimestamp(0, datetime.UTC)) // datetime.timedelta(microseconds=1) * 1_000


def _longer(text: str) -> int:
    from gateway.units import parse_duration_ns

    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise click.UsageError(f"--longer-than: {error}") from None


def _check_running(settings: GatewaySettings, source: str) -> None:
    """An order is for the generation that is being written: raise unless collect runs and is not at another one."""
    status = _status(settings.collect_status)
    if time.time() - status.get("time_ns", 0) / 1e9 > STALE_S:
        raise EbbgateError("collect does not run: it is what asks the history", "Start `ebbgate collect`, then say this again.")
    if status.get("sources", {}).get(source, {}).get("fill", {}).get("state") == "filling":
        raise EbbgateError(f"{source} is being filled already", f"Wait, or say `ebbgate fill {source} --cancel`.")


def _status(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _write(path: Path, source: str, window: tuple[int, int], as_of: tuple[str, int], holes: dict[str, list[tuple[int, int]]]) -> str:
    from buffer.storage import make_directory, publish_file
    from gateway.fillorder import encode_order, parse_order

    data = encode_order(source, getpass.getuser()[:64], window, as_of, holes)
    identity = parse_order(data).id  # collect reads it with the same eyes
    make_directory(path.parent)
    publish_file(path, data)
    return identity


def _cancel(path: Path, source: str) -> None:
    from buffer.storage import remove_file

    if not path.exists():
        click.echo(f"{source}: there is no order to take back")
        return
    remove_file(path)
    click.echo(f"{source}: taken back")


def _await(path: Path, source: str, identity: str) -> dict[str, Any]:
    """Return what came of an order."""
    until = time.monotonic() + TAKEN_UP_S
    while True:
        time.sleep(LOOK_S)
        status = _status(path)
        result: dict[str, Any] = status.get("sources", {}).get(source, {}).get("fill") or {}
        if time.time() - status.get("time_ns", 0) / 1e9 > STALE_S:
            raise EbbgateError("collect says nothing any more", "Look at `ebbgate status`; the order stays where it is.")
        if result.get("id") == identity and result["state"] == "filling":
            until = time.monotonic() + TAKEN_UP_S
        elif result.get("id") == identity:
            return result
        elif time.monotonic() > until:
            state = status.get("sources", {}).get(source, {}).get("state", "unknown")
            raise ConfigError(f"collect has not begun: {source} is {state}", "The order stays; collect begins when readings flow and no gap is open.")


def _about(holes: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    every = [(after_ns, before_ns) for pairs in holes.values() for after_ns, before_ns in pairs]
    longest_s = max((before_ns - after_ns for after_ns, before_ns in every), default=0) / 1e9
    return {"tags": len(holes), "holes": len(every), "longest_s": round(longest_s, 3)}


def _words(about: dict[str, Any]) -> str:
    return f"{about['holes']:,} holes of {about['tags']:,} tags, the longest {about['longest_s']:,.0f} s"
