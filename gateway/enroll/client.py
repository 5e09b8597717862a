"""The gateway's side: two requests with a code that a person typed. Side: OT, as a command, never as a service.

First the CA's certificate, over a connection that is not believed: it must have the fingerprint that stands in the code. Then, over
TLS 1.3 that this CA alone vouches for, the request with its HMAC. Times in certificates are not looked at: a new box may have no clock.
"""

from __future__ import annotations

import hmac
import ssl
from typing import Final

import aiohttp

from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from gateway.errors import PeerError, TrustError
from gateway.trust.certs import NO_CHECK_TIME, authority_der
from gateway.trust.codes import BODY_BYTES_MAX, CA_PATH, PATH, SERVER_NAME, answer_mac, ca_letters, derive_key, parse_code, request_mac
from gateway.trust.enrolment import parse_request

SECONDS_MAX: Final = 30
_STATUS_OK: Final = 200
_STATUS_REFUSED: Final = 403
_CA_BYTES_MAX: Final = 16 * 1024


async def enrol(address: str, port: int, code_text: str, request: bytes) -> bytes:
    """Return the CA's answer to `request`, proven to come from the CA that made the code; raise TrustError or PeerError."""
    code = parse_code(code_text)
    base = f"https://{_literal(address)}:{port}"
    pem = await _authority(base, code.fingerprint)
    der = authority_der(pem)
    key = derive_key(code, parse_request(request).gateway)
    body = encode_cbor([request, request_mac(key, der, request)])
    status, answer = await _ask(base + PATH, _pinned(pem), body, BODY_BYTES_MAX)
    if status == _STATUS_REFUSED:
        raise TrustError(
            "the CA does not accept this code: mistyped, for another gateway, older than a day, used, or tried too often",
            "`ebbgate ca serve` shows which; ask for a new code: ebbgate ca code.",
        )
    if status != _STATUS_OK:
        raise PeerError(f"the CA answered with status {status}", "See the output of ebbgate ca serve.")
    try:
        match decode_cbor(answer):
            case [bytes(message), bytes(mac)]:
                pass
            case _:
                raise CorruptError("not an answer")
    except CorruptError as error:
        raise PeerError("what answers there is no Ebbgate CA", "Check address and port, and what stands between.") from error
    if not hmac.compare_digest(answer_mac(key, der, request, message), mac):
        raise TrustError("the answer was not made by who knows the code: somebody stands between", "Install nothing. Tell the site's IT.")
    return message


async def _authority(base: str, fingerprint: str) -> bytes:
    """Return the CA's certificate, PEM, if it is the one that the code names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    status, pem = await _ask(base + CA_PATH, context, None, _CA_BYTES_MAX)
    try:
        found = ca_letters(authority_der(pem)) if status == _STATUS_OK else ""
    except TrustError:
        found = ""
    if not found:
        raise PeerError(f"what answers at {base} is no Ebbgate CA", "Check address and port of ebbgate ca serve.")
    if found != fingerprint:
        raise TrustError(
            f"the CA at {base} has the fingerprint {found}, the code is from the CA {fingerprint}: mistyped, or somebody stands between",
            "Nothing was sent. Compare the last eight letters of the code; if they are right, tell the site's IT.",
        )
    return pem


async def _ask(url: str, context: ssl.SSLContext, body: bytes | None, most: int) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=SECONDS_MAX)
    name = SERVER_NAME if context.check_hostname else None
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=timeout, auto_decompress=False) as session:
            method = "GET" if body is None else "POST"
            async with session.request(method, url, data=body, allow_redirects=False, server_hostname=name) as response:
                data = await response.content.read(most + 1)
                while len(data) <= most and (more := await response.content.read(most + 1)):
                    data += more
                if len(data) > most:
                    raise PeerError(f"the answer is longer than {most} bytes", "Check address and port.")
                return response.status, data
    except aiohttp.ClientConnectorCertificateError as error:
        message = f"the server at {url} is not vouched for by the CA in the code: {error.certificate_error}"
        raise TrustError(message, "Somebody stands between. Install nothing; tell the site's IT.") from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise PeerError(f"no CA at {url}: {error or type(error).__name__}", "Is ebbgate ca serve running, and the port open?") from error


def _pinned(authority_pem: bytes) -> ssl.SSLContext:
    """Return a context that trusts this CA alone and checks the server's name, not the times."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    context.load_verify_locations(cadata=authority_pem.decode("ascii"))
    return context


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address
