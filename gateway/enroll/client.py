"""The gateway's side: one POST with a code that a person typed. Side: OT, as a command, never as a service."""

from __future__ import annotations

import hmac
import ssl
from typing import Final

import aiohttp

from buffer.cose import decode_cbor, encode_cbor
from buffer.errors import CorruptError
from gateway.errors import PeerError, TrustError
from gateway.trust.enrolment import BODY_BYTES_MAX, PATH, answer_mac, derive_key, parse_request, request_mac

SECONDS_MAX: Final = 30
_STATUS_OK: Final = 200
_STATUS_REFUSED: Final = 403


async def enrol(address: str, port: int, code: str, request: bytes) -> bytes:
    """Return the CA's answer to `request`, proven to come from who made the code; raise TrustError or PeerError.

    The server's certificate is not looked at: this box cannot know it yet. What counts is the code on both sides.
    """
    key = derive_key(code, parse_request(request).gateway)
    body = encode_cbor([request, request_mac(key, request)])
    status, answer = await _post(f"https://{_literal(address)}:{port}{PATH}", body)
    if status == _STATUS_REFUSED:
        raise TrustError("the CA does not accept this code: mistyped, older than a day, used, or tried too often", "Ask for a new code.")
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
    if not hmac.compare_digest(answer_mac(key, request, message), mac):
        raise TrustError("the answer was not made by who knows the code: somebody stands between", "Install nothing. Tell the site's IT.")
    return message


async def _post(url: str, body: bytes) -> tuple[int, bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    timeout = aiohttp.ClientTimeout(total=SECONDS_MAX)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=timeout, auto_decompress=False) as session:
            async with session.post(url, data=body, allow_redirects=False) as response:
                data = await response.content.read(BODY_BYTES_MAX + 1)
                while len(data) <= BODY_BYTES_MAX and (more := await response.content.read(BODY_BYTES_MAX + 1)):
                    data += more
                if len(data) > BODY_BYTES_MAX:
                    raise PeerError(f"the answer is longer than {BODY_BYTES_MAX} bytes", "Check address and port.")
                return response.status, data
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise PeerError(f"no CA at {url}: {error or type(error).__name__}", "Is ebbgate ca serve running, and the port open?") from error


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address
