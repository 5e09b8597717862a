"""The OPC UA source against node-opcua: cuts, restarts, kills, silence, pauses, refused items, logins. Bounded in time and count."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from buffer.notice import NoticeKind
from buffer.types import BAD_NO_COMMUNICATION, BAD_OUT_OF_SERVICE, Flag
from gateway.collect import guard
from gateway.collect.clock import GatewayClock
from gateway.collect.opcua import source as source_module
from gateway.collect.opcua.source import OpcuaSource
from gateway.collect.opcua.state import parse_state
from gateway.runtime import real
from gateway.settings import SECOND, Alive, TagRow
from gateway.settings import OpcuaSource as Settings
from tests.support.opcua_child import MS, settings_for
from tests.support.opcua_server import OpcuaServer
from tests.support.proxy import Proxy
from tests.support.sinks import FileSink, MemorySink, Row, rows_of

pytestmark = pytest.mark.peers
TAGS = 20


class Control:
    """Who is paused."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def paused(self, source: str) -> bool:
        return source in self.names

    def asked(self, source: str) -> None:
        return None


def make_source(settings: Settings, directory: Path, control: Control | None = None) -> OpcuaSource:
    runtime = real()
    clock = GatewayClock(runtime.wall_ns(), runtime.monotonic_ns(), 0, 0)
    return OpcuaSource(settings, runtime, clock, control or Control(), directory)


@contextlib.asynccontextmanager
async def running(source: OpcuaSource, sink: MemorySink) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(source.run(sink))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], seconds: float, task: asyncio.Task[None] | None = None) -> None:
    """Wait until the condition holds; fail after `seconds`, or when the source ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if task is not None and task.done():
            task.result()
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.05)


def ticks(rows: list[Row]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = collections.defaultdict(list)
    for row in rows:
        assert isinstance(row.value, float), row
        if row.flags & Flag.REPEATED:
            continue  # unchanged after a marker: said to be no new reading
        found[row.tag].append(int(row.value))
    return found


def assert_nothing_lost_or_doubled(rows: list[Row], tags: int = TAGS) -> None:
    """Every tag counts up by one: holes, repeats and disorder are plain to see."""
    found = ticks(rows)
    assert len(found) == tags
    for tag, seen in found.items():
        assert seen == list(range(seen[0], seen[0] + len(seen))), f"tag {tag}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpcuaServer]:
    one = OpcuaServer(tmp_path_factory.mktemp("opcua"), tags=250, period_ms=100, max_items=100, max_read=60).start()
    yield one
    one.stop()


def ups(sink: MemorySink) -> int:
    return len(sink.told(NoticeKind.SOURCE_UP))


# ---- nothing missing, nothing doubled ----


async def test_three_cuts_lose_and_double_nothing(server: OpcuaServer, tmp_path: Path) -> None:
    sink = MemorySink()
    async with Proxy(server.port) as proxy, running(make_source(settings_for(proxy.port, TAGS), tmp_path), sink) as task:
        for cut in range(3):
            await until(lambda: ups(sink) == cut + 1, 20, task)
            await asyncio.sleep(1)
            proxy.cut(blocked=True)
            await asyncio.sleep(1)
            proxy.restore()
        await until(lambda: ups(sink) == 4, 20, task)
        await asyncio.sleep(1)
    assert_nothing_lost_or_doubled(sink.rows())
    assert all(told["subscription_kept"] for told in sink.told(NoticeKind.SOURCE_UP)[1:])
    assert not sink.told(NoticeKind.GAP)
    assert not any(row.flags & (Flag.TIME_SUBSTITUTED | Flag.OVERFLOW) for row in sink.rows()), "what waited in the queue is old, and right"


async def test_kill_and_restart_lose_and_double_nothing_and_need_no_second_session(server: OpcuaServer, tmp_path: Path) -> None:
    async with Proxy(server.port) as proxy:
        sessions = set()
        for life in range(4):
            command = [sys.executable, "-m", "tests.support.opcua_child", str(proxy.port), str(TAGS), str(tmp_path)]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before = (tmp_path / "committed").stat().st_size if life else 0
            await until(lambda: (tmp_path / "committed").exists() and (tmp_path / "committed").stat().st_size > before + 20_000, 60)
            process.kill()
            await process.wait()
            sessions.add(tuple(parse_state((tmp_path / "plc.json").read_bytes()).asked.values()))
    sink = FileSink(tmp_path / "committed")
    assert_nothing_lost_or_doubled(sink.rows())
    assert len(sessions) == 1, "the session was taken up again, never a second one asked for"
    assert not sink.told(NoticeKind.GAP)


async def test_a_server_restart_with_small_limits_brings_every_tag_back(tmp_path: Path) -> None:
    """250 items, 100 per call: asyncua's own reconnect ends here with no data and no error."""
    one = OpcuaServer(tmp_path, tags=250, period_ms=200, max_items=100, max_read=60).start()
    sink = MemorySink()
    try:
        async with running(make_source(settings_for(one.port, 250), tmp_path), sink) as task:
            await until(lambda: len({row.tag for row in sink.rows()}) == 250, 20, task)
            one.stop()
            one.start(start=1_000_000)
            await until(lambda: len({row.tag for row in sink.rows() if row.value >= 1_000_000}) == 250, 90, task)
    finally:
        one.stop()
    opened = [told for told in sink.told(NoticeKind.GAP) if told["event"] == "opened"]
    assert len(opened) == 1
    found = ticks(sink.rows())
    assert all(len(seen) == len(set(seen)) and seen == sorted(seen) for seen in found.values())
    assert one.services <= {f"{name}Request" for name in guard.OPCUA_SERVICES.values()}, "the server saw something else than reads"
    assert {"PublishRequest", "CreateMonitoredItemsRequest", "ReadRequest"} <= one.services, "the recorder sees nothing"


