"""Security of one OPC UA source: policy and mode, the server's certificate, our own, and how a login may travel.

Written "<policy> <mode>", as "Basic256Sha256 SignAndEncrypt"; policies as people and servers write them, with or without underscores.
Weak policies (None, Basic128Rsa15, Basic256: OPC 10000-7, deprecated since 1.04) need a reason in `security_waiver`, which check, status
and notices show; gateway.config refuses them without. A password leaves only encrypted: by the channel, or for the pinned key.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import asyncua.ua
from asyncua.crypto import security_policies
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gateway.collect.opcua import certificate
from gateway.collect.opcua.certificate import Peer
from gateway.collect.opcua.endpoints import Token
from gateway.errors import ConfigError, TrustError
from gateway.settings import WEAK_POLICIES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.settings import OpcuaSource

ua: Any = asyncua.ua

POLICIES: Final[dict[str, Any]] = {  # best first
    "Aes256Sha256RsaPss": security_policies.SecurityPolicyAes256Sha256RsaPss,
    "Aes128Sha256RsaOaep": security_policies.SecurityPolicyAes128Sha256RsaOaep,
    "Basic256Sha256": security_policies.SecurityPolicyBasic256Sha256,
    "Basic256": security_policies.SecurityPolicyBasic256,
    "Basic128Rsa15": security_policies.SecurityPolicyBasic128Rsa15,
}
MODES: Final = {"SignAndEncrypt": ua.MessageSecurityMode.SignAndEncrypt, "Sign": ua.MessageSecurityMode.Sign}
NONE_URI: Final = security_policies.SecurityPolicyNone.URI


def parse_security(text: str) -> tuple[str, str]:
    """Return policy and mode as named here, ("None", "None") for no security; raise ConfigError."""
    name, _, mode = text.strip().partition(" ")
    name = name.replace("_", "")
    if name == "None" and mode in ("", "None"):
        return "None", "None"
    if name not in POLICIES or mode not in MODES:
        choice = ", ".join(f"{policy} {how}" for policy in POLICIES if policy not in WEAK_POLICIES for how in MODES)
        raise ConfigError(f"security {text!r} is not offered", f"Write one of: {choice}; Basic256, Basic128Rsa15, None need security_waiver.")
    return name, mode


def is_weak(security: str) -> bool:
    """Say whether a security setting needs a waiver; one that is no setting at all does not."""
    return security.strip().partition(" ")[0].replace("_", "") in WEAK_POLICIES


def make_policy(settings: OpcuaSource, server: bytes | None = None) -> Any:  # noqa: ANN401 -- asyncua is not typed
    """Return asyncua's security policy. server: the certificate in DER where it is not pinned; raise ConfigError or TrustError."""
    try:
        name, mode = parse_security(settings.security)
    except ConfigError as error:
        raise ConfigError(f"source {settings.name}: {error.message}", error.remedy) from None
    if name == "None":
        none: Any = security_policies.SecurityPolicyNone
        return none()
    if server is None and settings.server_certificate is None:
        raise TrustError(f"source {settings.name}: no pinned server certificate", f"Run: ebbgate trust {settings.name}")
    if not (settings.certificate and settings.private_key):
        raise TrustError(f"source {settings.name}: no application certificate of our own", "Name certificate and key in its table.")
    ours, key = _own_pair(settings.name, settings.certificate, settings.private_key)
    try:
        peer = Peer(server if server is not None else pinned(settings))
    except TrustError as error:
        raise TrustError(
            f"source {settings.name}: certificate or key cannot be read: {error.message}", f"Pin the server with `ebbgate trust {settings.name}`."
        ) from error
    return POLICIES[name](peer, ours, key, MODES[mode])


def check_files(settings: OpcuaSource) -> None:
    """Read everything a connection will need; raise ConfigError or TrustError for what no waiting will cure."""
    if settings.server_certificate is None and settings.trusted is not None and parse_security(settings.security)[0] != "None":
        certificate.check_directory(settings.trusted)
    else:
        make_policy(settings)
    user_pair(settings)


def secret_of(settings: OpcuaSource) -> str:
    """Return what changes when the account, its password file or its key file changes."""
    file = settings.password_file or settings.user_key
    try:
        facts = file.stat() if file else None
    except OSError:
        facts = None
    about = f"{settings.user}\0{facts.st_mtime_ns if facts else 0}\0{facts.st_ino if facts else 0}"
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def pinned(settings: OpcuaSource) -> bytes:
    """Return the pinned certificate, DER; raise TrustError."""
    if settings.server_certificate is None:
        raise TrustError(f"source {settings.name}: no pinned server certificate", f"Run: ebbgate trust {settings.name}")
    return certificate.load(settings.server_certificate)


def _own_pair(source: str, certificate_path: Path, key_path: Path) -> tuple[x509.Certificate, Any]:
    try:
        ours = x509.load_der_x509_certificate(certificate.load(certificate_path))
        return ours, serialization.load_pem_private_key(key_path.read_bytes(), None)
    except (OSError, ValueError, TypeError, TrustError) as error:
        message = f"source {source}: certificate or key cannot be read: {error}"
        raise TrustError(message, "Our own pair lies beside the configuration, pki/opcua.der and pki/opcua.key: check owner and mode.") from error


def user_pair(settings: OpcuaSource) -> tuple[x509.Certificate, Any] | None:
    """Return certificate and key of the account, where it logs in by certificate; raise TrustError."""
    if settings.user_certificate is None or settings.user_key is None:
        return None
    return _own_pair(settings.name, settings.user_certificate, settings.user_key)


def read_password(settings: OpcuaSource) -> str:
    """Return the password of the source's account; raise TrustError."""
    if settings.password_file is None:
        return ""
    try:
        return settings.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        message = f"source {settings.name}: {settings.password_file} cannot be read: {error}"
        raise TrustError(message, "Write the password into it, mode 0400.") from error


def choose_token(offered: Iterable[Token], kind: int, channel: Any, *, waived: bool) -> Token:  # noqa: ANN401 -- asyncua's policy
    """Return the user token policy to log in with: the best encryption of those offered, the channel's where a policy names none.

    offered may be empty or odd: then one is made up with the channel's security. Raise TrustError where only a readable password or a
    weak policy would do and no waiver allows it.
    """
    named = [one if one.policy_uri else one._replace(policy_uri=channel.URI) for one in offered if one.kind == kind]
    if kind == int(ua.UserTokenType.Anonymous) or not named:
        return named[0] if named else Token("", kind, channel.URI)
    order = [policy.URI for policy in POLICIES.values()]
    weak = {policy.URI for name, policy in POLICIES.items() if name in WEAK_POLICIES}
    sealed = channel.Mode == ua.MessageSecurityMode.SignAndEncrypt
    usable = [one for one in named if one.policy_uri in order and (waived or one.policy_uri not in weak)]
    usable += [one for one in named if one.policy_uri == NONE_URI and (sealed or waived)]
    if not usable:
        raise TrustError("the server would have the login sent readable or with a weak policy", "Use SignAndEncrypt, or state a security_waiver.")
    return min(usable, key=lambda one: order.index(one.policy_uri) if one.policy_uri in order else len(order))
