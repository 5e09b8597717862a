"""ebbgate ring info, query, verify: look into the stores."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli import emit
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING


@click.group("ring")
def ring_command() -> None:
    """Look into the ring of this gateway."""


@ring_command.command("info")
@config_gateway
@click.option("--json", "as_json", is_flag=True)
def ring_info(config: Path, as_json: bool) -> None:
    """What the ring holds, how far back it reaches, what it lost."""
    from buffer.manifest import format_generation
    from buffer.reader import RingReader
    from buffer.storage import PosixReadStorage
    from gateway.config import load_gateway
    from gateway.console.pages import clock

    settings = load_gateway(config, pinned=False)
    storage = PosixReadStorage(settings.ring.path / settings.stream)
    reader = RingReader(storage)
    inventory = reader.inventory()
    newest = reader.newest(inventory)
    files = [f"{d}/{n}" for d in ("journal", "segments", "objects", "last") for n in storage.list(d)]
    used = sum(storage.size(path) or 0 for path in files)
    state = newest.state if newest else None
    lost = [[format_generation(x.generation), x.first, x.last, x.reason.name.lower()] for x in state.lost] if state else []
    data = {
        "stream": settings.stream,
        "generation": format_generation(state.generation) if state else None,
        "end": state.end if state else 0,
        "low": [format_generation(state.low[0]), state.low[1]] if state else None,
        "lost": lost,
        "open_gaps": len(state.open_gaps) if state else 0,
        "newest_commit_ns": state.wall_ns if state else None,
        "segments": len(inventory.segments),
        "journals": len(inventory.journals),
        "bytes": used,
        "bytes_max": settings.ring.max_bytes,
    }
    lines = [
        f"{settings.stream}: {used / 1e6:,.1f} MB of {settings.ring.max_bytes / 1e9:,.1f} GB, {len(inventory.segments)} segments,"
        f" {len(inventory.journals)} journals"
    ]
    if state:
        lines.append(f"generation {data['generation']}, newest reading {state.end - 1:,}, committed {clock(state.wall_ns)} UTC")
        lines.append(f"reaches back to reading {state.low[1]:,} of generation {format_generation(state.low[0])}; open gaps {len(state.open_gaps)}")
        lines += [f"lost {a} {b}-{c}: {reason}" for a, b, c, reason in lost]
    else:
        lines.append("nothing was committed here yet")
    emit(data, as_json, lines)


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--ca", type=click.Path(path_type=Path, exists=True), help="CA certificate: believes the key statements it endorsed.")
@click.option("--key", "keys", type=click.Path(path_type=Path, exists=True), multiple=True, help="A data key's public half (.pub); may be repeated.")
@click.option("--list", "full", is_flag=True, help="What is held, with digests, in an order that diff compares.")
@click.option("--json", "as_json", is_flag=True)
def verify_command(path: Path, ca: Path | None, keys: tuple[Path, ...], full: bool, as_json: bool) -> None:
    """Confirm every byte of a copied landing, ring, stick, or one file of them, offline, with public keys alone.

    Exit code 1 if anything does not hold: each finding names file and offset. Two stores hold the same readings if the lines `seqs` and
    `blocks` of --list are equal; lines `frame` say in which pieces they travelled.

    \b
    Examples:  ebbgate verify /backup/landing --ca ca.crt
               ebbgate verify segments/0000000007-3fa91c02-0000000000000000-0000000000000999.cose --key data.pub
               diff <(ebbgate verify A --ca ca.crt --list) <(ebbgate verify B --ca ca.crt --list)
    """
    from gateway.proof import verify_path
    from gateway.trust.certs import load_certificate_key
    from gateway.trust.keys import KeyRing, load_public

    if ca is None and not keys:
        raise click.UsageError("give --ca FILE or --key FILE: a signature is worth what its key is")
    ring = KeyRing([load_certificate_key(ca)] if ca else [])
    for key in keys:
        ring.trust(load_public(key))
    proof = verify_path(path, ring, statements=ca is not None, full=full)
    data = {"frames": proof.frames, "readings": proof.readings, "objects": proof.objects, "findings": proof.findings}
    if full:
        emit(data | {"held": proof.listing()}, as_json, [*proof.listing(), *proof.findings])
    else:
        lines = [f"{proof.frames:,} frames, {proof.readings:,} readings, {proof.objects} objects confirmed", *proof.findings]
        emit(data, as_json, lines)
    if proof.findings:
        raise SystemExit(EXIT_FINDING)


@click.command("query")
@click.argument("sql")
@config_gateway
@click.option("--json", "as_json", is_flag=True)
@click.option("--csv", "as_csv", is_flag=True)
def query_command(sql: str, config: Path, as_json: bool, as_csv: bool) -> None:
    """One SELECT over the ring, in a process that cannot write what it reads.

    Views: readings, readings_good, last, gaps, tags, notices.

    \b
    Example:  ebbgate query "SELECT tag, ts, value FROM last ORDER BY tag LIMIT 10"
    """
    import csv
    import sys

    from buffer.query import QueryRefused, QueryUnsafe, run_query
    from gateway.cli import printable
    from gateway.config import load_gateway
    from gateway.errors import ConfigError, EbbgateError

    settings = load_gateway(config, pinned=False)
    try:
        result = run_query(settings.ring.path / settings.stream, sql)
    except QueryRefused as error:
        raise ConfigError(str(error)) from None
    except QueryUnsafe as error:
        raise EbbgateError(str(error)) from None
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(result.columns)
        writer.writerows(result.rows)
        return
    lines = ["\t".join(result.columns)]
    lines += ["\t".join("" if value is None else printable(str(value)) for value in row) for row in result.rows]
    lines += ["... more rows; add a LIMIT or a WHERE"] if result.truncated else []
    emit({"columns": result.columns, "rows": result.rows, "truncated": result.truncated}, as_json, lines)
