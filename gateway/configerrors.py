"""What is wrong in a configuration file, in words: line, key path, what was found, what to write instead. Pure.

The examples come from the templates that `ebbgate init` writes, so that a message never shows what would be refused.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

from gateway.errors import ConfigError
from gateway.templates import example

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ERRORS_SHOWN_MAX: Final = 50  # one screenful; the rest is counted
TEXT_CHARS_MAX: Final = 80  # of a wrong value
_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?\s*(#.*)?")
_KEY: Final = re.compile(r"""\s*([A-Za-z0-9_."'-]+)\s*=""")
_KINDS: Final = ("opcua", "modbus-tcp", "modbus-rtu-tcp", "modbus-rtu")


def explain(path: Path, text: str, model: Any, errors: Sequence[Mapping[str, Any]]) -> ConfigError:  # noqa: ANN401 -- a pydantic model
    """Return one error that says all mistakes, in order of the file. `errors` are pydantic's ErrorDetails."""
    found = []
    for error in errors:
        place = _place(error["loc"])
        found.append((line_of(text, place), ".".join(map(str, place)), _say(model, error, place)))
    found.sort(key=lambda one: (one[0], one[1]))
    lines = [(f"line {line}, " if line else "") + f"{place}: {what}" for line, place, what in found[:ERRORS_SHOWN_MAX]]
    if len(found) > ERRORS_SHOWN_MAX:
        lines.append(f"and {len(found) - ERRORS_SHOWN_MAX:,} more")
    count = "1 mistake" if len(found) == 1 else f"{len(found):,} mistakes"
    return ConfigError(f"{path}: {count}\n    " + "\n    ".join(lines), "Correct the file; nothing was started.")


def _place(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """Return the key path as it stands in the file: without the name of the kind that pydantic puts behind a source's name."""
    return tuple(step for i, step in enumerate(loc) if not (i == 2 and loc[0] == "source" and step in _KINDS))  # noqa: PLR2004


def _say(model: Any, error: Mapping[str, Any], place: tuple[str | int, ...]) -> str:  # noqa: ANN401
    key = str(place[-1]) if place else ""
    if error["type"] == "extra_forbidden":
        known = _known(model, error["loc"][:-1])
        near = difflib.get_close_matches(key, known, 1) or [k for k in known if k.removesuffix("s") == key.removesuffix("s")]
        return "unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'nothing'}")
    shown = example(model.__name__, [str(step) for step in place if not isinstance(step, int)])
    instead = f"; write {shown}" if shown else ""
    if error["type"] in ("missing", "union_tag_not_found"):
        return f"is missing{instead}"
    if error["type"] == "union_tag_invalid":
        kind = str(error.get("ctx", {}).get("tag", ""))
        near = difflib.get_close_matches(kind, _KINDS, 1)
        return f"kind = {kind!r} is not known; " + (f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(_KINDS)}")
    value = repr(error.get("input"))
    value = value if len(value) <= TEXT_CHARS_MAX else value[: TEXT_CHARS_MAX - 3] + "..."
    said = str(error["msg"]).removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    if error["type"] == "value_error":
        return said if value in said or not isinstance(error.get("input"), str | int | float) else f"{value}: {said}"
    return f"{value}: {said}{instead}"


def _known(model: Any, loc: Sequence[str | int]) -> list[str]:  # noqa: ANN401
    """Return the keys allowed where a mistake was made."""
    at: Any = model
    for step in loc:
        if isinstance(step, int):
            continue
        fields = getattr(at, "model_fields", {})
        at = _single(fields[step].annotation if step in fields else _inside(at, str(step)))
    return list(getattr(at, "model_fields", {}))


def _inside(annotation: Any, kind: str) -> Any:  # noqa: ANN401
    """Return the model of a union whose `kind` this is; anything else unchanged (the name of a source, of a sink)."""
    for one in _parts(annotation):
        field = getattr(one, "model_fields", {}).get("kind")
        if field is not None and kind in getattr(field.annotation, "__args__", ()):
            return one
    return annotation


def _single(annotation: Any) -> Any:  # noqa: ANN401
    """Return the only model in list[X], dict[str, X], X | None; several stay as they are."""
    models = _parts(annotation)
    return models[0] if len(models) == 1 else annotation


def _parts(annotation: Any) -> list[Any]:  # noqa: ANN401
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for one in getattr(annotation, "__args__", ()) for model in _parts(one)]


# ---- where in the file ----


def line_of(text: str, place: Sequence[str | int]) -> int:
    """Return the line of the longest part of a key path that stands in a TOML file, 0 where none does."""
    table: tuple[str | int, ...] = ()
    counts: dict[str, int] = {}
    best, best_length = 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            names = _split(header[2])
            table = tuple(names)
            if header[1] == "[[":
                counts[header[2]] = counts.get(header[2], -1) + 1
                table = (*names, counts[header[2]])
            at = table
        elif key := _KEY.match(line):
            at = (*table, *_split(key[1]))
        else:
            continue
        if len(at) <= len(place) and tuple(place[: len(at)]) == at and len(at) > best_length:
            best, best_length = number, len(at)
    return best


def _split(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in re.findall(r"""\s*("[^"]*"|'[^']*'|[^."']+)\s*\.?""", dotted)]
