"""ebbgate status, ledger: how it goes, and what is missing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import emit, printable
from gateway.cli.processes import GATEWAY_TOML, SITE_TOML
from gateway.errors import EXIT_FINDING, ConfigError

if TYPE_CHECKING:
    from gateway.completeness import Day, Days
    from gateway.landing import LandingReader

STALE_S = 10
RECORDS_AT_A_TIME = 5_000
_DAY_NS = 86_400 * 10**9
_YEAR_2001_NS = 10**18  # more is no duration


@click.command("ledger")
@click.option("--config", type=click.Path(path_type=Path), default=Path(SITE_TOML), show_default=True)
@click.option("--days", type=click.IntRange(0, 400), default=7, show_default=True, help="How many UTC days to tell apart; 0: none.")
@click.option("--stream", "only", default="", help="Only this stream.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def ledger_command(config: Path, days: int, only: str, as_json: bool) -> None:
    """What is missing, where it waits and why, per stream, generation, source and day: from the landing and what the targets hold.

    Exit code 1 if readings will never come, or a landed record does not read.

    \b
    Example:  ebbgate ledger --days 2
    """
    from gateway.config import load_site
    from gateway.landing import stream_names

    settings = load_site(config)
    names = stream_names(settings.landing)
    if only and only not in names:
        raise ConfigError(f"no stream {only} has landed in {settings.landing}", f"Known: {', '.join(names) or 'none'}.")
    receive, deliver = _json(settings.landing / "status.json"), _json(settings.deliver / "status.json")
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    bad = False
    for stream in [only] if only else names:
        told, found, finding = _stream(settings.landing, stream, days, receive, deliver.get("streams", {}).get(stream, {}))
        lines += told
        data.append(found)
        bad = bad or finding
    emit({"streams": data}, as_json, lines or ["nothing has landed yet"])
    if bad:
        raise SystemExit(EXIT_FINDING)


def _stream(
    landing: Path, stream: str, days: int, receive: dict[str, Any], targets: dict[str, Any]
) -> tuple[list[str], dict[str, Any], bool]:
    """Return (lines, JSON, whether there is a finding) of one stream."""
    from buffer.manifest import format_generation
    from buffer.storage import PosixReadStorage
    from gateway.completeness import Days, account, ledger_lines
    from gateway.landing import LandingReader

    reader = LandingReader(PosixReadStorage(landing / stream))
    reader.refresh()
    one, by_day = account(stream, reader.state), Days()
    today = int(time.time()) // 86_400
    if days:
        _look_back(reader, by_day, (today - days + 1) * _DAY_NS)
    shown = [day for day in by_day.days(one, today - days + 1, today) if day.readings or day.missing or day.off] if days else []
    gaps = _open_gaps(reader)
    alarms = _alarms(stream, receive)
    unread = {name: target["why_unread"] for name, target in targets.items() if target.get("unread")}
    lines = ledger_lines(one)
    lines += [f"  {source}: open since {_utc(since)}, its history is being asked for" for source, since in gaps]
    lines += [f"  {day.date}: {_day_words(day)}" for day in shown]
    lines += [f"  target {name}: {target.get('rows', 0):,} readings, {_progress(target)}" for name, target in targets.items()]
    lines += [f"  target {name}: {why}" for name, why in unread.items()]
    lines += [f"  alarm: {alarm}" for alarm in alarms]
    missing = [
        {"generation": format_generation(m.generation), "reason": m.reason, "readings": m.readings, "ranges": m.ranges} for m in one.missing
    ]
    data = {
        "stream": stream, "reported": one.reported, "received": one.received, "reported_until_ns": one.reported_until_ns, "missing": missing,
        "waiting": one.waiting, "never": one.final, "findings": one.findings, "open_gaps": [list(gap) for gap in gaps],
        "days": [
            {"day": d.date, "readings": d.readings, "missing": d.missing, "off_ns": d.off, "reported": d.reported, "complete": d.complete}
            for d in shown
        ],
        "targets": targets, "alarms": alarms,
    }  # fmt: skip
    return lines, data, bool(one.final or unread)


def _progress(target: dict[str, Any]) -> str:
    """Say how far a target is, as deliver said a second ago."""
    if target.get("error"):
        return str(target["error"])
    if not target.get("behind"):
        return "up to date"
    newest = f", newest delivery {_utc(target['delivered_ns'])}" if target.get("delivered_ns") else ""
    return f"{target['behind']:,} landing records wait{newest}"


def _look_back(reader: LandingReader, days: Days, since_ns: int) -> None:
    """Take the index entries of the days asked for, and a chunk more."""
    from gateway.wire.request import Lane

    for lane in Lane:
        for chunk in reader.back(lane, RECORDS_AT_A_TIME):
            for record in chunk:
                days.take(record)
            if chunk and chunk[0].received_ns < since_ns:
                break


def _open_gaps(reader: LandingReader) -> list[tuple[str, int]]:
    """Return (source, since) of what the newest records say is still being asked for."""
    from buffer.errors import CorruptError
    from buffer.tagtable import decode_table
    from gateway.wire.request import Lane

    newest = next((chunk[-1] for chunk in reader.back(Lane.LIVE, 1) if chunk), None)
    if newest is None or not newest.state.open_gaps:
        return []
    try:
        frame = reader.object_frame(newest.tag_table)
        sources = decode_table(frame.payload).sources if frame is not None else ()
    except CorruptError:
        sources = ()
    return [(sources[g.source] if g.source < len(sources) else f"source {g.source}", g.from_ns) for g in newest.state.open_gaps]


def _alarms(stream: str, receive: dict[str, Any]) -> list[str]:
    """Return what receiver and uploader warn of; the uploader's word is unsigned."""
    door = receive.get("streams", {}).get(stream, {})
    said = receive.get("uploaders", {}).get(door.get("gateway", ""), {}).get("unsigned", {})
    alarms = [f"receive: {x}" for x in [*receive.get("alarms", []), *door.get("alarms", [])]]
    alarms += [f"{door.get('gateway')} is silent"] if door.get("silent") else []
    return alarms + [f"upload (unsigned): {str(said[key])[:300]}" for key in ("alarm", "cause") if said.get(key)]


