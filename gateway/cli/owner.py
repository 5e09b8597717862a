"""Commands that ask a source run as the user that owns collect's files, whoever typed them (DESIGN: check, browse, read, trust).

A budget file written by root could not be read by collect. Collect's user is the one its data key belongs to.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.settings import GatewaySettings


@contextmanager
def as_owner(settings: GatewaySettings) -> Iterator[None]:
    """Act as the owner of the data key; raise ConfigError where this user may not."""
    try:
        facts = settings.data_key.stat()
    except OSError:
        yield  # no key yet: nothing of collect's to spoil
        return
    me = os.geteuid()
    if me == facts.st_uid:
        yield
        return
    if me != 0:
        name = str(facts.st_uid)
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(facts.st_uid).pw_name
        raise ConfigError("sources are asked as the user that collect runs as", f"Say: sudo -u {name} ebbgate ...")
    group = os.getegid()
    os.setegid(facts.st_gid)
    os.seteuid(facts.st_uid)
    try:
        yield
    finally:
        os.seteuid(me)
        os.setegid(group)
