"""ebbgate ring info, check, export, query, verify: look into the stores."""

from __future__ import annotations

import contextlib
import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli import emit, printable
from gateway.cli.processes import config_gateway
from gateway.errors import EXIT_FINDING, ConfigError, EbbgateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MISSING_SHOWN: Final = 5


@click.group("ring")
def ring_command() -> None:
    """Look into the ring of this gateway."""


@ring_command.command("info")
@config_gateway
@click.option("--endurance", default="", metavar="TBW", help="What the disk's data sheet promises to take, as 150 TB: forecasts its years.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def ring_info(config: Path, endurance: str, as_json: bool) -> None:
    """What the ring holds, how far back it reaches, when it will be full, what it writes, what it lost."""
    from gateway.config import load_gateway
    from gateway.groups import all_streams
    from gateway.ringfacts import describe, gather
    from gateway.units import parse_size_bytes

    settings = load_gateway(config, pinned=False)
    try:
        endurance_bytes = parse_size_bytes(endurance) if endurance else 0
    except ValueError as error:
        raise click.UsageError(f"--endurance: {error}") from None
    on_disk = [one.parent.name for one in settings.ring.path.glob("*/journal")]
    facts = [
        gather(one.ring.path / one.stream, one.ring.max_bytes, one.collect_status, endurance_bytes)
        for one in all_streams(settings, on_disk)
        if one.stream in on_disk or one.stream == settings.stream
    ]
    lines = [line for one in facts for line in describe(one)]
    emit(facts[0] if len(facts) == 1 else {"streams": facts}, as_json, lines)


@ring_command.command("check")
@config_gateway
@click.option("--ring", "root", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A copied ring, instead of --config.")
@click.option("--ca", type=click.Path(path_type=Path, exists=True), help="With --ring: believes the key statements it endorsed.")
@click.option("--key", "keys", type=click.Path(path_type=Path, exists=True), multiple=True, help="With --ring: a data key's public half (.pub).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def ring_check(config: Path, root: Path | None, ca: Path | None, keys: tuple[Path, ...], as_json: bool) -> None:
    """Read everything in the ring again, on another path than it was written, and compare: exit code 1 with findings.

    Journals by a parser of its own, segments by DuckDB; against manifests, chain, signatures, tag tables, seqs and the state record;
    segments also row by row against the blocks that journals still hold. May run while collect writes.
    """
    from dataclasses import asdict

    from buffer.check import check_ring
    from gateway.config import load_gateway
    from gateway.proof.objects import believed

    if root is not None:
        if ca is None and not keys:
            raise click.UsageError("give --ca FILE or --key FILE with --ring: a signature is worth what its key is")
        rings = [root]
    else:
        settings = load_gateway(config, pinned=False)
        rings = sorted(one.parent for one in settings.ring.path.glob("*/journal"))
        keys = keys or (settings.data_key.with_suffix(".pub"),)
        ca = ca or (settings.receiver.ca if settings.receiver.ca.exists() else None)
        if not rings:
            raise EbbgateError(f"{settings.ring.path}: no ring here", "Start `ebbgate collect` first, or name the right --config.")
    reports = [check_ring(one, believed(one, ca, keys)) for one in rings]
    lines = []
    for report in reports:
        lines.append(
            f"{report.stream}: {report.readings:,} readings in {report.segments} segments and {report.journals} journals ({report.blocks:,} blocks);"
            f" {report.compared:,} of them in both, and equal; {report.objects} objects; findings: {len(report.findings)}"
        )
        lines += [f"  {printable(finding)}" for finding in report.findings]
    emit(asdict(reports[0]) if len(reports) == 1 else [asdict(report) for report in reports], as_json, lines)
    if any(report.findings for report in reports):
        raise SystemExit(EXIT_FINDING)


@ring_command.command("export")
@config_gateway
@click.option("--from", "begin", default="", help="First time, UTC, as 2026-11-23 or 2026-11-23T06:00.")
@click.option("--to", "end", default="", help="Up to this time, which is not included.")
@click.option("--tag", "tags", multiple=True, help="Tag ids, * and ? as in file names; may be repeated.  [default: all]")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="FILE.parquet or FILE.csv.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def ring_export(config: Path, begin: str, end: str, tags: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Write readings of a time and of some tags to a Parquet or CSV file, in order of tag and time.

    Parquet is exact. In CSV a text that begins with = + - @ tab or return gets an apostrophe before it: a spreadsheet would run it as
    a formula.
    """
    from gateway.config import load_gateway
    from gateway.ringfacts import export_sql

    settings = load_gateway(config, pinned=False)
    sql = export_sql(begin, end, tags, csv=output.suffix.lower() == ".csv")
    _expect_tags(settings.ring.path, tags)
    rows, missing = _write(settings.ring.path, sql, output)
    emit({"rows": rows, "file": str(output), "missing": missing}, as_json, [f"{output}: {rows:,} readings"])


def _expect_tags(ring: Path, tags: tuple[str, ...]) -> None:
    """Raise ConfigError for a tag that this ring never had: an export without it would look whole."""
    from buffer.query import run_query
    from gateway.ringfacts import unknown_sql

    if tags:
        with _query_errors():
            unknown = [str(row[0]) for row in run_query(ring, unknown_sql(tags)).rows]
        if unknown:
            remedy = '`ebbgate query "SELECT tag, path FROM tags"` shows those it has.'
            raise ConfigError(f"no tag of this ring is called {', '.join(unknown)}", remedy)


def _write(ring: Path, sql: str, output: Path) -> tuple[int, tuple[str, ...]]:
    from buffer.query import QueryOptions, write_query

    with _query_errors():
        rows, missing = write_query(ring, sql, output, QueryOptions(seconds_max=86_400.0))
    _say_missing(missing)
    return rows, missing


def _say_missing(missing: Sequence[str]) -> None:
    """A result over a damaged ring is short: say so beside it."""
    if missing:
        click.echo(f"the ring is damaged, and this result lacks what was there: readings {', '.join(missing[:MISSING_SHOWN])}", err=True)
        click.echo("  The view gaps has all of them; `ebbgate ring check` says where the damage is.", err=True)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _query_errors() -> Iterator[None]:
    from buffer.query import QueryRefused, QueryUnsafe

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # as Ctrl-C: what a query keeps on disk goes with it
            signal.signal(number, _leave)
    try:
        yield
    except QueryRefused as error:
        raise ConfigError(str(error)) from None
    except QueryUnsafe as error:
        raise EbbgateError(str(error)) from None


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--ca", type=click.Path(path_type=Path, exists=True), help="CA certificate: believes the key statements it endorsed.")
@click.option("--key", "keys", type=click.Path(path_type=Path, exists=True), multiple=True, help="A data key's public half (.pub); may be repeated.")
@click.option("--list", "full", is_flag=True, help="What is held, with digests, in an order that diff compares.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
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
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result to FILE.parquet or FILE.csv.")
@click.option("--limit", type=click.IntRange(min=0), default=1_000, show_default=True, help="Rows shown; with -o all are written.")
def query_command(sql: str, config: Path, as_json: bool, as_csv: bool, output: Path | None, limit: int) -> None:
    """One SELECT over the ring, in a process that cannot write what it reads. DuckDB's SQL; times are UTC.

    \b
    Views (docs/query.md):
      readings       stream generation seq tag path ts ts_ns ts_source value value_double value_int value_uint
                     value_bool value_string quality flags
      readings_good  those with quality Good, without notices
      last           per tag the newest reading by time
      gaps           kind stream source since generation first_seq last_seq reason
      tags           stream tag path source type unit low high scale offset description states is_unsigned retired
      notices        stream ts kind source detail generation seq

    \b
    Examples:  ebbgate query "SELECT tag, ts, value FROM last ORDER BY tag LIMIT 10"
               ebbgate query "SELECT * FROM readings WHERE tag = 'flow' AND ts > now() - INTERVAL 1 HOUR" -o flow.parquet
               ebbgate query "SELECT kind, reason, first_seq, last_seq FROM gaps"
    """
    from gateway.config import load_gateway

    ring = load_gateway(config, pinned=False).ring.path
    if output is not None:
        rows, missing = _write(ring, sql, output)
        emit({"rows": rows, "file": str(output), "missing": missing}, as_json, [f"{output}: {rows:,} rows"])
        return
    _show(ring, sql, as_json=as_json, as_csv=as_csv, limit=limit)


def _json(value: object) -> object:
    """Return what JSON has a form for: NaN and infinities as text, as in JSON values of the ring."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [_json(one) for one in value]
    return {key: _json(one) for key, one in value.items()} if isinstance(value, dict) else value


def _show(ring: Path, sql: str, *, as_json: bool, as_csv: bool, limit: int) -> None:
    import csv
    import sys

    from buffer.query import QueryOptions, run_query

    with _query_errors():
        result = run_query(ring, sql, QueryOptions(rows_max=limit))
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(result.columns)
        writer.writerows(result.rows)
    else:
        lines = ["\t".join(result.columns)]
        lines += ["\t".join("" if value is None else printable(str(value)) for value in row) for row in result.rows]
        if result.columns == ("explain_key", "explain_value"):
            lines = [str(row[1]) for row in result.rows]  # a drawing of many lines
        rows = [[_json(value) for value in row] for row in result.rows]
        emit({"columns": result.columns, "rows": rows, "truncated": result.truncated, "missing": result.missing}, as_json, lines)
    _say_missing(result.missing)
    if result.truncated:
        click.echo("more rows than shown: raise --limit, or write all of them with -o FILE", err=True)
