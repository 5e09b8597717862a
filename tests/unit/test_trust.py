"""Keys, statements, revocations, certificates: who is believed, and that nobody else is."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from buffer.cose import decode_cbor, encode_cbor, parse_sign1, sign1
from buffer.errors import CorruptError, SignatureError
from gateway.errors import TrustError
from gateway.trust import certs, clients, keys
from gateway.trust.keys import KeyRing, KeySigner, LastGood, RevokedKeyError, UnknownKeyError, WrongStreamError
from gateway.trust.revocations import Revocations, certificate_line, key_line, load_revocations, parse_revocations
from tests.support.frames import TABLE, Source, object_frame, signer

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
CA = KeySigner(ec.generate_private_key(ec.SECP256R1()))
STREAM = "hall1.main"


def statement(seed: int = 1, by: KeySigner = CA, stream: str = STREAM, first: int = 0) -> bytes:
    return keys.endorse_statement(by, keys.propose_statement(signer(seed), stream, first))


# ---- key files ----


def test_a_key_file_is_private_from_its_first_byte_and_never_overwritten(tmp_path) -> None:
    old = os.umask(0)
    try:
        made = keys.create_signer(tmp_path / "data.key")
    finally:
        os.umask(old)
    assert (tmp_path / "data.key").stat().st_mode & 0o777 == 0o600
    assert keys.load_signer(tmp_path / "data.key").key_id == made.key_id
    assert keys.key_id(keys.load_public(tmp_path / "data.pub")) == made.key_id
    with pytest.raises(TrustError, match="already"):
        keys.create_signer(tmp_path / "data.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o601, 0o644, 0o660])
def test_a_key_that_others_may_open_is_refused(tmp_path, mode: int) -> None:
    keys.create_signer(tmp_path / "data.key")
    (tmp_path / "data.key").chmod(mode)
    with pytest.raises(TrustError, match="chmod 600"):
        keys.load_signer(tmp_path / "data.key")


def test_what_is_no_file_is_refused_and_holds_nobody_up(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(TrustError, match="is no file"):
            keys.read_private_bytes(path)


def test_other_files_are_no_keys(tmp_path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", b"x" * 20_000):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(TrustError):
            keys.load_signer(path)
        with pytest.raises(TrustError):
            keys.load_public(path)
    path.unlink()
    keys.write_private(path, rsa.generate_private_key(public_exponent=65_537, key_size=2048))
    with pytest.raises(TrustError, match="neither"):
        keys.load_signer(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(TrustError):
        keys.load_signer(tmp_path / "link")
    with pytest.raises(TrustError):
        keys.load_signer(tmp_path / "absent")


@given(st.binary(max_size=100))
def test_both_algorithms_sign_and_verify_and_do_not_stand_for_each_other(message: bytes) -> None:
    ring = KeyRing()
    for one in (CA, signer()):
        ring.trust(one.public)
        signature = one.sign(message)
        assert len(signature) == 64
        ring.verify(one.key_id, one.algorithm, message, signature)
        for bad in (bytes(64), signature[::-1], b"\xff" * 64):
            with pytest.raises(SignatureError):
                ring.verify(one.key_id, one.algorithm, message, bad)
        with pytest.raises(SignatureError):
            ring.verify(one.key_id, -7 if one.algorithm == -8 else -8, message, signature)
        with pytest.raises(SignatureError):
            ring.verify(one.key_id, one.algorithm, message + b"x", signature)


# ---- statements ----


def test_a_statement_introduces_its_key_for_its_stream_and_no_other() -> None:
    ring = KeyRing([CA.public])
    frame = Source([1]).blocks[0]
    with pytest.raises(UnknownKeyError):
        ring.admit(frame)
    with pytest.raises(WrongStreamError):
        ring.introduce(statement(), "hall2.main")
    assert ring.introduce(statement(), STREAM).key_id == signer().key_id
    ring.admit(frame)
    with pytest.raises(WrongStreamError):
        ring.admit(Source([1], stream="hall1.other").blocks[0])
    with pytest.raises(WrongStreamError, match="already belongs"):
        ring.introduce(statement(stream="hall1.other"), "hall1.other")


def test_a_statement_needs_the_new_key_and_somebody_we_trust() -> None:
    ring = KeyRing([CA.public])
    with pytest.raises(UnknownKeyError):
        ring.introduce(statement(by=KeySigner(ec.generate_private_key(ec.SECP256R1()))), STREAM)
    with pytest.raises(CorruptError):
        ring.introduce(statement(by=signer()), STREAM)  # by itself
    payload = parse_sign1(keys.propose_statement(signer(1), STREAM)).payload
    stolen = encode_cbor([sign1(signer(2), payload), sign1(CA, payload)])  # nobody who holds the key asked for this
    with pytest.raises(SignatureError):
        ring.introduce(stolen, STREAM)
    other = parse_sign1(keys.propose_statement(signer(2), STREAM)).payload
    with pytest.raises(CorruptError):
        ring.introduce(encode_cbor([keys.propose_statement(signer(1), STREAM), sign1(CA, other)]), STREAM)


def test_every_flipped_byte_of_a_statement_is_refused() -> None:
    good = statement()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 4
        with pytest.raises(CorruptError):
            KeyRing([CA.public]).introduce(bytes(bad), STREAM)
    fields = decode_cbor(parse_sign1(keys.propose_statement(signer(), STREAM)).payload)
    for change in ({0: "x"}, {1: b"short"}, {2: "../x"}, {3: -1}, {3: True}, {4: 1}):
        with pytest.raises(CorruptError):
            keys.parse_proposal(sign1(signer(), encode_cbor(fields | change)))


def test_rotation_is_endorsed_by_the_key_before_and_begins_where_it_says() -> None:
    ring = KeyRing([CA.public])
    rotated = statement(2, by=signer(1), first=5 << 32)
    with pytest.raises(UnknownKeyError):
        ring.introduce(rotated, STREAM)
    ring.introduce(statement(1), STREAM)
    ring.introduce(rotated, STREAM)
    with pytest.raises(WrongStreamError, match="from generation"):
        ring.admit(Source([1], seed=2, generation=4 << 32).blocks[0])
    ring.admit(Source([1], seed=2, generation=5 << 32).blocks[0])
    ring.admit(Source([1], seed=1, generation=4 << 32).blocks[0])
    foreign = keys.endorse_statement(signer(1), keys.propose_statement(signer(3), "hall1.other"))
    with pytest.raises(UnknownKeyError):  # a key speaks for its own stream alone
        ring.introduce(foreign, "hall1.other")


def test_a_revoked_key_takes_with_it_what_it_introduced_while_nobody_restarted() -> None:
    """A thief rotates before the revocation: the receiver believes the new key already, and must stop."""
    ring = KeyRing([CA.public])
    ring.introduce(statement(1), STREAM)
    ring.introduce(statement(2, by=signer(1)), STREAM)
    ring.introduce(statement(3, by=signer(2)), STREAM)
    early, late = Source([5, 5], seed=3).blocks
    ring.admit(late)
    ring.revoke({signer(1).key_id: LastGood(1 << 32 | 7, 4)})
    ring.admit(early)
    with pytest.raises(RevokedKeyError):
        ring.admit(late)
    ring.introduce(statement(3), STREAM)  # the box came back, and the CA says so itself
    ring.admit(late)
    ring.revoke({signer(3).key_id: LastGood()})
    with pytest.raises(RevokedKeyError):
        ring.admit(early)


def test_a_key_replaced_in_time_outlives_its_predecessor() -> None:
    ring = KeyRing([CA.public])
    ring.introduce(statement(1), STREAM)
    ring.introduce(statement(2, by=signer(1), first=1 << 32), STREAM)
    ring.revoke({signer(1).key_id: LastGood(1 << 32 | 7, 4)})
    ring.admit(Source([5, 5], seed=2).blocks[1])
    with pytest.raises(RevokedKeyError):
        ring.admit(Source([5, 5], seed=1).blocks[1])


def test_a_revoked_key_counts_up_to_its_last_good_reading_and_endorses_nobody_after() -> None:
    ring = KeyRing([CA.public])
    ring.introduce(statement(1), STREAM)
    source = Source([2, 2, 1])
    for last_good, good in ((LastGood(), []), (LastGood(source.generation, 1), [0]), (LastGood(source.generation, 3), [0, 1]),
                            (LastGood(source.generation + 1, 0), [0, 1, 2])):  # fmt: skip
        ring.revoke({signer(1).key_id: last_good})
        for n, frame in enumerate(source.blocks):
            if n in good:
                ring.admit(frame)
            else:
                with pytest.raises(RevokedKeyError):
                    ring.admit(frame)
    ring.revoke({signer(1).key_id: LastGood(source.generation, 1)})
    with pytest.raises(RevokedKeyError):
        ring.introduce(statement(2, by=signer(1), first=source.generation + 1), STREAM)
    with pytest.raises(RevokedKeyError):
        ring.introduce(statement(2, by=signer(1)), STREAM)
    from buffer.manifest import ObjectType

    ring.admit(object_frame(TABLE, ObjectType.TAG_TABLE))  # an old, good block names it
    ring.revoke({signer(1).key_id: LastGood()})
    with pytest.raises(RevokedKeyError):
        ring.admit(object_frame(TABLE, ObjectType.TAG_TABLE))


# ---- revocations ----


def test_a_list_of_revocations_is_read_exactly_or_not_at_all(tmp_path) -> None:
    text = "# site\n\n" + certificate_line(0xABC) + key_line(bytes(8)) + key_line(bytes([1] * 8), LastGood(7 << 32 | 5, 9))
    assert parse_revocations(text) == Revocations(frozenset({0xABC}), {bytes(8): LastGood(), bytes([1] * 8): LastGood(7 << 32 | 5, 9)})
    for bad in ("certificate", "certificate xyz", "key 12", "key " + "0" * 16 + " 7-3fa91c02", "key " + "0" * 16 + " 7 9", "hello"):
        with pytest.raises(TrustError, match="line 2"):
            parse_revocations("\n" + bad)
    assert load_revocations(None) == Revocations()
    with pytest.raises(TrustError):
        load_revocations(tmp_path / "absent")
    (tmp_path / "list").write_bytes(b"\xff")
    with pytest.raises(TrustError):
        load_revocations(tmp_path / "list")


# ---- certificates ----


@pytest.fixture
def authority(tmp_path):
    return certs.create_authority(tmp_path / "ca.crt", tmp_path / "ca.key", "site", NOW)


def client_der(tmp_path, authority, gateway: str = "hall1", now: dt.datetime = NOW) -> bytes:
    pem = certs.sign_request(authority, certs.make_request(tmp_path / "tls.key", gateway), gateway, now)
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def test_verdicts_over_the_life_of_a_client_certificate(tmp_path, authority) -> None:
    der = client_der(tmp_path, authority)
    end = x509.load_der_x509_certificate(der).not_valid_after_utc
    serial = x509.load_der_x509_certificate(der).serial_number
    second, grace = dt.timedelta(seconds=1), dt.timedelta(days=certs.GRACE_DAYS)
    assert clients.identify_client(der, NOW, frozenset()) == clients.ClientIdentity("hall1", serial, False)
    assert not clients.identify_client(der, end, frozenset()).expired
    assert clients.identify_client(der, end + second, frozenset()).expired
    assert clients.identify_client(der, end + grace, frozenset()).expired
    for now, revoked, why in (
        (end + grace + second, frozenset(), "grace"),
        (NOW - dt.timedelta(days=1), frozenset(), "not yet"),
        (NOW, frozenset({serial}), "revoked"),
    ):
        with pytest.raises(TrustError, match=why):
            clients.identify_client(der, now, revoked)
    assert (end - NOW).days == certs.TLS_DAYS


def test_the_ca_signs_a_request_for_the_gateway_it_is_asked_about_only(tmp_path, authority) -> None:
    request = certs.make_request(tmp_path / "tls.key", "hall1")
    with pytest.raises(TrustError, match="not for gateway"):
        certs.sign_request(authority, request, "hall2", NOW)
    for bad in (b"", b"hello", request[:-60] + request[-40:]):
        with pytest.raises(TrustError):
            certs.sign_request(authority, bad, "hall1", NOW)
    other = ec.generate_private_key(ec.SECP384R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("urn:ebbgate:gateway:hall1")])
    wrong = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False).sign(other, hashes.SHA256())
    with pytest.raises(TrustError, match="P-256"):
        certs.sign_request(authority, wrong.public_bytes(serialization.Encoding.PEM), "hall1", NOW)
    assert certs.make_request(tmp_path / "tls.key", "hall1")  # the key stays, only the request is made again
    assert certs.certificate_fits_key(certs.sign_request(authority, request, "hall1", NOW), tmp_path / "tls.key")


@pytest.mark.parametrize("uris", [[], ["urn:ebbgate:gateway:"], ["urn:ebbgate:gateway:../x"], ["urn:x:hall1"], ["urn:ebbgate:gateway:a", "urn:ebbgate:gateway:b"]])
def test_a_certificate_that_names_no_one_gateway_is_nobody(authority, uris: list[str]) -> None:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris] or [x509.DNSName("x")])
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = certs._leaf(authority, key.public_key(), "x", names, ExtendedKeyUsageOID.CLIENT_AUTH, NOW)
    with pytest.raises(TrustError, match="no gateway"):
        clients.identify_client(leaf.public_bytes(serialization.Encoding.DER), NOW, frozenset())


def test_the_opcua_certificate_has_what_part_6_wants_and_begins_in_2000(tmp_path) -> None:
    uri = "urn:ebbgate:gateway:hall1"
    certs.create_application_certificate(tmp_path / "app.der", tmp_path / "app.key", uri, "192.0.2.7", NOW)
    loaded = x509.load_der_x509_certificate((tmp_path / "app.der").read_bytes())
    assert loaded.not_valid_before_utc == dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    assert (loaded.not_valid_after_utc - NOW).days == 20 * 365
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.0.2.7")]
    usage = loaded.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and usage.content_commitment and usage.key_encipherment and usage.data_encipherment
    assert set(loaded.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) >= {ExtendedKeyUsageOID.CLIENT_AUTH}
    public = loaded.public_key()
    assert isinstance(public, rsa.RSAPublicKey) and public.key_size >= 2048
    assert isinstance(loaded.signature_hash_algorithm, hashes.SHA256)
    assert loaded.issuer == loaded.subject
    assert (tmp_path / "app.key").stat().st_mode & 0o777 == 0o600
