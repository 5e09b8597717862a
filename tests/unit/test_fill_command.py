"""`ebbgate fill --wait` and `--cancel`: what a person is told of an order that was written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from gateway.cli import fill
from gateway.errors import ConfigError, EbbgateError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "LOOK_S", 0.01)


def say(path: Path, result: dict[str, object] | None, *, age_s: float = 0.0, state: str = "up") -> Path:
    body = {"time_ns": time.time_ns() - int(age_s * 1e9), "sources": {"plc": {"state": state, "fill": result or {}}}}
    path.write_text(json.dumps(body))
    return path


def test_the_result_of_this_order_is_waited_for_and_of_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = say(tmp_path / "status.json", {"id": "old", "state": "filled"})
    shown = iter([{"id": "new", "state": "filling"}, {"id": "new", "state": "unfillable", "reason": "no history of 1 of 2 tags"}])
    monkeypatch.setattr(fill.time, "sleep", lambda _: say(path, next(shown)))
    assert fill._await(path, "plc", "new")["reason"] == "no history of 1 of 2 tags"


def test_a_collect_that_says_nothing_and_a_source_that_is_down_end_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EbbgateError, match="says nothing any more"):
        fill._await(say(tmp_path / "status.json", None, age_s=60), "plc", "new")
    monkeypatch.setattr(fill, "TAKEN_UP_S", 0.0)
    with pytest.raises(ConfigError, match="plc is down"):
        fill._await(say(tmp_path / "status.json", {"id": "old", "state": "filled"}, state="down"), "plc", "new")


def test_an_order_is_written_as_collect_reads_it_and_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fill" / "plc"
    identity = fill._write(path, "plc", (1, 9), ("1-00000001", 5), {"t": [(2, 8)]})
    assert json.loads(path.read_bytes())["holes"] == {"t": [[2, 8]]}
    assert len(identity) == 16
    fill._cancel(path, "plc")
    fill._cancel(path, "plc")
    assert not path.exists()
    assert capsys.readouterr().out.splitlines() == ["plc: taken back", "plc: there is no order to take back"]


def test_a_fill_under_way_is_shown_in_words() -> None:
    from gateway.cli.ledger import _source_line

    order = {"from_ns": 0, "to_ns": 3_600 * 10**9, "holes": 1_200, "asked": 30, "readings": 5_000, "state": "filling", "reason": ""}
    assert "filling 1970-01-01 00:00:00 UTC to 1970-01-01 01:00:00 UTC by hand: 30 of 1,200 holes asked, 5,000 readings" in _source_line(
        "plc", {"state": "up", "fill": order}
    )
    done = order | {"state": "refused", "reason": "not begun"}
    assert _source_line("plc", {"state": "up", "fill": done}).endswith("refused, 5,000 readings (not begun)")


def test_an_error_and_its_remedy_stand_in_one_line_of_the_status() -> None:
    from gateway.cli.ledger import _fact, _source_line

    said = "opc.tcp://10.0.0.1:4840: nothing listens at this port\n  Is the server's OPC UA switched on?"
    whole = "opc.tcp://10.0.0.1:4840: nothing listens at this port; Is the server's OPC UA switched on?"
    assert f"source plc is down ({whole})" in _source_line("plc", {"state": "down", "reason": said})
    assert _fact("alarm", said) == f"alarm = {whole}"
