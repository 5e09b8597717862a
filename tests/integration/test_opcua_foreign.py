"""First contact with servers as they are: every policy, tiny limits, cycles, odd names, wrong host names, cuts at every moment."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gateway.collect.opcua import browse, probe
from gateway.collect.opcua.check import check
from gateway.collect.opcua.rows import make_rows
from gateway.collect.opcua.state import parse_state
from gateway.errors import PlantError, TrustError
from gateway.findings import Level, Live
from gateway.runtime import quiet, real
from gateway.settings import Load, TagRow
from gateway.settings import OpcuaSource as Settings
from gateway.tagfile import parse_tags, write_tags
from tests.integration.test_opcua import our_pair
from tests.support.opcua_child import settings_for
from tests.support.opcua_server import OpcuaServer
from tests.support.proxy import Proxy

pytestmark = pytest.mark.peers
quiet()
POLICIES = ("Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss")
MODES = ("Sign", "SignAndEncrypt")
FAST = Load(requests_per_s=200, duty=1.0)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OpcuaServer, dict[str, object]]]:
    directory = tmp_path_factory.mktemp("all-policies")
    one = OpcuaServer(
        directory, tags=5, secure=True, policies=[*POLICIES, "Basic256"], modes=MODES, user="ebbgate_ro", password="geheim-ü", max_sessions=20
    ).start()
    pinned = directory / "server.der"
    pinned.write_bytes(x509.load_pem_x509_certificate(one.certificate.read_bytes()).public_bytes(serialization.Encoding.DER))
    (directory / "password").write_text("geheim-ü\n", encoding="utf-8")
    ours, key = our_pair(directory, "urn:ebbgate:test")
    given: dict[str, object] = {
        "server_certificate": pinned,
        "certificate": ours,
        "private_key": key,
        "application_uri": "urn:ebbgate:test",
        "user": "ebbgate_ro",
        "password_file": directory / "password",
        "waiver": "",
        "load": FAST,
    }
    yield one, given
    one.stop()


async def test_every_policy_in_both_modes_reads_and_keeps_the_password_to_itself(
    secure: tuple[OpcuaServer, dict[str, object]], tmp_path: Path
) -> None:
    server, given = secure
    for policy in POLICIES:
        for mode in MODES:
            async with Proxy(server.port) as proxy:
                settings = settings_for(proxy.port, 5, **given | {"security": f"{policy} {mode}"})
                shown = await probe.read(settings, real(), tmp_path / policy / mode, "ns=1;s=Text")
                assert (shown.value, shown.quality) == ("Grüße", 0), (policy, mode)
                assert b"geheim" not in bytes(proxy.recorded), (policy, mode)


async def test_a_weak_policy_works_only_as_far_as_the_waiver_goes(secure: tuple[OpcuaServer, dict[str, object]], tmp_path: Path) -> None:
    server, given = secure
    weak = settings_for(server.port, 5, **given | {"security": "Basic256 SignAndEncrypt", "waiver": "firmware 1.8"})
    found = await check(weak, real(), tmp_path)
    assert any("its cryptography is broken; waived: firmware 1.8" in one.what for one in found)
    assert not [one for one in found if one.level is Level.REFUSED]


async def test_a_policy_that_is_not_offered_is_named_with_those_that_are(secure: tuple[OpcuaServer, dict[str, object]], tmp_path: Path) -> None:
    server, given = secure
    wrong = settings_for(server.port, 5, **given | {"security": "Basic128Rsa15 Sign", "waiver": "x"})
    found = [one for one in await check(wrong, real(), tmp_path) if one.level is Level.REFUSED]
    assert len(found) == 1
    assert "does not offer Basic128Rsa15 Sign; it offers" in found[0].what
    assert "Aes256Sha256RsaPss SignAndEncrypt" in found[0].what


async def test_wrong_passwords_are_counted_and_not_tried_five_times(secure: tuple[OpcuaServer, dict[str, object]], tmp_path: Path) -> None:
    server, given = secure
    wrong = tmp_path / "wrong"
    wrong.write_text("falsch")
    async with Proxy(server.port) as proxy:
        settings = settings_for(proxy.port, 5, **given | {"security": "Basic256Sha256 SignAndEncrypt", "password_file": wrong})
        first = [one for one in await check(settings, real(), tmp_path) if one.level is Level.REFUSED]
        assert "Bad" in first[0].what and "password_file" in first[0].remedy
        connections = proxy.connections
        for _ in range(5):
            again = [one for one in await check(settings, real(), tmp_path) if one.level is Level.REFUSED]
            assert "not tried again for 15 min" in again[0].what
        assert proxy.connections == connections, "the server heard of it once"
        wrong.unlink()
        wrong.write_text("geheim-ü", encoding="utf-8")
        assert not [one for one in await check(settings, real(), tmp_path) if one.level is Level.REFUSED]


async def test_a_server_that_is_silent_without_security_is_pinned_by_hand(tmp_path: Path) -> None:
    """As open62541 answers where its None policy is taken out."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (b"ACKF" + struct.pack("<6I", 28, 0, 65_536, 65_536, 0, 0), b"ERRF" + struct.pack("<IIi", 16, 0x8055_0000, -1)):
            await reader.readexactly(int.from_bytes((await reader.readexactly(8))[4:], "little") - 8)
            writer.write(answer)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as silent:
        settings = settings_for(silent.sockets[0].getsockname()[1], 0, security="Basic256Sha256 SignAndEncrypt", waiver="", load=FAST)
        with pytest.raises(PlantError, match="nobody who comes without security") as told:
            await probe.offer(settings, real(), tmp_path, ask_with_ours=False)
        assert "server_certificate" in told.value.remedy


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpcuaServer]:
    """A server with limits of small PLCs, wrong host names and everything careless in its names."""
    one = OpcuaServer(
        tmp_path_factory.mktemp("odd"), tags=25, max_items=5, max_read=10, max_browse=1, max_sessions=50, hostname="PLC_1.plant.invalid",
        extras={"context": True, "odd": True, "cycle": True, "namespaces": 500},
    ).start()  # fmt: skip
    yield one
    one.stop()


