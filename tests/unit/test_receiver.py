"""The receiver without HTTP, on a disk that refuses: nothing promised, nobody hangs, and it heals by itself."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from buffer.errors import MisuseError, StorageFault
from buffer.frame import payload_digest
from buffer.manifest import ObjectType
from gateway import settings as s
from gateway.receive import partial
from gateway.receive.partial import Partials
from gateway.receive.receiver import Receiver
from gateway.receive.verify import Refused
from gateway.trust.keys import KeyRing, KeySigner, endorse_statement, propose_statement
from gateway.wire import request as wire
from gateway.wire.receipt import Receipt, Refusal, Verdict, parse_receipt
from gateway.wire.request import FramesTarget, ObjectTarget
from tests.crash.test_landing import runtime
from tests.support.frames import TABLE, Source, object_frame, signer
from tests.support.simulated_disk import SimulatedDisk

CA = KeySigner(ec.generate_private_key(ec.SECP256R1()))
POLICY = s.GatewayPolicy("hall1", "acme", ("hall1.*",))
RECEIPTS = signer(9)
STREAM = "hall1.main"


class World:
    def __init__(self) -> None:
        self.disk = SimulatedDisk()
        self.room = True
        self.start()

    def start(self) -> None:
        self.receiver = Receiver(runtime(self.disk.steps), (POLICY,), RECEIPTS, KeyRing([CA.public]), lambda _: self.disk, lambda: self.room)

    async def put(self, target, body: bytes) -> Receipt:
        answer = await self.receiver.put(POLICY, target, body)
        assert answer.status == wire.OK, answer
        ring = KeyRing()
        ring.trust(RECEIPTS.public)
        return parse_receipt(answer.body, ring)

    async def objects(self, stream: str = STREAM) -> None:
        statement = endorse_statement(CA, propose_statement(signer(), stream))
        for payload, kind in ((statement, ObjectType.KEY_STATEMENT), (TABLE, ObjectType.TAG_TABLE)):
            await self.put(ObjectTarget(payload_digest(payload), stream), object_frame(payload, kind, stream).wire())


def target(source: Source, n: int, **options) -> FramesTarget:
    return FramesTarget(source.stream, source.generation, n, n, **options)


@pytest.mark.parametrize("step", ["pwrite", "fdatasync", "rename"])
async def test_a_disk_that_refuses_promises_nothing_and_heals_by_itself(step: str) -> None:
    world, source = World(), Source([1, 1, 1])
    await world.objects()
    first = await world.put(target(source, 0), source.blocks[0].wire())
    world.disk.calls.fail.add(step)
    both = await asyncio.gather(
        world.receiver.put(POLICY, target(source, 1), source.blocks[1].wire()),
        world.receiver.put(POLICY, FramesTarget(STREAM, source.generation, 0, 2), source.segment(0, 2).wire()),
        return_exceptions=True,
    )
    assert all(isinstance(x, StorageFault) for x in both)
    with pytest.raises(StorageFault):  # it cannot even open anew
        await world.receiver.put(POLICY, target(source, 1), source.blocks[1].wire())
    world.disk.calls.fail.clear()
    healed = await world.put(target(source, 1, landing=first.landing), source.blocks[1].wire())
    assert healed.verdict in (Verdict.STORED, Verdict.DUPLICATE)  # the bytes may have reached the disk after all
    assert healed.landing != first.landing
    assert healed.since is not None and healed.since.live >= first.ends.live


async def test_a_full_disk_takes_nothing_and_tells_nobody_otherwise() -> None:
    world, source = World(), Source([1, 1])
    await world.objects()
    world.room = False
    assert (await world.receiver.put(POLICY, target(source, 0), source.blocks[0].wire())).status == wire.CANNOT_STORE
    world.room = True
    world.disk.set_full(True)
    with pytest.raises(StorageFault):
        await world.receiver.put(POLICY, target(source, 0), source.blocks[0].wire())
    world.disk.set_full(False)
    assert (await world.put(target(source, 0), source.blocks[0].wire())).verdict == Verdict.STORED


async def test_a_defect_of_ours_answers_everybody_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    world, source = World(), Source([1])
    await world.objects()
    monkeypatch.setattr("gateway.receive.landing.Landing.land", lambda self, arrivals: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(5):
            await world.receiver.put(POLICY, target(source, 0), source.blocks[0].wire())


async def test_keys_and_objects_are_known_again_after_a_restart_rotation_included() -> None:
    world, source, after = World(), Source([1]), Source([1], seed=2, generation=3 << 32)
    await world.objects()
    rotated = endorse_statement(signer(1), propose_statement(signer(2), STREAM, 3 << 32))
    await world.put(ObjectTarget(payload_digest(rotated), STREAM), object_frame(rotated, ObjectType.KEY_STATEMENT, STREAM, 2).wire())
    world.disk = world.disk.after_kill()
    world.start()
    world.receiver.open_stream(STREAM)
    assert not world.receiver.doors[STREAM].landing.events
    assert (await world.put(target(source, 0), source.blocks[0].wire())).verdict == Verdict.STORED
    assert (await world.put(target(after, 0), after.blocks[0].wire())).verdict == Verdict.STORED


async def test_an_object_that_rotted_is_asked_for_again() -> None:
    world = World()
    await world.objects()
    for path in world.disk.paths():
        if path.startswith("objects/"):
            world.disk.flip(path, 45, 1)
    world.start()
    world.receiver.open_stream(STREAM)
    source = Source([1])
    answer = await world.receiver.put(POLICY, target(source, 0), source.blocks[0].wire())
    assert wire.parse_missing(answer.body) == ((payload_digest(TABLE),), (signer().key_id,))
    assert len(world.receiver.doors[STREAM].landing.events) == 2
    await world.objects()
    assert (await world.put(target(source, 0), source.blocks[0].wire())).verdict == Verdict.STORED


async def test_the_number_of_streams_of_one_gateway_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.receive.receiver.STREAMS_MAX", 1)
    world = World()
    await world.objects()
    statement = endorse_statement(CA, propose_statement(signer(2), "hall1.b"))
    body = object_frame(statement, ObjectType.KEY_STATEMENT, "hall1.b", 2).wire()
    receipt = await world.put(ObjectTarget(payload_digest(statement), "hall1.b"), body)
    assert (receipt.verdict, receipt.reason) == (Verdict.REFUSED, Refusal.BEYOND_LIMITS)


# ---- pieces of segments ----


def ring() -> KeyRing:
    known = KeyRing([CA.public])
    known.introduce(endorse_statement(CA, propose_statement(signer(), STREAM)), STREAM)
    return known


def put_pieces(partials: Partials, wanted: FramesTarget, offset: int, piece: bytes, now_ns: int = 5) -> bytes | None:
    with partials.sending(wanted, now_ns) as one:
        try:
            one.add(offset, piece)
        except Refused:
            partials.forget(one)
            raise
        return bytes(one.data) if one.whole else None


def test_pieces_in_any_cut_make_the_frame_and_are_bounded_and_forgotten() -> None:
    source = Source([3, 3])
    data = source.segment(0, 1).wire()
    wanted = FramesTarget(STREAM, source.generation, 0, 1, offset=0, length=len(data))
    for size in (1, 7, 39, 41, 300, len(data)):
        partials, whole = Partials(ring()), None
        for at in range(0, len(data), size):
            assert whole is None
            overlap = max(0, at - 3)
            whole = put_pieces(partials, wanted, overlap, data[overlap : at + size])
        assert whole == data
    partials = Partials(ring())
    put_pieces(partials, wanted, 0, data[:50])
    with pytest.raises(MisuseError):
        put_pieces(partials, wanted, 51, b"x")
    assert partials.held(wanted, 5 + partial.KEEP_NS - 1) == 50
    assert partials.held(wanted, 5 + partial.KEEP_NS) == 0
    for n in range(12):
        put_pieces(partials, dataclasses.replace(wanted, first=n, last=n + 1), 0, b"E")
    assert len(partials._all) == partial.STREAM_PARTIALS_MAX
    for n in range(40):
        put_pieces(partials, dataclasses.replace(wanted, stream=f"hall1.s{n}"), 0, b"E")
    assert len(partials._all) == partial.PARTIALS_MAX


def test_what_a_request_is_sending_is_never_pushed_out_and_two_that_send_the_same_share_it() -> None:
    source = Source([3, 3])
    data = source.segment(0, 1).wire()
    wanted = FramesTarget(STREAM, source.generation, 0, 1, offset=0, length=len(data))
    partials = Partials(ring())
    with partials.sending(wanted, 5) as one, partials.sending(wanted, 6) as two:
        assert one is two
        one.add(0, data[:100])
        for n in range(40):
            put_pieces(partials, dataclasses.replace(wanted, first=n + 2, last=n + 3), 0, b"E")
            put_pieces(partials, dataclasses.replace(wanted, stream=f"hall1.s{n}"), 0, b"E")
        assert partials.held(wanted, 5 + partial.KEEP_NS) == 100
        two.add(50, data[50:])
        partials.forget(two)  # landed
        one.add(100, data[100:])  # the slower of the two ends well too, on bytes that are being read
        assert one.whole
        with memoryview(one.data) as _:
            one.add(0, data)
    assert partials.held(wanted, 5) == 0


def test_a_piece_that_is_no_head_of_that_segment_is_refused_and_nothing_is_kept() -> None:
    source = Source([3, 3])
    data = source.segment(0, 1).wire()
    wanted = FramesTarget(STREAM, source.generation, 0, 1, offset=0, length=len(data))
    bad_signature = bytearray(data)
    bad_signature[data.index(b"PAR1") - 5] ^= 1
    for case, body in (
        (wanted, b"g" * 100), (wanted, bytes(bad_signature)), (wanted, data + b"x"), (dataclasses.replace(wanted, last=2), data),
        (dataclasses.replace(wanted, length=len(data) + 1), data), (wanted, source.blocks[0].wire()),
    ):  # fmt: skip
        partials = Partials(ring())
        with pytest.raises(Refused):
            put_pieces(partials, case, 0, bytes(body))
        assert partials.held(case, 5) == 0
