"""Facts as the pages of gateways and the API take them. Says nothing that is not in the landing, a status file or the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buffer.manifest import format_generation
from gateway.console.pages.gateways import View

if TYPE_CHECKING:
    from gateway.console.facts import Facts


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def views(facts: Facts) -> list[View]:
    """Return one view per stream, and one per configured gateway without a stream."""
    receive, deliver = _dict(facts.receive.get("streams")), _dict(facts.deliver.get("streams"))
    uploaders, ends = _dict(facts.receive.get("uploaders")), _dict(facts.receive.get("certificates"))
    alarms = tuple(str(a)[:300] for a in facts.receive.get("alarms", []) if a) if isinstance(facts.receive.get("alarms"), list) else ()
    if facts.receive.get("room") is False:
        alarms += ("the receiver's disk is below min_free: nothing is taken, the gateways wait",)
    out, heard = [], set()
    for stream, follower in facts.streams.items():
        gateway = next((g.id for g in facts.settings.gateways if stream.startswith(g.id + ".")), stream.partition(".")[0])
        heard.add(gateway)
        said = _dict(_dict(uploaders.get(gateway)).get("unsigned"))
        end = ends.get(gateway)
        out.append(
            View(stream, follower.facts, _dict(receive.get(stream)), _dict(deliver.get(stream)), said, end if isinstance(end, int) else 0, alarms)
        )
    out += [View(g.id, None, site_alarms=alarms) for g in facts.settings.gateways if g.id not in heard]
    return out


def as_json(facts: Facts, now_ns: int) -> dict[str, Any]:
    """Return what the pages show, for scripts. `uploader` is unsigned: what the uploader says of itself."""
    streams: dict[str, Any] = {}
    for v in views(facts):
        f = v.facts
        if f is None:
            continue
        state, one = (f.record.state if f.record else None), f.account
        streams[v.stream] = {
            "newest_received_ns": f.record.received_ns if f.record else None,
            "tags": len(f.newest),
            "outages_s": [list(x) for x in f.late][-200:],
            "generation": format_generation(state.generation) if state else "",
            "low": list(state.low) if state else None,
            "end": state.end if state else None,
            "reported": one.reported if one else 0,
            "received": one.received if one else 0,
            "missing": [
                {"generation": format_generation(m.generation), "reason": m.reason, "readings": m.readings} for m in (one.missing if one else ())
            ],
            "findings": list(one.findings) if one else [],
            "open_gaps": [[x.id, x.source, x.from_ns] for x in state.open_gaps] if state else [],
            "sources": {s.name: s.trouble for s in f.coverage.sources.values()},
            "looking_back": f.looking_back,
            "alarms": v.alarms(now_ns),
            "receive": v.receive,
            "deliver": v.deliver,
            "uploader": v.uploader,
        }
    return {"time_ns": now_ns, "site": facts.settings.name, "streams": streams}
