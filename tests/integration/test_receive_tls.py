"""The receiver behind real mutual TLS 1.3, asked by an independent client: who may come in, what a body may be, what is answered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import ssl

import aiohttp
import pytest
from yarl import URL

from buffer.frame import payload_digest
from buffer.manifest import ObjectType
from buffer.storage import PosixReadStorage
from gateway import runtime as world
from gateway import settings as s
from gateway.landing import LandingReader
from gateway.receive import service
from gateway.receive.app import Timing
from gateway.trust import certs, revocations
from gateway.trust.keys import KeyRing, create_signer, endorse_statement, propose_statement
from gateway.wire import request as wire
from gateway.wire.receipt import Receipt, Refusal, Verdict, parse_receipt
from gateway.wire.request import FramesTarget, Lane, ObjectTarget, format_target
from tests.support.frames import TABLE, Source, object_frame, signer

NOW = dt.datetime.now(dt.UTC)
STREAM = "hall1.main"
MISSING_IDLE = Timing(idle=0.3, pause=0.5, body=1.5)


class Plant:
    """PKI, settings and a client; the stream's data key is tests.support.frames.signer(1)."""

    def __init__(self, root) -> None:
        self.root, self.port = root, 0
        self.pki = root / "pki"
        self.pki.mkdir()
        self.ca = certs.create_authority(self.pki / "ca.crt", self.pki / "ca.key", "site", NOW)
        self.evil = certs.create_authority(self.pki / "evil.crt", self.pki / "evil.key", "evil", NOW)
        certs.create_server_certificate(self.ca, self.pki / "receiver.crt", self.pki / "receiver.key", ["receiver.test", "127.0.0.1"], NOW)
        self.client(self.ca, "hall1")
        receipt = create_signer(self.pki / "receipt.key")
        self.receipts = KeyRing()
        self.receipts.trust(receipt.public)
        self.revoked = self.pki / "revoked"
        self.revoked.write_text("# nobody yet\n")

    def client(self, authority, gateway: str, name: str = "", now: dt.datetime = NOW) -> str:
        name = name or gateway
        request = certs.make_request(self.pki / f"{name}.key", gateway)
        (self.pki / f"{name}.crt").write_bytes(certs.sign_request(authority, request, gateway, now))
        return name

    def settings(self) -> s.SiteSettings:
        return s.SiteSettings(
            name="dmz", listen=("127.0.0.1", self.port), landing=self.root / "landing", deliver=self.root / "deliver", lake=None, lake_every_ns=0,
            min_free_bytes=0, receipt_key=self.pki / "receipt.key", tls_certificate=self.pki / "receiver.crt", tls_key=self.pki / "receiver.key",
            gateways_ca=self.pki / "ca.crt", revoked=self.revoked,
            gateways=(s.GatewayPolicy("hall1", "acme", ("hall1.*",)), s.GatewayPolicy("hall2", "acme", ("hall2.*",))), sinks=(),
        )  # fmt: skip

    def context(self, name: str | None, ca: str = "ca") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.pki / f"{ca}.crt")
        if name:
            context.load_cert_chain(self.pki / f"{name}.crt", self.pki / f"{name}.key")
        return context

    def statement(self, stream: str = STREAM, seed: int = 1, authority=None) -> bytes:
        return endorse_statement(certs.authority_signer(authority or self.ca), propose_statement(signer(seed), stream))

    async def raw(self, data: bytes, name: str | None = "hall1", wait: float = 5, context: ssl.SSLContext | None = None) -> bytes:
        """Write bytes, return what comes back until the peer closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context or self.context(name))
        try:
            writer.write(data)
            async with asyncio.timeout(wait):
                return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    async def put(self, target, body: bytes, name: str | None = "hall1", **options) -> tuple[int, bytes]:
        text = target if isinstance(target, str) else format_target(target)
        connector = aiohttp.TCPConnector(ssl=self.context(name))
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=15)) as session:
            async with session.put(URL(f"https://127.0.0.1:{self.port}{text}", encoded=True), data=body, **options) as response:
                return response.status, await response.read()

    async def receipt(self, target, body: bytes, name: str = "hall1") -> Receipt:
        status, answer = await self.put(target, body, name)
        assert status == wire.OK, (status, answer)
        return parse_receipt(answer, self.receipts)

    async def objects(self, stream: str = STREAM, seed: int = 1, name: str = "hall1") -> None:
        for payload, kind in ((self.statement(stream, seed), ObjectType.KEY_STATEMENT), (TABLE, ObjectType.TAG_TABLE)):
            target = ObjectTarget(payload_digest(payload), stream)
            assert (await self.receipt(target, object_frame(payload, kind, stream, seed).wire(), name)).verdict == Verdict.STORED

    def reader(self) -> LandingReader:
        reader = LandingReader(PosixReadStorage(self.root / "landing" / STREAM))
        reader.refresh()
        return reader

    def reader_absent(self) -> bool:
        """Say whether nothing has landed."""
        return not [p for p in (self.root / "landing").iterdir() if p.is_dir() and p.name != "lock"]

    def status(self) -> dict:
        return json.loads((self.root / "landing" / "status.json").read_bytes())


@contextlib.asynccontextmanager
async def serving(plant: Plant, timing: Timing | None = None, runtime=None, monkey=None):
    import socket

    if not plant.port:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            plant.port = sock.getsockname()[1]
    task = asyncio.create_task(service.run(runtime or world.real(), plant.settings(), timing))
    try:
        async with asyncio.timeout(10):
            while not (plant.root / "landing" / "status.json").exists() or not await listens(plant.port):
                assert not task.done(), task.exception()
                await asyncio.sleep(0.02)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (plant.root / "landing" / "status.json").unlink(missing_ok=True)


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.fixture
def plant(tmp_path):
    return Plant(tmp_path)


def frames(source: Source, first: int, last: int, **options) -> FramesTarget:
    return FramesTarget(source.stream, source.generation, first, last, **options)


def wires(source: Source, first: int, last: int) -> bytes:
    return b"".join(f.wire() for f in source.blocks[first : last + 1])


# ---- what is answered ----


async def test_objects_then_blocks_then_segment_then_offer(plant: Plant) -> None:
    source = Source([2, 1, 0, 3])
    async with serving(plant):
        status, body = await plant.put(frames(source, 0, 1), wires(source, 0, 1))
        assert status == wire.MISSING_OBJECTS
        assert wire.parse_missing(body) == ((payload_digest(TABLE),), (signer().key_id,))
        assert (await plant.put(frames(source, 0, 1, chain=source.h[1]), b""))[0] == wire.NOT_HELD
        await plant.objects()
        first = await plant.receipt(frames(source, 0, 1), wires(source, 0, 1))
        assert (first.verdict, first.first, first.last, first.chain, first.number) == (Verdict.STORED, 0, 1, source.h[1], (Lane.LIVE, 1))
        assert (await plant.receipt(frames(source, 0, 1, chain=source.h[1]), b"")).verdict == Verdict.DUPLICATE
        target = frames(source, 0, 3, lane=Lane.BACKFILL, landing=first.landing)
        segment = await plant.receipt(target, source.segment(0, 3).wire())
        assert (segment.verdict, segment.since, segment.ends) == (Verdict.STORED, None, (2, 1))
        assert (await plant.receipt(target, source.segment(0, 3, b"other").wire())).verdict == Verdict.DUPLICATE
        table = ObjectTarget(payload_digest(TABLE), STREAM)
        assert (await plant.receipt(table, b"")).verdict == Verdict.DUPLICATE
        assert (await plant.put(ObjectTarget(bytes(32), STREAM), b""))[0] == wire.NOT_HELD
    reader = plant.reader()
    record = reader.records(Lane.BACKFILL, 0, 9)[0]
    assert record.new == ((3, 5),)
    assert reader.frame(record).wire() == source.segment(0, 3).wire()
    assert reader.frame(reader.records(Lane.LIVE, 1, 1)[0]).wire() == source.blocks[1].wire()
    assert bytes(reader.object_frame(payload_digest(TABLE)).payload) == TABLE


async def test_what_was_receipted_stands_after_a_restart_and_needs_no_object_again(plant: Plant) -> None:
    source = Source([2, 1, 1])
    async with serving(plant):
        await plant.objects()
        before = await plant.receipt(frames(source, 0, 1), wires(source, 0, 1))
    async with serving(plant):
        after = await plant.receipt(frames(source, 2, 2, landing=before.landing), wires(source, 2, 2))
        assert after.verdict == Verdict.STORED
        assert after.landing != before.landing
        assert after.since == before.ends, "nothing receipted lies above it"
        assert (await plant.receipt(frames(source, 0, 1, chain=source.h[1]), b"")).verdict == Verdict.DUPLICATE


async def test_a_conflict_is_kept_apart_receipted_and_alarmed(plant: Plant) -> None:
    source, other = Source([2, 1]), Source([2, 1], salt=b"another life")
    async with serving(plant):
        await plant.objects()
        await plant.receipt(frames(source, 0, 1), wires(source, 0, 1))
        receipt = await plant.receipt(frames(other, 0, 1), wires(other, 0, 1))
        assert (receipt.verdict, receipt.last) == (Verdict.CONFLICT, 1)
        await asyncio.sleep(1.2)
        assert any("conflict" in x for x in plant.status()["streams"][STREAM]["alarms"])
    kept = sorted((plant.root / "landing" / STREAM / "conflict").iterdir())
    assert [x.read_bytes() for x in kept] == [f.wire() for f in other.blocks]
    assert {seq for r in plant.reader().records(Lane.LIVE, 0, 99) for a, b in r.new for seq in range(a, b + 1)} == {0, 1, 2}


async def test_many_at_once_share_syncs_and_none_is_lost(plant: Plant) -> None:
    source = Source([1] * 40)
    async with serving(plant):
        await plant.objects()
        for start in range(0, 40, 8):
            batch = [plant.receipt(frames(source, n, n), wires(source, n, n)) for n in range(start, start + 8)]
            assert {r.verdict for r in await asyncio.gather(*batch)} == {Verdict.STORED}
    reader = plant.reader()
    assert sorted(r.first_block for r in reader.records(Lane.LIVE, 0, 99)) == list(range(40))


# ---- who may come in ----


async def refused_connection(plant: Plant, name: str | None, context: ssl.SSLContext | None = None) -> bytes:
    try:
        return await plant.raw(b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", name, context=context)
    except (OSError, ssl.SSLError) as error:
        assert not isinstance(error, TimeoutError)
        return b""


async def test_without_a_certificate_of_our_ca_nobody_is_heard(plant: Plant) -> None:
    plant.client(plant.evil, "hall1", "impostor")
    async with serving(plant):
        assert b"204" in await plant.raw(b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        assert await refused_connection(plant, None) == b""
        assert await refused_connection(plant, "impostor") == b""
        old = plant.context("hall1")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await refused_connection(plant, "hall1", old) == b""
        with pytest.raises(ssl.SSLCertVerificationError):
            await plant.raw(b"", "hall1", context=plant.context("hall1", "evil"))


async def test_a_certificate_for_no_gateway_of_ours_is_forbidden(plant: Plant) -> None:
    plant.client(plant.ca, "hall9")
    async with serving(plant):
        assert (await plant.put(wire.STATUS_PATH, b"{}", "hall9"))[0] == wire.FORBIDDEN
        assert (await plant.put(wire.STATUS_PATH, b"{}"))[0] == wire.NO_CONTENT


async def test_an_expired_certificate_sends_within_grace_and_is_shown(plant: Plant) -> None:
    source = Source([1])
    plant.client(plant.ca, "hall1", "late", NOW - dt.timedelta(days=certs.TLS_DAYS + certs.GRACE_DAYS - 1))
    plant.client(plant.ca, "hall1", "tolate", NOW - dt.timedelta(days=certs.TLS_DAYS + certs.GRACE_DAYS + 1))
    async with serving(plant):
        await plant.objects()
        assert (await plant.receipt(frames(source, 0, 0), wires(source, 0, 0), "late")).verdict == Verdict.STORED
        await asyncio.sleep(1.2)
        assert "hall1" in plant.status()["expired_certificates"]
        assert (await plant.put(frames(source, 0, 0), wires(source, 0, 0), "tolate"))[0] == wire.FORBIDDEN


async def test_a_revoked_certificate_is_forbidden_at_the_next_request(plant: Plant) -> None:
    from cryptography import x509

    serial = x509.load_pem_x509_certificate((plant.pki / "hall1.crt").read_bytes()).serial_number
    plant.revoked.write_text(revocations.certificate_line(serial))
    plant.client(plant.ca, "hall1", "fresh")
    async with serving(plant):
        assert (await plant.put(wire.STATUS_PATH, b"{}"))[0] == wire.FORBIDDEN
        assert (await plant.put(wire.STATUS_PATH, b"{}", "fresh"))[0] == wire.NO_CONTENT


async def test_an_unreadable_list_of_revocations_stops_the_start(plant: Plant) -> None:
    plant.revoked.write_text("certificate zz\n")
    with pytest.raises(Exception, match="line 1"):
        await service.run(world.real(), dataclasses.replace(plant.settings(), listen=("127.0.0.1", 0)))


# ---- whose frames ----


async def test_frames_of_another_gateways_stream_are_refused_and_nothing_is_stored(plant: Plant) -> None:
    plant.client(plant.ca, "hall2")
    source = Source([1])
    async with serving(plant):
        await plant.objects()
        receipt = await plant.receipt(frames(source, 0, 0), wires(source, 0, 0), "hall2")
        assert (receipt.verdict, receipt.reason) == (Verdict.REFUSED, Refusal.WRONG_STREAM)
        inside = frames(source, 0, 0)
        receipt = await plant.receipt(dataclasses.replace(inside, stream="hall2.main"), wires(source, 0, 0), "hall2")
        assert (receipt.verdict, receipt.reason) == (Verdict.REFUSED, Refusal.NOT_A_FRAME)
        statement = plant.statement("hall2.main", 2)
        body = object_frame(statement, ObjectType.KEY_STATEMENT, "hall2.main", 2).wire()
        await plant.receipt(ObjectTarget(payload_digest(statement), "hall2.main"), body, "hall2")
        stolen = Source([1], seed=2)  # hall2's key signs for hall1's stream
        receipt = await plant.receipt(frames(stolen, 0, 0), wires(stolen, 0, 0), "hall1")
        assert (receipt.verdict, receipt.reason) == (Verdict.REFUSED, Refusal.WRONG_STREAM)
    assert plant.reader().state.ends == (0, 0)


async def test_a_statement_of_a_foreign_ca_introduces_nobody(plant: Plant) -> None:
    source = Source([1])
    statement = plant.statement(authority=plant.evil)
    async with serving(plant):
        body = object_frame(statement, ObjectType.KEY_STATEMENT).wire()
        receipt = await plant.receipt(ObjectTarget(payload_digest(statement), STREAM), body)
        assert (receipt.verdict, receipt.reason) == (Verdict.REFUSED, Refusal.UNTRUSTED_STATEMENT)
        assert (await plant.put(frames(source, 0, 0), wires(source, 0, 0)))[0] == wire.MISSING_OBJECTS
        assert not (plant.root / "landing" / STREAM).exists()


async def test_a_revoked_key_counts_up_to_its_last_good_reading(plant: Plant) -> None:
    source = Source([2, 2])
    plant.revoked.write_text(revocations.key_line(signer().key_id))
    async with serving(plant):
        statement = plant.statement()
        body = object_frame(statement, ObjectType.KEY_STATEMENT).wire()
        assert (await plant.receipt(ObjectTarget(payload_digest(statement), STREAM), body)).verdict == Verdict.REFUSED
    plant.revoked.write_text("")
    async with serving(plant):
        await plant.objects()
    plant.revoked.write_text(revocations.key_line(signer().key_id, revocations.LastGood(source.generation, 1)))
    async with serving(plant):
        assert (await plant.receipt(frames(source, 0, 0), wires(source, 0, 0))).verdict == Verdict.STORED
        receipt = await plant.receipt(frames(source, 1, 1), wires(source, 1, 1))
        assert (receipt.verdict, receipt.reason, receipt.last) == (Verdict.REFUSED, Refusal.REVOKED_KEY, 1)


# ---- what a body may be ----


async def test_garbage_and_every_kind_of_flipped_byte_is_refused_signed_and_not_stored(plant: Plant) -> None:
    source = Source([2, 1])
    good = wires(source, 0, 0)
    async with serving(plant):
        await plant.objects()
        for body in (b"garbage", good[:-1], good + b"x", bytes(len(good)), good[40:]):
            receipt = await plant.receipt(frames(source, 0, 0), body)
            assert (receipt.verdict, receipt.reason) == (Verdict.REFUSED, Refusal.NOT_A_FRAME), body[:20]
        for at in range(0, len(good), 17):
            bad = bytearray(good)
            bad[at] ^= 1
            status, _ = await plant.put(frames(source, 0, 0), bytes(bad))
            assert status in (wire.OK, wire.MISSING_OBJECTS)  # a flipped key name is an unknown key
        prefix = await plant.receipt(frames(source, 0, 1), good + wires(source, 1, 1)[:-1] + b"\0")
        assert (prefix.verdict, prefix.last) == (Verdict.STORED, 0)
    ends = plant.reader().state.ends
    assert ends == (1, 0), "only the good frame of the prefix may be there"


async def test_frames_other_than_those_named_are_refused(plant: Plant) -> None:
    source = Source([2, 1, 1])
    async with serving(plant):
        await plant.objects()
        for target, body in (
            (frames(source, 1, 1), wires(source, 0, 0)),
            (frames(source, 0, 2), wires(source, 0, 1)),
            (frames(source, 0, 0), source.segment(0, 1).wire()),
            (frames(source, 0, 1, chain=bytes(32)), wires(source, 0, 1)),
            (dataclasses.replace(frames(source, 0, 0), generation=9), wires(source, 0, 0)),
            (frames(source, 0, 0), object_frame(TABLE, ObjectType.TAG_TABLE).wire()),
        ):
            receipt = await plant.receipt(target, body)
            assert (receipt.verdict, receipt.reason) == (Verdict.REFUSED, Refusal.NOT_A_FRAME)
    assert plant.reader().state.ends == (0, 0)


async def test_requests_outside_the_grammar_get_no_answer(plant: Plant) -> None:
    head = b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    cases = [
        (b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", b" 400 "),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b" 400 "),
        (head + b"\r\n", b" 411 "),
        (head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b" 411 "),
        (head + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", b" 415 "),
        (head + b"Content-Length: 1025\r\n\r\n" + b" " * 1025, b" 413 "),
        (head + b"Content-Length: 2\r\n\r\n[]", b" 400 "),
        (head.replace(b"/v1/status", b"/v1/../v1/status") + b"Content-Length: 2\r\n\r\n{}", b" 400 "),
        (head.replace(b"/v1/status", b"/v1/streams/hall1.main/1-00000007/0-0") + b"Content-Length: 8388609\r\n\r\n", b" 413 "),
        (head + b"X: " + b"a" * 9000 + b"\r\nContent-Length: 2\r\n\r\n{}", b" 400 "),
        (b"PUT /v1/status?" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b" 400 "),
        (head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b" 400 "),
        (head + b"Content-Length: -2\r\n\r\n{}", b" 400 "),
        (b"\x00\x01\x02 nonsense\r\n\r\n", b" 400 "),
    ]
    async with serving(plant):
        for data, expected in cases:
            answer = await plant.raw(data)
            assert expected in answer.split(b"\r\n")[0], (data[:80], answer[:80])
        assert (await plant.put(wire.STATUS_PATH, b"{}"))[0] == wire.NO_CONTENT
    assert plant.reader_absent()


async def test_slow_headers_slow_bodies_and_silence_are_cut_off(plant: Plant) -> None:
    head = b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    monkey = pytest.MonkeyPatch()
    monkey.setattr("gateway.receive.app.HANDSHAKE_SECONDS_MAX", 1)
    async with serving(plant, MISSING_IDLE):
        assert await plant.raw(b"", wait=8) == b""
        assert await plant.raw(head[:20], wait=8) == b""
        assert b" 400 " in (await plant.raw(head + b"{", wait=8)).split(b"\r\n")[0]
        reader, writer = await asyncio.open_connection("127.0.0.1", plant.port)  # no TLS at all
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        assert (await plant.put(wire.STATUS_PATH, b"{}"))[0] == wire.NO_CONTENT
    monkey.undo()


async def test_below_min_free_nothing_is_taken_and_offers_are_still_answered(plant: Plant) -> None:
    source = Source([1, 1])
    async with serving(plant):
        await plant.objects()
        await plant.receipt(frames(source, 0, 0), wires(source, 0, 0))
    full = plant.settings()
    plant.settings = lambda: dataclasses.replace(full, min_free_bytes=2**62)
    async with serving(plant):
        assert (await plant.put(frames(source, 1, 1), wires(source, 1, 1)))[0] == wire.CANNOT_STORE
        assert (await plant.receipt(frames(source, 0, 0, chain=source.h[0]), b"")).verdict == Verdict.DUPLICATE
        assert plant.status()["room"] is False


# ---- a segment over a link that lives for seconds ----


async def test_a_segment_in_pieces_with_a_broken_link_in_the_middle(plant: Plant) -> None:
    source = Source([50, 50, 50])
    data = source.segment(0, 2).wire()
    target = frames(source, 0, 2, lane=Lane.BACKFILL)
    part = lambda offset: dataclasses.replace(target, offset=offset, length=len(data))  # noqa: E731
    async with serving(plant):
        await plant.objects()
        first = await plant.receipt(part(0), data[:700])
        assert (first.verdict, first.offset) == (Verdict.PARTIAL, 700)
        text = format_target(part(700)).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", plant.port, ssl=plant.context("hall1"))
        writer.write(b"PUT " + text + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + data[700:1700])
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.close()
        await asyncio.sleep(0.3)
        held = await plant.receipt(part(5000), b"")  # how much is there?
        assert (held.verdict, held.offset) == (Verdict.PARTIAL, 1700)
        ahead = await plant.receipt(part(2000), data[2000:2100])
        assert ahead.offset == 1700
        whole = await plant.receipt(part(1600), data[1600:])
        assert (whole.verdict, whole.chain) == (Verdict.STORED, source.h[2])
        bad = bytearray(data)
        bad[-1] ^= 1
        refused = await plant.receipt(part(0), bytes(bad))
        assert (refused.verdict, refused.reason) == (Verdict.REFUSED, Refusal.NOT_A_FRAME)
        garbage = await plant.receipt(part(0), b"garbage" * 10)
        assert garbage.verdict == Verdict.REFUSED
    record = plant.reader().records(Lane.BACKFILL, 0, 9)[0]
    assert plant.reader().frame(record).wire() == data


async def test_stopping_answers_what_is_under_way(plant: Plant) -> None:
    source = Source([1] * 30)
    async with serving(plant) as task:
        await plant.objects()
        puts = [asyncio.create_task(plant.receipt(frames(source, n, n), wires(source, n, n))) for n in range(6)]
        await asyncio.sleep(0.05)
        task.cancel()
        done = await asyncio.gather(*puts, return_exceptions=True)
    held = {r.first_block for r in plant.reader().records(Lane.LIVE, 0, 99)}
    for n, one in enumerate(done):
        if isinstance(one, Receipt):
            assert n in held


async def test_caps_on_connections_and_on_requests_of_one_gateway(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.receive.app.CONNECTIONS_MAX", 3)
    monkeypatch.setattr("gateway.receive.app.GATEWAY_REQUESTS_MAX", 2)
    head = b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
    async with serving(plant):
        slow = []
        for _ in range(2):
            _, writer = await asyncio.open_connection("127.0.0.1", plant.port, ssl=plant.context("hall1"))
            writer.write(head)
            slow.append(writer)
        await asyncio.sleep(0.2)
        assert b" 429 " in await plant.raw(head + b"{}")
        _, third = await asyncio.open_connection("127.0.0.1", plant.port, ssl=plant.context("hall1"))
        slow.append(third)
        await asyncio.sleep(0.2)
        with pytest.raises((OSError, ssl.SSLError)):
            await plant.raw(head + b"{}")
            raise ConnectionError("closed without a word")
        for writer in slow:
            writer.close()
        await asyncio.sleep(0.3)
        assert b" 204 " in await plant.raw(head + b"{}")


async def test_a_gateway_is_paced_to_its_rate(plant: Plant) -> None:
    """The pauses are asked of the runtime; nothing here is timed."""
    slept: list[float] = []
    real = world.real()

    async def sleep(seconds: float) -> None:
        if seconds != service.STATUS_SECONDS:
            slept.append(seconds)
        await asyncio.sleep(min(seconds, 0.01) if seconds != service.STATUS_SECONDS else seconds)

    usual = plant.settings
    plant.settings = lambda: dataclasses.replace(usual(), gateways=(s.GatewayPolicy("hall1", "acme", ("hall1.*",), rate_bps=1_000_000),))
    source = Source([10_000] * 3)  # 320 kB of opaque payload each
    async with serving(plant, runtime=dataclasses.replace(real, sleep=sleep)):
        await plant.objects()
        assert (await plant.receipt(frames(source, 0, 2), wires(source, 0, 2))).verdict == Verdict.STORED
    assert max(slept) > 5, "a megabyte at 1 Mbit/s is eight seconds"


async def test_silence_a_branch_and_the_uploaders_own_news_are_in_the_status(plant: Plant) -> None:
    usual = plant.settings
    plant.settings = lambda: dataclasses.replace(usual(), gateways=(s.GatewayPolicy("hall1", "acme", ("hall1.*",), silence_ns=10**9),))
    old, new = Source([5]), Source([1], generation=2 << 32 | 9, predecessor=(Source([5]).generation, 3))
    async with serving(plant):
        await plant.objects()
        await plant.receipt(frames(old, 0, 0), wires(old, 0, 0))
        await plant.receipt(frames(new, 0, 0), wires(new, 0, 0))
        assert (await plant.put(wire.STATUS_PATH, b'{"backlog_bytes": 7}'))[0] == wire.NO_CONTENT
        await asyncio.sleep(2.5)
        status = plant.status()
    one = status["streams"][STREAM]
    assert one["silent"] is True
    assert any(x.startswith("branch") for x in one["alarms"])
    assert (one["received"], one["generation"], one["end"]) == (6, new.generation, 1)
    assert status["uploaders"]["hall1"]["unsigned"] == {"backlog_bytes": 7}


async def test_a_second_receiver_on_the_same_landing_does_not_start(plant: Plant) -> None:
    import subprocess
    import sys

    async with serving(plant):
        code = "import sys; from pathlib import Path; from buffer.storage import PosixStorage; PosixStorage(Path(sys.argv[1])).lock('lock/writer')"
        run = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code, str(plant.root / "landing")], capture_output=True, text=True, timeout=30
        )
        assert "another process writes here" in run.stderr


async def test_a_list_of_revocations_counts_while_running_and_a_broken_one_leaves_the_last(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography import x509

    monkeypatch.setattr("gateway.receive.service.REVOCATIONS_SECONDS", 1)
    serial = x509.load_pem_x509_certificate((plant.pki / "hall1.crt").read_bytes()).serial_number
    async with serving(plant):
        assert (await plant.put(wire.STATUS_PATH, b"{}"))[0] == wire.NO_CONTENT
        plant.revoked.write_text(revocations.certificate_line(serial))
        await asyncio.sleep(1.5)
        assert (await plant.put(wire.STATUS_PATH, b"{}"))[0] == wire.FORBIDDEN
        plant.revoked.write_text("not a list")
        await asyncio.sleep(1.5)
        assert (await plant.put(wire.STATUS_PATH, b"{}"))[0] == wire.FORBIDDEN
        assert "line 1" in plant.status()["alarms"][0]
