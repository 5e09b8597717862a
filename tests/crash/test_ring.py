"""Crash enumeration of the real ring, in short, and mutants that it must see. The long form: `make crash STATES=...`."""

from __future__ import annotations

import itertools

from buffer import recovery
from buffer.journal import JournalWriter
from tests.crash.ring import states

STATES = 700


def violations(most: int = STATES) -> list[str]:
    return [what for broken in itertools.islice(states(7, 5), most) for what in broken]


def test_nothing_acknowledged_is_lost_or_doubled_wherever_the_ring_is_crashed():
    assert violations() == []


def test_an_acknowledgement_before_the_sync_is_seen(monkeypatch):
    monkeypatch.setattr(JournalWriter, "sync", lambda self: None)
    assert any("G1" in what for what in violations(400))


def test_a_recovery_that_forgets_positions_is_seen(monkeypatch):
    real = recovery._Recovery._take

    def forgets(self, manifest, payload):
        real(self, manifest, payload)
        self.out.last.positions.clear()

    monkeypatch.setattr(recovery._Recovery, "_take", forgets)
    assert any("position" in what for what in violations(400))


def test_a_recovery_that_believes_no_journal_is_seen(monkeypatch):
    monkeypatch.setattr(recovery._Recovery, "_believable", lambda *arguments: [])
    assert violations(400) != []
