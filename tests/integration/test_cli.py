"""The command line as a new user meets it: set up by files, mistakes explained, a landing verified, one flipped byte named."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gateway.cli
from gateway.cli import COMMANDS
from gateway.collect.tables import encode_rows
from gateway.config import load_gateway
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


@pytest.mark.parametrize("name", ["status", "check", "fill", "collect"])
def test_help_of_a_command_starts_no_event_loop_library(name):
    """asyncio is a third of what --help would cost."""
    code = f"import sys; sys.argv = ['ebbgate', {name!r}, '--help']; import gateway.cli\ntry: gateway.cli.main()\nexcept SystemExit: pass\n"
    code += "sys.exit('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def set_up(root: Path) -> Path:
    """A CA, a receiver and a gateway, enrolled; in one process, since a command costs a second."""
    main("ca", "init", root / "ca", "--name", "acme")
    main("init", "receiver", root / "it", "--name", "dmz", "--listen", "127.0.0.1:8443", "--host", "ebbgate.acme", "--gateway", "hall1", "--ca", root / "ca")
    url = "https://ebbgate.acme:8443"
    main("init", "gateway", root / "ot", "--id", "hall1", "--site", "acme/ghent", "--receiver", url, "--address", "127.0.0.1")
    main("ca", "sign", root / "ca", root / "ot/pki/hall1.request", "--out", root / "hall1.answer", "--yes")
    main("identity", "install", root / "hall1.answer", "--config", root / "ot/gateway.toml", "--yes")
    return root / "ot" / "gateway.toml"


def main(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        gateway.cli.main([str(x) for x in arguments])
    assert ended.value.code == 0, arguments


def test_a_gateway_is_set_up_by_files_alone(tmp_path):
    config = set_up(tmp_path)
    report = json.loads(ebbgate("check", "--config", config, "--offline", "--json").splitlines()[-1])
    assert [f for f in report["findings"] if f["level"] == "refused"] == []
    shown = json.loads(ebbgate("identity", "show", "--config", config, "--json"))
    assert shown["tls_days_left"] >= 729
    listed = json.loads(ebbgate("ca", "list", tmp_path / "ca", "--json"))
    assert [(one["kind"], one["name"], one["state"]) for one in listed["issued"]] == [("receiver", "dmz", "good"), ("gateway", "hall1", "good")]
    assert listed["issued"][1]["keys"] == {"hall1.main": shown["data_key_hall1.main"]}
    assert listed["fingerprint"] == shown["ca"]
    assert "already" in ebbgate("ca", "init", tmp_path / "ca", "--name", "acme", code=3)


def test_mistakes_are_named_all_at_once_with_what_to_do(tmp_path):
    config = set_up(tmp_path)
    text = config.read_text().replace('commit   = "1 s"', 'comit = "1 s"').replace('address  = "127.0.0.1"', 'address = "receiver"')
    assert "comit" in text and '"receiver"' in text
    config.write_text(text)
    said = ebbgate("check", "--config", config, "--offline", code=2)
    assert "2 mistakes" in said
    assert "did you mean 'commit'" in said
    assert "literal IP address" in said


def test_a_key_that_others_can_read_is_refused(tmp_path):
    config = set_up(tmp_path)
    (tmp_path / "ot/pki/data.key").chmod(0o644)
    assert f"chmod 600 {tmp_path}/ot/pki/data.key" in ebbgate("check", "--config", config, "--offline", code=1)
    assert "chmod 600" in ebbgate("collect", "--config", config, code=3)
    (tmp_path / "ot/pki/data.key").chmod(0o600)
    (tmp_path / "ot/pki").chmod(0o775)
    assert f"chmod go-w {tmp_path}/ot/pki" in ebbgate("check", "--config", config, "--offline", code=1)
    (tmp_path / "ot/pki").chmod(0o755)
    (tmp_path / "it/pki/receiver.key").chmod(0o640)
    assert "chmod 600" in ebbgate("check", "--config", tmp_path / "it/receiver.toml", code=1)
    assert "chmod 600" in ebbgate("receive", "--config", tmp_path / "it/receiver.toml", code=3)


def test_an_answer_for_another_gateway_is_not_installed(tmp_path):
    set_up(tmp_path / "one")
    set_up(tmp_path / "two")
    config = tmp_path / "two/ot/gateway.toml"
    before = {path: path.read_bytes() for path in (tmp_path / "two/ot/pki").iterdir()}
    assert "answers another request" in ebbgate("identity", "install", tmp_path / "one/hall1.answer", "--config", config, "--yes", code=3)
    assert "not the answer" in ebbgate("identity", "install", tmp_path / "two/ot/pki/hall1.request", "--config", config, "--yes", code=3)
    assert "carry over" in ebbgate("ca", "sign", tmp_path / "two/ca", tmp_path / "two/hall1.answer", "--yes", code=3).lower()
    assert before == {path: path.read_bytes() for path in (tmp_path / "two/ot/pki").iterdir()}


def test_revoke_wants_to_know_what_is_still_good(tmp_path):
    config = set_up(tmp_path)
    key = json.loads(ebbgate("identity", "show", "--config", config, "--json"))["data_key_hall1.main"]
    assert "--last-good" in ebbgate("ca", "revoke", tmp_path / "ca", "hall1", code=2)
    assert "GENERATION:SEQ" in ebbgate("ca", "revoke", tmp_path / "ca", "hall1", "--last-good", "hall1.main=7:1", code=2)
    good = ("--last-good", "hall1.main=7-3fa91c02:81234", "--out", tmp_path / "it/pki/revoked")
    said = ebbgate("ca", "revoke", tmp_path / "ca", "hall1", *good)
    assert f"key {key} 7-3fa91c02 81234" in said and "certificate " in said
    assert f"key {key} 7-3fa91c02 81234" in (tmp_path / "it/pki/revoked").read_text()
    assert "revoked" in ebbgate("ca", "list", tmp_path / "ca")
    ebbgate("check", "--config", tmp_path / "it/receiver.toml", "--json")
    (tmp_path / "it/pki/revoked").write_text("key abc\n")
    assert "line 1: not an entry" in ebbgate("check", "--config", tmp_path / "it/receiver.toml", code=1)


def test_a_renamed_tag_is_refused_until_it_is_meant(tmp_path):
    config = set_up(tmp_path)
    plain = config.read_text() + '\n[source.m]\nkind = "modbus-tcp"\naddress = "127.0.0.1:502"\n'
    config.write_text(plain)
    table = tmp_path / "ot/tags.csv"
    table.write_text("id,path,source,address,type\nm.old,a/b,m,hr:0,int16\nm.kept,a/c,m,hr:1,int16\n")
    before = load_gateway(config)
    before.tags_in_force.parent.mkdir(parents=True)
    before.tags_in_force.write_bytes(encode_rows(before))  # as collect leaves it
    table.write_text("id,path,source,address,type\nm.new,a/b,m,hr:0,int16\nm.kept,a/c,m,hr:1,int16\n")
    offline = ("check", "--config", config, "--offline")
    assert 'renamed = { "m.old" = "m.new" }' in ebbgate(*offline, code=1)
    config.write_text(plain.replace("[gateway]", '[gateway]\nrenamed = { "m.old" = "m.new" }', 1))
    assert "becomes m.new" in ebbgate(*offline)
    config.write_text(plain.replace("[gateway]", '[gateway]\nretired = ["m.old"]', 1))
    assert "is retired" in ebbgate(*offline)


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
        assert hashlib.sha256((tmp_path / "plant.der").read_bytes()).hexdigest().upper() in said.replace(":", "").upper()
        assert (tmp_path / "ot/pki/trusted/plc.der").read_bytes() == (tmp_path / "plant.der").read_bytes()
        assert "float32" in ebbgate("read", "meters", "hr:2", "--type", "float32", "--config", config)
        assert (tmp_path / "plant-writes.jsonl").read_text() == ""
    finally:
        plant.terminate()
        plant.wait(20)


def test_status_takes_a_receiver_with_gateways(tmp_path):
    ebbgate("init", "receiver", tmp_path / "it", "--name", "dmz", "--listen", "127.0.0.1:18443", "--host", "x.example", "--gateway", "hall1")
    assert "receive  never ran here" in ebbgate("status", "--config", tmp_path / "it/receiver.toml", code=1)


def test_a_pipe_that_closes_is_no_finding(tmp_path):
    command = f"{sys.executable} -m gateway.cli --help | (exec 0<&-; exit 0); echo ${{PIPESTATUS[0]}}"
    code = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True).stdout.split()[-1]
    assert code in ("0", "141"), "all was written before it closed, or 128 + SIGPIPE"


def test_a_demo_of_no_time_is_refused():
    assert "range" in ebbgate("demo", "--seconds", "-5", code=2)
