"""Settings as the processes use them: frozen, checked, in base units (ns, bytes, bits/s). gateway.config makes them from TOML.

Nothing here knows TOML, pydantic or a default file name; durations end in _ns, sizes in _bytes, rates in _bps (bits/s).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SECOND: int = 10**9
MILLISECOND: int = 10**6
UNSIGNED_TYPES: frozenset[str] = frozenset({"uint64", "ulint", "lword"})  # as people write the one integer type that int64 does not hold
WEAK_POLICIES: frozenset[str] = frozenset({"None", "Basic256", "Basic128Rsa15"})  # OPC 10000-7: deprecated, or no protection at all


@dataclass(frozen=True, slots=True)
class TagRow:
    """One row of tags.csv, parsed (gateway.tagfile). `number` is the tag's number in the tag table (0 before it has one)."""

    id: str
    path: str
    source: str
    address: str  # OPC UA: alias:identifier, nsu=..;s=.., ns=2;s=..; Modbus: hr:0, ir:52, 40001, 0x10
    type: str = ""
    order: str = ""  # Modbus: ABCD, CDAB, BADC, DCBA; "" = the source's
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    low: float | None = None
    high: float | None = None
    every_ns: int = SECOND
    deadband: float = 0.0  # absolute, in engineering units; 0: every change
    heartbeat_ns: int = 0
    bad_raw: tuple[str, ...] = ()  # raw values that mean "not available": numbers or "nan"
    states: tuple[tuple[int, str], ...] = ()
    description: str = ""
    expand: int = 0  # elements of an array that become tags of their own (gateway.tagarrays); 0: one tag, an array as JSON text
    line: int = 0  # in the file, for messages
    number: int = 0
    array: str = ""  # of an element of an array: the id in the file
    element: int = 0  # its place in the array

    @property
    def unsigned(self) -> bool:
        """Whether 64 bits of an integer of this tag are read without a sign, here and in every store after."""
        return self.type.lower() in UNSIGNED_TYPES


@dataclass(frozen=True, slots=True)
class Load:
    """Load contract of a source (G10). Counted across restarts and including check, browse and read."""

    requests_per_s: float = 5.0
    bytes_per_s: int = 1_000_000
    sessions: int = 1  # OPC UA sessions or Modbus connections at a time
    items: int = 1_000  # monitored items or tags per request
    pause_ns: int = 0  # between two requests
    duty: float = 0.5  # share of the time a device may be busy with us


@dataclass(frozen=True, slots=True)
class Clock:
    """Whose time a reading gets. use: "source" or "gateway"; beyond max_skew ts = gateway time, flagged."""

    use: str = "source"
    max_skew_ns: int = 5 * SECOND


@dataclass(frozen=True, slots=True)
class Alive:
    """A life bit that must change within this time while the source is connected."""

    tag: str
    within_ns: int


@dataclass(frozen=True, slots=True)
class OpcuaSource:
    """One OPC UA server."""

    name: str
    urls: tuple[str, ...]  # used as written, in order; discovery answers are not followed
    security: str = "Basic256Sha256 SignAndEncrypt"  # policy and mode, or "None" (a waiver, shown everywhere)
    waiver: str = ""  # why a weak policy is borne; shown in check, status and notices
    server_certificate: Path | None = None  # pinned, DER; None only with security None or `trusted`
    trusted: Path | None = None  # directory of authorities and certificates; used where none is pinned
    certificate: Path | None = None  # our application certificate, DER
    private_key: Path | None = None  # PEM
    application_uri: str = ""
    user: str = ""
    password_file: Path | None = None
    user_certificate: Path | None = None  # login by certificate instead of user and password
    user_key: Path | None = None
    namespaces: Mapping[str, str] = field(default_factory=dict)  # alias -> namespace URI
    interface: str = ""  # SO_BINDTODEVICE
    publish_ns: int = SECOND
    history_fill_ns: int = 24 * 3600 * SECOND
    clock: Clock = Clock()
    alive: Alive | None = None
    load: Load = Load()
    tags: tuple[TagRow, ...] = ()


@dataclass(frozen=True, slots=True)
class ModbusSource:
    """One Modbus device. kind: modbus-tcp, modbus-rtu-tcp, modbus-rtu."""

    name: str
    kind: str
    address: str  # host:port, or the serial device
    unit: int = 1
    order: str = "ABCD"
    gap: int = 0  # registers nobody named that may be read along; 0: none
    allowed: tuple[str, ...] = ()  # "hr:0-199": may be read along whatever gap says
    forbidden: tuple[str, ...] = ()
    max_registers: int = 125
    max_bits: int = 2000
    timeout_ns: int = SECOND
    identify: bool = False  # 43/14 at connect
    close_after_poll: bool = False
    interface: str = ""
    baud: int = 19_200
    parity: str = "E"
    stop_bits: int = 1
    clock: Clock = Clock(use="gateway")
    alive: Alive | None = None
    load: Load = Load()
    tags: tuple[TagRow, ...] = ()


