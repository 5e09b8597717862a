"""What all pages share: escaping, times for people, the frame of a page, the style sheet, bars and curves as SVG without script."""

from __future__ import annotations

import datetime as dt
import html
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

REFRESH_S: Final = 3
SECOND: Final = 10**9
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
STYLE: Final = """
:root{--ink:#1b2a33;--soft:#5b6b75;--line:#dde4e8;--good:#1d7a46;--warn:#a86500;--bad:#b3261e;--card:#fff;--page:#f4f7f8}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
header{background:#12343b;color:#fff;padding:.7rem 1.4rem;display:flex;flex-wrap:wrap;gap:.3rem 1.3rem;align-items:baseline}
header b{font-size:1.15rem}header a{color:#bfe3e0;text-decoration:none}header a.here{color:#fff;border-bottom:2px solid #7fd1c8}
header span{margin-left:auto;color:#bfe3e0;font-size:.85rem}
main{padding:1rem 1.4rem 3rem;max-width:1250px;margin:auto}h1{font-size:1.25rem;margin:.4rem 0 .8rem}h2{font-size:1.05rem;margin:1.6rem 0 .6rem}
main a{color:#0b6170}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:.8rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
.card small{color:var(--soft);display:block}.card b{font-size:1.3rem;font-weight:600}
.card i{display:block;font-style:normal;color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden}
th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums;vertical-align:middle}
td{overflow-wrap:anywhere}th{color:var(--soft);font-weight:500;font-size:.85rem}td.v{font-weight:600}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}.old,.old td.v{color:#8a979f;font-weight:400}
p.alarm{background:#fdecea;color:var(--bad);border-left:4px solid var(--bad);padding:.5rem .8rem;margin:.4rem 0;border-radius:4px}
p.note,.note{color:var(--soft);font-size:.9rem}svg{display:block}td svg{height:22px;width:120px}
.lane td:first-child{width:9rem}.lane svg{width:100%;height:20px}.lane.tall svg{height:60px}
.grid{border-collapse:separate;border-spacing:3px;width:auto;border:0;background:none}.grid td,.grid th{border:0;padding:0}
.grid td a,.grid td span{display:block;width:26px;height:24px;border-radius:4px;text-align:center;font-size:.75rem}
.grid td a,.grid td span{line-height:24px;text-decoration:none}
.grid th{font-size:.75rem;padding-right:.6rem;white-space:nowrap}
.d-complete{background:#cfe8d8;color:#14532d}.d-gaps{background:#f3b7b2;color:#7f1d1d}.d-late{background:#fbe3b5;color:#713f12}
.d-open{background:#dfe7ec;color:#405059}.d-none{background:#eef2f4;color:#a3afb6}
input{font:inherit;padding:.35rem .6rem;border:1px solid var(--line);border-radius:6px;min-width:22rem}button{font:inherit;padding:.35rem .8rem}
"""


def escape(text: object) -> str:
    """Return text safe inside HTML and its attributes; control and direction-changing characters become U+FFFD."""
    return html.escape("".join("\ufffd" if _hostile(c) else c for c in str(text)), quote=True)


def _hostile(c: str) -> bool:
    code = ord(c)
    return code < 32 or 127 <= code < 160 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or 0xD800 <= code <= 0xDFFF  # noqa: PLR2004


def clock(ns: int | None) -> str:
    """Return a UTC time for people."""
    if not ns:
        return "never"
    try:
        return dt.datetime.fromtimestamp(ns // SECOND, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "outside the calendar"


def age(ns: float) -> str:
    """Return a duration for people."""
    s = ns / SECOND
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (129_600, "h", 3600)):
        if s < limit:
            return f"{max(0.0, s) / size:.0f} {unit}"
    return f"{s / 86_400:.0f} d"


def count(value: object) -> str:
    """Return a number of the landing's or an uploader's status for people; anything that is no number is shown as text."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(str(value)[:40])


def page(title: str, body: str, now_ns: int, here: str, *, refresh: bool = True) -> str:
    """Return a whole page. here: path of the link to mark."""
    links = (("/", "Lines now"), ("/fleet", "Gateways"), ("/days", "Can I trust yesterday?"), ("/search", "Find a tag"))
    nav = "".join(f'<a href="{to}"{" class=here" if to == here else ""}>{text}</a>' for to, text in links)
    again = f'<meta http-equiv="refresh" content="{REFRESH_S}">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}<meta name="viewport" content="width=device-width">'
        f'<title>{escape(title)} - Ebbgate</title><link rel="stylesheet" href="/style.css"></head>'
        f"<body><header><b>Ebbgate</b>{nav}<span>{clock(now_ns)} UTC</span></header><main>{body}</main></body></html>"
    )


def table(heads: Sequence[str], rows: Iterable[str], empty: str = "") -> str:
    """Return a table; rows are whole <tr>."""
    body = "".join(rows)
    if not body:
        return f'<p class="note">{empty}</p>'
    return f"<table><tr>{''.join(f'<th>{head}' for head in heads)}</tr>{body}</table>"


def bar(spans: Iterable[tuple[int, int, str, str]], since_ns: int, now_ns: int, ground: str) -> str:
    """Return a time line: spans of (start, end, colour, text) over a ground colour."""
    width = max(1, now_ns - since_ns)
    parts = []
    for start, end, colour, text in spans:
        left = max(0.0, (start - since_ns) / width * 1000)
        right = min(1000.0, (end - since_ns) / width * 1000)
        if right >= left and end >= since_ns:
            wide = max(2.0, right - left)
            parts.append(f'<rect x="{left:.1f}" y="0" width="{wide:.1f}" height="20" fill="{colour}"><title>{escape(text)}</title></rect>')
    whole = f'<rect width="1000" height="20" rx="4" fill="{ground}"/>{"".join(parts)}'
    return f'<svg viewBox="0 0 1000 20" preserveAspectRatio="none" role="img">{whole}</svg>'


def curve(points: Sequence[tuple[int, float]], since_ns: int, until_ns: int, size: tuple[int, int], *, zero: bool = False) -> str:
    """Return a curve; NaN breaks it, so that a hole is a hole. zero: the axis begins at 0."""
    known = [v for _, v in points if v == v and abs(v) < 1e300]  # noqa: PLR0124, PLR2004 -- not NaN
    wide, high = size
    if not known:
        return f'<svg viewBox="0 0 {wide} {high}"></svg>'
    low, top = (0.0 if zero else min(known)), max(known)
    span, width = (top - low) or 1.0, max(1, until_ns - since_ns)
    runs: list[list[str]] = [[]]
    for at, v in points:
        if v != v or abs(v) >= 1e300:  # noqa: PLR0124, PLR2004
            runs.append([])
            continue
        x, y = (at - since_ns) / width * wide, high - 2 - (v - low) / span * (high - 4)
        runs[-1].append(f"{x:.1f},{y:.1f}")
    lines = "".join(
        f'<polyline points="{" ".join(run if len(run) > 1 else run * 2)}" fill="none" stroke="#0b6170" stroke-width="1.5" stroke-linecap="round"/>'
        for run in runs
        if run
    )
    return f'<svg viewBox="0 0 {wide} {high}" preserveAspectRatio="none" role="img">{lines}</svg>'
