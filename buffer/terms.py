"""The words of the ring's interface: what its owner hands over and gets back."""

from __future__ import annotations

from dataclasses import dataclass, field

from buffer import limits


@dataclass(frozen=True, slots=True)
class Instant:
    """The time of one call, read by the caller."""

    wall_ns: int
    monotonic_ns: int
    boot_id: bytes
    trusted: bool


@dataclass(frozen=True, slots=True)
class RingOptions:
    """How large; sizes in bytes."""

    stream: str
    max_bytes: int
    journal_bytes: int = limits.JOURNAL_BYTES
    public_keys: tuple[bytes, ...] = ()  # SubjectPublicKeyInfo, DER: handed to the sealing child
    reserve_bytes: int = limits.JOURNAL_RESERVE_BYTES


@dataclass(frozen=True, slots=True)
class Committed:
    """What one commit made durable: block numbers inclusive, seqs first (inclusive) to end (exclusive)."""

    generation: int
    first_seq: int
    end_seq: int
    first_block: int
    last_block: int


@dataclass(slots=True)
class Counters:
    """Since opening. events: for people, taken and emptied by the caller."""

    readings: int = 0
    blocks: int = 0
    payload_bytes: int = 0
    bytes_written: int = 0
    evicted_files: int = 0
    failed_syncs: int = 0
    sealed: int = 0
    sealed_readings: int = 0
    sealed_bytes: int = 0
    events: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Info:
    """What the ring is like. Rates are since opening; 0 while nothing is known."""

    readings: int  # held
    used_bytes: int
    max_bytes: int
    segments: int
    journals: int
    horizon_ns: int  # how far back the ring reaches at the present rate once it is full
    written_bytes_per_day: int  # to the device: flash life
