"""docs/benchmarks.md and its charts, from benchmarks/results/*.json and nothing else: `make bench-report`.

Figures stand as they were measured. What a benchmark does and against what stands in the docstring of its module and is printed with it.
"""

from __future__ import annotations

import importlib
import json
from html import escape
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import RESULTS

DOCS: Final = Path(__file__).parents[1] / "docs"
OT: Final = ("opcua_subscribe", "opcua_read", "modbus_read", "modbus_plan")  # these need servers nobody here wrote
NAMES: Final = ("ingest", "commit", "block", "segment", "wear", "recovery", "query", "drain", "latency", "billion", *OT)
TITLES: Final = {
    "ingest": "Durable ingest", "commit": "Commit latency while sealing", "block": "Blocks", "segment": "Segments", "wear": "Flash wear",
    "recovery": "Restart", "query": "SQL over a full ring", "drain": "Draining a backlog", "latency": "Live data beside a backlog",
    "billion": "A billion readings",
    "opcua_subscribe": "OPC UA, subscribed values", "opcua_read": "OPC UA, polled values", "modbus_read": "Modbus", "modbus_plan": "Modbus, requests",
}  # fmt: skip
_ROW, _LEFT, _WIDTH, _HEAD = 24, 230, 760, 40
_OURS, _THEIRS = "#1f6f8b", "#b9c4cc"
Line = dict[str, Any]


def number(value: float | None) -> str:
    """Return a number as people read it."""
    if value is None:
        return "not measured"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g} k"
    return f"{value:.4g}"


# ---- charts ----


def bars(title: str, unit: str, rows: list[tuple[str, float, bool]]) -> str:
    """Return an SVG of horizontal bars from zero; the last of each row says whether it is ours."""
    most = max(value for _, value, _ in rows) or 1.0
    height = _HEAD + _ROW * len(rows) + 10
    scale = (_WIDTH - _LEFT - 90) / most
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>", f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="22" font-weight="bold">{escape(title)} ({escape(unit)})</text>',
    ]  # fmt: skip
    for i, (label, value, ours) in enumerate(rows):
        y = _HEAD + _ROW * i
        width = max(1.0, value * scale)
        out.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        out.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_ROW - 7}" fill="{_OURS if ours else _THEIRS}"/>')
        out.append(f'<text x="{_LEFT + width + 6:.1f}" y="{y + 14}">{number(value)}</text>')
    return "\n".join([*out, "</svg>", ""])


def charts(name: str, lines: list[Line]) -> dict[str, str]:
    """Return the charts of one benchmark by file name."""
    by_name = {line["name"].removeprefix(f"{name}."): line for line in lines}
    if name == "ingest":
        return {f"ingest-{size}.svg": svg for size in (100, 1_000, 4_096, 65_536) if (svg := _ingest(by_name, size))}
    if name == "block":
        rows = [x for size in (1_000, 10_000, 60_000) for x in _pair(by_name, f"ms.{size}.bytes.influxdb", f"{size:,} readings", "InfluxDB line, gzip")]
        return {"block.svg": bars("Bytes a reading on the wire", "less is better", rows)} if rows else {}
    if name == "segment":
        keys = [key for key in by_name if key.endswith(".bytes.zstd")]
        rows = [x for key in keys for x in _pair(by_name, key, key.partition(".")[0].replace("_", " "), "pyarrow, zstd")]
        return {"segment.svg": bars("Bytes a reading in the ring", "less is better", rows)} if rows else {}
    if name == "drain":
        found = [line for key, line in by_name.items() if line["peer"]]
        rows = [("Ebbgate", found[0]["value"], True), *((line["peer"].partition("server ")[2], line["peer_value"], False) for line in found)] if found else []
        return {"drain.svg": bars("Draining over mutual TLS", "readings/s, more is better", rows)} if rows else {}
    return {}


def _ingest(by_name: dict[str, Line], size: int) -> str:
    ours = by_name.get(f"{size}.ring.sqlite")
    if ours is None:
        return ""
    rows: list[tuple[str, float, bool]] = [("Ebbgate, signed", ours["value"], True)]
    if (fast := by_name.get(f"{size}.fast.sqlite")) is not None:
        rows.append(("Ebbgate, zstandard 1", fast["value"], True))
    for key, line in by_name.items():
        if key.startswith(f"{size}.ring.") and line["peer_value"]:
            rows.append((line["peer"], line["peer_value"], False))
    return bars(f"Durable readings a second, {size:,} a commit", "more is better", rows)


def _pair(by_name: dict[str, Line], key: str, label: str, peer: str) -> list[tuple[str, float, bool]]:
    line = by_name.get(key)
    if line is None or line["value"] is None:
        return []
    return [(label, line["value"], True), (peer, line["peer_value"], False)]


# ---- the page ----


def table(lines: list[Line]) -> list[str]:
    """Return Markdown rows."""
    out = ["| what | measured | unit | peer | peer measured | ratio | goal | |", "|---|---|---|---|---|---|---|---|"]
    for line in lines:
        verdict = {True: "reached", False: "**missed**", None: ""}[line["ok"]]
        value = "not measured: " + line["settings"].get("absent", "") if line["value"] is None else number(line["value"])
        peer = "not here" if line["peer"] and line["peer_value"] is None else number(line["peer_value"]) if line["peer"] else ""
        ratio = f"{line['ratio']:.3g}" if line["ratio"] is not None else ""
        what = line["name"].partition(".")[2]
        out.append(f"| {what} | {value} | {line['unit']} | {line['peer'] or ''} | {peer} | {ratio} | {line['goal'] or ''} | {verdict} |")
    return out


