"""No line of the product names a method that could change a device: read from the syntax tree, so that no branch hides from a test."""

from __future__ import annotations

import ast
from pathlib import Path

import asyncua.ua
import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "gateway").rglob("*.py"))
# what asyncua, its nodes and its server would do it with, and pymodbus likewise
FORBIDDEN = {
    *("write_value", "write_values", "write_attribute", "write_attribute_value", "write_attributes", "write_params", "set_value", "set_values"),
    *("set_writable", "set_attribute", "set_data_value", "call_method", "call_methods", "history_update", "add_nodes", "add_references"),
    *("delete_nodes", "delete_references", "register_nodes", "unregister_nodes", "add_variable", "add_object", "add_method", "set_trigger"),
    *("write_coil", "write_coils", "write_register", "write_registers", "mask_write_register", "readwrite_registers", "write_file_record"),
    *("condition_refresh", "acknowledge_condition", "set_triggering", "register_server", "register_server2"),
}
ALLOWED_ELSEWHERE = {"add_object": {"collect/service.py", "collect/scrubber.py", "demo", "enroll", "cli"}}  # Ring.add_object puts a tag table into our own ring
REQUESTS = {name for name in vars(asyncua.ua) if name.endswith("Request")}
READS = {
    *("ReadRequest", "HistoryReadRequest", "PublishRequest", "RepublishRequest", "BrowseRequest", "BrowseNextRequest"),
    *("CreateSubscriptionRequest", "DeleteSubscriptionsRequest", "TransferSubscriptionsRequest", "CreateMonitoredItemsRequest"),
    *("MonitoredItemCreateRequest", "TranslateBrowsePathsToNodeIdsRequest", "GetEndpointsRequest", "CreateSessionRequest", "CloseSessionRequest"),
}
DETAILS = {name for name in vars(asyncua.ua) if name.endswith("Details")}  # what a history is asked for, or changed with
HISTORY_READS = {"HistoryReadDetails", "ReadRawModifiedDetails", "ReadEventDetails"}  # the first: the field that holds one of the others


def collect_files() -> list[Path]:
    return [path for path in FILES if "collect" in path.parts]


def names_in(path: Path) -> set[str]:
    """Every attribute, name and keyword that a file uses, and every string that could be one (getattr)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return found


@pytest.mark.parametrize("path", collect_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_method_that_writes_is_named(path: Path) -> None:
    named = names_in(path) & FORBIDDEN
    allowed = {name for name, places in ALLOWED_ELSEWHERE.items() if any(place in path.as_posix() for place in places)}
    assert not named - allowed


@pytest.mark.parametrize("path", collect_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_request_but_reads_is_made(path: Path) -> None:
    assert not (names_in(path) & REQUESTS) - READS


@pytest.mark.parametrize("path", collect_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_history_is_asked_for_values_and_events_and_changed_by_nothing(path: Path) -> None:
    assert {"UpdateDataDetails", "UpdateEventDetails", "DeleteEventDetails", "DeleteRawModifiedDetails"} <= DETAILS
    assert not (names_in(path) & DETAILS) - HISTORY_READS


def test_the_test_sees_what_it_looks_for(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("async def f(node):\n    await node.write_value(1)\n    getattr(node, 'call_method')()\n    ua.WriteRequest()\n")
    assert names_in(planted) & FORBIDDEN == {"write_value", "call_method"}
    assert (names_in(planted) & REQUESTS) - READS == {"WriteRequest"}
    assert len(collect_files()) > 30
