"""Keys, certificates and configuration of the demo, as `ebbgate init`, `ca` and `trust` would make them, in one directory."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buffer.storage import make_directory
from gateway.demo.plant import NAMESPACE, PASSWORD, USER
from gateway.errors import EbbgateError
from gateway.trust import certs
from gateway.trust.keys import create_signer, endorse_statement, propose_statement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STREAM = "demo.main"
_PORTS = (20_000, 32_000)  # below what the kernel gives to outgoing connections: nobody takes a port while its owner is restarted


@dataclass(frozen=True, slots=True)
class Files:
    """Where the demo put things."""

    root: Path
    gateway_toml: Path
    receiver_toml: Path
    receiver_port: int
    console_port: int


def free_port(random: Callable[[], float]) -> int:
    """Return a loopback port nobody listens on."""
    first, last = _PORTS
    for _ in range(1_000):
        port = first + int(random() * (last - first))
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise EbbgateError(f"no free port between {first} and {last}", "End what listens there.")


def make_keys(root: Path) -> None:
    """Make the CA, the receiver's and the gateway's keys."""
    pki, now = root / "pki", dt.datetime.now(dt.UTC)
    make_directory(pki)
    authority = certs.create_authority(pki / "receiver-ca.crt", pki / "ca.key", "demo", now)
    certs.create_server_certificate(authority, pki / "receiver.crt", pki / "receiver.key", ["receiver.demo"], now)
    (pki / "tls.crt").write_bytes(certs.sign_request(authority, certs.make_request(pki / "tls.key", "demo"), "demo", now))
    create_signer(pki / "receipt.key")
    data = create_signer(pki / "data.key")
    statement = endorse_statement(certs.authority_signer(authority), propose_statement(data, STREAM))
    (pki / "data.statement").write_bytes(statement)
    certs.create_application_certificate(pki / "opcua.der", pki / "opcua.key", "urn:ebbgate:gateway:demo", "127.0.0.1", now)
    (pki / "plc-password").write_text(PASSWORD, encoding="utf-8")
    (pki / "plc-password").chmod(0o600)


def write_config(root: Path, plant: dict[str, int], link_port: int, receiver_port: int, console: int) -> Files:
    """Write gateway.toml and receiver.toml; tags.csv was written by the plant, which said its ports."""
    gateway = root / "gateway.toml"
    gateway.write_text(
        f"""[gateway]
id = "demo"
site = "demo/plant"
state = "state"

[ring]
path = "ring"
max_size = "2 GB"
commit = "250 ms"
seal = "5 s"

[receiver]
url = "https://receiver.demo:{link_port}"
address = "127.0.0.1"
live = "250 ms"
backfill = {{ limit = "50 Mbit/s" }}

[source.plc]
kind = "opcua"
urls = ["opc.tcp://127.0.0.1:{plant["opcua"]}"]
security = "Basic256Sha256 SignAndEncrypt"
server_certificate = "plant.der"
user = "{USER}"
password_file = "pki/plc-password"
namespaces = {{ plant = "{NAMESPACE}" }}
publish = "500 ms"
load = {{ requests_per_s = 50 }}

[source.meters]
kind = "modbus-tcp"
address = "127.0.0.1:{plant["modbus"]}"
load = {{ requests_per_s = 20 }}
""",
        encoding="utf-8",
    )
    site = root / "receiver.toml"
    site.write_text(
        f"""[receiver]
name = "demo"
listen = "127.0.0.1:{receiver_port}"
landing = "landing"
deliver = "deliver"
min_free = "100 MB"

[tls]
gateways_ca = "pki/receiver-ca.crt"

[[gateway]]
id = "demo"
site = "demo/plant"

[lake]
path = "lake"
every = "1 s"

[console]
listen = "127.0.0.1:{console}"
""",
        encoding="utf-8",
    )
    return Files(root, gateway, site, receiver_port, console)
