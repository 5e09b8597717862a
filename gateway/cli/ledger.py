"""ebbgate status, ledger: how it goes, and what is missing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from gateway.cli import emit, printable
from gateway.cli.processes import SITE_TOML
from gateway.errors import EXIT_FINDING, ConfigError

STALE_S = 10


@click.command("ledger")
@click.option("--config", type=click.Path(path_type=Path), default=Path(SITE_TOML), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def ledger_command(config: Path, as_json: bool) -> None:
    """What is missing, and why, per stream and generation: from the landing alone.

    Exit code 1 if readings will never come.
    """
    from buffer.manifest import format_generation
    from buffer.storage import PosixReadStorage
    from gateway.completeness import account
    from gateway.config import load_site
    from gateway.landing import LandingReader, stream_names

    settings = load_site(config)
    accounts = []
    for stream in stream_names(settings.landing):
        reader = LandingReader(PosixReadStorage(settings.landing / stream))
        reader.refresh()
        accounts.append(account(stream, reader.state))
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    for one in accounts:
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.reported_until_ns / 1e9))
        lines.append(f"{one.stream}: {one.received:,} of {one.reported:,} reported readings received; reported until {until} UTC")
        for m in one.missing:
            ranges = ", ".join(f"{a}-{b}" for a, b in m.ranges[:5]) + (" ..." if len(m.ranges) > 5 else "")  # noqa: PLR2004 -- one line
            lines.append(f"  {m.reason:14} {m.readings:>10,}  generation {format_generation(m.generation)}: {ranges}")
        if not one.missing:
            lines.append("  nothing is missing")
        data.append(
            {
                "stream": one.stream, "reported": one.reported, "received": one.received, "reported_until_ns": one.reported_until_ns,
                "missing": [{"generation": format_generation(m.generation), "reason": m.reason, "readings": m.readings, "ranges": m.ranges}
                            for m in one.missing],
            }
        )  # fmt: skip
    emit({"streams": data}, as_json, lines or ["nothing has landed yet"])
    if any(one.final for one in accounts):
        raise SystemExit(EXIT_FINDING)


@click.command("status")
@click.option("--config", type=click.Path(path_type=Path), required=True, help="gateway.toml or receiver.toml")
@click.option("--json", "as_json", is_flag=True)
def status_command(config: Path, as_json: bool) -> None:
    """How the processes on this machine are doing, as each last said. Exit code 1 if one is silent or in trouble."""
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
        trouble = report.get("fault") or report.get("cause") or report.get("alarm") or ""
        bad = bad or silent or bool(trouble)
        state = "never ran here" if age is None else f"silent for {age:.0f} s" if silent else "running"
        lines.append(f"{name:8} {state}" + (f"  {trouble}" if trouble else ""))
        lines += [f"         {key} = {value}" for key, value in report.items() if isinstance(value, int | float | str) and value and key != "time_ns"]
        lines += [_source_line(one, about) for one, about in report.get("sources", {}).items()]
    emit(reports, as_json, lines)
    if bad:
        raise SystemExit(EXIT_FINDING)


def _source_line(name: str, about: dict[str, Any]) -> str:
    """Return how one source is doing, and the waiver under which it is read."""
    waiver = f"; WAIVER: security {about['security']}: {about['security_waiver']}" if about.get("security_waiver") else ""
    why = f" ({about['reason']})" if about.get("reason") else ""
    return "         " + printable(f"source {name} is {about.get('state')}{why}{waiver}")


def _places(config: Path) -> list[tuple[str, Path]]:
    from gateway.config import load_gateway, load_site
    from gateway.groups import all_streams, collecting

    try:
        text = config.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{config}: {error.strerror}", "Give --config FILE.") from None
    if "[gateway]" in text:
        gateway = load_gateway(config, pinned=False)
        places: list[tuple[str, Path]] = [(f"collect {one.group}".strip(), one.collect_status) for one in collecting(gateway)]
        return places + [(f"upload {one.group}".strip(), one.upload_state / "status.json") for one in all_streams(gateway)]
    site = load_site(config)
    return [("receive", site.landing / "status.json"), ("deliver", site.deliver / "status.json")]
