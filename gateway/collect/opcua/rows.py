"""What browsing found -> rows of tags.csv that `check` accepts as they are. Pure.

Texts come from a server and may hold anything: what a tag table may not hold is replaced, and a variable whose address cannot be written in
one is left out with the reason. Ids are proposed from the path, at most 64 characters, unique among themselves and those there already.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway import tagcells
from gateway.collect.opcua.address import parse_address
from gateway.errors import ConfigError
from gateway.settings import SECOND, TagRow
from gateway.tagarrays import EXPAND_MAX
from gateway.tagfile import PATH_CHARS_MAX, STATES_MAX, TEXT_CHARS_MAX, WORD_CHARS_MAX, TagFileError, parse_tags, write_tags

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gateway.collect.opcua.browse import Variable

ID_CHARS_MAX: Final = 64
EVERY_MAX_NS: Final = 86_400 * SECOND  # a slower server is asked once a day
STATE_CHARS_MAX: Final = 60
_UNITS: Final = {  # as servers write them -> UCUM
    "°C": "Cel", "℃": "Cel", "degC": "Cel", "°F": "[degF]", "1/min": "/min", "rpm": "/min", "kWh": "kW.h", "Wh": "W.h", "MWh": "MW.h",
    "m³": "m3", "m³/h": "m3/h", "m^3/h": "m3/h", "l/min": "L/min", "l/h": "L/h", "l": "L", "°": "deg", "m²": "m2", "mm²": "mm2", "µm": "um",
    "μm": "um", "Nm": "N.m", "N·m": "N.m", "kg/m³": "kg/m3", "mWS": "m[H2O]",
}  # fmt: skip


def make_rows(
    source: str, variables: Sequence[Variable], namespaces: Sequence[str], aliases: Mapping[str, str], taken: Collection[TagRow] = ()
) -> tuple[list[TagRow], list[tuple[str, str]]]:
    """Return rows for the variables that no row of `taken` reads already, and (path, reason) of those left out."""
    ids, paths = {row.id for row in taken}, {row.path for row in taken}
    known = {_node(row.address, namespaces, aliases) for row in taken if row.source == source}
    rows: list[TagRow] = []
    left_out: list[tuple[str, str]] = []
    for one in variables:
        if one.node in known:
            continue
        address = _address(one.node, namespaces, {uri: alias for alias, uri in aliases.items()}, aliases)
        steps = [_step(step) for step in one.path] or ["tag"]
        path = _unique(_fitting_path([_step(source), *steps]), paths, PATH_CHARS_MAX)
        row = _row(source, one, address, _unique(_id(source, steps), ids, ID_CHARS_MAX), path)
        wrong = _wrong(row)
        if wrong:
            left_out.append(("/".join(one.path), wrong))
            continue
        ids.add(row.id)
        paths.add(row.path)
        rows.append(row)
    return rows, left_out


def _wrong(row: TagRow) -> str:
    """Return why a tag table cannot hold a row, "" if it can: it is written, read again and compared."""
    try:
        again = parse_tags(write_tags([row]), {row.source})
    except TagFileError as error:
        return error.findings[0].what
    except ConfigError as error:
        return error.message
    return "" if len(again) == 1 and replace(again[0], line=0) == row else "a spreadsheet would change it"


def _row(source: str, one: Variable, address: str, id_: str, path: str) -> TagRow:
    low, high = _range(one.context.get("EURange"))
    every = min(EVERY_MAX_NS, max(SECOND, math.ceil(one.sampling_ms) * 10**6))
    return TagRow(
        id=id_,
        path=path,
        source=source,
        address=address,
        type=_text(one.type, WORD_CHARS_MAX),
        unit=_unit(one.context.get("EngineeringUnits")),
        low=low,
        high=high,
        every_ns=every,
        states=_states(one.context),
        description=_text(one.description, TEXT_CHARS_MAX),
        expand=_expand(one.dimensions),
    )


# ---- address ----


def _node(address: str, namespaces: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    try:
        return parse_address(address, aliases).node_id(namespaces)
    except ConfigError:
        return None


def _address(node: str, namespaces: Sequence[str], by_uri: Mapping[str, str], aliases: Mapping[str, str]) -> str:
    """Return a node by alias, else by namespace URI, which survives a server that numbers its namespaces anew; else as it is."""
    head, _, identifier = node.partition(";")
    if not head.startswith("ns=") or not head[3:].isdigit() or int(head[3:]) >= len(namespaces):
        return node
    uri = namespaces[int(head[3:])]
    choices = [f"nsu={uri};{identifier}"]
    if uri in by_uri:
        choices = [f"{by_uri[uri]}:{identifier.removeprefix('s=')}", f"{by_uri[uri]}:{identifier}", *choices]
    return next((one for one in choices if namespaces.index(uri) == int(head[3:]) and _node(one, namespaces, aliases) == node), node)


# ---- texts ----


def _text(text: str, most: int) -> str:
    """Return a text that a cell may hold: no controls, no direction overrides, one line."""
    clean = "".join(" " if one.isspace() else "" if tagcells.invisible(one) else one for one in text)
    return " ".join(clean.split())[:most].strip()


def _step(name: str) -> str:
    """Return one step of a path."""
    return re.sub(r"[/+#*\\]", "_", _text(name, 100)).strip(". ") or "_"


def _fitting_path(steps: list[str]) -> str:
    while len("/".join(steps)) > PATH_CHARS_MAX - 8 and len(steps) > 2:  # noqa: PLR2004 -- source and name stay
        del steps[1]
    return "/".join(steps)[: PATH_CHARS_MAX - 8].rstrip("/ .")


def _id(source: str, steps: Sequence[str]) -> str:
    """Return an id from the end of a path: "press7.db1.temp"."""
    plain = [unicodedata.normalize("NFKD", step).encode("ascii", "ignore").decode().lower() for step in steps]
    words = [re.sub(r"[^a-z0-9_-]+", "_", step).strip("_-") for step in plain]
    words = [word for word in words if word] or ["tag"]
    room = ID_CHARS_MAX - 6 - len(source) - 1
    while len(".".join(words)) > room and len(words) > 1:
        del words[0]
    return f"{source}.{'.'.join(words)[-max(room, 8) :].strip('._-')}"[: ID_CHARS_MAX - 6]


def _unique(wanted: str, taken: Collection[str], most: int) -> str:
    number, made = 2, wanted
    while made in taken:
        made = f"{wanted[: most - len(str(number)) - 1]}-{number}"
        number += 1
    return made


# ---- context ----


def _json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None


def _range(value: object) -> tuple[float | None, float | None]:
    body = _json(value)
    low, high = (body.get("Low"), body.get("High")) if isinstance(body, dict) else (None, None)
    good = isinstance(low, int | float) and isinstance(high, int | float) and math.isfinite(low) and math.isfinite(high) and low < high
    return (float(low), float(high)) if good else (None, None)  # type: ignore[arg-type]


def _unit(value: object) -> str:
    body = _json(value)
    name = body.get("DisplayName") if isinstance(body, dict) else None
    text = name.get("Text") if isinstance(name, dict) else name
    unit = _text(str(text or ""), WORD_CHARS_MAX)
    return _UNITS.get(unit, unit)


def _expand(dimensions: str) -> int:
    """Return how many tags an array of fixed dimensions becomes; 0 for what is none, varies, or has more elements than tags are made of."""
    sizes = _json(dimensions)
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and 0 < size <= EXPAND_MAX for size in sizes):
        return 0
    count = math.prod(sizes)
    return count if count <= EXPAND_MAX else 0


def _states(context: Mapping[str, object]) -> tuple[tuple[int, str], ...]:
    """Return number and text of each state, as EnumValues, EnumStrings or TrueState and FalseState say."""
    values, strings = _json(context.get("EnumValues")), _json(context.get("EnumStrings"))
    pairs: list[tuple[object, object]] = []
    if isinstance(values, list):
        pairs = [(one.get("Value"), one.get("DisplayName")) for one in values if isinstance(one, dict)]
    elif isinstance(strings, list):
        pairs = list(enumerate(strings))
    elif "TrueState" in context or "FalseState" in context:
        pairs = [(0, context.get("FalseState")), (1, context.get("TrueState"))]
    states = {}
    for number, name in pairs[:STATES_MAX]:
        text = name.get("Text") if isinstance(name, dict) else name
        clean = re.sub(r"[|=]", " ", _text(str(text or ""), STATE_CHARS_MAX)).strip()
        if type(number) is int and abs(number) < 10**18 and clean:
            states[number] = clean
    return tuple(states.items())
