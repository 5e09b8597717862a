"""An expired, a revoked and a foreign device, a receiver with the wrong name or date, a box whose clock is wrong: each says so on both
sides, collecting goes on, and once mended everything arrives once. Real uploader, real receiver, real mutual TLS."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import pytest
from cryptography import x509

from buffer.codec import decode
from buffer.reader import RingReader
from buffer.storage import PosixReadStorage, publish_file
from gateway import runtime as world
from gateway.checks import check_all
from gateway.collect import service as collect
from gateway.findings import Level
from gateway.receive import service as receive
from gateway.settings import Load, ModbusSource, OpcuaSource, TagRow
from gateway.trust import certs
from gateway.trust.revocations import certificate_line
from gateway.upload import service as upload
from tests.integration.test_upload_receive import free_port, landed, put, running, until
from tests.support import modbus_device
from tests.support.site import NOW, Site

DAY = dt.timedelta(days=1)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, free_port())


def enrol(site: Site, at: dt.datetime = NOW, days: int = certs.TLS_DAYS, authority: certs.Authority | None = None) -> None:
    """Give the gateway a certificate that begins at `at` and lives `days`."""
    public = certs._load_key(site.pki / "tls.key").public_key()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(certs.GATEWAY_URN + "hall1")])
    made = certs._leaf(authority or site.authority, public, "hall1", names, certs.ExtendedKeyUsageOID.CLIENT_AUTH, at, days)
    (site.pki / "tls.crt").write_bytes(certs._pem(made))


def said(site: Site, process: str) -> dict:
    place = site.root / {"upload": "state/upload", "receive": "landing"}[process] / "status.json"
    return json.loads(place.read_bytes()) if place.exists() else {}


async def refused_then_mended(site: Site, here: str, there: str, mend) -> None:
    """Run both; the uploader must say `here`, the receiver `there`; after mend() and a restart of upload every reading is landed once."""
    ring = site.ring()
    settings = dataclasses.replace(site.site(), revoked=site.pki / "revoked")
    put(ring, 0, 50)
    async with running(receive.run(world.real(), settings)):
        async with running(upload.run(world.real(), site.gateway())):
            await until(lambda: here in said(site, "upload").get("cause", ""))
            await until(lambda: any(there in alarm for alarm in said(site, "receive").get("alarms", [])))
            put(ring, 50, 50)  # collecting goes on
            assert said(site, "upload")["remedy"]
            assert not list((site.root / "landing").glob("hall1*"))
        mend()
        async with running(upload.run(world.real(), site.gateway())):
            await until(lambda: landed(site) == list(range(100)))
            await until(lambda: not said(site, "receive")["alarms"])


async def test_a_revoked_certificate(site: Site) -> None:
    publish_file(site.pki / "revoked", certificate_line(certs.serial(site.pki / "tls.crt")).encode())
    await refused_then_mended(site, "403", "is revoked", lambda: enrol(site))


async def test_a_certificate_past_its_grace(site: Site) -> None:
    publish_file(site.pki / "revoked", b"")
    enrol(site, NOW - 1000 * DAY, 900)
    await refused_then_mended(site, "403", "the grace of 90 days is over", lambda: enrol(site))


async def test_a_gateway_nobody_named(site: Site) -> None:
    publish_file(site.pki / "revoked", b"")
    original = site.site
    site.site = lambda: dataclasses.replace(original(), gateways=())
    ring = site.ring()
    put(ring, 0, 10)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: "403" in said(site, "upload").get("cause", ""))
        await until(lambda: any("not in receiver.toml" in alarm for alarm in said(site, "receive").get("alarms", [])))
    site.site = original
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: landed(site) == list(range(10)))


async def test_within_the_grace_an_expired_gateway_still_uploads_and_both_sides_say_so(site: Site) -> None:
    enrol(site, NOW - 800 * DAY, 790)
    ring = site.ring()
    put(ring, 0, 20)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: landed(site) == list(range(20)))
        await until(lambda: "hall1" in said(site, "receive").get("expired_certificates", {}))
        await until(lambda: "has expired" in said(site, "upload").get("alarm", ""))


async def test_a_certificate_of_another_ca(site: Site, tmp_path) -> None:
    """Under TLS 1.3 the door closes in the gateway's face; the message must say what that means."""
    other = certs.create_authority(tmp_path / "o.crt", tmp_path / "o.key", "other", NOW)
    enrol(site, authority=other)
    put(site.ring(), 0, 10)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: said(site, "upload").get("cause_kind") == "certificate_refused")
        assert "gateways_ca" in said(site, "upload")["remedy"]
    enrol(site)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: landed(site) == list(range(10)))


