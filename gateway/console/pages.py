"""Facts -> HTML. Pure. Every text from a plant is escaped; no script, no font, no picture comes from anywhere else."""

from __future__ import annotations

import datetime as dt
import html
from typing import TYPE_CHECKING, Any, Final

from buffer.types import Flag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.console.facts import StreamFacts

REFRESH_S: Final = 3
_STALE_NS: Final = 60 * 10**9
_BAD: Final = 0x8000_0000
_UNCERTAIN: Final = 0x4000_0000
_STYLE: Final = """
:root{--ink:#1b2a33;--soft:#5b6b75;--line:#dde4e8;--good:#1d7a46;--warn:#a86500;--bad:#b3261e;--card:#fff;--page:#f4f7f8}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
header{background:#12343b;color:#fff;padding:.8rem 1.4rem;display:flex;gap:1.4rem;align-items:baseline}
header b{font-size:1.15rem}header a{color:#bfe3e0;text-decoration:none}header span{margin-left:auto;color:#bfe3e0;font-size:.85rem}
main{padding:1.2rem 1.4rem;max-width:1250px;margin:auto}h2{font-size:1.05rem;margin:1.6rem 0 .6rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:.8rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
.card small{color:var(--soft);display:block}.card b{font-size:1.35rem;font-weight:600}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden}
th,td{text-align:left;padding:.32rem .7rem;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:500;font-size:.85rem}td.v{font-weight:600}.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
.bar{position:relative;height:26px;background:#cfe8d8;border-radius:6px;overflow:hidden}.bar i{position:absolute;top:0;bottom:0;background:var(--bad)}
.hole{color:var(--bad)}p.note{color:var(--soft)}
"""


def escape(text: object) -> str:
    """Return text safe inside HTML; control characters become U+FFFD."""
    return html.escape("".join("\ufffd" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in str(text)), quote=True)  # noqa: PLR2004


def clock(ns: int | None) -> str:
    """Return a UTC time for people."""
    if not ns:
        return "never"
    try:
        return dt.datetime.fromtimestamp(ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "outside the calendar"


def age(ns: int) -> str:
    """Return a duration for people."""
    s = ns / 1e9
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (129_600, "h", 3600)):
        if s < limit:
            return f"{max(0.0, s) / size:.0f} {unit}"
    return f"{s / 86_400:.0f} d"


def _page(title: str, body: str, now_ns: int, streams: Iterable[str]) -> str:
    links = "".join(f'<a href="/gateway/{escape(s)}">{escape(s)}</a>' for s in streams)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{REFRESH_S}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)} - Ebbgate</title><link rel="stylesheet" href="/style.css"></head>'
        f'<body><header><b>Ebbgate</b><a href="/">Lines now</a>{links}<span>{clock(now_ns)} UTC</span></header><main>{body}</main></body></html>'
    )


def stylesheet() -> str:
    """Return the one style sheet."""
    return _STYLE


def lines_now(streams: list[StreamFacts], now_ns: int) -> str:
    """Return the page of newest values, grouped by line, with age; holes are shown as holes with a reason."""
    body = []
    for facts in streams:
        groups: dict[str, list[str]] = {}
        for newest in sorted(facts.newest.values(), key=lambda n: n.path):
            if newest.path.startswith("_ebbgate/"):
                continue
            line = newest.path.rpartition("/")[0] or newest.path
            groups.setdefault(line, []).append(_row(newest, now_ns))
        heard = facts.record.received_ns if facts.record else 0
        silent = now_ns - heard > _STALE_NS
        note = f'<p class="note {"bad" if silent else ""}">{escape(facts.stream)}: heard {age(now_ns - heard)} ago</p>' if heard else ""
        body.append(note)
        for line, rows in groups.items():
            body.append(f"<h2>{escape(line)}</h2><table><tr><th>Tag<th>Value<th>Unit<th>Age<th>Quality</tr>{''.join(rows)}</table>")
    return _page("Lines now", "".join(body) or "<p class=note>Nothing has landed yet.</p>", now_ns, [f.stream for f in streams])


