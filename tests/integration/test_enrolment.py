"""Enrolment by code over a real, untrusted HTTPS link, and by files; with people in between who want in."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import ssl

import pytest
from aiohttp import web
from cryptography import x509

from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from gateway import runtime as world
from gateway.enroll.client import enrol
from gateway.enroll.server import EnrolmentServer
from gateway.errors import PeerError, TrustError
from gateway.trust import certs, enrolment, keys
from gateway.trust.enrolment import Identity, Invites, install_answer, make_code, make_request

NOW = dt.datetime.now(dt.UTC)
CODE = make_code(2**127 - 12345)


class Site:
    def __init__(self, root) -> None:
        self.root = root
        self.authority = certs.create_authority(root / "ca.crt", root / "ca.key", "site", NOW)
        certs.create_server_certificate(self.authority, root / "receiver.crt", root / "receiver.key", ["receiver"], NOW)
        self.receipt = keys.public_pem(keys.create_signer(root / "receipt.key").public)
        self.box = root / "box"
        self.box.mkdir()
        self.identity = Identity(self.box / "tls.key", self.box / "tls.crt", self.box / "ca.crt", self.box / "receipt.pub", {"hall1.main": self.box / "data.key"})
        self.invites = Invites(root / "invites")
        self.wall_ns = world.real().wall_ns()

    def runtime(self):
        return dataclasses.replace(world.real(), wall_ns=lambda: self.wall_ns)

    @contextlib.asynccontextmanager
    async def serving(self):
        server = EnrolmentServer(self.runtime(), self.authority, self.invites, (self.root / "ca.crt").read_bytes(), self.receipt)
        runner, port = await server.serve("127.0.0.1", 0, self.root / "receiver.crt", self.root / "receiver.key")
        try:
            yield port
        finally:
            await runner.cleanup()


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def check_installed(site: Site) -> None:
    certificate = x509.load_pem_x509_certificate((site.box / "tls.crt").read_bytes())
    assert certs.identify_client(certificate.public_bytes(certs.serialization.Encoding.DER), NOW, frozenset()).gateway == "hall1"
    ring = keys.KeyRing([certs.load_certificate_key(site.box / "ca.crt")])
    ring.introduce((site.box / "data.statement").read_bytes(), "hall1.main")
    assert ring.knows(keys.load_signer(site.box / "data.key").key_id)
    assert (site.box / "receipt.pub").read_bytes() == site.receipt
    certs.client_context(site.box / "tls.crt", site.box / "tls.key", site.box / "ca.crt")


async def test_by_code_over_the_network(site: Site) -> None:
    request = make_request(site.identity, "hall1")
    site.invites.invite("hall1", CODE, site.wall_ns)
    stored = (site.root / "invites").read_text()
    assert CODE not in stored and CODE.replace("-", "") not in stored
    assert (site.root / "invites").stat().st_mode & 0o777 == 0o600
    async with site.serving() as port:
        answer = await enrol("127.0.0.1", port, CODE.lower().replace("-", " "), request)
        assert install_answer(site.identity, answer, request) is None
        check_installed(site)
        again = await enrol("127.0.0.1", port, CODE, request)  # the answer was lost on the way: asked once more
        install_answer(site.identity, again, request)
        other = make_request(dataclasses.replace(site.identity, tls_key=site.box / "other.key"), "hall1")
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, CODE, other)  # used


def test_by_files(site: Site) -> None:
    request = make_request(site.identity, "hall1")
    assert make_request(site.identity, "hall1") != b""  # keys stay
    answer = enrolment.answer_request(site.authority, request, (site.root / "ca.crt").read_bytes(), site.receipt, NOW)
    assert enrolment.fingerprint(request) != enrolment.fingerprint(answer)
    install_answer(site.identity, answer, request)
    check_installed(site)


async def test_wrong_codes_are_bounded_and_old_codes_dead(site: Site) -> None:
    request = make_request(site.identity, "hall1")
    site.invites.invite("hall1", CODE, site.wall_ns)
    async with site.serving() as port:
        with pytest.raises(TrustError, match="twelve"):
            await enrol("127.0.0.1", port, "123", request)
        for n in range(enrolment.CODE_ATTEMPTS_MAX):
            with pytest.raises(TrustError, match="does not accept"):
                await enrol("127.0.0.1", port, make_code(n), request)
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, CODE, request)
        site.invites.invite("hall1", CODE, site.wall_ns)
        site.wall_ns += enrolment.CODE_VALID_NS
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, CODE, request)
        site.invites = Invites(site.root / "invites")
        site.invites.invite("hall1", CODE, site.wall_ns)
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, CODE, make_request(site.identity, "hall2"))


async def test_attempts_are_counted_over_a_restart_of_the_ca(site: Site) -> None:
    request = make_request(site.identity, "hall1")
    site.invites.invite("hall1", CODE, site.wall_ns)
    for n in range(enrolment.CODE_ATTEMPTS_MAX):
        with pytest.raises(TrustError):
            Invites(site.root / "invites").redeem(request, bytes([n] * 32), site.wall_ns)
    with pytest.raises(TrustError):
        Invites(site.root / "invites").redeem(request, enrolment.request_mac(enrolment.derive_key(CODE, "hall1"), request), site.wall_ns)


async def test_who_stands_between_can_replace_neither_side(site: Site, tmp_path) -> None:
    """A real proxy that ends TLS on both sides, knows everything but the code, and tries."""
    mallory = certs.create_authority(tmp_path / "m.crt", tmp_path / "m.key", "mallory", NOW)
    certs.create_server_certificate(mallory, tmp_path / "ms.crt", tmp_path / "ms.key", ["x"], NOW)
    request = make_request(site.identity, "hall1")
    box = tmp_path / "mallory"
    box.mkdir()
    own = make_request(Identity(box / "t", box / "c", box / "a", box / "r", {"hall1.main": box / "d"}), "hall1")
    receipt = keys.public_pem(keys.create_signer(tmp_path / "mr.key").public)
    seen: list[bytes] = []

    async def forge(incoming: web.Request) -> web.Response:
        body = await incoming.read()
        seen.append(body)
        _, mac = decode_cbor(body)
        answer = enrolment.answer_request(mallory, request, (tmp_path / "m.crt").read_bytes(), receipt, NOW)
        return web.Response(body=encode_cbor([answer, mac]))

    app = web.Application()
    app.router.add_post(enrolment.PATH, forge)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ms.crt", tmp_path / "ms.key")
    listener = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await listener.start()
    try:
        with pytest.raises(TrustError, match="stands between"):
            await enrol("127.0.0.1", listener.port, CODE, request)
    finally:
        await runner.cleanup()
    site.invites.invite("hall1", CODE, site.wall_ns)
    _, mac = decode_cbor(seen[0])
    with pytest.raises(TrustError):
        site.invites.redeem(own, mac, site.wall_ns)  # the mac of the gateway's request over mallory's
    assert CODE.replace("-", "").encode() not in seen[0]


async def test_hostile_bodies_and_no_server(site: Site) -> None:
    import aiohttp

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with site.serving() as port:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            for body, expected in ((b"x", 400), (b"", 413), (b"x" * 100_000, 413), (encode_cbor([b"x", b"y"]), 400), (encode_cbor([1, 2]), 400)):
                async with session.post(f"https://127.0.0.1:{port}{enrolment.PATH}", data=body) as response:
                    assert response.status == expected, body[:10]
    with pytest.raises(PeerError):
        await enrol("127.0.0.1", port, CODE, make_request(site.identity, "hall1"))


def test_an_answer_for_something_else_is_not_installed(site: Site) -> None:
    request = make_request(site.identity, "hall1")
    ca = (site.root / "ca.crt").read_bytes()
    good = decode_cbor(enrolment.answer_request(site.authority, request, ca, site.receipt, NOW))
    other_box = dataclasses.replace(site.identity, tls_key=site.box / "t2", data_keys={"hall1.main": site.box / "d2"})
    foreign = decode_cbor(enrolment.answer_request(site.authority, make_request(other_box, "hall1"), ca, site.receipt, NOW))
    for change in ({1: bytes(32)}, {2: foreign[2]}, {3: foreign[3]}, {3: []}, {3: [b"x"]}, {2: b"x"}, {0: "x"}):
        bad = [change.get(i, x) for i, x in enumerate(good)]
        with pytest.raises((TrustError, CorruptError)):
            install_answer(site.identity, encode_cbor(bad), request)
        assert not (site.box / "tls.crt").exists()
    with pytest.raises(TrustError, match="not its own"):
        enrolment.answer_request(site.authority, make_request(dataclasses.replace(site.identity, data_keys={"hall2.x": site.box / "d3"}), "hall1"), ca, b"", NOW)
    for at in range(0, len(request), 7):
        bad_request = bytearray(request)
        bad_request[at] ^= 1
        with pytest.raises((TrustError, CorruptError)):
            answer = enrolment.answer_request(site.authority, bytes(bad_request), ca, b"", NOW)
            install_answer(site.identity, answer, request)  # a flip in the armour of a PEM changes nothing, yet it is another request
    assert hashlib.sha256(request).digest() == good[1]
