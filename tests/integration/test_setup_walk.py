"""README, "Set up a site", as a stranger types it: two gateways enrolled (by code, by files), a plant, all processes, a rotated key."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.demo.plant import NAMESPACE, PASSWORD, USER
from gateway.tagcells import Dialect
from gateway.tagfile import parse_tags, write_tags
from tests.integration.test_upload_receive import free_port

ENV = {**os.environ, "LANG": "C.UTF-8"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", *map(str, arguments)]


def ebbgate(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=90, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


@contextlib.contextmanager
def process(arguments: list[str], **more):
    child = subprocess.Popen(arguments, text=True, env=ENV, **more)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)


def until(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    place = tmp_path_factory.mktemp("plant")
    with process([sys.executable, "-m", "gateway.demo.plant", "--state", str(place)], stdout=subprocess.PIPE) as child:
        yield place, json.loads(child.stdout.readline())


def enrol_by_code(root: Path, config: Path) -> None:
    code = ebbgate("ca", "code", root / "ca", "hall1").split()[0]
    assert re.fullmatch(r"([2-9A-HJ-NP-Z]{4}-){4}[2-9A-HJ-NP-Z]{4}", code)
    port = free_port()
    with process(command("ca", "serve", root / "ca", "--listen", f"127.0.0.1:{port}", "--for", "1 min"), stdout=subprocess.PIPE) as server:
        assert "open codes: hall1" in server.stdout.readline()
        assert "installed" in ebbgate("enroll", "--config", config, "--ca", f"127.0.0.1:{port}", "--code", code)


def enrol_by_files(root: Path, config: Path) -> None:
    request = next((config.parent / "pki").glob("*.request"))
    answer = root / "carried.answer"
    told = ebbgate("ca", "sign", root / "ca", request, "--out", answer, "--yes")
    shown = json.loads(ebbgate("identity", "show", "--config", config, "--json"))
    assert shown["request"] in told  # the fingerprints that two people compare
    assert "fingerprint" in told
    ebbgate("identity", "install", answer, "--config", config, code=130)  # asks whether it is the site's CA
    ebbgate("identity", "install", answer, "--config", config, "--yes")


def set_up(root: Path) -> int:
    """CA, receiver and two gateways; return the receiver's port."""
    port = free_port()
    ebbgate("ca", "init", root / "ca", "--name", "acme")
    receiver = ("--name", "dmz", "--listen", f"127.0.0.1:{port}", "--host", "ebbgate.acme.example", "--site", "acme/ghent")
    ebbgate("init", "receiver", root / "it", *receiver, "--gateway", "hall1", "--gateway", "hall2")
    enrol_by_files(root, root / "it/receiver.toml")
    (root / "carried.answer").unlink()
    for name in ("hall1", "hall2"):
        url = ("--receiver", f"https://ebbgate.acme.example:{port}", "--address", "127.0.0.1")
        ebbgate("init", "gateway", root / name, "--id", name, "--site", "acme/ghent", *url)
        assert "not enrolled yet" in ebbgate("check", "--config", root / name / "gateway.toml", "--offline", code=1)
    enrol_by_code(root, root / "hall1/gateway.toml")
    enrol_by_files(root, root / "hall2/gateway.toml")
    return port


def connect_plant(config: Path, place: Path, ports: dict) -> None:
    """Add both sources to the file that init wrote, and the tags as a German Excel saves them."""
    secret = config.parent / "secrets/plc"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    config.write_text(
        config.read_text().replace('"1 s"                     # what is not', '"250 ms"                  # what is not')
        + f"""
[source.plc]
kind     = "opcua"
urls     = ["opc.tcp://127.0.0.1:{ports["opcua"]}"]
server_certificate = "pki/trusted/plc.der"
user     = "{USER}"
password_file = "secrets/plc"
namespaces = {{ plant = "{NAMESPACE}" }}
load     = {{ requests_per_s = 50 }}

[source.meters]
kind     = "modbus-tcp"
address  = "127.0.0.1:{ports["modbus"]}"
load     = {{ requests_per_s = 20 }}
"""
    )
    rows = parse_tags((place / "tags.csv").read_bytes(), {"plc", "meters"})
    (config.parent / "tags.csv").write_bytes(write_tags(rows, Dialect("cp1252", ";", ",")))


def received(root: Path, stream: str = "hall1.main") -> int:
    """As the receiver's status says it; asking `ebbgate ledger` every time would take a second each."""
    return json.loads((root / "it/landing/status.json").read_bytes())["streams"].get(stream, {}).get("received", 0)


def findings(config: Path, *more: str, code: int = 0) -> list[dict]:
    return json.loads(ebbgate("check", "--config", config, "--json", *more, code=code).splitlines()[-1])["findings"]


def test_a_stranger_sets_up_a_site(tmp_path, plant):
    place, ports = plant
    set_up(tmp_path)
    config, site = tmp_path / "hall1/gateway.toml", tmp_path / "it/receiver.toml"
    site.write_text(site.read_text().replace('"50 GB"', '"50 MB"').replace('"127.0.0.1:8080"', f'"127.0.0.1:{free_port()}"').replace('"60 s"', '"1 s"'))
    for path in (tmp_path / "ca/ca.key", tmp_path / "hall1/pki/data.key", tmp_path / "hall1/pki/tls.key", tmp_path / "hall1/pki/opcua.key"):
        assert path.stat().st_mode & 0o777 == 0o600, path
    connect_plant(config, place, ports)
    assert "pinned" in ebbgate("trust", "plc", "--config", config, "--yes")
    logs = (tmp_path / "it.log").open("w"), (tmp_path / "ot.log").open("w")
    with process(command("run", "site", "--config", site), stderr=logs[0]):
        until(lambda: (tmp_path / "it/landing/status.json").exists())
        found = findings(config)
        assert any("accepts this gateway" in f["what"] for f in found), found
        with process(command("run", "gateway", "--config", config), stderr=logs[1]):
            until(lambda: received(tmp_path) > 500)
        before = received(tmp_path)
        ebbgate("identity", "rotate", "--config", config)
        assert not [f for f in findings(config, "--offline") if f["level"] == "refused"]
        with process(command("run", "gateway", "--config", config), stderr=logs[1]):
            until(lambda: received(tmp_path) > before + 300)
        assert "nothing is missing" in ebbgate("ledger", "--config", site)
    assert "readings" in ebbgate("verify", tmp_path / "it/landing", "--ca", tmp_path / "ca/ca.crt")  # blocks of the old key and of the new
    assert (place / "plant-writes.jsonl").read_text() == ""
    assert list((tmp_path / "it/lake").rglob("*.parquet"))
