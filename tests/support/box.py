"""A gateway box in a temporary directory: keys, gateway.toml and tags.csv as a person writes them, and what its rings hold in the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from buffer.codec import decode
from buffer.manifest import Manifest
from buffer.notice import NoticeKind, notice_id
from buffer.reader import RingReader
from buffer.storage import PosixReadStorage
from buffer.tagtable import decode_table
from buffer.types import Kind
from gateway.config import load_gateway
from gateway.groups import of_group
from gateway.settings import GatewaySettings
from gateway.trust.keys import create_signer
from tests.support.site import Site

HEAD = """[gateway]
id = "hall1"
site = "acme/ghent"
state = "state"
{gateway}
[ring]
path = "ring"
max_size = "1 GB"
commit = "100 ms"
[receiver]
url = "https://receiver.test:{port}"
address = "127.0.0.1"
ca = "pki/ca.crt"
"""


class Row(NamedTuple):
    """One committed reading."""

    tag: str
    value: object
    quality: int
    flags: int
    ts_ns: int


class Box:
    """Write with `configure`, load with `load`, look with `rows`."""

    def __init__(self, root: Path, port: int = 8443) -> None:
        self.root, self.port = root, port
        self.site = Site(root, port)
        (root / "pki" / "data.statement").write_bytes(self.site.statement)

    @property
    def config(self) -> Path:
        return self.root / "gateway.toml"

    def configure(self, sources: str, tags: str, gateway: str = "") -> None:
        """sources: the TOML of [source.*] and [group.*]; tags: rows of tags.csv, "id,source,address,type" each."""
        (self.root / "gateway.toml").write_text(HEAD.format(port=self.port, gateway=gateway) + sources)
        rows = [line.strip().split(",") for line in tags.strip().splitlines()]
        lines = [f"{row[0]},p/{row[0]},{','.join(row[1:4])},{row[4] if len(row) > 4 else '100ms'}" for row in rows]
        (self.root / "tags.csv").write_text("id,path,source,address,type,every\n" + "\n".join(lines) + "\n")

    def key(self, group: str) -> None:
        """Make the data key of a group."""
        create_signer(self.root / "pki" / f"data-{group}.key")

    def load(self, group: str = "") -> GatewaySettings:
        return of_group(load_gateway(self.config), group)

    def blocks(self, stream: str = "hall1.main") -> Iterator[tuple[Manifest, list[Row]]]:
        """Yield what is committed, in order of generations and blocks."""
        reader = RingReader(PosixReadStorage(self.root / "ring" / stream))
        inventory = reader.inventory()
        for generation in sorted({name.generation for name in inventory.journals}):
            for frame in reader.blocks(inventory, generation, 0):
                table = reader.object_frame(frame.manifest.tag_table_sha256)
                assert table is not None
                ids = {tag.number: tag.id for tag in decode_table(table.payload).tags} | {int(kind): notice_id(kind) for kind in NoticeKind}
                columns = decode(frame.payload, frame.manifest.count) if frame.manifest.count else None
                yield frame.manifest, [] if columns is None else [
                    Row(
                        ids[int(columns.tag[i])],
                        columns.texts[int(columns.values[i])] if columns.kind[i] == Kind.TEXT else None if columns.kind[i] == Kind.NULL else int(columns.values[i]),
                        int(columns.quality[i]),
                        int(columns.flags[i]),
                        int(columns.ts_ns[i]),
                    )
                    for i in range(len(columns))
                ]  # fmt: skip

    def rows(self, stream: str = "hall1.main") -> list[Row]:
        return list(itertools.chain.from_iterable(rows for _, rows in self.blocks(stream)))

    def values(self, tag: str, stream: str = "hall1.main") -> list[object]:
        return [row.value for row in self.rows(stream) if row.tag == tag]

    def notices(self, kind: NoticeKind, stream: str = "hall1.main") -> list[str]:
        return [str(row.value) for row in self.rows(stream) if row.tag == notice_id(kind)]
