"""The receiver under attack from the network: nothing is stored, memory stays bounded, good gateways go on, the log says what it was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import ssl

import pytest

from buffer import limits
from gateway.receive.app import Timing
from gateway.wire import request as wire
from gateway.wire.receipt import Refusal, Verdict
from tests.integration.test_receive_tls import STREAM, Plant, frames, serving, wires
from tests.support.frames import Source

HEAD = b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
GOOD = HEAD + b"Content-Length: 2\r\n\r\n{}"


@pytest.fixture
def plant(tmp_path):
    return Plant(tmp_path)


def said(caplog) -> list[tuple[str, str]]:
    """(event, why) of every warning so far; forgets them."""
    out = [(r.getMessage(), getattr(r, "data", {}).get("why", "")) for r in caplog.records if r.levelno >= logging.WARNING]
    caplog.clear()
    return out


async def knock(plant: Plant, name: str | None, data: bytes = GOOD, context: ssl.SSLContext | None = None) -> bytes:
    try:
        return await plant.raw(data, name, context=context)
    except (OSError, ssl.SSLError):
        return b""


async def test_who_does_not_get_in_is_told_in_the_log_by_one_line(plant: Plant, caplog) -> None:
    plant.client(plant.evil, "hall1", "impostor")
    plant.client(plant.ca, "hall9")
    old = plant.context("hall1")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    async with serving(plant):
        caplog.clear()
        for name, context, event, why in (
            (None, None, "handshake refused", "peer did not return a certificate"),
            ("impostor", None, "handshake refused", "unable to get local issuer certificate"),
            ("hall1", old, "handshake refused", "unsupported protocol"),
            ("hall9", None, "no answer", "not in receiver.toml"),
        ):
            await knock(plant, name, context=context)
            await asyncio.sleep(0.1)
            lines = said(caplog)
            assert len(lines) == 1, lines
            assert lines[0][0] == event
            assert why in lines[0][1]
        reader, writer = await asyncio.open_connection("127.0.0.1", plant.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.read()
        writer.close()
        lines = said(caplog)
        assert [event for event, _ in lines] == ["handshake refused"], lines
        assert b" 204 " in await plant.raw(GOOD)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nPUT /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"\x00\x01\x02 nonsense\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding:\x0bchunked\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
        HEAD + b"Content-Length: +2\r\n\r\n{}",
        HEAD + b"Content-Length: 0x2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\n folded: yes\r\n\r\n{}",
        HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\n{}",
        HEAD + b"Content-Encoding: deflate\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X\x00Y: z\r\nContent-Length: 2\r\n\r\n{}",
        b"".join((HEAD, *(b"X-%d: y\r\n" % i for i in range(2_000)), b"Content-Length: 2\r\n\r\n{}")),
        b"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT http://127.0.0.1/v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"PUT /v1/status HTTP/9.9\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
async def test_what_could_smuggle_a_request_ends_the_connection_after_one_refusal(plant: Plant, data, caplog) -> None:
    async with serving(plant):
        caplog.clear()
        answer = await knock(plant, "hall1", data)
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert answer == b"" or answer.split(b" ")[1][:1] == b"4", answer[:80]
        assert b"aiohttp" not in answer
        assert b"Invalid" not in answer
        assert plant.reader_absent()
        lines = said(caplog)
        assert [event for event, _ in lines] == ["no answer"], lines
        assert not any(r.exc_info for r in caplog.records)
        assert b" 204 " in await plant.raw(GOOD)


async def test_expect_and_pipelines_are_answered_in_order_and_nothing_more(plant: Plant) -> None:
    one = b"PUT /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(plant):
        answer = await knock(plant, "hall1", HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}")
        assert answer.count(b"HTTP/1.1 204") <= 1
        answer = await plant.raw(one * 3 + GOOD)
        assert answer.count(b"HTTP/1.1 204") == 4
        answer = await plant.raw(one + b"PUT /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" + one)
        assert (answer.count(b"HTTP/1.1 204"), answer.count(b"HTTP/1.1 400")) == (1, 1), "what follows a refusal is not read"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/streams/../../etc/1-00000007/0-0", "/v1/streams/..%2f..%2fetc/1-00000007/0-0", "/v1/streams/hall1.%00/1-00000007/0-0",
        "/v1/streams/hall1..main/1-00000007/0-0", "/v1/streams/HALL1.MAIN/1-00000007/0-0", "/v1/streams/hall1.main/1-00000007/00-0",
        "/v1/streams/hall1.main/1-00000007/5-4", "/v1/streams/hall1.main/1-00000007/0-99999999999999999999",
        "/v1/streams/hall1.main/99999999999-00000007/0-0", "/v1/streams/hall1.main/1-00000007/0-0?lane=live", "/v1/streams//1-00000007/0-0",
        "/v1/streams/hall1.main/1-00000007/0-0?offset=0&length=1&offset=1", "/v1/objects/" + "0" * 63 + "g?stream=hall1.main", "//v1/status", "/v1/status/", "/v1/status#x",
        "/v1/streams/" + "a" * 65 + "/1-00000007/0-0", "/v1/streams/hall1.main/1-00000007/0-0?chain=" + "0" * 400, "/v1/streams/hall1.\u0131/1-00000007/0-0",
    ],
)  # fmt: skip
async def test_paths_of_another_spelling_name_nothing(plant: Plant, path, caplog) -> None:
    async with serving(plant):
        caplog.clear()
        answer = await knock(plant, "hall1", f"PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx".encode())
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0], answer[:80]
        assert plant.reader_absent()
        assert len(said(caplog)) == 1


async def test_replayed_cut_swapped_and_stretched_frames_are_refused_or_known(plant: Plant, caplog) -> None:
    source = Source([2, 1, 3])
    async with serving(plant):
        await plant.objects()
        assert (await plant.receipt(frames(source, 0, 2), wires(source, 0, 2))).verdict == Verdict.STORED
        assert (await plant.receipt(frames(source, 0, 2), wires(source, 0, 2))).verdict == Verdict.DUPLICATE
        caplog.clear()
        one, two = (f.wire() for f in source.blocks[:2])
        for target, body in (
            (frames(source, 0, 1), two + one),
            (frames(source, 0, 1), one + one),
            (frames(source, 0, 10_000), one),
            (frames(source, 0, 2**63 - 1), wires(source, 0, 2)),
            (frames(source, 0, 0), one[:40]),
            (frames(source, 0, 0), one[:32] + b"\xff\xff\xff\x7f" + one[36:]),
            (frames(source, 0, 0), b""),
        ):
            status, answer = await plant.put(target, body)
            if status == wire.OK:
                from gateway.wire.receipt import parse_receipt

                receipt = parse_receipt(answer, plant.receipts)
                assert receipt.verdict in (Verdict.REFUSED, Verdict.DUPLICATE)
                assert receipt.verdict == Verdict.DUPLICATE or receipt.reason == Refusal.NOT_A_FRAME
            else:
                assert status == wire.BAD_REQUEST
        assert said(caplog)
    assert plant.reader().state.ends == (3, 0)


async def test_hundreds_of_connections_that_say_nothing_leave_room_and_memory(plant: Plant, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Headers without an end, bodies without an end, and silence, at once, while one good gateway sends."""
    source = Source([1] * 20)
    plant.client(plant.ca, "hall2")
    async with serving(plant, Timing(idle=4, pause=4, body=6)):
        await plant.objects()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        context = plant.context("hall2")
        bodies = b"PUT /v1/streams/hall2.main/1-00000007/0-0 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % limits.PUT_BYTES_MAX
        held = []
        for at in range(0, 300, 50):
            opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", plant.port, ssl=context) for _ in range(50)), return_exceptions=True)
            for number, pair in enumerate(x for x in opened if not isinstance(x, BaseException)):
                pair[1].write((b"", HEAD + b"X-Slow: ", bodies + bytes(1_000))[(at + number) % 3])
                held.append(pair)
        assert len(held) > 250
        for n in range(20):
            assert (await plant.receipt(frames(source, n, n), wires(source, n, n))).verdict == Verdict.STORED
        async with asyncio.timeout(40):  # each of them is closed in the end
            await asyncio.gather(*(reader.read() for reader, _ in held), return_exceptions=True)
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        for _, writer in held:
            with contextlib.suppress(Exception):
                writer.close()
        assert grown_kb < 200 * 1024, "both ends of 300 connections are in this process"
        assert any("more than 8 requests" in why for _, why in said(caplog))
    assert plant.reader().state.ends == (20, 0)
    assert STREAM == "hall1.main"
