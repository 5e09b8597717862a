"""A person's order to fill gaps from a server's history: the file <state>/control/fill/<source>, written by `ebbgate fill`, read by collect. Pure.

    {"version": 1, "source": name, "by": user, "from_ns": n, "to_ns": n, "generation": "7-3fa91c02", "as_of_ns": n,
     "holes": {tag id: [[after ns, before ns]..]}}

A hole is a time in which the ring holds nothing of a tag, between two readings that it holds; both ends are excluded. Holes are true as of a
moment of the ring: a generation and the monotonic time of a record in it. An order of another generation, or from before history that
was committed since, may name what is held by now: it is not begun, only gone on with (gateway.collect.opcua.byhand). So an order that
stays where it is, is copied or comes twice fills nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import ConfigError

ORDER_BYTES_MAX: Final = 8 * 1024 * 1024  # HOLES_MAX of long tag ids; more is not an order
HOLES_MAX: Final = 50_000  # in one order: 10 MB of memory while it is paid, and a file that a person waits for
_NS_MAX: Final = 2**62
_NAME_CHARS_MAX: Final = 64
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """Nothing of the tag is held with after_ns < source time < before_ns."""

    after_ns: int
    before_ns: int
    tag: str


@dataclass(frozen=True, slots=True)
class FillOrder:
    """What a person asked for. id: of its content. holes: in order of time. fresh: of the generation that is being written now."""

    id: str
    source: str
    by: str
    from_ns: int
    to_ns: int
    generation: str
    as_of_ns: int
    holes: tuple[Hole, ...]
    fresh: bool = False

    @property
    def tags(self) -> int:
        """How many tags it is about."""
        return len({hole.tag for hole in self.holes})


def encode_order(source: str, by: str, window: tuple[int, int], as_of: tuple[str, int], holes: dict[str, list[tuple[int, int]]]) -> bytes:
    """Return the file. window: from, to; as_of: generation, monotonic ns."""
    body = {"version": _VERSION, "source": source, "by": by, "from_ns": window[0], "to_ns": window[1], "generation": as_of[0], "as_of_ns": as_of[1]}
    return json.dumps(body | {"holes": holes}, sort_keys=True).encode()


def parse_order(data: bytes) -> FillOrder:
    """Return the order in a file; raise ConfigError."""
    if len(data) > ORDER_BYTES_MAX:
        raise ConfigError(f"an order of more than {ORDER_BYTES_MAX >> 20} MiB", "Write it with `ebbgate fill`.")
    try:
        body = json.loads(data)
        if body["version"] != _VERSION:
            raise ConfigError("an order of another release", "Say `ebbgate fill` again.")
        holes = tuple(sorted(Hole(_time(after), _time(before), _text(tag)) for tag, pairs in body["holes"].items() for after, before in pairs))
        source, by, generation = (_text(body[name]) for name in ("source", "by", "generation"))
        from_ns, to_ns, as_of_ns = (_time(body[name]) for name in ("from_ns", "to_ns", "as_of_ns"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"not an order: {error}", "Write it with `ebbgate fill`.") from None
    if len(holes) > HOLES_MAX:
        raise ConfigError(f"an order of {len(holes):,} holes, more than {HOLES_MAX:,}", "Write it with `ebbgate fill`.")
    _check_apart(holes)
    return FillOrder(hashlib.sha256(data).hexdigest()[:16], source, by, from_ns, to_ns, generation, as_of_ns, holes)


def _check_apart(holes: tuple[Hole, ...]) -> None:
    """Raise ConfigError where one time of a tag is named twice: it would be filled twice."""
    ends: dict[str, int] = {}
    for hole in holes:
        if hole.before_ns <= hole.after_ns or hole.after_ns < ends.get(hole.tag, 0):
            raise ConfigError(f"not an order: the holes of {hole.tag!r} overlap", "Write it with `ebbgate fill`.")
        ends[hole.tag] = hole.before_ns


def _time(value: Any) -> int:  # noqa: ANN401 -- what json gives
    if type(value) is not int or not 0 <= value < _NS_MAX:
        message = f"{value!r} is not a time"
        raise ValueError(message)
    return value


def _text(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or len(value) > _NAME_CHARS_MAX:
        message = "a name is too long, or none"
        raise ValueError(message)
    return value
