"""What a server offers, from the bytes of GetEndpoints and CreateSession (OPC 10000-4, 5.4.4, 5.6.2, 7.14; 10000-6, 5.2). Pure.

Servers answer with host names of their own, machines behind a NAT with addresses nobody reaches, some with policies and modes that no
standard knows: nothing here is followed, and an entry that is odd is an entry that nobody chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.collect.opcua.answers import open_answer
from gateway.collect.opcua.certificate import fingerprint, first_certificate
from gateway.collect.opcua.reader import F64, I32
from gateway.collect.opcua.variant import read_localized, read_node_id
from gateway.errors import EbbgateError, PlantError, TrustError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.collect.opcua.reader import Reader

ENDPOINTS_MAX: Final = 1_000  # in one answer; a server has ten
_MODES: Final = {1: "None", 2: "Sign", 3: "SignAndEncrypt"}
_TOKENS: Final = {0: "anonymous", 1: "user and password", 2: "user certificate", 3: "issued token"}
_GET_ENDPOINTS, _CREATE_SESSION = 431, 464


class Token(NamedTuple):
    """One UserTokenPolicy. kind: UserTokenType."""

    policy_id: str
    kind: int
    policy_uri: str

    @property
    def name(self) -> str:
        """The kind in words."""
        return _TOKENS.get(self.kind, f"kind {self.kind}")


class Endpoint(NamedTuple):
    """One EndpointDescription. chain: the certificate as sent, with what may follow it."""

    url: str
    server_uri: str
    server_name: str
    chain: bytes
    mode: int
    policy_uri: str
    tokens: tuple[Token, ...]

    @property
    def certificate(self) -> bytes:
        """The server's own certificate, DER; b"" if it has none."""
        return first_certificate(self.chain)

    @property
    def security(self) -> str:
        """Policy and mode as written in the configuration; odd ones as they are."""
        policy = self.policy_uri.rpartition("#")[2].replace("_", "") or "?"
        mode = _MODES.get(self.mode, f"mode {self.mode}")
        return policy if policy == mode else f"{policy} {mode}"


class Created(NamedTuple):
    """What a CreateSessionResponse says. token: the authentication token's bytes, a NodeId; a secret."""

    token: bytes
    timeout_ms: float
    nonce: bytes
    certificate: bytes
    endpoints: tuple[Endpoint, ...]
    signature: bytes


def parse_endpoints(data: bytes) -> tuple[Endpoint, ...]:
    """Return the endpoints of a GetEndpointsResponse; raise ServiceFault or CorruptError."""
    return _endpoints(open_answer(data, _GET_ENDPOINTS, "GetEndpoints"))


def parse_created_session(data: bytes) -> Created:
    """Return what matters of a CreateSessionResponse; raise ServiceFault or CorruptError."""
    reader = open_answer(data, _CREATE_SESSION, "CreateSession")
    read_node_id(reader)
    at = reader.at
    read_node_id(reader)
    token = data[at : reader.at]
    timeout_ms, nonce, certificate = float(reader.number(F64)), reader.blob() or b"", reader.blob() or b""
    endpoints = _endpoints(reader)
    for _ in range(reader.count()):  # software certificates
        reader.blob()
        reader.blob()
    reader.text()
    return Created(token, timeout_ms, nonce, certificate, endpoints, reader.blob() or b"")


def _endpoints(reader: Reader) -> tuple[Endpoint, ...]:
    found = [_endpoint(reader) for _ in range(reader.count())]
    return tuple(found[:ENDPOINTS_MAX])


def _endpoint(reader: Reader) -> Endpoint:
    url, uri, _product = reader.text() or "", reader.text() or "", reader.text()
    name = read_localized(reader) or ""
    reader.number(I32)  # type of the application
    reader.text()  # gateway server
    reader.text()  # discovery profile
    for _ in range(reader.count()):
        reader.text()
    chain, mode, policy_uri = reader.blob() or b"", int(reader.number(I32)), reader.text() or ""
    tokens = tuple(_token(reader) for _ in range(reader.count()))
    reader.text()  # transport profile
    reader.byte()  # security level
    return Endpoint(url, uri, name, chain, mode, policy_uri, tokens)


def _token(reader: Reader) -> Token:
    policy_id, kind = reader.text() or "", int(reader.number(I32))
    reader.text()  # issued token type
    reader.text()  # issuer
    return Token(policy_id, kind, reader.text() or "")


def tokens_of(endpoints: Iterable[Endpoint], mode: int, policy_uri: str) -> tuple[Token, ...]:
    """Return how one may log in on a channel of this security: of the endpoints that match, else of all."""
    known = list(endpoints)
    matching = [one for one in known if (one.mode, one.policy_uri) == (mode, policy_uri)]
    return tuple(token for one in matching or known for token in one.tokens)


def explain_refusal(source: str, url: str, security: str, pinned: bytes, offered: Sequence[Endpoint], error: EbbgateError) -> EbbgateError:
    """Return why no secure channel came about, from what the server offers without one. pinned: b"" where an authority vouches."""
    fitting = [one for one in offered if one.security == security]
    if not fitting:
        names = ", ".join(sorted({one.security for one in offered})) or "nothing"
        remedy = f"Set source.{source}.security to one of these, or switch {security} on in the server."
        return PlantError(f"{url}: the server does not offer {security}; it offers {names}", remedy)
    shown = {one.certificate for one in fitting}
    if pinned and pinned not in shown:
        now = ", ".join(fingerprint(one) for one in sorted(shown)) or "none"
        return TrustError(
            f"{url}: the server shows another certificate than the pinned one: pinned SHA-256 {fingerprint(pinned)}, now SHA-256 {now}",
            f"If it was replaced on purpose, compare with the server's own display and run: ebbgate trust {source}. If not, somebody is between.",
        )
    return TrustError(
        f"{url}: the server refuses our certificate, or speaks {security} otherwise than we do: {error.message.removeprefix(url + ': ')}",
        f"Accept our certificate in the server: ebbgate trust {source} shows its fingerprint and where in the menus.",
    )
