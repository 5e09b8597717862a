"""The console in a real browser, over a running demo: values of a plant, holes, an outage; nothing from elsewhere; no script runs.

EBBGATE_SCREENSHOTS=docs/images keeps the pictures the README shows.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.peers import chromium

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """A demo with an outage behind it; yields the console's address."""
    chromium()
    state = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "gateway.cli", "demo", "--headless", "--seconds", "400", "--outage", "8", "--state", str(state / "s")]
    with (state / "err").open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL)
    try:
        url = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", (state / "err").read_text()), 120)[0]
        wait_for(lambda: b'"outages_s": [[' in fetch(f"{url}/api/facts"), 180)
        wait_for(lambda: all(x in fetch(url) for x in (b"process/tank1", b"press/press1", b"utilities/meter8")), 60)
        wait_for(lambda: b"nothing is missing" in fetch(f"{url}/gateway/demo.main"), 60)
        if os.environ.get("EBBGATE_SCREENSHOTS"):
            time.sleep(60)  # curves of a minute
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def wait_for(condition, seconds: float):
    for _ in range(int(seconds * 2)):
        try:
            if found := condition():
                return found
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError("it did not come")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read()


def browse(url: str, tmp_path: Path, name: str) -> str:
    """Take a picture, return the document as the browser understood it."""
    picture = tmp_path / f"{name}.png"
    flags = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000", "--virtual-time-budget=2000"]
    subprocess.run([*chromium(), *flags, f"--screenshot={picture}", url], check=True, capture_output=True, timeout=180)
    assert picture.stat().st_size > 12_000
    if os.environ.get("EBBGATE_SCREENSHOTS"):
        shutil.copy(picture, Path(os.environ["EBBGATE_SCREENSHOTS"]) / f"{name}.png")
    dumped = subprocess.run([*chromium(), *flags, "--dump-dom", url], check=True, capture_output=True, timeout=180)
    return dumped.stdout.decode()


def test_lines_now_shows_values_with_age_and_quality(console, tmp_path):
    page = browse(console, tmp_path, "lines")
    for text in ("process/tank1", "press/press1", "utilities/meter1", "Cel", "good", "<polyline"):
        assert text in page
    assert page.count("<tr>") > 100


def test_one_gateway_shows_the_outage_and_what_is_missing(console, tmp_path):
    page = browse(f"{console}/gateway/demo.main", tmp_path, "gateway")
    for text in ("1 outage of the link", "nothing is missing", "Readings received", "lake", "meters", "plc", "days"):
        assert text in page
    assert '#b3261e"' in page  # the outage is drawn


def test_the_fleet_the_calendar_a_day_and_a_search(console, tmp_path):
    assert "demo.main" in browse(f"{console}/fleet", tmp_path, "fleet")
    page = browse(f"{console}/days", tmp_path, "days")
    assert "so far everything" in page
    today = re.search(r'class="d-open"[^>]*href="(/days/demo.main/[0-9-]+)"', page) or re.search(r'href="(/days/demo.main/[0-9-]+)"[^>]*class="d-open"', page)
    assert "nothing is missing" in browse(console + today[1], tmp_path, "day")
    found = browse(f"{console}/search?q=tank1", tmp_path, "search")
    assert "process/tank1" in found or "level" in found
    assert "http-equiv" not in found  # somebody is typing
    line = browse(f"{console}/line?name=demo%2Fplant", tmp_path, "none")
    assert "demo/plant" in line


def test_nothing_comes_from_elsewhere_and_nothing_can_be_sent(console):
    for path in ("", "/fleet", "/gateway/demo.main", "/days", "/search"):
        with urllib.request.urlopen(console + path, timeout=20) as answer:
            policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "<script" not in page
        assert "style=" not in page
        assert 'method="post"' not in page.lower()
        assert not re.search(r'(src|href|action)="(https?:)?//', page)
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(console + path, method=method, data=b""), timeout=20)
            assert refused.value.code == 405


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1", "127.0.0.1:1", "localhost.attacker.example", ""])
def test_a_page_that_points_its_own_name_here_gets_nothing(console, host):
    where = urlsplit(console)
    for named, status in ((host, 421), (f"localhost:{where.port}", 200)):
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
        connection.putrequest("HEAD", "/", skip_host=True)
        connection.putheader("Host", named)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()
