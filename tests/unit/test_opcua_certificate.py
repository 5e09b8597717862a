"""Certificates of PLCs: odd ones, chains, revocation lists; endpoints with entries nobody knows."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from buffer.errors import CorruptError
from gateway.collect.opcua import certificate
from gateway.collect.opcua.answers import ServiceFault
from gateway.collect.opcua.endpoints import Token, explain_refusal, parse_endpoints, tokens_of
from gateway.collect.opcua.security import choose_token, parse_security
from gateway.collect.opcua.state import SourceState, parse_state
from gateway.errors import ConfigError, PlantError, TrustError

NOW = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(3)]
DER = serialization.Encoding.DER


def made(name: str, key: rsa.RSAPrivateKey, issuer: tuple[x509.Certificate, rsa.RSAPrivateKey] | None = None, ca: bool = False) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[0].subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + dt.timedelta(days=9)).add_extension(x509.BasicConstraints(ca, None), True)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256())


ROOT = made("root", KEYS[0], ca=True)
MIDDLE = made("middle", KEYS[1], (ROOT, KEYS[0]), ca=True)
LEAF = made("plc", KEYS[2], (MIDDLE, KEYS[1]))


def directory(path: Path, **files: bytes) -> Path:
    for name, data in files.items():
        (path / name.replace("_", ".")).write_bytes(data)
    return path


def odd_one() -> bytes:
    """A certificate that works in other clients and that `cryptography` refuses: version number 7."""
    der = bytearray(LEAF.public_bytes(DER))
    at = der.index(b"\xa0\x03\x02\x01\x02") + 4
    der[at] = 7
    with pytest.raises((ValueError, x509.InvalidVersion)):
        x509.load_der_x509_certificate(bytes(der))
    return bytes(der)


def test_the_key_of_a_certificate_that_the_library_refuses_is_found():
    der = odd_one()
    assert certificate.public_key(der).public_numbers() == KEYS[2].public_key().public_numbers()
    facts = certificate.facts(der)
    assert facts.odd
    assert facts.sha256 == certificate.fingerprint(der)
    assert certificate.Peer(der).public_bytes(None) == der


def test_an_elliptic_key_and_noise_are_refused_with_what_to_do():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    der = builder.not_valid_before(NOW).not_valid_after(NOW + dt.timedelta(days=1)).sign(key, hashes.SHA256()).public_bytes(DER)
    with pytest.raises(TrustError, match="no RSA key"):
        certificate.public_key(der)


@given(st.binary(max_size=300) | st.integers(0, 700).map(lambda n: LEAF.public_bytes(DER)[:n]))
def test_noise_is_never_anything_but_a_trust_error(data: bytes):
    with pytest.raises(TrustError):
        certificate.public_key(data)
    certificate.split_chain(data)


def test_a_chain_leads_to_a_trusted_authority(tmp_path):
    trusted = directory(tmp_path, root_crt=ROOT.public_bytes(serialization.Encoding.PEM))
    certificate.check_trusted([LEAF.public_bytes(DER), MIDDLE.public_bytes(DER)], trusted)
    with pytest.raises(TrustError, match="no authority"):
        certificate.check_trusted([LEAF.public_bytes(DER)], trusted)
    stranger = made("plc", KEYS[2], (made("root", KEYS[1], ca=True), KEYS[1]))
    with pytest.raises(TrustError, match="no authority"):
        certificate.check_trusted([stranger.public_bytes(DER)], trusted)


def test_a_certificate_that_is_no_authority_vouches_for_nobody_but_itself(tmp_path):
    plain = made("plain", KEYS[1])
    signed = made("other", KEYS[2], (plain, KEYS[1]))
    trusted = directory(tmp_path, plain_der=plain.public_bytes(DER))
    certificate.check_trusted([plain.public_bytes(DER)], trusted)
    with pytest.raises(TrustError, match="no authority"):
        certificate.check_trusted([signed.public_bytes(DER)], trusted)


def test_a_revoked_certificate_is_refused(tmp_path):
    gone = x509.RevokedCertificateBuilder().serial_number(LEAF.serial_number).revocation_date(NOW).build()
    lists = x509.CertificateRevocationListBuilder().issuer_name(MIDDLE.subject).last_update(NOW).next_update(NOW + dt.timedelta(days=1))
    crl = lists.add_revoked_certificate(gone).sign(KEYS[1], hashes.SHA256()).public_bytes(DER)
    trusted = directory(tmp_path, middle_der=MIDDLE.public_bytes(DER), middle_crl=crl)
    with pytest.raises(TrustError, match="revoked"):
        certificate.check_trusted([LEAF.public_bytes(DER)], trusted)


def test_an_empty_or_absent_trust_directory_says_what_to_put_there(tmp_path):
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(TrustError, match=r"authority's certificate"):
            certificate.check_directory(place)


# ---- endpoints ----


def endpoint(uri: str, mode: int, der: bytes = b"", tokens: tuple[ua.UserTokenPolicy, ...] = ()) -> ua.EndpointDescription:
    one = ua.EndpointDescription()
    one.EndpointUrl, one.SecurityPolicyUri, one.ServerCertificate, one.UserIdentityTokens = "opc.tcp://PLC_1:4840", uri, der, list(tokens)
    one.SecurityMode = ua.MessageSecurityMode(mode)
    return one


def answer(*endpoints: ua.EndpointDescription) -> bytes:
    response = ua.GetEndpointsResponse()
    response.Endpoints = list(endpoints)
    return bytes(struct_to_binary(response))


def test_entries_nobody_knows_are_listed_and_hurt_nobody():
    data = answer(endpoint("http://x#Basic256Sha256", 3, b"0123"), endpoint("", 0), endpoint("urn:vendor:Quantum_9", 2))
    found = parse_endpoints(data.replace(b"\x02\0\0\0\x14\0\0\0urn:vendor", b"\x63\0\0\0\x14\0\0\0urn:vendor"))
    assert [one.security for one in found] == ["Basic256Sha256 SignAndEncrypt", "? mode 0", "urn:vendor:Quantum9 mode 99"]


@given(st.data())
def test_damaged_answers_raise_only_what_is_declared(data):
    good = answer(endpoint("http://x#Basic256Sha256", 3, b"0123", (ua.UserTokenPolicy(),)), endpoint("http://x#None", 1))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.binary(max_size=6)) + good[at + data.draw(st.integers(0, 6)) :]
    try:
        parse_endpoints(bad)
    except (CorruptError, ServiceFault):
        pass


def test_a_changed_certificate_a_missing_policy_and_a_refusal_are_told_apart():
    offered = parse_endpoints(answer(endpoint("http://x#Basic256Sha256", 3, b"new!")))
    refused = PlantError("opc.tcp://x: closed")
    changed = explain_refusal("plc", "opc.tcp://x", "Basic256Sha256 SignAndEncrypt", b"old!", offered, refused)
    assert certificate.fingerprint(b"old!") in str(changed)
    assert certificate.fingerprint(b"new!") in str(changed)
    assert "ebbgate trust plc" in changed.remedy
    assert "does not offer" in str(explain_refusal("plc", "opc.tcp://x", "Aes256Sha256RsaPss Sign", b"", offered, refused))
    assert "refuses our certificate" in str(explain_refusal("plc", "opc.tcp://x", "Basic256Sha256 SignAndEncrypt", b"new!", offered, refused))


class Channel:
    """What choose_token asks of a channel."""

    def __init__(self, policy: str, mode: str) -> None:
        self.URI = f"http://opcfoundation.org/UA/SecurityPolicy#{policy}"
        self.Mode = getattr(ua.MessageSecurityMode, mode)


def uri(policy: str) -> str:
    return f"http://opcfoundation.org/UA/SecurityPolicy#{policy}"


def test_a_password_is_never_sent_readable_without_a_waiver():
    plain = [Token("p", 1, uri("None"))]
    assert choose_token(plain, 1, Channel("Basic256Sha256", "SignAndEncrypt"), waived=False).policy_id == "p"
    for channel in (Channel("Basic256Sha256", "Sign"), Channel("None", "None_")):
        with pytest.raises(TrustError, match="readable"):
            choose_token(plain, 1, channel, waived=False)
        assert choose_token(plain, 1, channel, waived=True).policy_id == "p"


def test_the_best_login_policy_of_those_offered_is_taken():
    offered = [Token("old", 1, uri("Basic128Rsa15")), Token("plain", 1, uri("None")), Token("good", 1, uri("Aes128_Sha256_RsaOaep")), Token("anon", 0, "")]
    channel = Channel("Basic256Sha256", "SignAndEncrypt")
    assert choose_token(offered, 1, channel, waived=True).policy_id == "good"
    assert choose_token(offered, 0, channel, waived=False).policy_id == "anon"
    assert choose_token([], 1, channel, waived=False).policy_uri == uri("Basic256Sha256")
    assert tokens_of([], 3, "x") == ()


def test_policies_are_written_as_people_and_servers_write_them():
    assert parse_security("Aes256_Sha256_RsaPss SignAndEncrypt") == parse_security("Aes256Sha256RsaPss  SignAndEncrypt".replace("  ", " "))
    assert parse_security("None") == ("None", "None")
    with pytest.raises(ConfigError):
        parse_security("Basic256Sha256")


# ---- sessions across restarts ----


def test_a_new_session_per_url_and_timeout_whatever_is_killed():
    minute = 60 * 10**9
    state = SourceState()
    state.session_asked(10 * minute, "a")
    again = parse_state(state.encode())  # killed right after
    assert again.wait_for_session_ns(10 * minute + 1, minute, "a") == minute - 1
    assert again.wait_for_session_ns(10 * minute + 1, minute, "b") == 0
    assert again.wait_for_session_ns(11 * minute, minute, "a") == 0
    again.gone("a")
    assert again.session_gone
    assert again.wait_for_session_ns(10 * minute + 1, minute, "a") == 0
    for number in range(100):
        again.session_asked(number, f"url{number}")
    assert len(again.asked) <= 16
