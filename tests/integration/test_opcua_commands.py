"""trust, browse, read, check --values as a person types them, against node-opcua with security; and beside a running collect."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from gateway.collect.locks import SourceLocks
from gateway.collect.opcua.state import parse_state
from gateway.tagarrays import expand_rows
from gateway.tagfile import parse_tags
from tests.integration.test_cli import ebbgate, set_up
from tests.support.opcua_server import OpcuaServer

pytestmark = pytest.mark.peers
NO_RECEIVER = 1  # exit code of a check that finds everything good but the receiver, which does not run here

SOURCE = """
[source.press7]
kind = "opcua"
urls = ["opc.tcp://127.0.0.1:{port}"]
security = "Basic256Sha256 SignAndEncrypt"
server_certificate = "pki/trusted/press7.der"
user = "ebbgate_ro"
password_file = "pki/press7.password"
namespaces = {{ plant = "urn:vm:NodeOPCUA-Server" }}
load = {{ requests_per_s = 50 }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpcuaServer]:
    """Two policies; one variable of each kind with its context."""
    settings = {"policies": ["Basic256Sha256", "Aes256_Sha256_RsaPss"], "modes": ["SignAndEncrypt"], "extras": {"context": True}}
    one = OpcuaServer(tmp_path_factory.mktemp("plant"), tags=3, secure=True, user="ebbgate_ro", password="geheim", **settings).start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def config(server: OpcuaServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = set_up(tmp_path_factory.mktemp("site"))
    path.write_text(path.read_text() + SOURCE.format(port=server.port))
    password = path.parent / "pki/press7.password"
    password.write_text("geheim")
    password.chmod(0o600)
    (path.parent / "tags.csv").write_text("id,path,source,address\n")
    return path


@pytest.fixture
def ready(config: Path, server: OpcuaServer) -> Path:
    """The server pinned and one tag, also where no test before this one did so."""
    pinned = config.parent / "pki/trusted/press7.der"
    if not pinned.exists():
        pinned.parent.mkdir(exist_ok=True)
        pinned.write_bytes(x509.load_pem_x509_certificate(server.certificate.read_bytes()).public_bytes(serialization.Encoding.DER))
        (config.parent / "tags.csv").write_text("id,path,source,address\nstate,press7/state,press7,plant:State\n")
    return config


def test_from_nothing_to_every_tag_live(config: Path, server: OpcuaServer) -> None:
    """The first hour: trust, browse into a table, check takes the table as it is, read one value."""
    said = ebbgate("trust", "press7", "--yes", "--config", config)
    der = x509.load_pem_x509_certificate(server.certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    assert (config.parent / "pki/trusted/press7.der").read_bytes() == der
    assert "SHA-1 " in said and "SHA-256 " in said and "valid " in said and "uri " in said
    assert "Aes256Sha256RsaPss SignAndEncrypt" in said and "login: user and password" in said
    assert "accepted the server takes our certificate" in said

    table = config.parent / "tags.csv"
    before = {p.name: p.read_bytes() for p in (config.parent / "pki").iterdir() if p.is_file()}
    dry = json.loads(ebbgate("browse", "press7", "--config", config, "--dry-run", "--json").splitlines()[0])
    assert dry["variables"] >= 15
    said = ebbgate("browse", "press7", "--config", config, "-o", table)
    assert "1 that this account cannot read" in said
    rows = {row.id: row for row in parse_tags(table.read_bytes(), {"press7"})}
    temp, state, mode = rows["press7.plant.platentemp"], rows["press7.plant.state"], rows["press7.plant.mode"]
    assert (temp.unit, temp.low, temp.high, temp.description, temp.type) == ("Cel", 0, 250, "Platen temperature", "Double")
    assert state.states == ((0, "stopped"), (1, "running"), (2, "a b c"))
    assert (mode.states, mode.type) == (((3, "manual"), (7, "auto")), "PressMode")
    assert rows["press7.plant.slow"].every_ns == 5 * 10**9
    assert (rows["press7.plant.zones"].expand, rows["press7.plant.recipe"].expand) == (4, 0), "fixed dimensions only"
    assert "0 variables; " in ebbgate("browse", "press7", "--config", config, "-o", table), "rows already there stay as they are"

    body = json.loads(ebbgate("check", "--values", "--config", config, "--json", code=NO_RECEIVER).splitlines()[-1])
    assert [one["where"] for one in body["findings"] if one["level"] == "refused"] == ["receiver 127.0.0.1"]
    values = {one["id"]: one for one in body["values"]}
    assert set(values) == {row.id for row in expand_rows(rows.values())}
    assert [values[f"press7.plant.zones.{k}"]["quality"] for k in range(4)] == ["Good"] * 4
    assert (values["press7.plant.platentemp"]["value"], values["press7.plant.platentemp"]["quality"]) == ("181.5", "Good")
    assert values["press7.plant.slow"]["keeps_s"] > 5
    assert any("this account could write" in one["what"] for one in body["findings"])
    shown = json.loads(ebbgate("read", "press7", "plant:Platen.Temp", "--config", config, "--json"))
    assert (shown["value"], shown["type"], shown["quality_text"]) == ("181.5", "Double", "Good")
    assert any("this server keeps" in one["what"] for one in body["findings"])
    assert {p.name: p.read_bytes() for p in (config.parent / "pki").iterdir() if p.is_file()} == before

    state_file = parse_state((config.parent / "state/collect/press7.json").read_bytes()) if (config.parent / "state").exists() else None
    if state_file is not None:
        assert state_file.session_gone, "first contact leaves no session behind"


def test_a_server_that_does_not_know_us_is_told_apart_and_our_fingerprint_shown(config: Path, tmp_path: Path) -> None:
    strict = OpcuaServer(tmp_path, tags=1, secure=True, accept=False).start()
    head = config.read_text().rpartition("\n[source.press7]")[0]
    other = config.with_name("strict.toml")
    other.write_text(head + SOURCE.format(port=strict.port).replace("trusted/press7.der", "trusted/strict.der"))
    try:
        said = ebbgate("trust", "press7", "--yes", "--config", other, code=1)
        ours = x509.load_der_x509_certificate((config.parent / "pki/opcua.der").read_bytes())
        sha1 = ours.fingerprint(hashes.SHA1()).hex(":").upper()  # noqa: S303 -- what servers show
        assert "REFUSED" in said and sha1 in said
        assert all(menu in said for menu in ("TIA Portal", "Kepware", "Ignition", "any other"))
        said = ebbgate("check", "--config", other, code=1)
        assert "refuses our certificate" in said and "ebbgate trust press7" in said
    finally:
        strict.stop()


def test_a_changed_certificate_is_refused_with_both_fingerprints(ready: Path) -> None:
    pinned = ready.parent / "pki/trusted/press7.der"
    good = pinned.read_bytes()
    other = (ready.parent / "pki/opcua.der").read_bytes()
    pinned.write_bytes(other)
    try:
        said = ebbgate("check", "--config", ready, code=1)
        for der in (good, other):
            digest = hashlib.sha256(der).hexdigest().upper()
            assert ":".join(digest[i : i + 2] for i in range(0, 64, 2)) in said
        assert "ebbgate trust press7" in said
        said = ebbgate("trust", "press7", "--config", ready, "--json")
        assert json.loads(said.splitlines()[-1])["pinned"] is False
        assert pinned.read_bytes() == other, "nothing is pinned unless a person says so"
    finally:
        pinned.write_bytes(good)


def test_weak_security_needs_a_reason(config: Path) -> None:
    weak = config.with_name("weak.toml")
    head, _, table = config.read_text().rpartition("\n[source.press7]")
    head += "\n[source.press7]"
    for policy in ("None", "Basic256 SignAndEncrypt", "Basic128Rsa15 Sign"):
        weak.write_text(head + table.replace("Basic256Sha256 SignAndEncrypt", policy))
        assert "security_waiver" in ebbgate("check", "--config", weak, "--offline", code=2)
    weak.write_text(head + table.replace('"Basic256Sha256 SignAndEncrypt"', '"None"\nsecurity_waiver = "firmware 1.8, replaced in May"'))
    assert "firmware 1.8, replaced in May" in ebbgate("check", "--config", weak, "--offline")


def test_mistakes_on_the_command_line(ready: Path) -> None:
    assert "Sources here: press7" in ebbgate("read", "press8", "ns=1;s=x", "--config", ready, code=2)
    assert "are for Modbus" in ebbgate("read", "press7", "ns=1;s=x", "--type", "float32", "--config", ready, code=2)
    assert "no namespace of that name" in ebbgate("read", "press7", "nsu=urn:nowhere;s=x", "--config", ready, code=2)
    assert "BadNodeIdUnknown" in ebbgate("read", "press7", "plant:Nowhere", "--config", ready)


def test_a_source_that_somebody_reads_is_not_asked_twice(ready: Path) -> None:
    from gateway.config import load_gateway

    directory = load_gateway(ready).state / "collect"
    locks = SourceLocks(directory, ["press7"])
    assert locks.take("press7")
    try:
        assert "ebbgate pause press7" in ebbgate("read", "press7", "plant:State", "--config", ready, code=3)
        assert "not asked" in ebbgate("check", "--config", ready, code=NO_RECEIVER)
    finally:
        locks.release("press7")
    ebbgate("read", "press7", "plant:State", "--config", ready)


def test_beside_a_running_collect(ready: Path) -> None:
    """collect holds its sources; a pause lets a person in; collect goes on by itself with what was asked counted."""
    with subprocess.Popen([sys.executable, "-m", "gateway.cli", "collect", "--config", str(ready)], stderr=subprocess.DEVNULL) as collect:
        try:
            wait_for(ready, "up")
            assert "ebbgate pause press7" in ebbgate("read", "press7", "plant:State", "--config", ready, code=3)
            assert "collect says it is up" in ebbgate("check", "--config", ready, code=NO_RECEIVER)
            ebbgate("pause", "press7", "--config", ready)
            assert json.loads(ebbgate("read", "press7", "plant:State", "--config", ready, "--json"))["value"] == "1"
            assert wait_for(ready, "paused")
            ebbgate("resume", "press7", "--config", ready)
            assert wait_for(ready, "up")
        finally:
            os.kill(collect.pid, signal.SIGTERM)
            collect.wait(30)


def wait_for(config: Path, state: str) -> bool:
    path = next(config.parent.rglob("status.json"), None)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = path or next(config.parent.rglob("status.json"), None)
        if path is not None and json.loads(path.read_bytes())["sources"].get("press7", {}).get("state") == state:
            return True
        time.sleep(0.2)
    raise AssertionError(f"never {state}")
