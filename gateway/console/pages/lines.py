"""Lines now: the newest value of every tag with its age; a hole is a hole with a plain reason, an old value never stands in normal ink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from buffer.notice import PATH_PREFIX
from buffer.types import Flag
from gateway.console.pages.html import SECOND, age, clock, curve, escape, page, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.console.facts import StreamFacts
    from gateway.console.readings import Newest

SILENT_NS: Final = 15 * SECOND  # a block is committed at least every 10 s
ROWS_MAX: Final = 400  # on one page
PAGES_MAX: Final = 50  # linked
_BAD: Final = 0x8000_0000
_UNCERTAIN: Final = 0x4000_0000
_WORDS: Final = {  # OPC 10000-4, table of status codes: those a plant really sends
    0x8004_0000: "the server stopped", 0x800A_0000: "timed out", 0x8031_0000: "source is not reachable",
    0x8032_0000: "waits for its first value", 0x8033_0000: "the address does not exist", 0x8034_0000: "the address does not exist",
    0x803A_0000: "not readable",
    0x8089_0000: "configuration error",
    0x808A_0000: "not connected", 0x808B_0000: "device failure", 0x808C_0000: "sensor failure", 0x808D_0000: "reading was stopped on purpose",
    0x809B_0000: "no data", 0x80AB_0000: "invalid argument", 0x8001_0000: "unexpected error", 0x8002_0000: "internal error",
    0x8005_0000: "communication error", 0x801F_0000: "access denied",
}  # fmt: skip

Row = tuple["StreamFacts", "Newest"]


def all_rows(streams: Iterable[StreamFacts]) -> list[Row]:
    """Return every tag of every stream by path; notices are no tags."""
    rows = [(f, n) for f in streams for n in (*f.newest.values(), *f.untold.values()) if not n.path.startswith(PATH_PREFIX)]
    return sorted(rows, key=lambda row: (row[1].path, row[0].stream))


def line_of(newest: Newest) -> str:
    """Return the line a tag stands in: its path without the last step."""
    return newest.path.rpartition("/")[0] or "(no line)"


def lines_now(streams: Sequence[StreamFacts], now_ns: int) -> str:
    """Return the page of all tags, or, where they are too many for one, of all lines."""
    rows = all_rows(streams)
    heads = "".join(_heard(f, now_ns) for f in streams)
    if not rows:
        return page("Lines now", heads or '<p class="note">Nothing has landed yet.</p>', now_ns, "/")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(line_of(row[1]), []).append(row)
    if len(rows) <= ROWS_MAX:
        body = "".join(f'<h2><a href="/line?{_query(line)}">{escape(line)}</a></h2>{_table(some, now_ns)}' for line, some in groups.items())
        return page("Lines now", heads + body, now_ns, "/")
    shown = sorted(groups.items(), key=lambda item: (-_troubled(item[1], now_ns), item[0]))[:ROWS_MAX]
    index = table(("Line", "Tags", "Without a good value now"), (_line_row(line, some, now_ns) for line, some in shown))
    more = f'<p class="note">{len(groups) - ROWS_MAX} more lines: use Find a tag.</p>' if len(groups) > ROWS_MAX else ""
    return page("Lines now", f"{heads}<h1>{len(rows):,} tags in {len(groups):,} lines</h1>{index}{more}", now_ns, "/")


def one_line(streams: Sequence[StreamFacts], line: str, number: int, now_ns: int) -> str:
    """Return one page of one line."""
    rows = [row for row in all_rows(streams) if line_of(row[1]) == line]
    body = f"<h1>{escape(line)}</h1>" + _paged(rows, number, f"/line?{_query(line)}", now_ns)
    return page(line, body, now_ns, "/")


def search(streams: Sequence[StreamFacts], text: str, number: int, now_ns: int) -> str:
    """Return the tags whose id or path holds a text. This page does not renew itself: somebody is typing."""
    field = f'<input name="q" value="{escape(text)}" placeholder="part of a path or id" autofocus>'
    box = f'<form method="get" action="/search">{field} <button>Find</button></form>'
    body = f"<h1>Find a tag</h1>{box}"
    if text:
        wanted = text.lower()
        rows = [row for row in all_rows(streams) if wanted in row[1].path.lower() or wanted in row[1].tag]
        body += f'<p class="note">{len(rows):,} found</p>' + _paged(rows, number, f"/search?q={quote(text, safe='', errors='replace')}", now_ns)
    return page("Find a tag", body, now_ns, "/search", refresh=False)


def _query(line: str) -> str:
    return f"name={quote(line, safe='', errors='replace')}"


def _paged(rows: list[Row], number: int, link: str, now_ns: int) -> str:
    pages = max(1, -(-len(rows) // ROWS_MAX))
    number = min(max(1, number), pages)
    links = [f'<a href="{link}&amp;page={i}">{f"<b>{i}</b>" if i == number else i}</a>' for i in range(1, min(pages, PAGES_MAX) + 1)]
    nav = f'<p class="note">page {" ".join(links)}</p>' if pages > 1 else ""
    return _table(rows[(number - 1) * ROWS_MAX : number * ROWS_MAX], now_ns) + nav


def _heard(f: StreamFacts, now_ns: int) -> str:
    if f.record is None:
        return ""
    silent = now_ns - f.record.received_ns
    if silent <= SILENT_NS:
        return f'<p class="note">{escape(f.stream)}: heard {age(silent)} ago</p>'
    return (
        f'<p class="alarm">{escape(f.stream)}: nothing has come since {clock(f.record.received_ns)} UTC ({age(silent)}).'
        " What is measured meanwhile is stored on site and comes when the link is back.</p>"
    )


def _table(rows: Iterable[Row], now_ns: int) -> str:
    return table(("Tag", "Value", "Unit", "Last hours", "Age", "Quality"), (_row(f, n, now_ns) for f, n in rows))


def _line_row(line: str, rows: list[Row], now_ns: int) -> str:
    bad = _troubled(rows, now_ns)
    style = "bad" if bad else "good"
    return f'<tr><td><a href="/line?{_query(line)}">{escape(line)}</a><td>{len(rows):,}<td class="{style}">{bad:,}</tr>'


def _troubled(rows: list[Row], now_ns: int) -> int:
    return sum(verdict(f, n, now_ns)[1] != "good" for f, n in rows)


def _row(f: StreamFacts, n: Newest, now_ns: int) -> str:
    word, style, old = verdict(f, n, now_ns)
    trend = f.trends.get(n.tag)
    points = trend.points() if trend is not None else []
    if points and not old:  # a plant reports changes: what was not reported anew holds until now
        points.append((now_ns, points[-1][1]))
    drawn = curve(points, points[0][0], max(points[-1][0], now_ns), (120, 22)) if points else ""
    passed = now_ns - n.ts_ns
    when = "" if not n.ts_ns else age(passed) if passed > -SECOND else "in the future"
    return (
        f'<tr{" class=old" if old else ""}><td title="{escape(n.tag)}">{escape(n.path.rpartition("/")[2])}'
        f'<td class="v">{escape(n.value) or "&mdash;"}'
        f'<td>{escape(n.unit)}<td>{drawn}<td title="{clock(n.ts_ns)} UTC">{when}<td class="{style}">{escape(word)}</tr>'
    )


def verdict(f: StreamFacts, n: Newest, now_ns: int) -> tuple[str, str, bool]:
    """Return the quality of a tag now as (words, style, whether its value is old)."""
    heard_ns = f.record.received_ns if f.record else 0
    if now_ns - heard_ns > SILENT_NS:
        return f"not reported since {clock(heard_ns)[11:]}", "bad", True
    source = f.coverage.sources.get(n.source)
    if source is not None and source.trouble:
        return f"{n.source}: {source.trouble}", "bad", True
    if not n.ts_ns:
        return "no reading so far" if not f.looking_back else "looking back", "warn", True
    if n.flags & Flag.MARKER or n.quality >= _BAD:
        return _WORDS.get(n.quality & 0xFFFF_0000, f"bad 0x{n.quality:08X}"), "bad", True
    if n.quality >= _UNCERTAIN:
        return "uncertain", "warn", False
    return ("good, the source's clock is off", "warn", False) if n.flags & Flag.TIME_SUBSTITUTED else ("good", "good", False)
