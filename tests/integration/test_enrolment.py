"""Enrolment by code over real TLS and by files; with people in between who want in, wrong codes, and a stolen code."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import ssl

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509

from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from gateway import runtime as world
from gateway.enroll.client import enrol
from gateway.enroll.server import EnrolmentServer
from gateway.errors import PeerError, TrustError
from gateway.trust import certs, clients, codes, enrolment, keys
from gateway.trust.authority import AuthorityDirectory
from gateway.trust.enrolment import Identity, ReceiverIdentity, install_answer, make_request

NOW = dt.datetime.now(dt.UTC)
PEM_TO_DER = certs.serialization.Encoding.DER


def identity_in(box, gateway="hall1", stream="hall1.main") -> Identity:
    box.mkdir(exist_ok=True)
    return Identity(gateway, box / "tls.key", box / "tls.crt", box / "ca.crt", box / "receipt.pub", {stream: box / "data.key"}, box / "request")


class Site:
    def __init__(self, root) -> None:
        self.root = root
        self.ca = AuthorityDirectory.create(root / "ca", "site", NOW)
        self.receiver = ReceiverIdentity("dmz", root / "r.key", root / "r.crt", root / "r-ca.crt", root / "receipt.key", root / "r.request")
        request = enrolment.make_receiver_request(self.receiver, ["receiver.acme", "10.20.0.5"])
        enrolment.install_receiver_answer(self.receiver, self.ca.sign(request, NOW), request)
        self.box = root / "box"
        self.identity = identity_in(self.box)
        self.wall_ns = world.real().wall_ns()

    def code(self, gateway="hall1") -> str:
        return str(self.ca.make_code(gateway, self.wall_ns))

    @contextlib.asynccontextmanager
    async def serving(self):
        runtime = dataclasses.replace(world.real(), wall_ns=lambda: self.wall_ns)
        runner, port = await EnrolmentServer(runtime, self.ca).serve("127.0.0.1", 0)
        try:
            yield port
        finally:
            await runner.cleanup()


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def check_installed(site: Site) -> None:
    certificate = certs.load_certificate(site.box / "tls.crt")
    assert clients.identify_client(certificate.public_bytes(PEM_TO_DER), NOW, frozenset()).gateway == "hall1"
    ring = keys.KeyRing([certs.load_certificate_key(site.box / "ca.crt")])
    ring.introduce((site.box / "data.statement").read_bytes(), "hall1.main")
    assert ring.knows(keys.load_signer(site.box / "data.key").key_id)
    assert (site.box / "receipt.pub").read_bytes() == (site.root / "receipt.pub").read_bytes()
    certs.client_context(site.box / "tls.crt", site.box / "tls.key", site.box / "ca.crt")


async def test_by_code_over_the_network(site: Site) -> None:
    request = make_request(site.identity)
    code = site.code()
    stored = (site.root / "ca/codes.json").read_text()
    assert code[:14] not in stored and code[:14].replace("-", "") not in stored
    assert (site.root / "ca/codes.json").stat().st_mode & 0o777 == 0o600
    assert (site.root / "ca").stat().st_mode & 0o777 == 0o700
    async with site.serving() as port:
        answer = await enrol("127.0.0.1", port, code.lower().replace("-", " "), request)
        install_answer(site.identity, answer, request)
        check_installed(site)
        again = await enrol("127.0.0.1", port, code, request)  # the answer was lost on the way: asked once more
        install_answer(site.identity, again, request)
        thief = make_request(identity_in(site.root / "thief"))
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, code, thief)  # read over a shoulder, too late
    assert [(one.kind, one.name) for one in site.ca.issued()] == [("receiver", "dmz"), ("gateway", "hall1"), ("gateway", "hall1")]


async def test_a_code_made_while_the_server_runs_counts(site: Site) -> None:
    request = make_request(site.identity)
    async with site.serving() as port:
        code = str(AuthorityDirectory(site.root / "ca").make_code("hall1", site.wall_ns))  # another process
        install_answer(site.identity, await enrol("127.0.0.1", port, code, request), request)
    check_installed(site)


def test_by_files(site: Site) -> None:
    request = make_request(site.identity)
    install_answer(site.identity, site.ca.sign(request, NOW), request)
    check_installed(site)
    before = (site.box / "data.key").read_bytes(), (site.box / "tls.key").read_bytes()
    renewed = make_request(site.identity)
    install_answer(site.identity, site.ca.sign(renewed, NOW), renewed)
    assert before == ((site.box / "data.key").read_bytes(), (site.box / "tls.key").read_bytes())
    context = certs.server_context(site.receiver.certificate, site.receiver.tls_key, site.receiver.gateways_ca)
    assert context.verify_mode == ssl.CERT_REQUIRED


async def test_wrong_codes_are_bounded_and_old_codes_dead(site: Site) -> None:
    request = make_request(site.identity)
    code = site.code()
    async with site.serving() as port:
        with pytest.raises(TrustError, match="twenty"):
            await enrol("127.0.0.1", port, "123", request)
        for n in range(codes.CODE_ATTEMPTS_MAX):
            with pytest.raises(TrustError, match="does not accept"):
                await enrol("127.0.0.1", port, str(codes.make_code(n, site.ca.certificate_der)), request)
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, code, request)
        code = site.code()
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, code, make_request(identity_in(site.root / "two", "hall2", "hall2.main")))
        site.wall_ns += codes.CODE_VALID_NS
        with pytest.raises(TrustError, match="does not accept"):
            await enrol("127.0.0.1", port, code, request)


def test_attempts_are_counted_over_a_restart_of_the_ca(site: Site) -> None:
    request, code = make_request(site.identity), codes.parse_code(site.code())
    for n in range(codes.CODE_ATTEMPTS_MAX):
        with pytest.raises(TrustError, match=f"{codes.CODE_ATTEMPTS_MAX - 1 - n} tries"):
            AuthorityDirectory(site.root / "ca").redeem(request, bytes([n] * 32), site.wall_ns)
    mac = codes.request_mac(codes.derive_key(code, "hall1"), site.ca.certificate_der, request)
    with pytest.raises(TrustError, match="too often"):
        AuthorityDirectory(site.root / "ca").redeem(request, mac, site.wall_ns)


# ---- who stands between ----


@contextlib.asynccontextmanager
async def server(tmp_path, authority_pem: bytes, signing: certs.Authority, handler, name: str = codes.SERVER_NAME):
    """A real TLS server that shows this CA certificate, has a certificate of `signing`, and does what it likes with requests."""
    seen: list[bytes] = []

    async def post(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return handler(seen[-1])

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=authority_pem)

    certs.create_server_certificate(signing, tmp_path / "s.crt", tmp_path / "s.key", [name], NOW)
    app = web.Application()
    app.router.add_get(codes.CA_PATH, show)
    app.router.add_post(codes.PATH, post)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "s.crt", tmp_path / "s.key")
    listener = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await listener.start()
    try:
        yield listener.port, seen
    finally:
        await runner.cleanup()


async def test_another_ca_gets_nothing(site: Site, tmp_path) -> None:
    mallory = certs.create_authority(tmp_path / "m.crt", tmp_path / "m.key", "mallory", NOW)
    request, code = make_request(site.identity), site.code()
    async with server(tmp_path, (tmp_path / "m.crt").read_bytes(), mallory, lambda _: web.Response(status=200)) as (port, seen):
        with pytest.raises(TrustError, match="Nothing was sent"):
            await enrol("127.0.0.1", port, code, request)
    assert seen == []


async def test_the_right_ca_certificate_in_the_wrong_hands_gets_nothing(site: Site, tmp_path) -> None:
    mallory = certs.create_authority(tmp_path / "m.crt", tmp_path / "m.key", "mallory", NOW)
    request, code = make_request(site.identity), site.code()
    async with server(tmp_path, site.ca.certificate_pem, mallory, lambda _: web.Response(status=200)) as (port, seen):
        with pytest.raises(TrustError, match="not vouched for"):
            await enrol("127.0.0.1", port, code, request)
    assert seen == []
    (tmp_path / "s.key").unlink()
    async with server(tmp_path, site.ca.certificate_pem, site.ca.authority, lambda _: web.Response(status=200), "receiver.acme") as (port, seen):
        with pytest.raises(TrustError, match="not vouched for"):  # a receiver's certificate of the same CA is no enrolment server's
            await enrol("127.0.0.1", port, code, request)
    assert seen == []


async def test_a_ca_whose_fingerprint_was_made_to_fit_can_replace_neither_side(site: Site, tmp_path) -> None:
    """The fingerprint in the code is 39 bits: suppose somebody found a CA that has it. What was seen is worth nothing elsewhere."""
    mallory = AuthorityDirectory.create(tmp_path / "mca", "mallory", NOW)
    receiver = ReceiverIdentity("dmz", tmp_path / "mr.key", tmp_path / "mr.crt", tmp_path / "mrca", tmp_path / "mreceipt.key", tmp_path / "mr")
    mallory.sign(enrolment.make_receiver_request(receiver, ["x"]), NOW)
    request, code = make_request(site.identity), codes.parse_code(site.code())
    fits = str(dataclasses.replace(code, fingerprint=codes.ca_letters(mallory.certificate_der)))

    def forge(body: bytes) -> web.Response:
        _, mac = decode_cbor(body)
        return web.Response(body=encode_cbor([mallory.sign(request, NOW), mac]))

    async with server(tmp_path, mallory.certificate_pem, mallory.authority, forge) as (port, seen):
        with pytest.raises(TrustError, match="stands between"):
            await enrol("127.0.0.1", port, fits, request)
    message, mac = decode_cbor(seen[0])
    assert message == request
    with pytest.raises(TrustError, match="wrong code"):
        site.ca.redeem(request, mac, site.wall_ns)  # relayed: it was made for another CA
    own = make_request(identity_in(tmp_path / "own"))
    with pytest.raises(TrustError, match="wrong code"):
        site.ca.redeem(own, mac, site.wall_ns)  # and for another request
    assert code.secret.encode() not in seen[0]


async def test_hostile_bodies_and_no_server(site: Site) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with site.serving() as port:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            bodies = ((b"x", 400), (b"", 413), (b"x" * 100_000, 413), (encode_cbor([b"x", b"y"]), 400), (encode_cbor([1, 2]), 400))
            for body, expected in bodies:
                async with session.post(f"https://127.0.0.1:{port}{codes.PATH}", data=body) as response:
                    assert response.status == expected, body[:10]
            async with session.get(f"https://127.0.0.1:{port}/") as response:
                assert response.status == 404
    with pytest.raises(PeerError, match="no CA at"):
        await enrol("127.0.0.1", port, site.code(), make_request(site.identity))


# ---- answers that are none ----


def test_an_answer_for_something_else_is_not_installed(site: Site) -> None:
    request = make_request(site.identity)
    good = decode_cbor(site.ca.sign(request, NOW))
    other_box = dataclasses.replace(site.identity, tls_key=site.box / "t2", data_keys={"hall1.main": site.box / "d2.key"})
    foreign = decode_cbor(site.ca.sign(make_request(other_box), NOW))
    mallory = certs.create_authority(site.root / "m.crt", site.root / "m.key", "mallory", NOW)
    changes = [{1: bytes(32)}, {2: foreign[2]}, {3: foreign[3]}, {3: []}, {3: [b"x"]}, {2: b"x"}, {0: "x"}, {4: b"x"}, {5: b"x"}]
    changes += [{4: (site.root / "m.crt").read_bytes()}]  # the site's certificate under another CA
    theirs = decode_cbor(enrolment.answer_request(mallory, request, b"", b"", NOW))
    changes += [{3: theirs[3]}]  # a statement by another CA
    for change in changes:
        bad = [change.get(i, x) for i, x in enumerate(good)]
        with pytest.raises((TrustError, CorruptError)):
            install_answer(site.identity, encode_cbor(bad), request)
        assert not (site.box / "tls.crt").exists(), change
    with pytest.raises(TrustError, match="not its own"):
        site.ca.sign(make_request(identity_in(site.root / "x", "hall1", "hall2.main")), NOW)


def test_a_flipped_byte_in_a_request_makes_no_identity(site: Site) -> None:
    request = make_request(site.identity)
    for at in range(0, len(request), 7):
        bad = bytearray(request)
        bad[at] ^= 1
        with pytest.raises((TrustError, CorruptError)):
            install_answer(site.identity, site.ca.sign(bytes(bad), NOW), request)


def test_a_receiver_installs_only_what_was_signed_for_it(site: Site) -> None:
    request = enrolment.make_receiver_request(site.receiver, ["receiver.acme"])
    answer = decode_cbor(site.ca.sign(request, NOW))
    before = site.receiver.certificate.read_bytes()
    for change in ({1: bytes(32)}, {2: (site.root / "ca/ca.crt").read_bytes()}, {3: b"x"}, {0: "x"}):
        with pytest.raises((TrustError, CorruptError)):
            enrolment.install_receiver_answer(site.receiver, encode_cbor([change.get(i, x) for i, x in enumerate(answer)]), request)
    assert site.receiver.certificate.read_bytes() == before
    with pytest.raises(CorruptError):
        enrolment.install_receiver_answer(site.receiver, site.ca.sign(make_request(site.identity), NOW), request)
    certificate = certs.load_certificate(site.receiver.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["receiver.acme"]


def test_revocation_names_certificates_and_keys_up_to_the_last_good_reading(site: Site) -> None:
    site.ca.sign(make_request(site.identity), NOW)
    key = keys.load_signer(site.box / "data.key").key_id
    serial = int(site.ca.issued()[-1].serial, 16)
    assert site.ca.revoke("hall1", {}, certificates_only=True) == [f"certificate {serial:x}"]
    assert site.ca.revoked().keys == {}
    good = keys.LastGood(7 << 32 | 0x3FA91C02, 81_234)
    assert site.ca.revoke("hall1", {"hall1.main": good}) == [f"key {key.hex()} 7-3fa91c02 81234"]
    assert site.ca.revoked().keys == {key: good}
    assert serial in site.ca.revoked().certificates
    assert site.ca.revoke("hall1", {"hall1.main": good}) == []
    with pytest.raises(TrustError, match="nothing for"):
        site.ca.revoke("hall9", {})
