"""Sources in groups: one collect process, one ring, one stream each, so that a defect in one leaves the others seeing. Pure.

A source that no [group.NAME] names belongs to the main stream, [gateway] stream. A group's stream is <gateway>.<NAME>; it has a data key of its own
(pki/data-NAME.key: a key belongs to one stream) and its share of [ring] max_size. What a group writes carries its name; files of
a source do not, so that a source keeps its load account when it moves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.errors import ConfigError
from gateway.settings import ModbusSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from gateway.settings import GatewaySettings, Group, OpcuaSource


def check_groups(path: Path, main: str, groups: Sequence[Group], sources: Sequence[OpcuaSource | ModbusSource]) -> None:
    """Raise ConfigError where a source is in two groups, or two groups would open two connections to one device."""
    home: dict[str, str] = {}
    names = {one.name for one in sources}
    if "status" in names:
        raise ConfigError(f"{path}: a source named status would write where collect says how it is", "Give it another name.")
    for group in groups:
        if group.name == main:
            raise ConfigError(f"{path}: group.{main} has the name of [gateway] stream", "Give the group another name.")
        for name in group.sources:
            if name not in names:
                raise ConfigError(f"{path}: group.{group.name} names source {name!r}, which is not configured", f"Write [source.{name}].")
            if name in home:
                raise ConfigError(f"{path}: source {name!r} is in group {home[name]} and in group {group.name}", "Name it in one of them.")
            home[name] = group.name
    first: dict[tuple[str, str], ModbusSource] = {}
    for one in sources:
        if isinstance(one, ModbusSource):
            other = first.setdefault((one.address, one.interface), one)
            if home.get(one.name) != home.get(other.name):
                what = f"{path}: source.{one.name} and source.{other.name} share {one.address} but are in different groups"
                raise ConfigError(what, "A device gets one connection, and that is one process: put both into the same group.")


def of_group(settings: GatewaySettings, name: str) -> GatewaySettings:
    """Return the settings of one group's processes; "" is the main stream. Raise ConfigError where there is no such group."""
    if not name:
        grouped = {source for group in settings.groups for source in group.sources}
        return replace(settings, sources=tuple(one for one in settings.sources if one.name not in grouped))
    group = next((one for one in settings.groups if one.name == name), None)
    if group is None:
        known = ", ".join(one.name for one in settings.groups) or "none"
        raise ConfigError(f"no group {name!r}", f"Groups here: {known}. Write [group.{name}] in gateway.toml.")
    sources = tuple(one for one in settings.sources if one.name in group.sources)
    return replace(_stream(settings, name), sources=sources, ring=replace(settings.ring, max_bytes=group.max_bytes))


def all_streams(settings: GatewaySettings, on_disk: Iterable[str] = ()) -> tuple[GatewaySettings, ...]:
    """Return the settings of each stream, main first. on_disk: names of rings that are there; one whose group was given up is carried to its end."""
    known = [of_group(settings, name) for name in ("", *(group.name for group in settings.groups))]
    streams = {one.stream for one in known}
    prefix = f"{settings.id}."
    left = sorted(name.removeprefix(prefix) for name in set(on_disk) - streams if name.startswith(prefix))
    return (*known, *(replace(_stream(settings, name), sources=()) for name in left))


def collecting(settings: GatewaySettings) -> tuple[GatewaySettings, ...]:
    """Return the settings of each collect process that has something to do: the main one only where a source is in no group."""
    streams = all_streams(settings)
    return tuple(one for one in streams if one.group or one.sources or not settings.groups)


def key_paths(gateway: str, main: str, data_key: Path, groups: Iterable[str]) -> dict[str, Path]:
    """Return stream -> data key: a key belongs to one stream. main: [gateway] stream; groups: names."""
    return {f"{gateway}.{main}": data_key, **{f"{gateway}.{name}": _group_key(data_key, name) for name in groups}}


def _group_key(data_key: Path, name: str) -> Path:
    return data_key.with_name(f"{data_key.stem}-{name}{data_key.suffix}")


def _stream(settings: GatewaySettings, name: str) -> GatewaySettings:
    return replace(settings, stream=f"{settings.id}.{name}", group=name, data_key=_group_key(settings.data_key, name))


def without_tags(settings: GatewaySettings) -> GatewaySettings:
    """Return the settings of a process that reads no source: 10,000 tags would be megabytes for nothing."""
    return replace(settings, sources=tuple(replace(one, tags=()) for one in settings.sources))
