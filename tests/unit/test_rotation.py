"""Replacing a data key: interrupted at every step, taken up again, and no block is left that nobody can verify."""

from __future__ import annotations

import datetime as dt

import pytest

from buffer.errors import StorageFault
from gateway.errors import TrustError
from gateway.trust import certs, keys, rotation
from gateway.trust.keys import KeyRing, UnknownKeyError

STREAM = "hall1.main"


@pytest.fixture
def box(tmp_path):
    authority = certs.create_authority(tmp_path / "ca.crt", tmp_path / "ca.key", "x", dt.datetime.now(dt.UTC))
    path = tmp_path / "pki/data.key"
    path.parent.mkdir()
    signer = keys.create_signer(path)
    proposal = keys.propose_statement(signer, STREAM)
    path.with_suffix(".statement").write_bytes(keys.endorse_statement(certs.authority_signer(authority), proposal))
    return path, authority


def believed(path, authority) -> set[bytes]:
    """The keys a receiver ends up believing that is told every statement, newest first: the worst order."""
    ring = KeyRing([certs.authority_signer(authority).public])
    told = [path.with_suffix(".statement").read_bytes(), *(old for _, old in rotation.retired(path))]
    assert rotation.introduce_all(ring, told, STREAM) == []
    names = {keys.load_signer(path).key_id, *(keys.key_id(public) for public, _ in rotation.retired(path))}
    assert all(ring.knows(name) for name in names)
    return names


def test_three_rotations_leave_a_chain_that_holds(box) -> None:
    path, authority = box
    names = {keys.load_signer(path).key_id.hex()}
    for n in range(3):
        old, new = rotation.rotate(path, STREAM)
        assert old in names and new not in names
        names.add(new)
        assert {name.hex() for name in believed(path, authority)} == names, n
        assert path.stat().st_mode & 0o777 == 0o600 and not path.with_suffix(".next").exists()
    assert len(list(path.parent.glob("*.key"))) == 1, "the private halves of old keys are gone"
    assert keys.key_id(keys.load_public(path.with_suffix(".pub"))) == keys.load_signer(path).key_id


@pytest.mark.parametrize("step", range(8))
def test_an_interruption_at_any_step_leaves_a_key_that_signs_and_is_believed(box, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path, authority = box
    before = keys.load_signer(path).key_id
    left = step

    def limited(real):
        def action(*arguments, **more):
            nonlocal left
            if left == 0:
                raise StorageFault("power cut", path="")
            left -= 1
            return real(*arguments, **more)

        return action

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "publish_file", limited(rotation.publish_file))
        patch.setattr(rotation, "remove_file", limited(rotation.remove_file))
        patch.setattr(keys, "publish_file", limited(keys.publish_file))
        try:
            rotation.rotate(path, STREAM)
            finished = True
        except StorageFault:
            finished = False
    assert finished == (step >= 7)
    assert before in believed(path, authority)
    if not finished:
        rotation.rotate(path, STREAM)
    assert len(believed(path, authority)) == 2 and before in believed(path, authority)
    assert not path.with_suffix(".next").exists()


def test_a_key_that_was_never_introduced_introduces_none(tmp_path) -> None:
    keys.create_signer(tmp_path / "data.key")
    with pytest.raises(TrustError, match="Enrol first"):
        rotation.rotate(tmp_path / "data.key", STREAM)


def test_statements_in_any_order_and_strangers_apart(box) -> None:
    path, authority = box
    rotation.rotate(path, STREAM)
    foreign = keys.KeySigner(keys.generate())
    stranger = keys.endorse_statement(foreign, keys.propose_statement(keys.KeySigner(keys.generate()), STREAM))
    ring = KeyRing([certs.authority_signer(authority).public])
    told = [stranger, path.with_suffix(".statement").read_bytes(), b"x", *(old for _, old in rotation.retired(path))]
    wrong = rotation.introduce_all(ring, told, STREAM)
    assert {payload for payload, _ in wrong} == {stranger, b"x"}
    assert any(isinstance(error, UnknownKeyError) for _, error in wrong)