def _day_words(day: Day) -> str:
    from gateway.completeness import words

    parts = [f"{n:,} {words(reason)}" for reason, n in day.missing.items()]
    parts += [f"nobody collected from {_utc(a)} to {_utc(b)}" for a, b in day.off]
    end = "complete" if day.reported else "everything so far"
    return f"{day.readings:,} committed, {'; '.join(parts) or end}"


def _utc(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ns / 1e9))


def _json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


@click.command("status")
@click.option("--config", type=click.Path(path_type=Path), help=f"gateway.toml or receiver.toml  [default: {GATEWAY_TOML}, else {SITE_TOML}]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def status_command(config: Path | None, as_json: bool) -> None:
    """How the processes on this machine are doing, as each last said. Exit code 1 if one is silent or in trouble."""
    config = config or Path(GATEWAY_TOML if Path(GATEWAY_TOML).exists() or not Path(SITE_TOML).exists() else SITE_TOML)
    reports = {}
    for name, path in _places(config):
        try:
            reports[name] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            reports[name] = {}
    lines, bad = [], False
    for name, report in reports.items():
        age = time.time() - report.get("time_ns", 0) / 1e9 if report else None
        silent = age is None or age > STALE_S
        trouble = str(report.get("fault") or report.get("cause") or report.get("alarm") or "")
        bad = bad or silent or bool(trouble)
        state = "never ran here" if age is None else f"silent for {age:.0f} s" if silent else "running"
        lines.append(printable(f"{name:8} {state}" + (f"  {_one_line(trouble)}" if trouble else "")))
        plain = {key: value for key, value in report.items() if isinstance(value, int | float | str) and value and key != "time_ns"}
        lines += [printable(f"         {_fact(key, value)}") for key, value in plain.items()]
        lines += [_source_line(one, about) for one, about in report.get("sources", {}).items()]
    emit(reports, as_json, lines)
    if bad:
        raise SystemExit(EXIT_FINDING)


def _fact(key: str, value: float | str) -> str:
    """Return one number or word of a status for people: a wall time as a time."""
    from buffer.manifest import format_generation

    if key.endswith("_ns") and isinstance(value, int) and value > _YEAR_2001_NS:
        return f"{key.removesuffix('_ns')} = {_utc(value)}"
    if key == "landing" and isinstance(value, int):
        return f"{key} = {format_generation(value)}"
    return f"{key} = {value:,}" if type(value) is int else f"{key} = {_one_line(str(value))}"


def _one_line(text: str) -> str:
    """Return an error and its remedy, which stand in lines of their own, in one."""
    return "; ".join(line.strip() for line in text.splitlines())


def _source_line(name: str, about: dict[str, Any]) -> str:
    """Return how one source is doing, and the waiver under which it is read."""
    waiver = f"; WAIVER: security {about['security']}: {about['security_waiver']}" if about.get("security_waiver") else ""
    why = f" ({_one_line(str(about['reason']))})" if about.get("reason") else ""
    return "         " + printable(f"source {name} is {about.get('state')}{why}{_fill_words(about.get('fill') or {})}{waiver}")


def _fill_words(fill: dict[str, Any]) -> str:
    """Return what came of the last `ebbgate fill`, or how far it is."""
    if not fill:
        return ""
    window = f"{_utc(fill['from_ns'])} to {_utc(fill['to_ns'])}"
    if fill["state"] == "filling":
        return f"; filling {window} by hand: {fill['asked']:,} of {fill['holes']:,} holes asked, {fill['readings']:,} readings"
    return f"; fill by hand of {window}: {fill['state']}, {fill.get('readings', 0):,} readings ({fill['reason']})"


def _places(config: Path) -> list[tuple[str, Path]]:
    from gateway.config import is_gateway_file, load_gateway, load_site
    from gateway.groups import all_streams, collecting

    if is_gateway_file(config):
        gateway = load_gateway(config, pinned=False)
        places: list[tuple[str, Path]] = [(f"collect {one.group}".strip(), one.collect_status) for one in collecting(gateway)]
        return places + [(f"upload {one.group}".strip(), one.upload_state / "status.json") for one in all_streams(gateway)]
    site = load_site(config)
    return [("receive", site.landing / "status.json"), ("deliver", site.deliver / "status.json")]