def _row(n: Any, now_ns: int) -> str:  # noqa: ANN401 -- console.facts.Newest
    hole = bool(n.flags & Flag.MARKER)
    word, style = _quality(n.quality, hole)
    name = n.path.rpartition("/")[2]
    return (
        f'<tr><td title="{escape(n.tag)}">{escape(name)}<td class="v {"hole" if hole else ""}">{escape(n.value[:120])}<td>{escape(n.unit)}'
        f'<td>{age(now_ns - n.ts_ns)}<td class="{style}">{word}</tr>'
    )


def _quality(quality: int, hole: bool) -> tuple[str, str]:
    if hole:
        return ("source is not reachable" if quality == 0x8031_0000 else "reading was stopped on purpose"), "bad"
    if quality >= _BAD:
        return f"bad 0x{quality:08X}", "bad"
    return ("uncertain", "warn") if quality >= _UNCERTAIN else ("good", "good")


def one_gateway(facts: StreamFacts, j: dict[str, Any], now_ns: int, streams: list[str]) -> str:
    """Return the page of one gateway: outages, backlog, gaps with reasons, what the ring still holds."""
    s = j["streams"].get(facts.stream, {})
    receive, uploader = s.get("receive", {}), j.get("uploaders", {}).get(facts.stream.partition(".")[0], {})
    rows = [
        ("Readings received", f"{receive.get('received', 0):,}"),
        ("Heard", f"{age(now_ns - s['newest_received_ns'])} ago" if s.get("newest_received_ns") else "never"),
        ("Backlog on the gateway", f"{uploader.get('backlog_readings', 0):,} readings"),
        ("Time to drain", f"{uploader.get('drain_s') or 0:.0f} s"),
        ("Generation", s.get("generation", "")),
        ("Conflicts", receive.get("conflicts", 0)),
    ]
    cards = "".join(f'<div class="card"><small>{escape(k)}</small><b>{escape(v)}</b></div>' for k, v in rows)
    body = f'<div class="cards">{cards}</div><h2>Link, last hour</h2>{_timeline(s.get("outages", []), now_ns)}{_missing(s)}{_sinks(s)}'
    alarms = [*receive.get("alarms", []), uploader.get("alarm", ""), uploader.get("cause", ""), s.get("error", "")]
    alarms += ["the gateway is silent"] if receive.get("silent") else []
    text = "".join(f'<p class="bad">{escape(a)}</p>' for a in alarms if a)
    return _page(facts.stream, f"{text}{body}", now_ns, streams)


def _timeline(outages: list[list[int]], now_ns: int) -> str:
    hour = 3600 * 10**9
    bars = []
    for start, end in _merged(outages):
        left = max(0.0, (start - (now_ns - hour)) / hour * 100)
        width = max(0.3, (end - max(start, now_ns - hour)) / hour * 100)
        if end > now_ns - hour:
            bars.append(f'<i style="left:{left:.2f}%;width:{width:.2f}%" title="{age(end - start)}"></i>')
    text = f"{len(bars)} outage{'s' if len(bars) != 1 else ''}" if bars else "no outage"
    return f'<div class="bar">{"".join(bars)}</div><p class="note">{text}; red: data committed on the gateway came later</p>'


def _merged(outages: list[list[int]]) -> list[tuple[int, int]]:
    """Join what overlaps: many late pieces of one outage are one."""
    out: list[tuple[int, int]] = []
    for start, end in sorted((a, b) for a, b in outages):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _missing(s: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{a}-{b}<td>{escape(reason)}</tr>" for a, b, reason in s.get("lost", []))
    opened = s.get("open_gaps", [])
    gaps = "".join(f"<tr><td>source {source}, since {clock(start)}<td>open: history is being asked</tr>" for _, source, start in opened)
    if not rows and not gaps:
        return '<h2>Missing</h2><p class="good">nothing is missing</p>'
    return f"<h2>Missing</h2><table><tr><th>What<th>Why</tr>{rows}{gaps}</table>"


def _sinks(s: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}<td>{d.get("rows", 0):,}'
        f'<td class="{"bad" if d.get("error") else "good"}">{escape(d.get("error") or "up to date")}</tr>'
        for name, d in s.get("deliver", {}).items()
    )
    return f"<h2>Delivered</h2><table><tr><th>Sink<th>Readings<th>State</tr>{rows}</table>"
