"""Pages of the console without a browser: hostile text, 10,000 tags, months of landing, an old value never in normal ink."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from buffer.types import Flag
from gateway.console.facts import StreamFacts
from gateway.console.pages import days, gateways, html, lines
from gateway.console.readings import Newest
from gateway.console.service import _only_loopback
from gateway.console.trend import POINTS, Trend
from gateway.coverage import Coverage
from gateway.errors import ConfigError
from tests.unit.test_completeness import DAY, record

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e\ud800'
NOW = 20_000 * DAY + 3600 * 10**9


def facts(*newest: Newest, heard_ns: int = NOW) -> StreamFacts:
    one = StreamFacts("a.main", record=record(1, 0, 0, 1, heard_ns))
    one.newest = {n.tag: n for n in newest}
    return one


def tag(name: str, **more) -> Newest:
    return Newest(**{"tag": name, "path": f"hall/{name}", "unit": "Cel", "ts_ns": NOW - 10**9, "value": "21.5", "quality": 0, "flags": 0} | more)


def test_text_from_a_plant_is_hostile_until_encoded():
    one = facts(Newest("x", HOSTILE, HOSTILE, NOW, HOSTILE, 0, 0, HOSTILE))
    one.sources = (HOSTILE,)
    one.coverage.take(1, NOW, '{"source": "s", "reason": "<script>alert(2)</script>"}')
    one.coverage.take(8, NOW, '{"event": "<script>alert(3)</script>"}')
    view = gateways.View("a.main", one, {"alarms": [HOSTILE]}, {HOSTILE: {"error": HOSTILE, "rows": HOSTILE}}, {"alarm": HOSTILE, "drain_s": HOSTILE})
    made = [
        lines.lines_now([one], NOW), lines.one_line([one], HOSTILE, 1, NOW), lines.search([one], HOSTILE, 1, NOW), gateways.fleet([view], NOW),
        gateways.one_gateway(view, NOW), days.calendar([one], NOW),
    ]  # fmt: skip
    for page in made:
        page.encode()
        assert "<script" not in page
        assert "<img" not in page
        assert not set("\x1b\u202e\ud800") & set(page)


def test_what_an_uploader_says_is_of_any_type():
    for said in ({"backlog_readings": "many", "drain_s": []}, {"backlog_readings": True, "drain_s": None}, {"drain_s": 1e99}, {"drain_s": -5}):
        assert "Waiting on the gateway" in gateways.one_gateway(gateways.View("a.main", facts(), uploader=said), NOW)


def test_ten_thousand_tags_give_bounded_pages_and_every_tag_is_found():
    one = facts(*(tag(f"t{i}", path=f"hall{i % 50}/t{i}") for i in range(10_000)))
    index = lines.lines_now([one], NOW)
    assert len(index) < 100_000
    assert index.count("<tr>") == 51
    assert len(re.findall(r'title="t\d+"', lines.one_line([one], "hall7", 1, NOW))) == 200
    found = lines.search([one], "t1", 2, NOW)
    assert found.count("<tr>") == lines.ROWS_MAX + 1
    assert 'title="t7777"' in lines.search([one], "/t7777", 1, NOW)


def test_an_old_value_never_stands_in_normal_ink():
    good = tag("a")
    assert lines.verdict(facts(good), good, NOW) == ("good", "good", False)
    silent = facts(good, heard_ns=NOW - 60 * 10**9)
    assert lines.verdict(silent, good, NOW)[2]
    assert "nothing has come since" in lines.lines_now([silent], NOW)
    down = facts(tag("a", source="press7"))
    down.coverage.take(1, NOW, '{"source": "press7", "reason": "connection refused"}')
    assert lines.verdict(down, down.newest["a"], NOW) == ("press7: connection refused", "bad", True)
    stopped = tag("a", flags=int(Flag.MARKER), quality=0x8031_0000, value="")
    assert lines.verdict(facts(stopped), stopped, NOW) == ("source is not reachable", "bad", True)
    bad = tag("a", quality=0x808C_0000)
    assert lines.verdict(facts(bad), bad, NOW) == ("sensor failure", "bad", True)
    never = tag("a", ts_ns=0)
    assert lines.verdict(facts(never), never, NOW)[2]


def test_a_gateway_in_trouble_stands_first_and_one_never_heard_is_there():
    good, silent = facts(), facts(heard_ns=NOW - 3600 * 10**9)
    good.stream, silent.stream = "a.main", "z.main"
    page = gateways.fleet([gateways.View("a.main", good), gateways.View("m", None), gateways.View("z.main", silent)], NOW)
    assert page.index("z.main") < page.index("m<td class=bad>never") < page.index("a.main")
    expiring = gateways.View("a.main", good, certificate_ns=NOW + 5 * DAY)
    assert "its certificate ends in 5 d" in gateways.fleet([expiring], NOW)


def test_a_trend_is_bounded_and_a_hole_is_a_hole():
    trend = Trend()
    for i in range(100_000):
        trend.add(i * 10**9, float("nan") if i % 5000 == 4999 else float(i))
    points = trend.points()
    assert len(points) <= POINTS
    assert points[-1][0] > 99_000 * 10**9 - 8 * 3600 * 10**9
    drawn = html.curve([(0, 1.0), (1, 2.0), (2, float("nan")), (3, 1.0), (4, float("inf"))], 0, 4, (100, 20))
    assert drawn.count("<polyline") == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "127.attacker.example", "localhost.attacker.example", ""])  # noqa: S104 -- to be refused
def test_only_the_loopback_is_listened_on(host):
    with pytest.raises(ConfigError):
        _only_loopback(host)


def test_the_loopback_is_good():
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        _only_loopback(host)


def test_no_page_names_a_style_that_does_not_exist():
    used = set()
    for path in Path(html.__file__).parent.glob("*.py"):
        used |= set(re.findall(r"class=\"?(d-[a-z]+|lane|grid|cards|card|alarm|note|old|here)\b", path.read_text(encoding="utf-8")))
    assert used
    assert all(f".{name}" in html.STYLE for name in used)


def test_coverage_is_bounded():
    coverage = Coverage()
    for i in range(2_000):
        coverage.take(1, i, f'{{"source": "s{i}", "reason": "x"}}')
    assert len(coverage.sources) == 1_000
    for i in range(3_000):
        coverage.take(1 + i % 2, 10**6 + i, '{"source": "s1"}')
    assert len(coverage.sources["s1"].holes) == 500


def test_of_a_silent_gateway_nothing_is_called_good_that_nobody_knows():
    heard = NOW - 600 * 10**9
    silent = facts(heard_ns=heard)
    silent.sources = ("plc",)
    silent.coverage.take(2, heard, '{"source": "plc"}')
    silent.days.take(silent.record)
    view = gateways.View("a.main", silent, uploader={"backlog_readings": 0, "drain_s": 0})
    page, row = gateways.one_gateway(view, NOW), gateways.fleet([view], NOW)
    assert "was read, when last heard at" in page
    assert "nothing is missing of what was reported" in page
    assert "nothing was reported since" in page
    assert page.count("<title>not reported yet</title>") == 1, "the line of a source ends where it was last heard of"
    assert page.count("<title>nothing known</title>") == 2, "and begins with the first record"
    assert ">is read<" not in page
    assert "nothing waits" not in page
    assert "unknown<td>unknown" in row
    view.facts.record = record(1, 0, 0, 1, NOW)
    page = gateways.one_gateway(view, NOW)
    assert ">is read<" in page
    assert "nothing is missing</p>" in page
    assert "nothing waits" in page


def test_a_site_where_nothing_has_landed_says_so():
    assert "Nothing has landed yet" in lines.lines_now([], NOW)
    assert "Nothing has landed yet" in days.calendar([], NOW)
