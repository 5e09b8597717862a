"""Files of collect stay collect's, whoever asks a source."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.cli.owner import as_owner
from gateway.errors import ConfigError

NOBODY = 65_534


def settings(key: Path) -> Any:
    return cast("Any", SimpleNamespace(data_key=key))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another")
def test_root_acts_as_the_owner_of_the_data_key_and_others_may_not(tmp_path):
    key = tmp_path / "data.key"
    key.write_text("")
    os.chown(key, NOBODY, NOBODY)
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:3]:
        if parent != Path("/tmp"):
            parent.chmod(0o755)
    with as_owner(settings(key)):
        (tmp_path / "made").write_text("")
    facts = (tmp_path / "made").stat()
    assert (facts.st_uid, facts.st_gid, os.geteuid()) == (NOBODY, NOBODY, 0)
    os.chown(key, 1, 1)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(ConfigError, match="as the user that collect runs as"), as_owner(settings(key)):
            pass
    finally:
        os.seteuid(0)


def test_without_a_key_nothing_changes(tmp_path):
    with as_owner(settings(tmp_path / "absent")):
        assert not (tmp_path / "absent").exists()