@dataclass(frozen=True, slots=True)
class RingSettings:
    """Where and how large the ring is. path/<stream>/ is one ring."""

    path: Path
    max_bytes: int = 25 * 10**9
    commit_ns: int = SECOND
    seal_ns: int = 900 * SECOND


@dataclass(frozen=True, slots=True)
class Backfill:
    """How fast and when a backlog may travel. window: "always" or "HH:MM-HH:MM" in the gateway's timezone."""

    limit_bps: int = 5_000_000
    window: str = "always"
    in_flight: int = 4
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where the uploader sends to."""

    url: str  # https://name:port; the name is checked in the certificate
    address: str  # literal IP to connect to: no DNS on this box
    ca: Path  # pinned: the CA of the receiver's TLS certificate, PEM
    receipt_key: Path  # public key that signs receipts, PEM
    certificate: Path  # our TLS client certificate, PEM
    private_key: Path
    live_ns: int = SECOND
    backfill: Backfill = Backfill()
    proxy: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Sources that a collect process of their own reads, into a stream of their own: <gateway>.<name>."""

    name: str
    sources: tuple[str, ...]
    max_bytes: int  # of its ring


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """One gateway box: what collect and upload need. gateway.groups narrows it to one stream."""

    id: str
    site: str
    timezone: str
    stream: str  # <gateway>.<name>
    ring: RingSettings
    receiver: Receiver
    sources: tuple[OpcuaSource | ModbusSource, ...]
    state: Path  # holds collect/, upload/, control/
    data_key: Path  # Ed25519, PEM, 0600; with <stem>.statement beside it
    disclose_addresses: bool = False
    groups: tuple[Group, ...] = ()
    group: str = ""  # "": the stream of the sources that are in no group
    renamed: Mapping[str, str] = field(default_factory=dict)  # old tag id -> new one, meant
    retired: tuple[str, ...] = ()  # tag ids given up on purpose

    @property
    def collect_status(self) -> Path:
        """Where the collect process of this stream says how it is. No id begins with _, so no source's file has this name."""
        return self.state / "collect" / (f"_status-{self.group}.json" if self.group else "status.json")

    @property
    def tags_in_force(self) -> Path:
        """The tags the collect process of this stream works with (collect.tables): what `check` and SIGHUP compare new ones with."""
        return self.state / "collect" / (f"_tags-{self.group}.json" if self.group else "_tags.json")

    @property
    def scrub_progress(self) -> Path:
        """How far the scrub of this stream's ring has come."""
        return self.state / "collect" / (f"_scrub-{self.group}.json" if self.group else "_scrub.json")

    @property
    def upload_state(self) -> Path:
        """The directory of the uploader for this stream."""
        return self.state / "upload" / self.group if self.group else self.state / "upload"


@dataclass(frozen=True, slots=True)
class GatewayPolicy:
    """What the receiver knows of one gateway."""

    id: str
    site: str
    streams: tuple[str, ...]  # patterns as "hall1.*"
    silence_ns: int = 60 * SECOND
    rate_bps: int = 100_000_000


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """One transactional target beside the lake."""

    name: str
    kind: str  # postgres
    dsn_file: Path
    tags: tuple[str, ...] = ("**",)  # patterns over paths
    future_ns: int = 600 * SECOND
    views: bool = True


@dataclass(frozen=True, slots=True)
class AlarmSettings:
    """Whom to tell. Read and checked; `ebbgate check` says what of it this release acts on."""

    webhook_file: Path | None = None  # holds a URL: a secret
    mail_to: tuple[str, ...] = ()
    mail_via: str = ""  # host:port


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """The IT side: receive, deliver, console."""

    name: str
    listen: tuple[str, int]
    landing: Path
    deliver: Path
    lake: Path | None
    lake_every_ns: int
    min_free_bytes: int
    receipt_key: Path
    tls_certificate: Path
    tls_key: Path
    gateways_ca: Path  # CA of client certificates and of key statements, PEM
    revoked: Path | None
    gateways: tuple[GatewayPolicy, ...]
    sinks: tuple[SinkSettings, ...]
    console_listen: tuple[str, int] = ("127.0.0.1", 8080)
    grace_ns: int = 90 * 86_400 * SECOND  # an expired client certificate that is not revoked is still good for so long
    console_users: str = "none"  # local: as the configuration wishes it
    alarm: AlarmSettings | None = None
