"""The command line as a new user meets it: set up by files, mistakes explained, a landing verified, one flipped byte named."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import COMMANDS
from tests.integration.test_deliver import filled
from tests.integration.test_upload_receive import free_port
from tests.support.site import Site


def ebbgate(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "gateway.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name):
    assert "Usage" in ebbgate(name, "--help")


def test_help_imports_no_command():
    code = "import sys; sys.argv = ['ebbgate', '--help']; import gateway.cli, click\ntry: gateway.cli.main()\nexcept SystemExit: pass\n"
    code += "bad = {'numpy', 'asyncua', 'aiohttp', 'pyarrow', 'duckdb', 'pydantic'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def set_up(root: Path) -> Path:
    ebbgate("ca", "init", root / "ca", "--name", "acme")
    ebbgate("init", "receiver", root / "it", "--name", "dmz", "--listen", "127.0.0.1:8443", "--host", "ebbgate.acme", "--gateway", "hall1", "--ca", root / "ca")
    url = "https://ebbgate.acme:8443"
    ebbgate("init", "gateway", root / "ot", "--id", "hall1", "--site", "acme/ghent", "--receiver", url, "--address", "127.0.0.1")
    request, answer = root / "ot/pki/hall1.request", root / "hall1.answer"
    ebbgate("ca", "sign", root / "ca", request, "--receipt-key", root / "it/pki/receipt.pub", "--out", answer, "--yes")
    ebbgate("identity", "install", answer, "--directory", root / "ot")
    return root / "ot" / "gateway.toml"


def test_a_gateway_is_set_up_by_files_alone(tmp_path):
    config = set_up(tmp_path)
    report = json.loads(ebbgate("check", "--config", config, "--offline", "--json").splitlines()[-1])
    assert [f for f in report["findings"] if f["level"] == "refused"] == []
    assert "data key" in ebbgate("identity", "show", "--directory", tmp_path / "ot")
    assert "already" in ebbgate("ca", "init", tmp_path / "ca", "--name", "acme", code=3)


def test_mistakes_are_named_all_at_once_with_what_to_do(tmp_path):
    config = set_up(tmp_path)
    text = config.read_text().replace('commit   = "1 s"', 'comit = "1 s"').replace('address  = "127.0.0.1"', 'address = "receiver"')
    config.write_text(text)
    said = ebbgate("check", "--config", config, "--offline", code=2)
    assert "2 mistakes" in said
    assert "did you mean 'commit'" in said
    assert "literal IP address" in said


def test_a_key_that_others_can_read_is_refused(tmp_path):
    config = set_up(tmp_path)
    (tmp_path / "ot/pki/data.key").chmod(0o644)
    assert "chmod 600" in ebbgate("check", "--config", config, "--offline", code=1)


def test_an_answer_for_another_gateway_is_not_installed(tmp_path):
    set_up(tmp_path / "one")
    set_up(tmp_path / "two")
    assert "another data key" in ebbgate("identity", "install", tmp_path / "one/hall1.answer", "--directory", tmp_path / "two/ot", code=3)


def test_a_copied_landing_is_verified_with_public_keys_alone_and_a_flipped_byte_is_named(tmp_path):
    site = Site(tmp_path / "site", free_port())
    asyncio.run(filled(site))
    copy = tmp_path / "copy"
    shutil.copytree(site.root / "landing", copy)
    said = ebbgate("verify", copy, "--ca", site.pki / "ca.crt")
    assert "60 readings" in said
    files = sorted(p for p in (copy / site.stream).rglob("*") if p.is_file() and p.stat().st_size)
    assert {p.relative_to(copy / site.stream).parts[0] for p in files} >= {"durable", "index", "live", "objects", "segments"}
    from gateway.proof import verify_landing
    from gateway.trust.certs import load_certificate_key
    from gateway.trust.keys import KeyRing

    for path in files:
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            proof = verify_landing(copy, KeyRing([load_certificate_key(site.pki / "ca.crt")]))
            assert proof.findings, f"{path.name}: byte {at} of {len(whole)} was flipped and nobody noticed"
        path.write_bytes(whole)
    ebbgate("verify", copy, "--key", site.pki / "data.pub")


def test_pause_and_resume_are_files_of_people(tmp_path):
    config = set_up(tmp_path)
    config.write_text(config.read_text() + '\n[source.m]\nkind = "modbus-tcp"\naddress = "127.0.0.1:502"\n')
    ebbgate("pause", "m", "--config", config, "--reason", "maintenance")
    assert "maintenance" in (tmp_path / "ot/state/control/pause/m").read_text()
    ebbgate("resume", "m", "--config", config)
    assert "no source" in ebbgate("pause", "x", "--config", config, code=2)


def test_trust_shows_and_pins_the_certificate_of_the_server_and_read_shows_a_register(tmp_path):
    import hashlib

    config = set_up(tmp_path)
    plant = subprocess.Popen([sys.executable, "-m", "gateway.demo.plant", "--state", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        ports = json.loads(plant.stdout.readline())
        sources = f'\n[source.plc]\nkind = "opcua"\nurls = ["opc.tcp://127.0.0.1:{ports["opcua"]}"]\n'
        sources += f'\n[source.meters]\nkind = "modbus-tcp"\naddress = "127.0.0.1:{ports["modbus"]}"\n'
        config.write_text(config.read_text() + sources)
        said = ebbgate("trust", "plc", "--config", config, "--yes")
        assert hashlib.sha256((tmp_path / "plant.der").read_bytes()).hexdigest() in said
        assert (tmp_path / "ot/pki/trusted/plc.der").read_bytes() == (tmp_path / "plant.der").read_bytes()
        assert "float32" in ebbgate("read", "meters", "hr:2", "--type", "float32", "--config", config)
        assert (tmp_path / "plant-writes.jsonl").read_text() == ""
    finally:
        plant.terminate()
        plant.wait(20)
