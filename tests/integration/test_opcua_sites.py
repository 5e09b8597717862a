"""Sites: redundant servers, a CA of the plant with another server implementation, twin machines with one address, sessions that run out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asyncua import Server, ua
from cryptography.hazmat.primitives import serialization

from buffer.notice import NoticeKind
from gateway.collect.opcua import browse, probe
from gateway.collect.opcua.check import check
from gateway.collect.opcua.rows import make_rows
from gateway.errors import TrustError
from gateway.findings import Level
from gateway.runtime import quiet, real
from gateway.settings import Load
from tests.integration.test_opcua import make_source, our_pair, running, until, ups
from tests.support.opcua_child import settings_for
from tests.support.opcua_server import OpcuaServer, free_port
from tests.support.peers import absent
from tests.support.sinks import MemorySink
from tests.unit.test_opcua_certificate import DER, KEYS, LEAF, MIDDLE, ROOT

quiet()
FAST = Load(requests_per_s=200, duty=1.0)


# ---- redundant servers ----


@pytest.mark.peers
async def test_a_degraded_server_is_left_for_the_healthy_one_and_a_dead_one_too(tmp_path: Path) -> None:
    first = OpcuaServer(tmp_path / "a", tags=3, extras={"service_level": 50})
    second = OpcuaServer(tmp_path / "b", tags=3)
    await asyncio.gather(asyncio.to_thread(first.start), asyncio.to_thread(second.start))
    urls = [f"opc.tcp://127.0.0.1:{one.port}" for one in (first, second)]
    settings = replace(settings_for(first.port, 3, load=FAST), urls=tuple(urls))
    sink = MemorySink()
    try:
        assert any("service level 50" in one.what for one in await check(settings, real(), tmp_path / "check"))
        async with running(make_source(settings, tmp_path), sink) as task:
            await until(lambda: ups(sink) == 1, 40, task)
            assert sink.told(NoticeKind.SOURCE_UP)[-1]["url"] == urls[1], "the healthy one, though it is the second"
            second.stop()
            await until(lambda: ups(sink) == 2, 60, task)
            assert sink.told(NoticeKind.SOURCE_UP)[-1]["url"] == urls[0], "better degraded than none"
    finally:
        first.stop()
        second.stop()


# ---- few sessions ----


@pytest.mark.peers
async def test_killed_again_and_again_a_server_of_two_sessions_is_never_exhausted(tmp_path: Path) -> None:
    """Collectors killed at once after connecting, their state with them kept: one session, and room for another client."""
    server = await asyncio.to_thread(OpcuaServer(tmp_path / "pki", tags=3, max_sessions=2).start)
    try:
        for _ in range(2):  # the second waits until the session of the first has run out
            command = [sys.executable, "-m", "tests.support.opcua_child", str(server.port), "3", str(tmp_path), "SESSION_TIMEOUT_S=15"]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            state = tmp_path / "plc.json"
            before = state.stat().st_mtime_ns if state.exists() else 0
            await until(lambda state=state, before=before: state.exists() and state.stat().st_mtime_ns > before, 120)
            process.kill()
            await process.wait()
        shown = await probe.read(settings_for(server.port, 0, load=FAST), real(), tmp_path / "scada", "ns=1;s=Setpoint")
        assert shown.value == "1.5", "the SCADA system's session is there"
    finally:
        server.stop()


# ---- a plant's own CA; another server implementation ----


@contextlib.asynccontextmanager
async def other_server(directory: Path) -> AsyncIterator[tuple[int, Server, int]]:
    """asyncua's own server, with a certificate signed by a CA, and without ServerCapabilities."""
    (directory / "leaf.der").write_bytes(LEAF.public_bytes(DER))
    pem = KEYS[2].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "leaf.pem").write_bytes(pem)
    server, port = Server(), free_port()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/plc/")
    server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt, ua.SecurityPolicyType.Aes256Sha256RsaPss_Sign])
    await server.load_certificate(str(directory / "leaf.der"))
    await server.load_private_key(str(directory / "leaf.pem"))
    index = await server.register_namespace("urn:plant")
    folder = await server.nodes.objects.add_folder(index, "Press")
    for name, value in (("Temp", 181.5), ("Count", 7), ("Name", "Grüße"), ("Row", [1.5, 2.5])):
        await folder.add_variable(ua.NodeId(name, index), name, value)
    await server.delete_nodes([server.get_node(2268)], recursive=False)
    async with server:
        yield port, server, index


def ca_settings(port: int, directory: Path, security: str = "Basic256Sha256 SignAndEncrypt"):  # noqa: ANN201
    ours, key = our_pair(directory, "urn:ebbgate:test")
    given = {"certificate": ours, "private_key": key, "application_uri": "urn:ebbgate:test", "trusted": directory / "trusted", "waiver": ""}
    made = settings_for(port, 0, **given, security=security, load=FAST, namespaces={"p": "urn:plant"})
    return replace(made, urls=(f"opc.tcp://127.0.0.1:{port}/plc/",))