async def test_browsing_from_a_node_that_is_not_there_says_so(odd: OpcuaServer, tmp_path: Path) -> None:
    with pytest.raises(PlantError, match="ns=1;s=nowhere: the server answered BadNodeIdUnknown"):
        await browse.browse(settings_for(odd.port, 0, load=FAST), real(), tmp_path, root="ns=1;s=nowhere")


async def test_tiny_limits_cycles_and_hostile_names(odd: OpcuaServer, tmp_path: Path) -> None:
    settings = settings_for(odd.port, 0, load=FAST)
    found = await browse.browse(settings, real(), tmp_path)
    assert len(found.namespaces) > 500
    assert not found.stopped
    names = [one.path[-1] for one in found.variables]
    assert names.count("Deep") == 1, "a cycle is walked once"
    rows, left_out = make_rows("plc", found.variables, found.namespaces, {})
    assert len(rows) + len(left_out) == len(found.variables)
    data = write_tags(rows)
    assert [(row.id, row.address) for row in parse_tags(data, {"plc"})] == [(row.id, row.address) for row in rows]
    for row in rows:
        assert not set(row.path) & set("\0\x1b\n\u202e"), row
    assert any("alert" in row.id for row in rows)
    live: list[Live] = []
    checked = await check(settings_with(settings, rows), real(), tmp_path, live=live)
    assert not [one for one in checked if one.level is Level.REFUSED], "the table is accepted as it is"
    assert len(live) == len(rows)


def settings_with(settings: Settings, rows: list[TagRow]) -> Settings:
    from dataclasses import replace

    return replace(settings, tags=tuple(replace(row, number=16 + i) for i, row in enumerate(rows)))


async def test_most_and_depth_bound_a_browse(odd: OpcuaServer, tmp_path: Path) -> None:
    settings = settings_for(odd.port, 0, load=FAST)
    few = await browse.browse(settings, real(), tmp_path, most=3, attributes=False)
    assert (len(few.variables), few.stopped) == (3, "stopped at 3 variables")
    flat = await browse.browse(settings, real(), tmp_path, depth=1, attributes=False)
    assert (len(flat.variables), flat.stopped) == (0, "stopped 1 levels down")


async def test_another_host_name_is_noted_and_not_followed(odd: OpcuaServer, tmp_path: Path) -> None:
    got = await probe.offer(settings_for(odd.port, 0), real(), tmp_path, ask_with_ours=False)
    assert any("plc_1.plant.invalid" in one.url.lower() for one in got.endpoints)
    assert got.url == f"opc.tcp://127.0.0.1:{odd.port}"


async def test_a_connection_cut_at_any_moment_is_one_message_and_leaves_nothing_locked(odd: OpcuaServer, tmp_path: Path) -> None:
    """Cut after the n-th answer, for every n up to the end of a whole check."""
    tags = tuple(TagRow(f"t{i}", f"p/t{i}", "plc", f"ns=1;s=Tag{i:05d}", number=16 + i) for i in range(3))
    done, cuts = False, 0
    for answers in range(1, 60):
        async with cut_after(odd.port, answers) as port:
            directory = tmp_path / str(answers)  # a state of its own: a session of the run before may still be held
            found = await check(settings_for(port, 0, tags=tags, load=FAST), real(), directory)
        refused = [one for one in found if one.level is Level.REFUSED]
        if not refused:
            done = True
            break
        cuts += 1
        assert len(refused) == 1, refused
        assert refused[0].remedy, refused
        state = parse_state((directory / "plc.json").read_bytes())
        assert state.load["minutes"], "what was asked is charged"
    assert done and cuts > 8, cuts


@contextlib.asynccontextmanager
async def cut_after(target: int, answers: int) -> AsyncIterator[int]:
    """A proxy that aborts after so many pieces from the server."""
    left = answers

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        there, to = await asyncio.open_connection("127.0.0.1", target)

        async def up() -> None:
            while data := await reader.read(65_536):
                to.write(data)

        task = asyncio.create_task(up())
        while left > 0 and (data := await there.read(65_536)):
            left -= 1
            writer.write(data)
        if left <= 0:
            writer.transport.abort()
        task.cancel()
        to.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"ERRF\x10\0\0\0\0\0\x82\x80\xff\xff\xff\xff", b"ACKF\x08\0\0\0", b"ACKF\xff\xff\xff\x7f", b""],
    ids=["http", "zeros", "error", "short", "endless", "closed"],
)
async def test_what_is_no_opcua_server_is_said_to_be_none(answer: bytes, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        if not answer:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        with pytest.raises((PlantError, TrustError)) as raised:
            await probe.read(settings_for(server.sockets[0].getsockname()[1], 0), real(), tmp_path, "ns=1;s=x")
        assert "127.0.0.1" in str(raised.value)
    finally:
        server.close()


