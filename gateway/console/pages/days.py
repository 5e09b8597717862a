"""Can I trust yesterday? One square per stream and UTC day, and what stands behind one of them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from gateway.completeness import WAITING, words
from gateway.console.pages.html import DAY, SECOND, age, clock, escape, page, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.completeness import Day
    from gateway.console.facts import StreamFacts
    from gateway.coverage import Hole

DAYS_SHOWN: Final = 35
BRIEF_NS: Final = 10 * SECOND  # an interruption of a source shorter than a commit interval of an idle gateway


def of(f: StreamFacts, now_ns: int) -> list[Day]:
    """Return the last DAYS_SHOWN days of a stream, oldest first."""
    today = now_ns // DAY
    return f.days.days(f.account, today - DAYS_SHOWN + 1, today) if f.account is not None else []


def holes(f: StreamFacts, day: int, now_ns: int) -> list[Hole]:
    """Return when sources were not covered on a day."""
    begin, end = day * DAY, min((day + 1) * DAY, now_ns)
    return [h for h in f.coverage.holes(begin, end) if (h.until_ns or now_ns) - h.since_ns > BRIEF_NS]


def verdict(f: StreamFacts, one: Day, now_ns: int) -> tuple[str, str]:
    """Return (style, words) of a day."""
    since = f.days.since_ns
    if since is None or (one.day + 1) * DAY <= since:
        return ("d-none", "nothing known" if not f.looking_back else "not looked at yet")
    final = sum(n for reason, n in one.missing.items() if reason != WAITING)
    if final or one.off:
        return "d-gaps", "gaps"
    if holes(f, one.day, now_ns):
        return "d-gaps", "a source was not read"
    if one.missing:
        return "d-late", "some of it still waits on the gateway"
    if one.reported:
        return ("d-complete", "complete") if one.readings else ("d-none", "nothing was committed")
    return "d-open", "so far everything" if one.day == now_ns // DAY else "not yet reported to its end"


_MARKS: Final = {"d-complete": "&#10003;", "d-gaps": "&#10005;", "d-late": "&hellip;", "d-open": "&middot;", "d-none": ""}


def calendar(streams: Sequence[StreamFacts], now_ns: int) -> str:
    """Return the page of squares."""
    today = now_ns // DAY
    heads = "".join(f"<th>{(dt.date(1970, 1, 1) + dt.timedelta(days=d)).day}" for d in range(today - DAYS_SHOWN + 1, today + 1))
    rows = []
    for f in streams:
        cells = []
        for one in of(f, now_ns):
            style, text = verdict(f, one, now_ns)
            title, link = f"{one.date}: {escape(text)}", f"/days/{escape(f.stream)}/{one.date}"
            cells.append(f'<td><a class="{style}" title="{title}" href="{link}">{_MARKS[style]}</a>')
        rows.append(f"<tr><th>{escape(f.stream)}{''.join(cells)}</tr>")
    legend = (
        '<p class="note">&#10003; complete &nbsp; &#10005; gaps, with reasons &nbsp; &hellip; some of it waits on the gateway &nbsp; &middot; '
        "not yet reported to its end. A day is UTC; a reading belongs to the day in which it was committed on site.</p>"
    )
    back = [f"{f.stream} to {clock(f.looked_back_ns)[:16]}" for f in streams if f.looking_back]
    looking = f'<p class="note">still looking back: {escape(", ".join(back)[:300])}</p>' if back else ""
    if not streams:
        return page("Can I trust yesterday?", '<h1>Can I trust yesterday?</h1><p class="note">Nothing has landed yet.</p>', now_ns, "/days")
    body = f'<h1>Can I trust yesterday?</h1><table class="grid"><tr><th>{heads}</tr>{"".join(rows)}</table>{legend}{looking}'
    return page("Can I trust yesterday?", body, now_ns, "/days")


def one_day(f: StreamFacts, one: Day, now_ns: int) -> str:
    """Return what stands behind one square."""
    _, text = verdict(f, one, now_ns)
    rows = [
        f'<tr><td>{n:,} readings<td class="{"warn" if reason == WAITING else "bad"}">{escape(words(reason))}</tr>'
        for reason, n in one.missing.items()
    ]
    rows += [f'<tr><td>{clock(a)[11:]} to {clock(b)[11:]} UTC<td class="bad">the gateway did not collect ({age(b - a)})</tr>' for a, b in one.off]
    for h in holes(f, one.day, now_ns)[:500]:
        until = clock(h.until_ns)[11:] if h.until_ns else "now"
        rows.append(f'<tr><td>{escape(h.source)}, {clock(h.since_ns)[11:]} to {until} UTC<td class="bad">{escape(h.reason)}</tr>')
    known = f.told_since_ns
    unknown = f'<p class="note">Interruptions of sources are known here since {clock(known)} UTC.</p>' if known and known > one.day * DAY else ""
    body = (
        f'<h1>{escape(f.stream)}, {one.date}: {escape(text)}</h1>'
        f'<p class="note">{one.readings:,} readings committed that day are accounted for here</p>'
        + (table(("What", "Why"), rows) if rows else '<p class="good">nothing is missing</p>')
        + unknown
    )
    return page(f"{f.stream} {one.date}", body, now_ns, "/days")
