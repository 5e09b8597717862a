"""Addresses of tags in an OPC UA server, as people write them in tags.csv. Pure.

ns=2;s=Press7.Temp          a NodeId as every tool shows it (OPC 10000-6, 5.3.1.10); forms i, s, g, b; no ns= means namespace 0
nsu=urn:siemens:x;s=Temp    namespace by URI: survives a server that numbers its namespaces anew
s7:"Press7"."Temp"          alias of [source.x] namespaces, then a string identifier; or alias:i=42, alias:g=.., alias:b=..
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.errors import ConfigError
from gateway.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.settings import OpcuaSource

NAMESPACES_MAX: Final = 2**16  # the index is a UInt16 (OPC 10000-6, 5.2.2.9)
_NODE: Final = re.compile(r"(?:ns=(?P<index>\d{1,5});|nsu=(?P<uri>[^;]+);)?(?P<form>[isgb])=(?P<rest>.+)", re.DOTALL)
_FORM: Final = {
    "i": re.compile(r"\d{1,10}"),
    "g": re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    "b": re.compile(r"[A-Za-z0-9+/]+={0,2}"),
    "s": re.compile(r".{1,4096}", re.DOTALL),
}


class Address(NamedTuple):
    """namespace: an index, or a URI still to be looked up. identifier: "s=Temp", "i=42", ..."""

    namespace: int | str
    identifier: str

    def node_id(self, namespaces: Sequence[str]) -> str | None:
        """Return the NodeId text in a server with these namespaces, None if it does not have ours."""
        if isinstance(self.namespace, int):
            index = self.namespace
        elif self.namespace in (within := namespaces[:NAMESPACES_MAX]):
            index = within.index(self.namespace)
        else:
            return None
        return f"ns={index};{self.identifier}" if index else self.identifier


def parse_address(text: str, aliases: Mapping[str, str]) -> Address:
    """Return the address; raise ConfigError that says what is wrong with it."""
    found = _NODE.fullmatch(text)
    if found:
        namespace: int | str = found["uri"] or int(found["index"] or 0)
        if isinstance(namespace, int) and namespace >= NAMESPACES_MAX:
            raise ConfigError(f"address {text!r}: no server has a namespace {namespace}", "Copy the NodeId from `ebbgate browse`.")
        return Address(namespace, _identifier(text, found["form"], found["rest"]))
    alias, colon, rest = text.partition(":")
    if not colon or alias not in aliases:
        known = ", ".join(sorted(aliases)) or "none is configured"
        raise ConfigError(
            f"address {text!r}: {alias!r} is no namespace alias",
            f'Write ns=2;s=.. or nsu=URI;s=.., or an alias of this source ({known}) and a colon, as s7:"DB"."Tag".',
        )
    found = _NODE.fullmatch(rest)
    if found and found["index"] is None and found["uri"] is None and found["form"] != "s" and _FORM[found["form"]].fullmatch(found["rest"]):
        return Address(aliases[alias], rest)
    return Address(aliases[alias], _identifier(text, "s", rest.removeprefix("s=")))


def _identifier(text: str, form: str, rest: str) -> str:
    if not _FORM[form].fullmatch(rest) or (form == "i" and int(rest) >= 2**32) or (form == "b" and not _is_base64(rest)):
        raise ConfigError(f"address {text!r}: {rest!r} is no identifier of form {form}=", "Copy the NodeId from `ebbgate browse`.")
    return f"{form}={rest}"


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return True


def wrong_addresses(settings: OpcuaSource) -> list[Finding]:
    """Return one finding for each tag whose address is none."""
    findings = []
    for tag in settings.tags:
        try:
            parse_address(tag.address, settings.namespaces)
        except ConfigError as error:
            where = f"row {tag.line}, {tag.id}" if tag.line else tag.id
            findings.append(Finding(Level.REFUSED, where, error.message, error.remedy))
    return findings