async def test_nothing_is_acknowledged_before_its_commit_and_back_pressure_asks_for_less(server: OpcuaServer, tmp_path: Path) -> None:
    sink = MemorySink()
    source = make_source(settings_for(server.port, TAGS), tmp_path)
    async with running(source, sink) as task:
        await until(lambda: ups(sink) == 1, 20, task)
        sink.stalled = True
        await until(lambda: source._feed.committer.publish_ahead() == 0, 20, task)
        await asyncio.sleep(0.5)  # what is under way may still commit
        tracker = source._feed.tracker
        assert tracker is not None
        tracker.take_acknowledgements()
        committed = tracker._committed
        await asyncio.sleep(2)
        assert tracker._committed == committed
        assert not tracker.take_acknowledgements()
        sink.stalled = False
        await until(lambda: tracker._committed > committed + 5, 20, task)
        await asyncio.sleep(1)
    assert_nothing_lost_or_doubled(sink.rows())


# ---- down, dead, paused, stopped ----


async def test_a_silent_connection_is_found_marked_and_cured_by_a_fresh_client(
    server: OpcuaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.collect.opcua.link.SILENCE_S", 1.0)
    monkeypatch.setattr("gateway.collect.opcua.link.ANSWER_S", 1.0)
    monkeypatch.setattr(source_module, "DOWN_AFTER_S", 2.0)
    sink = MemorySink()
    async with Proxy(server.port) as proxy, running(make_source(settings_for(proxy.port, TAGS), tmp_path), sink) as task:
        await until(lambda: ups(sink) == 1, 20, task)
        await asyncio.sleep(0.5)
        proxy.silence()
        await until(lambda: bool(sink.told(NoticeKind.SOURCE_DOWN)), 20, task)
        await until(lambda: sum(row.quality == BAD_NO_COMMUNICATION for row in sink.rows(live=False)) == TAGS, 5, task)
        proxy.restore()
        proxy.cut()
        await until(lambda: ups(sink) == 2, 30, task)
        await asyncio.sleep(0.5)
        markers = [row for row in sink.rows(live=False) if row.quality == BAD_NO_COMMUNICATION]
    assert len(markers) == TAGS
    assert all(row.value is None and row.flags & Flag.MARKER for row in markers)
    assert_nothing_lost_or_doubled(sink.rows())


async def test_an_orderly_stop_leaves_markers_and_no_session(server: OpcuaServer, tmp_path: Path) -> None:
    sink = MemorySink()
    async with running(make_source(settings_for(server.port, TAGS), tmp_path), sink) as task:
        await until(lambda: len(ticks(sink.rows())) == TAGS, 20, task)
    last = {row.tag: row for row in sink.rows(live=False)}
    assert [(row.value, row.quality, bool(row.flags & Flag.MARKER)) for row in last.values()] == [(None, BAD_OUT_OF_SERVICE, True)] * TAGS
    state = parse_state((tmp_path / "plc.json").read_bytes())
    assert (state.session, state.session_gone, state.subscription) == (None, True, None)


async def test_pause_leaves_the_server_within_a_second_and_resumes(server: OpcuaServer, tmp_path: Path) -> None:
    sink, control = MemorySink(), Control()
    async with Proxy(server.port) as proxy, running(make_source(settings_for(proxy.port, TAGS), tmp_path, control), sink) as task:
        await until(lambda: ups(sink) == 1, 20, task)
        control.names.add("plc")
        await asyncio.sleep(1.2)
        quiet, connections = len(proxy.recorded), proxy.connections
        await asyncio.sleep(1.5)
        assert (len(proxy.recorded), proxy.connections) == (quiet, connections), "bytes to a server that is to be left alone"
        assert parse_state((tmp_path / "plc.json").read_bytes()).session is None, "the server confirmed that the session ended"
        assert {row.quality for row in sink.rows(live=False)[-TAGS:]} == {BAD_OUT_OF_SERVICE}
        control.names.clear()
        await until(lambda: ups(sink) == 2, 20, task)
        await until(lambda: sum(row.quality == 0 for row in sink.rows(live=False)[-TAGS:]) == TAGS, 5, task)


async def test_a_first_value_that_is_known_is_not_stored_again(server: OpcuaServer, tmp_path: Path) -> None:
    tag = TagRow("sp", "p/sp", "plc", "ns=1;s=Setpoint", every_ns=100 * MS, number=16)
    sink = MemorySink()
    settings = settings_for(server.port, 0, tags=(tag,))
    async with running(make_source(settings, tmp_path), sink) as task:
        await until(lambda: len(sink.rows()) == 1, 20, task)
    again = MemorySink()
    again._apply(sink.batches[0])  # as after kill -9: the reading, no marker
    position = again.known("plc").position
    async with running(make_source(settings, tmp_path), again) as task:
        await until(lambda: ups(again) == 1, 20, task)
        await until(lambda: again.known("plc").position != position, 5, task)
        assert [row.value for row in again.rows()] == [1.5], "the same reading twice"
        assert again.batches[-1].position
        assert not len(again.batches[-1].columns), "the dropped message's position travels in an empty batch"
    marked = MemorySink()
    for batch in sink.batches:  # as after an orderly stop: a marker stands in the plot
        marked._apply(batch)
    async with running(make_source(settings, tmp_path), marked) as task:
        await until(lambda: bool(marked.rows(live=False)[-1].flags & Flag.REPEATED), 20, task)
        first, back = marked.rows()[0], marked.rows(live=False)[-1]
        assert len(marked.rows()) == 1
        assert (back.value, back.ts_source_ns) == (1.5, first.ts_source_ns), "shown again, but no second time at its own time"
        assert back.ts_ns > first.ts_ns


# ---- values, items, heartbeats, life bit ----


async def test_every_kind_of_value_arrives(server: OpcuaServer, tmp_path: Path) -> None:
    names = ["Text", "Flag", "Big", "Blob", "When", "Row", "Setpoint"]
    tags = [TagRow(name.lower(), name, "plc", f"u:{name}", number=20 + i, type="UInt64" if name == "Big" else "", every_ns=100 * MS) for i, name in enumerate(names)]
    tags += [
        TagRow("scaled", "x", "plc", "ns=1;s=Setpoint", scale=10.0, offset=1.0, number=30),
        TagRow("none", "x", "plc", "ns=1;s=Setpoint", bad_raw=("1.5",), number=31),
    ]
    sink = MemorySink()
    space = await namespace_of(server)
    settings = settings_for(server.port, 0, tags=tuple(tags), namespaces={"u": space})
    async with running(make_source(settings, tmp_path), sink) as task:
        await until(lambda: len(sink.rows()) == len(tags), 20, task)
    values = {row.tag: row.value for row in sink.rows()}
    assert [values[20 + i] for i in range(7)] == ["Grüße", True, 0xFFFF_FFFF_FFFF_FFFE, "AAH/", 1795435200123000, "[1,2,3]", 1.5]
    assert (values[30], values[31]) == (16.0, None)
    assert all(row.flags & Flag.INITIAL for row in sink.rows())


async def namespace_of(server: OpcuaServer) -> str:
    from asyncua import Client

    async with Client(f"opc.tcp://127.0.0.1:{server.port}") as client:
        return str((await client.get_namespace_array())[1])


async def test_a_refused_item_is_bad_alone_and_tried_again(server: OpcuaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.collect.opcua.link.REFUSED_AGAIN_S", 1.0)
    tags = settings_for(0, 3).tags + (
        TagRow("gone", "x", "plc", "ns=1;s=Nowhere", number=40),
        TagRow("alien", "x", "plc", "nsu=urn:other;s=X", number=41),
    )
    sink = MemorySink()
    source = make_source(settings_for(server.port, 0, tags=tags), tmp_path)
    async with running(source, sink) as task:
        await until(lambda: len(ticks(sink.rows())) == 3, 20, task)
        await asyncio.sleep(2.5)
        assert source._feed.subscription is not None
        assert source._feed.subscription.refused == (40, 41)
        bad = sorted((row.tag, row.quality) for row in sink.rows(live=False) if row.value is None)
    assert bad == [(40, 0x80340000), (41, 0x80340000)], "one reading each, not one per try"
    assert {told["tag"] for told in sink.told(NoticeKind.TAG)} == {"gone", "alien"}


async def test_heartbeat_repeats_what_does_not_change_and_the_life_bit_is_watched(server: OpcuaServer, tmp_path: Path) -> None:
    tags = (TagRow("sp", "x", "plc", "ns=1;s=Setpoint", heartbeat_ns=SECOND, number=16, every_ns=100 * MS),)
    sink = MemorySink()
    settings = settings_for(server.port, 0, tags=tags, alive=Alive("sp", 2 * SECOND))
    async with running(make_source(settings, tmp_path), sink) as task:
        await until(lambda: sum(bool(row.flags & Flag.REPEATED) for row in sink.rows(live=False)) >= 2, 20, task)
        await until(lambda: bool(sink.told(NoticeKind.FROZEN)), 10, task)
        first, *repeated = sink.rows(live=False)[:3]
    assert [row.value for row in repeated] == [1.5, 1.5]
    assert all(row.ts_source_ns == first.ts_source_ns and row.ts_ns > first.ts_ns for row in repeated)


# ---- history ----


async def test_an_absence_is_filled_from_the_servers_history_once(tmp_path: Path) -> None:
    one = OpcuaServer(tmp_path, tags=15, period_ms=100, history=True).start()
    try:
        sink = MemorySink()
        settings = settings_for(one.port, 15)
        async with running(make_source(settings, tmp_path), sink) as task:
            await until(lambda: len(ticks(sink.rows())) == 15, 20, task)
        await asyncio.sleep(2)
        async with running(make_source(settings, tmp_path), sink) as task:
            await until(lambda: "filled" in {told["event"] for told in sink.told(NoticeKind.GAP)}, 30, task)
            await until(lambda: not sink.known("plc").gaps, 5, task)
    finally:
        one.stop()
    filled = [row for batch in sink.batches if batch.gap for row in rows_of(batch.columns)]
    assert len(filled) >= 15 * 15, "two seconds of fifteen tags at ten values a second"
    everything = [row for row in sink.rows(live=False) if not row.flags & (Flag.MARKER | Flag.REPEATED)]
    found = ticks(sorted(everything, key=lambda row: (row.tag, row.ts_ns)))
    for tag, seen in found.items():
        assert seen == list(range(seen[0], seen[0] + len(seen))), f"tag {tag}: a hole or a double"


async def test_a_server_without_history_closes_the_gap_as_unfillable(server: OpcuaServer, tmp_path: Path) -> None:
    sink = MemorySink()
    settings = settings_for(server.port, TAGS)
    async with running(make_source(settings, tmp_path), sink) as task:
        await until(lambda: len(ticks(sink.rows())) == TAGS, 20, task)
    async with running(make_source(settings, tmp_path), sink) as task:
        await until(lambda: len(sink.told(NoticeKind.GAP)) >= 2, 20, task)
        await until(lambda: not sink.known("plc").gaps, 5, task)
    assert [told["event"] for told in sink.told(NoticeKind.GAP)][:2] == ["opened", "unfillable"]
    assert sink.told(NoticeKind.GAP)[1]["reason"] == "the server keeps no history"


# ---- security ----


def our_pair(directory: Path, uri: str) -> tuple[Path, Path]:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ebbgate-test")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    usage = x509.KeyUsage(True, True, True, True, False, True, False, False, False)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=9)).add_extension(names, False)
    builder = builder.add_extension(usage, True).add_extension(x509.BasicConstraints(False, None), True)
    certificate, private = directory / "ours.der", directory / "ours.key"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate, private


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OpcuaServer, dict[str, object]]]:
    directory = tmp_path_factory.mktemp("secure")
    one = OpcuaServer(directory, tags=5, period_ms=100, secure=True, user="ebbgate_ro", password="geheim-ü").start()
    pinned = directory / "server.der"
    pinned.write_bytes(x509.load_pem_x509_certificate(one.certificate.read_bytes()).public_bytes(serialization.Encoding.DER))
    (directory / "password").write_text("geheim-ü\n", encoding="utf-8")
    ours, key = our_pair(directory, "urn:ebbgate:test")
    given: dict[str, object] = {
        "security": "Basic256Sha256 SignAndEncrypt",
        "server_certificate": pinned,
        "certificate": ours,
        "private_key": key,
        "application_uri": "urn:ebbgate:test",
        "user": "ebbgate_ro",
        "password_file": directory / "password",
        "waiver": "",
    }
    yield one, given
    one.stop()


