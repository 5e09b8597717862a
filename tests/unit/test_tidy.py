"""The limits of the house, over buffer/ and gateway/; each checker is shown to catch a planted violation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for top in ("buffer", "gateway") for p in (ROOT / top).rglob("*.py"))
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
LONG_FILES: dict[str, int] = {}  # none may be longer
ONLY_HERE = {
    ("os", "fsync"): {"buffer/storage.py"},
    ("os", "fdatasync"): {"buffer/storage.py"},
    ("os", "rename"): {"buffer/storage.py"},
    ("os", "replace"): set(),
    ("os", "unlink"): {"buffer/storage.py"},
    ("time", "time_ns"): {"gateway/runtime.py"},
    ("time", "monotonic_ns"): {"gateway/runtime.py"},
}
WRITES = {
    "write_value", "write_values", "write_attribute", "write_attributes", "call_method", "add_nodes", "delete_nodes", "history_update",
    "write_register", "write_registers", "write_coil", "write_coils", "mask_write_register", "readwrite_registers", "write_file_record",
}  # fmt: skip


def long_functions(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX:
            found.append(node.name)
    return found


def open_ends(source: str) -> list[str]:
    words = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")
    return [word for word in words if word in source]


def out_of_place(source: str, name: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = ONLY_HERE.get((node.value.id, node.attr))
            if allowed is not None and name not in allowed:
                found.append(f"{node.value.id}.{node.attr}")
    return found


def plant_writes(source: str) -> list[str]:
    return [node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr in WRITES]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file(path: Path) -> None:
    source, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    assert ast.get_docstring(ast.parse(source)), f"{name}: says nothing about itself"
    assert source.count("\n") <= LONG_FILES.get(name, FILE_LINES_MAX), f"{name}: too long"
    assert not long_functions(source)
    assert not open_ends(source)
    assert not out_of_place(source, name)
    if not name.startswith("gateway/demo/"):
        assert not plant_writes(source), f"{name}: names a write to a machine"


def test_the_checkers_catch_what_they_are_for() -> None:
    assert long_functions("def f():\n" + "    x = 1\n" * 70) == ["f"]
    assert open_ends("# TO" + "DO later")
    assert out_of_place("import os\nos.fsync(3)", "gateway/x.py") == ["os.fsync"]
    assert plant_writes("await client.write_value(1)") == ["write_value"]
