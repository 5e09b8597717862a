"""The carrier against servers that nobody should have to meet: every answer is short and whole, or it is no answer, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import socket
import ssl
import time
import tracemalloc
from dataclasses import replace

import pytest

from gateway import runtime as world
from gateway.errors import ConfigError
from gateway.trust import certs
from gateway.upload import transport
from gateway.upload.carrier import Answer, CarrierError, Cause
from gateway.upload.transport import HttpsCarrier
from gateway.wire.request import Lane
from tests.support.site import Site

TARGET = "/v1/status"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: application/cose\r\n\r\nhello"


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, 1)


@contextlib.asynccontextmanager
async def server(site: Site, script, context: ssl.SSLContext | None = None):
    """Serve `script(reader, writer)` behind the site's own TLS; yield the port. Whatever the script holds open is closed at the end."""
    context = context or certs.server_context(site.pki / "receiver.crt", site.pki / "receiver.key", site.pki / "ca.crt")
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(reader, writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


def answering(data: bytes):
    async def script(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await read_request(reader)
                writer.write(data)
                await writer.drain()

    return script


def carrier(site: Site, port: int, **change) -> HttpsCarrier:
    return HttpsCarrier(world.real(), replace(site.gateway(port).receiver, **change))


async def put(site: Site, port: int, parts=(b"body",), deadline: float = 20.0, lane: Lane = Lane.LIVE, pace=None, **change) -> Answer:
    one = carrier(site, port, **change)
    try:
        return await one.put(TARGET, parts, lane, deadline, pace)
    finally:
        await one.close()


async def no_answer(site: Site, script, **change) -> CarrierError:
    async with server(site, script) as port:
        with pytest.raises(CarrierError) as caught:
            await put(site, port, **change)
    assert caught.value.remedy
    return caught.value


async def test_the_bytes_arrive_whole_with_a_length_and_no_coding(site):
    got = []

    async def script(reader, writer):
        got.append(await read_request(reader))
        writer.write(GOOD)
        await writer.drain()

    body = bytes(range(256)) * 1000
    async with server(site, script) as port:
        answer = await put(site, port, parts=(body[:7], memoryview(body)[7:100_000], body[100_000:]))
    assert answer == Answer(200, b"hello")
    head, received = got[0]
    assert received == body
    assert head.startswith(b"PUT /v1/status HTTP/1.1\r\n")
    lower = head.lower()
    assert b"host: receiver.test" in lower
    assert b"content-length: 256000" in lower
    assert b"transfer-encoding" not in lower
    assert b"content-encoding" not in lower
    assert b"accept-encoding: identity" in lower
    assert b"cookie" not in lower


ALTERED = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "too long": b"HTTP/1.1 200 OK\r\nContent-Length: 513\r\n\r\n" + bytes(513),
    "announces a terabyte": b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n",
    "no length": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "long line": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(200)) + b"Content-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("what", ALTERED)
async def test_an_altered_answer_is_no_answer(site, what):
    error = await no_answer(site, answering(ALTERED[what]))
    assert error.reached
    assert error.cause in (Cause.ALTERED, Cause.STATUS)


async def test_a_redirect_is_not_followed(site):
    error_status = b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n"
    async with server(site, answering(error_status)) as port:
        assert (await put(site, port)).status == 302


async def test_a_page_of_a_web_filter_is_told_by_its_status(site):
    page = b"<html>" + bytes(3000)
    error = await no_answer(site, answering(b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n" % len(page) + page))
    assert error.cause == Cause.BUSY


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(transport, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(transport, "CONNECT_SECONDS", 0.5)


async def _never(reader, writer):
    await read_request(reader)
    await asyncio.sleep(60)


async def _drips(reader, writer):
    await read_request(reader)
    for byte in GOOD * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)


async def _continues_for_ever(reader, writer):
    await read_request(reader)
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0.01)


async def _floods(reader, writer):
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-A: " + b"a" * 60_000)
        await writer.drain()


async def _never_reads(reader, writer):
    writer.transport.pause_reading()
    await asyncio.sleep(60)


@pytest.mark.parametrize("script", [_never, _drips, _continues_for_ever, _floods, _never_reads])
async def test_time_and_memory_are_bounded_whatever_the_other_side_does(site, impatient, script):
    parts = (bytes(8 << 20),)
    gc.collect()
    tracemalloc.start()
    began = time.monotonic()
    error = await no_answer(site, script, deadline=2.0, parts=parts)
    took = time.monotonic() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.reached
    assert took < 20, "the deadline is 2 s"
    assert peak < 24 << 20


async def test_a_server_that_hangs_up_may_have_refused_our_certificate(site):
    async def script(reader, writer):
        writer.transport.abort()

    error = await no_answer(site, script)
    assert error.cause == Cause.CERTIFICATE_REFUSED
    assert "tls.crt" in error.remedy


async def test_a_certificate_of_another_ca_is_refused_by_the_receiver_and_named(site, tmp_path):
    other = Site(tmp_path / "other", 1)
    async with server(site, answering(GOOD)) as port:
        with pytest.raises(CarrierError) as caught:
            await put(site, port, certificate=other.pki / "tls.crt", private_key=other.pki / "tls.key")
    assert caught.value.cause == Cause.CERTIFICATE_REFUSED
    assert caught.value.reached


async def test_tls_inspection_is_named_with_the_issuer_and_sees_no_frame(site, tmp_path):
    now = dt.datetime.now(dt.UTC)
    pki = tmp_path / "zscaler"
    pki.mkdir()
    inspector = certs.create_authority(pki / "ca.crt", pki / "ca.key", "Zscaler Root", now)
    certs.create_server_certificate(inspector, pki / "crt", pki / "key", ["receiver.test"], now)
    seen = []

    async def script(reader, writer):
        seen.append(await reader.read(100_000))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "crt", pki / "key")
    async with server(site, script, context) as port:
        with pytest.raises(CarrierError) as caught:
            await put(site, port, parts=(b"secret reading",))
    assert caught.value.cause == Cause.TLS_INSPECTION
    assert "Zscaler Root" in caught.value.message
    assert b"secret" not in b"".join(seen)


async def test_a_certificate_for_another_name_is_refused(site):
    async with server(site, answering(GOOD)) as port:
        with pytest.raises(CarrierError) as caught:
            await put(site, port, url=f"https://other.test:{port}")
    assert caught.value.cause == Cause.TLS
    assert "another name than other.test" in caught.value.message


async def test_tls_1_2_is_refused(site):
    context = certs.server_context(site.pki / "receiver.crt", site.pki / "receiver.key", site.pki / "ca.crt")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    async with server(site, answering(GOOD), context) as port:
        with pytest.raises(CarrierError) as caught:
            await put(site, port)
    assert caught.value.cause == Cause.TLS


async def test_nobody_there_is_cheap(site):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(CarrierError) as caught:
        await put(site, port)
    assert caught.value.cause == Cause.UNREACHABLE
    assert not caught.value.reached


async def test_an_idle_connection_that_was_closed_meanwhile_costs_nothing(site):
    async def once(reader, writer):
        await read_request(reader)
        writer.write(GOOD)
        await writer.drain()  # and hangs up, without saying so

    async with server(site, once) as port:
        one = carrier(site, port)
        for _ in range(3):
            assert (await one.put(TARGET, (b"body",), Lane.LIVE, 10, None)).status == 200
            await asyncio.sleep(0.05)
        await one.close()


async def test_no_name_is_ever_looked_up(site, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a look-up: {args}")

    async with server(site, answering(GOOD)) as port:
        one = carrier(site, port)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse)
        assert (await one.put(TARGET, (b"body",), Lane.LIVE, 10, None)).status == 200
        await one.close()


@pytest.mark.parametrize(
    "change",
    [dict(url="http://receiver.test:1"), dict(address="receiver.test"), dict(url="https://127.0.0.2:1", address="127.0.0.1"), dict(url="https://")],
)
def test_an_address_that_would_need_dns_or_goes_elsewhere_is_refused(site, change):
    with pytest.raises(ConfigError):
        carrier(site, 1, **change)


@pytest.mark.parametrize(("lane", "tos"), [(Lane.LIVE, 0), (Lane.BACKFILL, transport.DSCP_CS1_TOS)])
async def test_sockets_of_each_lane(site, lane, tos, monkeypatch):
    made = []
    original = transport._socket_maker

    def maker(wanted):
        make = original(wanted)

        def record(address):
            made.append(make(address).dup())
            return make(address)

        return record

    monkeypatch.setattr(transport, "_socket_maker", maker)
    async with server(site, answering(GOOD)) as port:
        await put(site, port, lane=lane)
    for sock in made:
        with sock:
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == tos
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    assert made


async def test_a_paced_body_asks_before_every_chunk(site):
    asked = []

    def pace(size: int) -> float:
        asked.append(size)
        return 0.0

    async with server(site, answering(GOOD)) as port:
        await put(site, port, parts=(bytes(200_000), b"x"), lane=Lane.BACKFILL, pace=pace)
    assert sum(asked) == 200_001
    assert max(asked) <= transport.CHUNK_BYTES


# ---- through a proxy ----


@contextlib.asynccontextmanager
async def proxy(answer: bytes | None = None):
    """A CONNECT proxy on loopback that connects everything to 127.0.0.1; or one that gives `answer`."""
    seen = []
    tasks = set()

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        if answer is not None:
            writer.write(answer)
            await writer.drain()
            writer.close()
            return
        port = int(head.split()[1].rpartition(b":")[2])
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", seen
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_proxy_is_spoken_to_with_connect_and_sees_only_tls(site):
    async with server(site, answering(GOOD)) as port, proxy() as (address, seen):
        assert (await put(site, port, proxy=f"http://user:secret@{address}")).body == b"hello"
    assert seen[0].startswith(b"CONNECT receiver.test:%d HTTP/1.1" % port)
    assert b"Proxy-Authorization: Basic" in seen[0]
    assert b"/v1/status" not in seen[0]


@pytest.mark.parametrize(("status", "text"), [(b"407 Proxy Authentication Required", "login"), (b"403 Forbidden", "403")])
async def test_a_proxy_that_refuses_is_named(site, status, text):
    async with proxy(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n") as (address, _):
        with pytest.raises(CarrierError) as caught:
            await put(site, 1, proxy=f"http://{address}")
    assert caught.value.cause == Cause.PROXY
    assert text in caught.value.message