async def test_a_server_that_the_plants_authority_vouches_for(tmp_path: Path) -> None:
    (tmp_path / "trusted").mkdir()
    async with other_server(tmp_path) as (port, _, _index):
        settings = ca_settings(port, tmp_path)
        with pytest.raises(TrustError, match="no authority"):
            (tmp_path / "trusted/root.der").write_bytes(ROOT.public_bytes(DER))
            await probe.read(settings, real(), tmp_path / "state", "p:Temp")
        (tmp_path / "trusted/middle.der").write_bytes(MIDDLE.public_bytes(DER))
        assert (await probe.read(settings, real(), tmp_path / "state", "p:Temp")).value == "181.5"
        sign = ca_settings(port, tmp_path, "Aes256_Sha256_RsaPss Sign")
        found = await browse.browse(sign, real(), tmp_path / "state", root="p:Temp")
        assert not found.variables
        found = await browse.browse(sign, real(), tmp_path / "state")
        rows, left_out = make_rows("plc", found.variables, found.namespaces, sign.namespaces)
        assert {row.address for row in rows} >= {"p:Temp", "p:Count", "p:Name", "p:Row"}
        assert not left_out
        tags = tuple(replace(row, number=16 + i) for i, row in enumerate(rows))
        checked = await check(replace(sign, tags=tags), real(), tmp_path / "state")
        assert not [one for one in checked if one.level is Level.REFUSED]
        assert any("vouches for is trusted" in one.what for one in checked)


# ---- twin machines ----

SERVE = "import socket; s=socket.create_server(('192.168.0.7', 4840)); c,_=s.accept(); c.recv(64); print('met', flush=True)"
CONNECT = """
import asyncio, sys
from gateway.collect.load import Budget
from gateway.collect.opcua.guarded import GuardedUaClient
from gateway.collect.opcua.throttle import Throttle
from gateway.runtime import real
from gateway.settings import Load
async def main():
    world = real()
    client = GuardedUaClient(Throttle(Budget(Load(), world.monotonic_ns()), world), sys.argv[1])
    await client.connect_socket("192.168.0.7", 4840)
    await asyncio.wait_for(asyncio.gather(client.send_hello("opc.tcp://192.168.0.7:4840"), return_exceptions=True), 8)
asyncio.run(main())
"""


@pytest.fixture
def twins() -> Iterator[str]:
    """Three network namespaces: a gateway with two wires, and behind each the same address. Yields their common prefix."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        absent("root with iproute2, for network namespaces")
    prefix = f"ebb{os.getpid() % 10_000}"
    spaces = [f"{prefix}{name}" for name in "gab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, timeout=20, capture_output=True)

    try:
        for space in spaces:
            ip("netns", "add", space)
        for number, twin in enumerate("ab", 1):
            ip("-n", spaces[0], "link", "add", f"ot{twin}", "type", "veth", "peer", "name", "eth0", "netns", f"{prefix}{twin}")
            ip("-n", spaces[0], "addr", "add", f"192.168.0.{number}/24", "dev", f"ot{twin}")
            ip("-n", spaces[0], "link", "set", f"ot{twin}", "up")
            ip("-n", f"{prefix}{twin}", "addr", "add", "192.168.0.7/24", "dev", "eth0")
            ip("-n", f"{prefix}{twin}", "link", "set", "eth0", "up")
        yield prefix
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], timeout=20, check=False, capture_output=True)


@pytest.mark.peers
@pytest.mark.parametrize("wanted", ["a", "b"])
def test_the_interface_chooses_between_machines_with_one_address(twins: str, wanted: str) -> None:
    machines = {
        twin: subprocess.Popen(["ip", "netns", "exec", f"{twins}{twin}", sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
        for twin in "ab"
    }
    try:
        command = ["ip", "netns", "exec", f"{twins}g", sys.executable, "-c", CONNECT, f"ot{wanted}"]
        for _ in range(20):  # until the machine listens
            if subprocess.run(command, timeout=60, check=False, capture_output=True).returncode == 0:
                break
        assert machines[wanted].wait(20) == 0
        stdout = machines[wanted].stdout
        assert stdout is not None and stdout.read() == "met\n"
        other = next(twin for twin in "ab" if twin != wanted)
        assert machines[other].poll() is None, "the other one met nobody"
    finally:
        for one in machines.values():
            one.kill()
            one.wait()


def test_an_interface_that_is_not_there_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = settings_for(listening.getsockname()[1], 0, interface="nosuch0")
        found = asyncio.run(check(settings, real(), tmp_path))
    refused = [one for one in found if one.level is Level.REFUSED]
    assert "nosuch0" in refused[0].what
