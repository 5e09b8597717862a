"""Gateways, those in trouble first, and one of them: link, backlog, sources, what is missing and why, targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gateway.completeness import WAITING, words
from gateway.console.pages.html import DAY, HOUR, SECOND, age, bar, clock, count, curve, escape, page, table
from gateway.console.pages.lines import SILENT_NS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.console.facts import StreamFacts

SHIFT_NS: Final = 8 * HOUR
CERTIFICATE_DAYS: Final = 60  # fewer: somebody must act
EVENTS_SHOWN: Final = 20
ROWS_SHOWN: Final = 100
_RED, _AMBER, _GREEN, _UNKNOWN = "#b3261e", "#d99a2b", "#cfe8d8", "#e6ecef"


@dataclass(slots=True)
class View:
    """One stream with what the processes say of it. facts is None for a gateway that was never heard."""

    stream: str
    facts: StreamFacts | None
    receive: dict[str, Any] = field(default_factory=dict)
    deliver: dict[str, Any] = field(default_factory=dict)
    uploader: dict[str, Any] = field(default_factory=dict)  # unsigned: shown as what the uploader says
    certificate_ns: int = 0  # end of the gateway's TLS certificate as last seen
    site_alarms: tuple[str, ...] = ()

    def alarms(self, now_ns: int) -> list[str]:
        """Return what a person must look at, the worst first."""
        f, out = self.facts, []
        if f is None or f.record is None:
            return ["never heard"]
        if now_ns - f.record.received_ns > SILENT_NS:
            out.append(f"silent since {clock(f.record.received_ns)} UTC")
        out += [f"{s.name}: {s.trouble}" for s in f.coverage.sources.values() if s.trouble]
        final = f.account.final if f.account else 0
        out += [f"{final:,} readings will never come: see below"] if final else []
        out += list(f.account.findings[-3:]) if f.account else []
        out += [str(a)[:300] for a in [*_list(self.receive.get("alarms")), self.uploader.get("alarm"), self.uploader.get("cause"), f.error] if a]
        out += [f"target {name}: {d.get('error')}" for name, d in self.deliver.items() if isinstance(d, dict) and d.get("error")]
        out += [f"target {name}: {d.get('why_unread')}" for name, d in self.deliver.items() if isinstance(d, dict) and d.get("why_unread")]
        left = self.certificate_ns - now_ns
        if self.certificate_ns and left < CERTIFICATE_DAYS * DAY:
            out.append(f"its certificate ends {'in ' + age(left) if left > 0 else 'since ' + age(-left)}")
        return out


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _card(name: str, value: str, note: str = "") -> str:
    return f'<div class="card"><small>{escape(name)}</small><b>{value}</b>{f" <i>{note}</i>" if note else ""}</div>'


def fleet(views: Sequence[View], now_ns: int) -> str:
    """Return the page of all gateways, those in trouble first."""
    ranked = sorted(((v.alarms(now_ns), v) for v in views), key=lambda x: (-_silent(x[1], now_ns), -len(x[0]), x[1].stream))
    rows = (_fleet_row(v, alarms, now_ns) for alarms, v in ranked[:1_000])
    troubled = sum(bool(alarms) for alarms, _ in ranked)
    site = "".join(f'<p class="alarm">{escape(a)}</p>' for a in (views[0].site_alarms if views else ()))
    head = f"<h1>{len(views)} gateway stream{'s' if len(views) != 1 else ''}, {troubled} in trouble</h1>"
    heads = ("Stream", "Heard", "Waiting on site", "Time to drain", "Will never come", "Sources", "Certificate", "What to look at")
    return page("Gateways", site + head + table(heads, rows, "No gateway is configured."), now_ns, "/fleet")


def _silent(v: View, now_ns: int) -> int:
    return _unheard(v.facts, now_ns) if v.facts else 0


def _unheard(f: StreamFacts, now_ns: int) -> int:
    """Return for how many ns a stream has been silent, 0 if it is not: what was known then is not known now."""
    passed = now_ns - f.record.received_ns if f.record else 0
    return passed if passed > SILENT_NS else 0


def _fleet_row(v: View, alarms: list[str], now_ns: int) -> str:
    f = v.facts
    if f is None or f.record is None:
        return f"<tr><td>{escape(v.stream)}<td class=bad>never<td><td><td><td><td><td>waits for its first frame</tr>"
    total, down = len(f.sources), sum(bool(s.trouble) for s in f.coverage.sources.values())
    final = f.account.final if f.account else 0
    shown = escape("; ".join(alarms[:3])[:300])
    return (
        f'<tr><td><a href="/gateway/{escape(v.stream)}">{escape(v.stream)}</a><td class="{"bad" if _silent(v, now_ns) else "good"}">'
        f"{age(now_ns - f.record.received_ns)} ago<td>{_waiting(v, now_ns)}<td>{_drain(v, now_ns)}<td class={'bad' if final else 'good'}>{final:,}"
        f'<td class="{"bad" if down else "note" if _silent(v, now_ns) else "good"}">{total - down} of {total}<td>{_certificate(v, now_ns)}'
        f'<td class="{"bad" if alarms else ""}">{shown}</tr>'
    )


def _waiting(v: View, now_ns: int) -> str:
    """Return what waits on site, as the uploader says; of a silent gateway nobody knows more than what its last record reported."""
    known = v.facts.account.waiting if v.facts and v.facts.account else 0
    if _silent(v, now_ns):
        return f"{known:,} or more" if known else "unknown"
    said = v.uploader.get("backlog_readings")
    return count(max(known, said)) if isinstance(said, int) and not isinstance(said, bool) else count(known)


def _drain(v: View, now_ns: int) -> str:
    seconds = v.uploader.get("drain_s")
    if _silent(v, now_ns) or not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return "unknown"
    return age(seconds * SECOND) if seconds >= 1 else "nothing waits"


def _certificate(v: View, now_ns: int) -> str:
    if not v.certificate_ns:
        return "not seen yet"
    left = v.certificate_ns - now_ns
    return f"{left // DAY} days" if left > 0 else '<span class="bad">ended</span>'


def one_gateway(v: View, now_ns: int) -> str:
    """Return the page of one stream."""
    f = v.facts
    if f is None or f.record is None:
        return page(v.stream, f'<h1>{escape(v.stream)}</h1><p class="alarm">never heard</p>', now_ns, "/fleet")
    state, one = f.record.state, f.account
    cards = (
        _card("Heard", f"{age(now_ns - f.record.received_ns)} ago", f"{age(max(0, f.record.received_ns - f.record.state.wall_ns))} after its commit")
        + _card("Readings received", count(one.received if one else 0), f"of {count(one.reported if one else 0)} reported")
        + _card("Waiting on the gateway", _waiting(v, now_ns), "not heard" if _silent(v, now_ns) else "")
        + _card("Time to drain", _drain(v, now_ns), "not heard" if _silent(v, now_ns) else "as the uploader says")
        + _card("The ring still holds", _horizon(f, now_ns), "as last heard" if _silent(v, now_ns) else "")
        + _card("Will never come", count(one.final if one else 0), f"{len(state.lost)} losses in the ring's own account")
        + _card("Certificate", _certificate(v, now_ns))
        + _card("Conflicts", count(v.receive.get("conflicts", 0)))
    )
    alarms = "".join(f'<p class="alarm">{escape(a)}</p>' for a in v.alarms(now_ns)) or '<p class="good">everything works</p>'
    body = (
        f"<h1>{escape(v.stream)}</h1>{alarms}<div class=cards>{cards}</div><h2>The last shift (8 h)</h2>{_shift(f, now_ns)}"
        f"<h2>Waiting on the gateway</h2>{_backlog(f, now_ns)}<h2>Missing, and why</h2>{_missing(f, now_ns)}<h2>Sources</h2>{_sources(f, now_ns)}"
        f"<h2>Delivered</h2>{_sinks(v, now_ns)}<h2>What the gateway said of itself</h2>{_events(f)}"
    )
    return page(v.stream, body, now_ns, "/fleet")


def _horizon(f: StreamFacts, now_ns: int) -> str:
    assert f.record is not None
    generation, seq = f.record.state.low
    if not seq and f.account is not None and (not generation or generation == min((f.record.state.generation, generation))) and f.generations <= 1:
        return "everything so far"
    since = f.days.time_of(generation, seq)
    return f"about {age(now_ns - since)}" if since else "everything seen here"


def _shift(f: StreamFacts, now_ns: int) -> str:
    since = now_ns - SHIFT_NS
    unknown = _unknown(f, since, now_ns)
    late = [(a * SECOND, b * SECOND) for a, b in f.late if b * SECOND > since]
    if f.record is not None and now_ns - f.record.received_ns > SILENT_NS:
        late.append((f.record.received_ns, now_ns))
    outages = ((a, b, _RED, f"{clock(a)[11:]} for {age(b - a)}") for a, b in late[-200:])
    link = bar((*unknown[:1], *outages), since, now_ns, _GREEN)
    rows = [f"<tr><td>link<td>{link}</tr>"]
    for name in f.sources[:ROWS_SHOWN]:
        state = f.coverage.sources.get(name)
        holes = [h for h in state.holes if (h.until_ns or now_ns) > since] if state else []
        spans = ((h.since_ns, h.until_ns or now_ns, _AMBER, f"{clock(h.since_ns)[11:]}: {h.reason}") for h in holes)
        ground = _GREEN if state is not None or not f.looking_back else _UNKNOWN
        rows.append(f"<tr><td>{escape(name)}<td>{bar((*spans, *unknown), since, now_ns, ground)}</tr>")
    told = f"{len(late)} outage{'s' if len(late) != 1 else ''} of the link" if late else "no outage of the link"
    back = f"; looked back to {clock(f.looked_back_ns)} UTC so far" if f.looking_back else ""
    return (
        f'<table class="lane">{"".join(rows)}</table>'
        f'<p class="note">{clock(since)[11:16]} UTC to now: {told}; red: committed on site, came later; '
        f"amber: the source was not read; grey: nothing known{back}</p>"
    )


def _unknown(f: StreamFacts, since_ns: int, now_ns: int) -> list[tuple[int, int, str, str]]:
    """Return the spans of which nothing is known: before the first record looked at, and since a silent gateway was last heard."""
    first = max(since_ns, min(f.days.since_ns or now_ns, now_ns))
    out = [(since_ns, first, _UNKNOWN, "nothing known")]
    if silent := _unheard(f, now_ns):
        out.append((max(since_ns, now_ns - silent), now_ns, _UNKNOWN, "not reported yet"))
    return out


def _backlog(f: StreamFacts, now_ns: int) -> str:
    since = now_ns - SHIFT_NS
    points = f.waited.points(since, now_ns)
    peak = int(max(n for _, n in points))
    if not peak:
        return '<p class="note">Nothing has waited for longer than a few seconds in this shift.</p>'
    drawn = curve(points, since, now_ns, (1000, 60), zero=True)
    note = "what waits while the link is away is known, and drawn, when it is back"
    return f'<table class="lane tall"><tr><td>at most {peak:,}<td>{drawn}</tr></table><p class="note">readings, over the same 8 h; {note}</p>'


def _missing(f: StreamFacts, now_ns: int) -> str:
    assert f.record is not None
    rows = []
    for m in (f.account.missing if f.account else ())[:ROWS_SHOWN]:
        since = f.days.time_of(m.generation, m.ranges[0][0])
        when = clock(since)[:10] if since else ""
        style = "warn" if m.reason == WAITING else "bad"
        rows.append(f'<tr><td>{m.readings:,} readings<td>{when}<td class="{style}">{escape(words(m.reason))}</tr>')
    for gap in f.record.state.open_gaps[:ROWS_SHOWN]:
        name = f.sources[gap.source] if 0 <= gap.source < len(f.sources) else f"source {gap.source}"
        rows.append(f'<tr><td>{escape(name)}<td>since {clock(gap.from_ns)}<td class="warn">its history is being asked for</tr>')
    silent = f'<p class="warn">nothing was reported since {clock(f.record.received_ns)} UTC</p>' if _unheard(f, now_ns) else ""
    if rows:
        return silent + table(("What", "When", "Why"), rows)
    return silent + f'<p class="good">nothing is missing{" of what was reported" if silent else ""}</p>'


def _sources(f: StreamFacts, now_ns: int) -> str:
    rows = []
    for name in f.sources[:ROWS_SHOWN]:
        state = f.coverage.sources.get(name)
        if state is None:
            rows.append(f'<tr><td>{escape(name)}<td class="note">no notice since {clock(f.told_since_ns)[11:]} UTC<td><td></tr>')
            continue
        style, text = ("bad", state.trouble) if state.trouble else ("good", "is read")
        if f.record is not None and _unheard(f, now_ns):
            style, text = "note", f"{state.trouble or 'was read'}, when last heard at {clock(f.record.received_ns)[11:]} UTC"
        holes = [h for h in state.holes if (h.until_ns or now_ns) > now_ns - SHIFT_NS]
        lost = sum((h.until_ns or now_ns) - max(h.since_ns, now_ns - SHIFT_NS) for h in holes)
        overflow = f"{state.overflows} queue overflows at the server" if state.overflows else ""
        shift = f"{len(holes)} in this shift, {age(lost)}"
        rows.append(f'<tr><td>{escape(name)}<td class="{style}">{escape(text)}<td>{shift}<td>{overflow}</tr>')
    return table(("Source", "Now", "Interruptions", ""), rows, "No source is known yet.")


def _sinks(v: View, now_ns: int) -> str:
    rows = []
    for name, d in list(v.deliver.items())[:ROWS_SHOWN]:
        if not isinstance(d, dict):
            continue
        behind, error = int(_number(d.get("behind"))), str(d.get("error") or "")
        style = "bad" if error else "warn" if behind else "good"
        delivered = int(_number(d.get("delivered_ns")))
        last = f"{age(now_ns - delivered)} ago" if delivered else "not since deliver started"
        text = error or (f"{behind:,} landing records behind" if behind else "up to date")
        unread = f"{count(d.get('unread'))} records do not read: {escape(d.get('why_unread', ''))}" if d.get("unread") else ""
        rows.append(f'<tr><td>{escape(name)}<td>{count(d.get("rows", 0))}<td>{last}<td class="{style}">{escape(text)}<td class="bad">{unread}</tr>')
    return table(("Target", "Readings", "Last write", "State", ""), rows, "deliver has not said anything yet.")


def _events(f: StreamFacts) -> str:
    recent = list(f.coverage.events)[-EVENTS_SHOWN:][::-1]
    rows = (f"<tr><td>{clock(at)}<td>{escape(kind)}<td>{escape(text)}</tr>" for at, kind, text in recent)
    return table(("When (UTC)", "", "What"), rows, "Nothing so far.")