@pytest.mark.parametrize(
    ("begin", "days", "hosts", "told"),
    [
        (NOW - 800 * DAY, 790, ["receiver.test"], "has expired"),
        (NOW + 2 * DAY, 10, ["receiver.test"], "begins later than this box's clock"),
        (NOW, 10, ["another.test"], "another name than receiver.test"),
    ],
)
async def test_a_receiver_with_a_wrong_date_or_name_is_told_from_a_stranger(site: Site, begin, days, hosts, told: str) -> None:
    good = (site.pki / "receiver.crt").read_bytes(), (site.pki / "receiver.key").read_bytes()
    (site.pki / "receiver.key").unlink()
    certs.create_server_certificate(site.authority, site.pki / "receiver.crt", site.pki / "receiver.key", hosts, begin, days)
    put(site.ring(), 0, 10)
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: told in said(site, "upload").get("cause", ""))
        found = await check_all(site.gateway(), world.real(), contact=True)
        assert [f for f in found if f.level == Level.REFUSED and told in f.what], found
    (site.pki / "receiver.crt").write_bytes(good[0])
    (site.pki / "receiver.key").write_bytes(good[1])
    async with running(receive.run(world.real(), site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: landed(site) == list(range(10)))


async def test_a_box_whose_clock_is_before_all_certificates_uploads_all_the_same(site: Site) -> None:
    """It is the day after tomorrow, and the box believes it is today. Chain and name are checked, dates are not: the clock is evidently
    wrong. The receiver judges the gateway by its own clock."""
    enrol(site, NOW + 2 * DAY)
    (site.pki / "receiver.key").unlink()
    certs.create_server_certificate(site.authority, site.pki / "receiver.crt", site.pki / "receiver.key", ["receiver.test"], NOW + 2 * DAY)
    later = dataclasses.replace(world.real(), wall_ns=lambda: world.real().wall_ns() + 3 * 86_400 * 10**9)
    put(site.ring(), 0, 10)
    async with running(receive.run(later, site.site()), upload.run(world.real(), site.gateway())):
        await until(lambda: landed(site) == list(range(10)))
        found = await check_all(site.gateway(), world.real(), contact=True)
    assert [f.level for f in found if "before our certificate begins" in f.what] == [Level.WARNING]
    in_1970 = dataclasses.replace(world.real(), wall_ns=lambda: 86_400 * 10**9)
    found = await check_all(site.gateway(), in_1970, contact=False)
    assert [f.where for f in found if "before this release" in f.what and f.level == Level.WARNING] == ["clock"]


@pytest.mark.parametrize("state", ["expired", "not yet", "revoked", "absent"])
async def test_no_certificate_stops_collecting(site: Site, state: str) -> None:
    """Whatever became of the TLS certificate and of our OPC UA certificate, a device is read and its readings are committed."""
    if state == "absent":
        (site.pki / "tls.crt").unlink()
    elif state != "revoked":
        enrol(site, NOW - 900 * DAY if state == "expired" else NOW + 900 * DAY, 10)
    long_ago = dt.datetime(1990, 1, 1, tzinfo=dt.UTC)
    certs.create_application_certificate(site.pki / "opcua.der", site.pki / "opcua.key", "urn:x", "h", long_ago)  # ended in 2009
    async with modbus_device.running(modbus_device.Device()) as address:
        meter = ModbusSource("m", "modbus-tcp", address, load=Load(requests_per_s=50), tags=(TagRow("m.a", "a/b", "m", "hr:5", "uint16", every_ns=10**8, heartbeat_ns=10**8),))
        plc = OpcuaSource("plc", ("opc.tcp://127.0.0.1:1",), server_certificate=site.pki / "opcua.der", certificate=site.pki / "opcua.der",
                          private_key=site.pki / "opcua.key", tags=(TagRow("plc.a", "a/c", "plc", "ns=2;s=a"),))  # fmt: skip
        settings = dataclasses.replace(site.gateway(), sources=(meter, plc))
        async with running(collect.run(world.real(), settings)) as (task,):
            await until(lambda: committed(site) > 10 or task.done())
            assert not task.done(), task
        assert committed(site) > 10


def committed(site: Site) -> int:
    """How many good readings of the meter are durable."""
    place = site.root / "ring" / site.stream
    if not (place / "durable").exists():
        return 0
    reader = RingReader(PosixReadStorage(place))
    mark = reader.durable()
    count = 0
    for frame in reader.blocks(reader.inventory(), mark.generation, 0) if mark else ():
        columns = decode(frame.payload, frame.manifest.count)
        count += sum(int(v) == 5 and q == 0 for v, q, t in zip(columns.values, columns.quality, columns.tag, strict=True) if t >= 16)
    return count
