"""The children of a process load the product, whatever lies in the directory it was started in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from buffer.seal import SealRequest
from gateway import apart
from gateway.collect.sealer import run_child
from gateway.errors import EbbgateError


async def test_nothing_is_loaded_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gateway", "buffer", "json", "pickle"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w').close()\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((EbbgateError, OSError), match="none.toml"):
        apart.load_gateway(tmp_path / "none.toml", "")
    request = SealRequest(str(tmp_path), "g.main", 1, ("journal/0000000001-00000001-0000000000000000-000000.journal",), 0, 0, (), "segments")
    result = await asyncio.wait_for(run_child(request), 120)
    assert result.error
    assert not (tmp_path / "taken").exists()
