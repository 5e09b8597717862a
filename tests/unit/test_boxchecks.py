"""What `check` says of disks, clocks, certificates and secrets."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

import pytest

from gateway import boxchecks
from gateway.findings import Level
from gateway.settings import AlarmSettings, OpcuaSource, SinkSettings
from gateway.trust import certs
from tests.support.site import NOW, Site

MOUNTS = """overlay / overlay rw 0 0
/dev/sda1 /var/lib ext4 rw 0 0
tmpfs /var/lib/ram tmpfs rw 0 0
nas:/x /var/lib/nas nfs4 rw 0 0
//pc/y /mnt/with\\040blank cifs rw 0 0
sshfs /mnt/fuse fuse.sshfs rw 0 0
/dev/sdb1 /var/lib/ebbgate ext4 rw 0 0
tmpfs /var/lib/ebbgate tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "refused"),
    [
        ("/var/lib/x", "ext4", False),
        ("/var/lib/ram/ring", "tmpfs", True),
        ("/var/lib/ramen", "ext4", False),
        ("/srv", "overlay", True),
        ("/var/lib/nas/ring", "nfs4", True),
        ("/mnt/with blank/ring", "cifs", True),
        ("/mnt/fuse", "fuse.sshfs", True),
        ("/var/lib/ebbgate/ring", "tmpfs", True),  # mounted over
    ],
)
def test_file_systems_that_forget_or_lie_are_refused(path: str, kind: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = boxchecks.file_system(Path(path), MOUNTS)
    assert found[1] == kind
    monkeypatch.setattr(boxchecks, "file_system", lambda _: found)
    (finding,) = boxchecks._disk(Path(path), "the ring")
    assert (finding.level == Level.REFUSED) == refused
    assert bool(finding.remedy) == refused


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, 1)
    (site.pki / "data.statement").write_bytes(site.statement)
    return site


def said(site: Site, now: dt.datetime = NOW, **changes) -> dict[str, Level]:
    settings = dataclasses.replace(site.gateway(), **changes)
    return {f"{f.where}: {f.what} {f.remedy}": f.level for f in boxchecks.gateway_findings(settings, now)}


def level(found: dict[str, Level], part: str) -> Level | None:
    return next((level for text, level in found.items() if part in text), None)


def test_a_good_box_has_nothing_to_mend(site: Site) -> None:
    assert Level.REFUSED not in said(site).values()


def test_certificate_lives(site: Site) -> None:
    day = dt.timedelta(days=1)
    assert level(said(site, NOW + 600 * day), "good for 1") == Level.INFO
    assert level(said(site, NOW + 690 * day), "expires in ") == Level.WARNING
    assert level(said(site, NOW + 690 * day), "ebbgate identity renew") == Level.WARNING
    assert level(said(site, NOW + 800 * day), "collecting always does") == Level.REFUSED


def test_keys_that_do_not_belong_together(site: Site, tmp_path) -> None:
    other = Site(tmp_path / "other", 1)
    (site.pki / "data.statement").write_bytes(other.statement)
    assert level(said(site), "data.statement") == Level.REFUSED
    (site.pki / "data.statement").unlink()
    assert level(said(site), "no statement introduces") == Level.REFUSED
    (site.pki / "tls.crt").write_bytes((other.pki / "tls.crt").read_bytes())
    assert level(said(site), "tls.crt") == Level.REFUSED
    (site.pki / "tls.crt").write_bytes(b"junk")
    assert level(said(site), "tls.crt") == Level.REFUSED
    (site.pki / "tls.crt").unlink()
    assert level(said(site), "not enrolled yet: collect runs") == Level.REFUSED


def test_secrets_of_sources_and_sinks(site: Site, tmp_path) -> None:
    certs.create_application_certificate(tmp_path / "o.der", tmp_path / "o.key", "urn:x", "h", NOW)
    certs.create_application_certificate(tmp_path / "p.der", tmp_path / "p.key", "urn:x", "h", NOW)
    password = tmp_path / "password"
    password.write_text("x")
    password.chmod(0o644)
    good = OpcuaSource("plc", ("opc.tcp://127.0.0.1:1",), server_certificate=tmp_path / "o.der", certificate=tmp_path / "o.der",
                       private_key=tmp_path / "o.key", password_file=password)  # fmt: skip
    assert level(said(site, sources=(good,)), f"chmod 600 {password}") == Level.REFUSED
    password.chmod(0o600)
    assert Level.REFUSED not in said(site, sources=(good,)).values()
    mixed = dataclasses.replace(good, private_key=tmp_path / "p.key")
    assert level(said(site, sources=(mixed,)), "is not for the key") == Level.REFUSED
    absent = dataclasses.replace(good, server_certificate=tmp_path / "none.der")
    assert level(said(site, sources=(absent,)), "ebbgate trust plc") == Level.REFUSED
    assert level(said(site, NOW + dt.timedelta(days=21 * 365), sources=(good,)), "servers may refuse it") == Level.WARNING
    dsn = tmp_path / "dsn"
    dsn.write_text("host=x password=y")
    dsn.chmod(0o640)
    settings = dataclasses.replace(site.site(), sinks=(SinkSettings("h", "postgres", dsn),), alarm=AlarmSettings(), console_users="local")
    found = {f"{f.where}: {f.what} {f.remedy}": f.level for f in boxchecks.site_findings(settings, NOW)}
    assert level(found, f"chmod 600 {dsn}") == Level.REFUSED
    assert level(found, "sends no alarms yet") == Level.WARNING
    assert level(found, "asks for no login yet") == Level.WARNING


def test_room(site: Site) -> None:
    small = dataclasses.replace(site.gateway().ring, max_bytes=10**18)
    assert level(said(site, ring=small), "the file system has room for") == Level.WARNING
    settings = dataclasses.replace(site.site(), min_free_bytes=10**18)
    assert any("every gateway is told to wait" in f.what for f in boxchecks.site_findings(settings, NOW))
