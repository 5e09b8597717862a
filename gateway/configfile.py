"""The two configuration files as people write them: shape, defaults, and every mistake named with its place. pydantic stays here.

Two files: gateway.toml (OT side: collect, upload) and receiver.toml (IT side: receive, deliver, console). Paths are relative to
the file they stand in. Sizes, times and rates are written "25 GB", "1 s", "5 Mbit/s". Unknown keys are refused.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from buffer import limits
from gateway import configerrors
from gateway import settings as s
from gateway.errors import ConfigError
from gateway.units import parse_duration_ns, parse_rate_bps, parse_size_bytes

FILE_BYTES_MAX = 1024 * 1024  # a thousand sources of a kilobyte each


File = TypeVar("File", bound=BaseModel)


def _identifier(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(limits.ID_PATTERN, value) or ".." in value:
        message = "an id is 1 to 64 of a-z 0-9 _ . - and begins with a letter or digit"
        raise ValueError(message)
    return value


def _literal_address(value: object) -> object:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        message = "write a literal IP address: this box resolves no names (DNS is a way back in)"
        raise ValueError(message) from None
    return value


def _timezone(value: object) -> object:
    if value not in zoneinfo.available_timezones() and value != "UTC":
        message = "not an IANA time zone, as Europe/Brussels or UTC"
        raise ValueError(message)
    return value


def _host_port(value: object) -> object:
    host, _, port = str(value).rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 <= int(port) < 65_536:  # noqa: PLR2004 -- the width of a TCP port
        message = "write host:port, as 10.20.0.5:8443"
        raise ValueError(message)
    return value


def _device(value: str) -> str:
    """Return where a device is in one spelling: what shares a connection is found by it, and a device gets one."""
    _host_port(value)
    host, _, port = value.rpartition(":")
    _literal_address(host.strip("[]"))
    address = ipaddress.ip_address(host.strip("[]"))
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_unspecified or address.is_multicast or int(port) == 0:
        message = "is no place where a device can be; write its own address and port, as 192.168.10.40:502"
        raise ValueError(message)
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"  # noqa: PLR2004 -- IPv6


def _window(value: object) -> object:
    if value != "always" and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", str(value)):
        message = 'write "always" or "HH:MM-HH:MM"'
        raise ValueError(message)
    return value


def _plain(parse: Callable[[str], int]) -> BeforeValidator:
    """Read "1 s": a bare number is told to name its unit, another type is refused as what it is."""

    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            message = "write it as a text with its unit, in double quotes"
            raise ValueError(message)
        return parse(str(value))

    return BeforeValidator(read)


def _opcua_url(value: object) -> object:
    url = urlsplit(str(value))
    if url.scheme != "opc.tcp" or not url.hostname or "@" in url.netloc:
        message = "write opc.tcp://192.168.10.7:4840, without user and password (they have keys of their own)"
        raise ValueError(message)
    _literal_address(url.hostname)
    return value


Id = Annotated[str, BeforeValidator(_identifier)]
Duration = Annotated[int, _plain(parse_duration_ns)]
Size = Annotated[int, _plain(parse_size_bytes)]
Rate = Annotated[int, _plain(parse_rate_bps)]
Address = Annotated[str, BeforeValidator(_literal_address)]
def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches `host`. Names are not resolved: whoever answers for them would decide who can."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


HostPort = Annotated[str, BeforeValidator(_host_port)]
Timezone = Annotated[str, BeforeValidator(_timezone)]
Window = Annotated[str, BeforeValidator(_window)]
OpcuaUrl = Annotated[str, BeforeValidator(_opcua_url)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class GatewayTable(_Table):
    """[gateway]."""

    id: Id
    site: str
    timezone: Timezone = "UTC"
    stream: Id = "main"
    state: str = "/var/lib/ebbgate"
    tags: str = "tags.csv"
    data_key: str = "pki/data.key"
    application_uri: str = ""
    renamed: dict[str, str] = {}
    retired: list[str] = []


class GroupTable(_Table):
    """[group.NAME]."""

    sources: list[Id] = Field(min_length=1)
    max_size: Size | None = None


class _Ring(_Table):
    path: str = "/var/lib/ebbgate/ring"
    max_size: Size = 25 * 10**9
    commit: Duration = s.SECOND
    seal: Duration = 900 * s.SECOND


class _Backfill(_Table):
    limit: Rate = 5_000_000
    window: Window = "always"
    in_flight: int = Field(4, ge=1, le=16)
    newest_first: bool = False


class _Receiver(_Table):
    url: str = Field(pattern=r"^https://[A-Za-z0-9.-]+:\d{1,5}$")
    address: Address
    live: Duration = s.SECOND
    backfill: _Backfill = Field(default_factory=lambda: _Backfill.model_validate({}))
    proxy: str = Field("", pattern=r"^(http://[0-9.]+:\d{1,5})?$")
    ca: str = "pki/receiver-ca.crt"
    receipt_key: str = "pki/receipt.pub"
    certificate: str = "pki/tls.crt"
    key: str = "pki/tls.key"


class _Clock(_Table):
    use: Literal["source", "gateway"] = "source"
    max_skew: Duration = 5 * s.SECOND


class _Alive(_Table):
    tag: Id
    within: Duration = Field(gt=0)


class LoadTable(_Table):
    """load = { ... } of a source."""

    requests_per_s: float = Field(5.0, ge=0.001, le=1000)
    bytes_per_s: Size = Field(1_000_000, ge=1)
    sessions: int = Field(1, ge=1, le=8)
    connections: int = Field(1, ge=1, le=8)
    items: int = Field(1000, ge=1, le=100_000)
    pause: Duration = 0
    duty: float = Field(0.5, ge=0.001, le=1)


class _Source(_Table):
    interface: str = Field("", max_length=15)
    alive: _Alive | None = None
    load: LoadTable = Field(default_factory=lambda: LoadTable.model_validate({}))


class OpcuaTable(_Source):
    """[source.NAME] with kind opcua."""

    kind: Literal["opcua"]
    urls: list[OpcuaUrl] = Field(min_length=1, max_length=4)
    security: str = "Basic256Sha256 SignAndEncrypt"
    security_waiver: str = Field("", max_length=200)
    server_certificate: str = ""
    trusted: str = ""
    certificate: str = "pki/opcua.der"
    key: str = "pki/opcua.key"
    user: str = ""
    password_file: str = ""
    user_certificate: str = ""
    user_key: str = ""
    namespaces: dict[str, str] = {}
    publish: Duration = s.SECOND
    history_fill: Duration = 24 * 3600 * s.SECOND
    clock: _Clock = _Clock()


class ModbusTable(_Source):
    """[source.NAME] with a Modbus kind."""

    kind: Literal["modbus-tcp", "modbus-rtu-tcp", "modbus-rtu"]
    address: str = Field(min_length=1)
    unit: int = Field(1, ge=0, le=255)
    order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"
    gap: int = Field(0, ge=0, le=100)
    allowed: list[str] = []
    forbidden: list[str] = []
    max_registers: int = Field(125, ge=1, le=125)
    max_bits: int = Field(2000, ge=1, le=2000)
    timeout: Duration = s.SECOND
    identify: bool = False
    close_after_poll: bool = False
    baud: int = Field(19_200, ge=50, le=4_000_000)
    parity: Literal["N", "E", "O"] = "E"
    stop_bits: int = Field(1, ge=1, le=2)
    clock: _Clock = _Clock(use="gateway")

    @field_validator("address")
    @classmethod
    def _reachable(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind") == "modbus-rtu":
            if not value.startswith("/dev/"):
                message = "write the serial device, as /dev/serial/by-id/usb-..."
                raise ValueError(message)
            return value
        return _device(value)

    @field_validator("timeout")
    @classmethod
    def _bearable(cls, value: int) -> int:
        if not s.MILLISECOND <= value <= 600 * s.SECOND:
            message = 'write how long an answer may take, from "1 ms" to "10 min"'
            raise ValueError(message)
        return value

    @field_validator("unit")
    @classmethod
    def _answers(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and info.data.get("kind") in ("modbus-rtu", "modbus-rtu-tcp"):
            message = "on a serial line 0 is a call to all units, which none answers; write the unit's own number, 1 to 247"
            raise ValueError(message)
        return value


class _Disclose(_Table):
    addresses: bool = False


class GatewayFile(_Table):
    """gateway.toml as written; `init` prints it, with every default, from here."""

    gateway: GatewayTable
    ring: _Ring = _Ring()
    receiver: _Receiver
    source: dict[Id, Annotated[OpcuaTable | ModbusTable, Field(discriminator="kind")]] = {}
    group: dict[Id, GroupTable] = Field({}, max_length=32)
    disclose: _Disclose = _Disclose()


class _SiteReceiver(_Table):
    name: Id
    listen: HostPort
    landing: str = "/var/lib/ebbgate/landing"
    deliver: str = "/var/lib/ebbgate/deliver"
    min_free: Size = 50 * 10**9
    receipt_key: str = "pki/receipt.key"


class _Tls(_Table):
    certificate: str = "pki/receiver.crt"
    key: str = "pki/receiver.key"
    gateways_ca: str = "pki/gateways-ca.crt"
    revoked: str = ""
    grace: Duration = 90 * 86_400 * s.SECOND


class _GatewayPolicy(_Table):
    id: Id
    site: str = ""
    streams: list[str] = []
    silence: Duration = 60 * s.SECOND
    rate: Rate = 100_000_000


class _Lake(_Table):
    path: str
    every: Duration = 60 * s.SECOND
    partition: list[Literal["site", "date"]] = ["site", "date"]


class _Sink(_Table):
    kind: Literal["postgres"]
    dsn_file: str
    tags: list[str] = ["**"]
    future: Duration = 600 * s.SECOND
    views: bool = True


class _Mail(_Table):
    to: list[str] = Field(min_length=1, max_length=100)
    via: HostPort


class _Alarm(_Table):
    webhook_file: str = ""
    mail: _Mail | None = None


class _Console(_Table):
    listen: HostPort = "127.0.0.1:8080"
    users: Literal["none", "local"] = "none"


class SiteFile(_Table):
    """receiver.toml as written."""

    receiver: _SiteReceiver
    tls: _Tls = _Tls()
    gateway: list[_GatewayPolicy] = []
    lake: _Lake | None = None
    sink: dict[Id, _Sink] = {}
    alarm: _Alarm | None = None
    console: _Console = _Console()


# ---- reading ----


def read_text(path: Path) -> str:
    """Return a configuration file; raise ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: longer than 1 MiB", "Name the right file.")
        return data.decode("utf-8-sig")  # an editor on Windows writes a mark first
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", "Give --config FILE, or make one with `ebbgate init`.") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "Check owner and mode of the file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8", "Save the file as UTF-8.") from None


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Return the tables of a file; raise ConfigError that names line and column where there are any."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, a number of 5,000 digits one that is not
        raise ConfigError(f"{path}: {error}", "Correct the TOML at that place; texts stand in double quotes.") from None


def parse_file(model: type[File], path: Path) -> File:
    """Return the file as `model`; raise ConfigError with every mistake at once."""
    return parse_text(model, read_text(path), path)


def parse_text(model: type[File], text: str, path: Path) -> File:
    """Return a file's text as `model`; `path` is for messages. Raise ConfigError with every mistake at once."""
    try:
        return model.model_validate(parse_toml(text, path))
    except ValidationError as error:
        raise configerrors.explain(path, text, model, error.errors()) from None
