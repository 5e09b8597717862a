"""The console in a real browser, over a running demo: values of a plant, holes, an outage; nothing from elsewhere; no script runs.

EBBGATE_SCREENSHOTS=docs/images keeps the pictures the README shows.
"""

from __future__ import annotations

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

import pytest

from tests.support.peers import chromium

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """A demo with an outage behind it; yields the console's address."""
    chromium()
    state = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "gateway.cli", "demo", "--headless", "--seconds", "240", "--outage", "7", "--state", str(state / "s")]
    with (state / "err").open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL)
    try:
        url = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", (state / "err").read_text()), 60)[0]
        wait_for(lambda: b'"outages": [[' in fetch(f"{url}/api/facts"), 180)
        wait_for(lambda: all(x in fetch(url) for x in (b"process/tank1", b"press/press1", b"utilities/meter8")), 60)
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
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def browse(url: str, tmp_path: Path, name: str) -> str:
    """Take a picture, return the document as the browser understood it."""
    picture = tmp_path / f"{name}.png"
    flags = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900", "--virtual-time-budget=2000"]
    subprocess.run([*chromium(), *flags, f"--screenshot={picture}", url], check=True, capture_output=True, timeout=180)
    assert picture.stat().st_size > 20_000
    if os.environ.get("EBBGATE_SCREENSHOTS"):
        shutil.copy(picture, Path(os.environ["EBBGATE_SCREENSHOTS"]) / f"{name}.png")
    dumped = subprocess.run([*chromium(), *flags, "--dump-dom", url], check=True, capture_output=True, timeout=180)
    return dumped.stdout.decode()


def test_lines_now_shows_values_with_age_and_quality(console, tmp_path):
    page = browse(console, tmp_path, "lines")
    for text in ("process/tank1", "press/press1", "utilities/meter1", "Cel", "good"):
        assert text in page
    assert page.count("<tr>") > 100


def test_one_gateway_shows_the_outage_and_what_is_missing(console, tmp_path):
    page = browse(f"{console}/gateway/demo.main", tmp_path, "gateway")
    assert "outage" in page
    assert "nothing is missing" in page
    assert "Readings received" in page


def test_nothing_comes_from_elsewhere_and_nothing_can_be_sent(console):
    with urllib.request.urlopen(console, timeout=10) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'none'" in policy
    assert "<script" not in page
    assert "<form" not in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(console, method=method, data=b""), timeout=10)
        assert refused.value.code == 405


def test_text_from_a_plant_is_hostile_until_encoded():
    from gateway.console.facts import Newest, StreamFacts
    from gateway.console.pages import lines_now

    facts = StreamFacts("a.main")
    facts.newest["x"] = Newest("x", 'p/"><script>alert(1)</script>', "<b>", 0, "</td><img src=x onerror=alert(1)>\x1b[2J", 0, 0)
    page = lines_now([facts], 10**9)
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
