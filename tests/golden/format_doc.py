"""Fills the framed parts of docs/format.md from the code: `python -m tests.golden.format_doc` writes, `render` returns what should stand there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "format.md"
_PART = re.compile(r"<!-- begin (spec|enum|limits) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def _source(module: str) -> str:
    return (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def spec(module: str) -> str:
    """The docstring from the word Specification on; all of it where that word is not there."""
    text = ast.get_docstring(ast.parse(_source(module))) or ""
    at = text.find("Specification")
    return f"`{module}`\n\n```text\n{text[max(at, 0) :].strip()}\n```"


def _commented(source: str, pattern: str) -> list[tuple[str, str, str]]:
    return [(m[1], m[2].strip(), (m[3] or "").strip(" #")) for m in re.finditer(pattern, source, re.MULTILINE)]


def enum(path: str) -> str:
    """A table of the members, with the comments beside them."""
    module, _, name = path.rpartition(".")
    node = next(n for n in ast.parse(_source(module)).body if isinstance(n, ast.ClassDef) and n.name == name)
    lines = "\n".join(_source(module).splitlines()[node.lineno - 1 : node.end_lineno])
    rows = _commented(lines, r"^    ([A-Z0-9_]+) = (\d+)(  # .*)?$")
    members = {member.name: int(member) for member in getattr(importlib.import_module(module), name)}
    assert {key: int(value) for key, value, _ in rows} == members, f"{path}: the table does not hold every member"
    return "| value | name | meaning |\n|---|---|---|\n" + "\n".join(f"| {value} | {key} | {comment} |" for key, value, comment in rows)


def limits(module: str) -> str:
    rows = _commented(_source(module), r"^([A-Z_]+): Final = (.+?)(  # .*)?$")
    return "| limit | value | why |\n|---|---|---|\n" + "\n".join(f"| {key} | `{value.replace('|', chr(92) + '|')}` | {why} |" for key, value, why in rows)


def render(page: str) -> str:
    """The page with every framed part as the code has it."""
    makers = {"spec": spec, "enum": enum, "limits": limits}
    return _PART.sub(lambda m: f"<!-- begin {m[1]} {m[2]} -->\n{makers[m[1]](m[2])}\n<!-- end -->", page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