def settings(lines: list[Line]) -> list[str]:
    """Return each peer's settings once, and what each line's settings say beyond that."""
    peers = {line["peer"]: line["settings"]["peer_settings"] for line in lines if line["peer"] and "peer_settings" in line["settings"]}
    out = [f"* {peer}: {text}" for peer, text in peers.items()]
    out += [f"* {line['peer']} is missing: {line['settings']['absent']}" for line in lines if line["peer"] and "absent" in line["settings"]]
    details = ["<details><summary>All settings and side figures</summary>", ""]
    for line in lines:
        shown = {key: value for key, value in line["settings"].items() if key not in ("peer_settings", "how")}
        if shown:
            details.append(f"* `{line['name']}` " + ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in shown.items()))
    return [*dict.fromkeys(out), "", *details, "", "</details>"]


def section(name: str, body: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the lines of one benchmark and its charts."""
    text = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
    lines, made = body["lines"], charts(name, body["lines"])
    m = body["machine"]
    busy = f"busy (load average {', '.join(map(str, m['load_average']))} at the start)" if m["busy"] else "quiet"
    command = "make billion" if name == "billion" else f"make bench NAME={name}"
    out = [f"## {TITLES[name]} (`{command}`)", "", text, "", f"{body['rounds']} rounds, {m['date']}, machine {busy}.", ""]
    out += [f"![{TITLES[name]}](benchmarks/{file})" for file in made]
    out += ["", *table(lines), "", *(hundred_gb(lines) if name == "billion" else []), *settings(lines), ""]
    return out, made


def hundred_gb(lines: list[Line]) -> list[str]:
    """Return what a ring of 100 GB would take, argued from the ring that was measured."""
    by_name = {line["name"].removeprefix("billion."): line for line in lines}
    if any(by_name.get(name) is None for name in ("build.ring", "restart_evicted")):
        return []  # stopped before its end
    times = 100e9 / by_name["build.ring"]["value"]

    def hours(name: str) -> str:
        seconds = by_name[name]["value"] * times
        return f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds / 60:.0f} min" if seconds > 120 else f"{seconds:.0f} s"  # noqa: PLR2004

    facts = by_name["query"]["settings"]
    per_file_ms = by_name["evict.lowered"]["value"] * 1e3 / max(1, by_name["evict"]["settings"]["lowered_files"])
    return [
        f"**100 GB** is this ring {times:.0f} times. What reads everything grows with the bytes: `check` {hours('check')}, a round of `scrub` {hours('scrub')} "
        f"without its pauses, all readings of one tag {facts['tag_all_ms'] * times / 1e3:.0f} s. What looks at every name grows with the number of segments: a start takes at most {hours('restart')}, "
        f"and a statement with a narrow time range opens every footer: about {facts['tag_hour_ms'] * times / 1e3:.1f} s. Eviction does not grow: {per_file_ms:.2f} ms a file, and a "
        "commit at the limit removes no more than was added. Memory does not grow but by names, a few hundred bytes a segment: each step reads one file at a time.",
        "",
    ]


def main() -> None:
    """Write the page and the charts."""
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in NAMES if (RESULTS / f"{name}.json").exists()}
    if not found:
        message = "benchmarks/results is empty: run make bench-all first"
        raise SystemExit(message)
    m = next(iter(found.values()))["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    out = [
        "# Benchmarks", "",
        "Written by `make bench-report` from `benchmarks/results/`; not edited by hand. Figures stand as they were measured, with what they were",
        "measured against in the same run. `make bench-all` measures everything again (an hour), `make bench NAME=...` one part (eight minutes).", "",
        f"Machine: {m['cpus']} processors ({m['cpu']}){', virtual' if m['virtual'] else ''}, {m['memory_gib']} GiB, {m['filesystem']}, "
        f"Linux {m['kernel']}, Python {m['python']}; {packages}.", "",
    ]  # fmt: skip
    if any(body["machine"]["busy"] for body in found.values()):
        out += [
            "**Some of these runs were made on a machine that others were using** (each section says so). What is compared ran in turns, so that the",
            "neighbours met all of it, and ratios move less than times; yet times here are worse than a quiet machine's. Sizes do not depend on it.", "",
        ]  # fmt: skip
    goals = [line for body in found.values() for line in body["lines"] if line["ok"] is not None]
    missed = [line for line in goals if not line["ok"]]
    out += [f"{len(goals) - len(missed)} of {len(goals)} goals reached.", ""]
    if missed:
        out += ["Missed:", "", *(f"* `{x['name']}`: goal {x['goal']}; measured {number(x['value'])} {x['unit']}, ratio {x['ratio']}" for x in missed), ""]
    folder = DOCS / "benchmarks"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, body in found.items():
        lines, made = section(name, body)
        out += lines
        for file, svg in made.items():
            (folder / file).write_text(svg)
    (DOCS / "benchmarks.md").write_text("\n".join(out).rstrip() + "\n")


if __name__ == "__main__":
    main()
