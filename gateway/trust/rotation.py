"""Replacing a data key, and the keys that were replaced.

Beside <stem>.key and <stem>.statement lie, for every key before: <stem>-<key id>.pub and <stem>-<key id>.statement (the private half
is gone). Blocks they signed stay in the ring until evicted, so collect believes them and offers their statements to the receiver.

Order of a rotation, each step durable before the next; after an interruption it is taken up where it stopped:
old public half and statement set aside; new key under <stem>.next; statement by old and new key; new key over the old one.
Between the last two the old key still signs, and the receiver is told of a key that has signed nothing yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buffer.errors import CorruptError
from buffer.storage import publish_file, remove_file
from gateway.errors import TrustError
from gateway.trust import keys

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def rotate(path: Path, stream: str) -> tuple[str, str]:
    """Replace the data key at `path`; return the names of the old and the new key, equal if only the last step was left to do.

    Raises TrustError.
    """
    old = keys.load_signer(path)
    statement, waiting = path.with_suffix(".statement"), path.with_suffix(".next")
    if not statement.exists():
        raise TrustError(f"{statement}: this key was never introduced, so it can introduce no other", "Enrol first: ebbgate enroll.")
    aside = path.with_name(f"{path.stem}-{old.key_id.hex()}")
    new = keys.load_signer(waiting) if waiting.exists() else None
    if new is not None and new.key_id == old.key_id:  # interrupted before its last step
        remove_file(waiting)
        return old.key_id.hex(), new.key_id.hex()
    if keys.parse_statement(statement.read_bytes()).key_id == old.key_id:
        publish_file(aside.with_suffix(".statement"), statement.read_bytes())
        publish_file(aside.with_suffix(".pub"), keys.public_pem(old.public))
    if new is None:
        new = keys.KeySigner(keys.generate())
        keys.write_private(waiting, new.private)
    publish_file(statement, keys.endorse_statement(old, keys.propose_statement(new, stream)))
    publish_file(path.with_suffix(".pub"), keys.public_pem(new.public))
    publish_file(path, keys.read_private_bytes(waiting), mode=keys.PRIVATE_MODE)
    remove_file(waiting)
    return old.key_id.hex(), new.key_id.hex()


def retired(path: Path) -> list[tuple[keys.PublicKey, bytes]]:
    """Return public half and statement of the keys before the one at `path`, in no order; raise TrustError for a file that is no key."""
    found = []
    for public in sorted(path.parent.glob(f"{path.stem}-*.pub")):
        statement = public.with_suffix(".statement")
        found.append((keys.load_public(public), statement.read_bytes() if statement.exists() else b""))
    return found


def introduce_all(ring: keys.KeyRing, payloads: Iterable[bytes], stream: str) -> list[tuple[bytes, CorruptError]]:
    """Have the keys of one stream's statements believed, in whatever order they come: one may be endorsed by a key that another
    introduces, so it goes round as often as that helps. Return those that do not hold, with why."""
    wanted, wrong = list(payloads), list[tuple[bytes, CorruptError]]()
    while wanted:
        later: list[tuple[bytes, CorruptError]] = []
        for payload in wanted:
            try:
                ring.introduce(payload, stream)
            except keys.UnknownKeyError as error:
                later.append((payload, error))
            except CorruptError as error:
                wrong.append((payload, error))
        if len(later) == len(wanted):
            return wrong + later
        wanted = [payload for payload, _ in later]
    return wrong