async def test_encrypted_pinned_and_logged_in_over_a_cut(secure: tuple[OpcuaServer, dict[str, object]], tmp_path: Path) -> None:
    server, given = secure
    sink = MemorySink()
    async with Proxy(server.port) as proxy, running(make_source(settings_for(proxy.port, 5, **given), tmp_path), sink) as task:
        await until(lambda: ups(sink) == 1, 20, task)
        await asyncio.sleep(1)
        proxy.cut(blocked=True)
        await asyncio.sleep(1)
        proxy.restore()
        await until(lambda: ups(sink) == 2, 20, task)
        await asyncio.sleep(1)
        assert b"Tag0000" not in bytes(proxy.recorded), "readable on the wire"
        assert b"geheim" not in bytes(proxy.recorded)
    assert_nothing_lost_or_doubled(sink.rows(), 5)
    assert (tmp_path / "plc.json").stat().st_mode & 0o077 == 0, "the state file holds a session's secret"


async def test_another_servers_certificate_is_refused(secure: tuple[OpcuaServer, dict[str, object]], tmp_path: Path) -> None:
    server, given = secure
    impostor, _ = our_pair(tmp_path, "urn:other")
    sink = MemorySink()
    async with running(make_source(settings_for(server.port, 5, **given | {"server_certificate": impostor}), tmp_path), sink) as task:
        await asyncio.sleep(3)
        assert not task.done()
        assert not sink.rows(live=False)
        assert not ups(sink)


async def test_a_refused_login_waits_a_quarter_of_an_hour_or_for_a_new_secret(secure: tuple[OpcuaServer, dict[str, object]], tmp_path: Path) -> None:
    server, given = secure
    wrong = tmp_path / "wrong"
    wrong.write_text("falsch", encoding="utf-8")
    sink = MemorySink()
    async with (
        Proxy(server.port) as proxy,
        running(make_source(settings_for(proxy.port, 5, **given | {"password_file": wrong}), tmp_path), sink) as task,
    ):
        await until(lambda: bool(sink.told(NoticeKind.SECURITY)), 20, task)
        connections = proxy.connections
        await asyncio.sleep(4)
        assert proxy.connections == connections, "logged in again"
        state = parse_state((tmp_path / "plc.json").read_bytes())
        assert (state.refused, state.session_gone) == (1, True)
        wrong.unlink()
        wrong.write_text("geheim-ü", encoding="utf-8")
        await until(lambda: ups(sink) == 1, 20, task)
