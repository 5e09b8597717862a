"""TOML files -> gateway.settings, in base units and with absolute paths. What a process starts from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from buffer import limits
from gateway import settings as s
from gateway.configfile import GatewayFile, GatewayTable, LoadTable, ModbusTable, OpcuaTable, SiteFile, is_loopback, parse_file, parse_toml, read_text
from gateway.errors import ConfigError
from gateway.groups import check_groups, key_paths
from gateway.tagarrays import expand_rows
from gateway.tagfile import parse_tags
from gateway.trust.enrolment import Identity, ReceiverIdentity
from gateway.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


def load_gateway(path: Path, *, pinned: bool = True) -> s.GatewaySettings:
    """Return the settings of a gateway box; tags are read from tags.csv. Raise ConfigError with every mistake at once."""
    file = parse_file(GatewayFile, path)
    base = path.resolve().parent
    rows, wrong = _tags(base / file.gateway.tags, set(file.source))
    sources = tuple(_source(name, one, base, file.gateway, tuple(r for r in rows if r.source == name)) for name, one in file.source.items())
    r = file.receiver
    ring = file.ring
    room, groups = share_ring(file)
    checks = [partial(_check_ring, path, file, room, groups), partial(check_groups, path, file.gateway.stream, groups, sources)]
    if not wrong:  # without the tags a source cannot be judged
        checks += [partial(_check_sources, path, (one,), pinned) for one in sources]
    raise_all([*wrong, *gathered(checks)])
    return s.GatewaySettings(
        id=file.gateway.id,
        site=file.gateway.site,
        timezone=file.gateway.timezone,
        stream=f"{file.gateway.id}.{file.gateway.stream}",
        ring=s.RingSettings(base / ring.path, room, ring.commit, ring.seal),
        receiver=s.Receiver(
            url=r.url,
            address=r.address,
            ca=base / r.ca,
            receipt_key=base / r.receipt_key,
            certificate=base / r.certificate,
            private_key=base / r.key,
            live_ns=r.live,
            backfill=s.Backfill(r.backfill.limit, r.backfill.window, r.backfill.in_flight, r.backfill.newest_first),
            proxy=r.proxy,
        ),
        sources=sources,
        state=base / file.gateway.state,
        data_key=base / file.gateway.data_key,
        disclose_addresses=file.disclose.addresses,
        groups=groups,
        renamed=dict(file.gateway.renamed),
        retired=tuple(file.gateway.retired),
    )


def share_ring(file: GatewayFile) -> tuple[int, tuple[s.Group, ...]]:
    """Return the room of the main ring, and the groups with theirs: [ring] max_size is for all, groups without a share of their own share alike."""
    stated = sum(one.max_size or 0 for one in file.group.values())
    shares = 1 + sum(one.max_size is None for one in file.group.values())
    room = (file.ring.max_size - stated) // shares
    return room, tuple(s.Group(name, tuple(one.sources), one.max_size or room) for name, one in file.group.items())


def load_site(path: Path) -> s.SiteSettings:
    """Return the settings of the IT side. Raise ConfigError with every mistake at once."""
    file = parse_file(SiteFile, path)
    base = path.resolve().parent
    host, _, port = file.receiver.listen.rpartition(":")
    console_host, _, console_port = file.console.listen.rpartition(":")
    if not is_loopback(console_host.strip("[]")):
        raise ConfigError(
            f"{path}: console.listen is {file.console.listen}",
            "The console binds the loopback only; put a reverse proxy with TLS and users before it.",
        )
    return s.SiteSettings(
        name=file.receiver.name,
        listen=(host.strip("[]"), int(port)),
        landing=base / file.receiver.landing,
        deliver=base / file.receiver.deliver,
        lake=base / file.lake.path if file.lake else None,
        lake_every_ns=file.lake.every if file.lake else 0,
        min_free_bytes=file.receiver.min_free,
        receipt_key=base / file.receiver.receipt_key,
        tls_certificate=base / file.tls.certificate,
        tls_key=base / file.tls.key,
        gateways_ca=base / file.tls.gateways_ca,
        revoked=base / file.tls.revoked if file.tls.revoked else None,
        gateways=tuple(
            s.GatewayPolicy(g.id, g.site, tuple(g.streams or [f"{g.id}.*"]), g.silence, g.rate) for g in file.gateway
        ),
        sinks=tuple(s.SinkSettings(name, x.kind, base / x.dsn_file, tuple(x.tags), x.future, x.views) for name, x in file.sink.items()),
        console_listen=(console_host.strip("[]"), int(console_port)),
        grace_ns=file.tls.grace,
        console_users=file.console.users,
        alarm=_alarm(file, base),
    )


def _alarm(file: SiteFile, base: Path) -> s.AlarmSettings | None:
    if file.alarm is None:
        return None
    mail = file.alarm.mail
    return s.AlarmSettings(
        base / file.alarm.webhook_file if file.alarm.webhook_file else None, tuple(mail.to) if mail else (), mail.via if mail else ""
    )


# ---- who this machine is ----


def load_identity(path: Path) -> Identity | ReceiverIdentity:
    """Return whose keys a configuration file names, a gateway's or a receiver's; tags.csv is not looked at. Raise ConfigError."""
    base = path.resolve().parent
    if is_gateway_file(path):
        file = parse_file(GatewayFile, path)
        r, box = file.receiver, file.gateway
        data_key = base / box.data_key
        return Identity(
            gateway=box.id,
            tls_key=base / r.key,
            certificate=base / r.certificate,
            receiver_ca=base / r.ca,
            receipt_key=base / r.receipt_key,
            data_keys=key_paths(box.id, box.stream, data_key, file.group),
            request=data_key.parent / f"{box.id}.request",
        )
    site = parse_file(SiteFile, path)
    key = base / site.receiver.receipt_key
    return ReceiverIdentity(
        name=site.receiver.name,
        tls_key=base / site.tls.key,
        certificate=base / site.tls.certificate,
        gateways_ca=base / site.tls.gateways_ca,
        receipt_key=key,
        request=key.parent / f"{site.receiver.name}.request",
    )


def receiver_address(path: Path) -> str:
    """Return where a gateway's receiver is; raise ConfigError."""
    return parse_file(GatewayFile, path).receiver.address


def is_gateway_file(path: Path) -> bool:
    """Say whether this is a gateway.toml (a table [gateway]) or a receiver.toml (a list [[gateway]], or none). Raise ConfigError."""
    return isinstance(parse_toml(read_text(path), path).get("gateway"), dict)


def _load(load: LoadTable) -> s.Load:
    sessions = max(load.sessions, load.connections)
    return s.Load(load.requests_per_s, load.bytes_per_s, sessions, load.items, load.pause, load.duty)


def _source(name: str, one: OpcuaTable | ModbusTable, base: Path, box: GatewayTable, tags: tuple[s.TagRow, ...]) -> s.OpcuaSource | s.ModbusSource:
    alive = s.Alive(one.alive.tag, one.alive.within) if one.alive else None
    clock = s.Clock(one.clock.use, one.clock.max_skew)
    if isinstance(one, ModbusTable):
        return s.ModbusSource(
            name=name,
            kind=one.kind,
            address=one.address,
            unit=one.unit,
            order=one.order,
            gap=one.gap,
            allowed=tuple(one.allowed),
            forbidden=tuple(one.forbidden),
            max_registers=one.max_registers,
            max_bits=one.max_bits,
            timeout_ns=one.timeout,
            identify=one.identify,
            close_after_poll=one.close_after_poll,
            interface=one.interface,
            baud=one.baud,
            parity=one.parity,
            stop_bits=one.stop_bits,
            clock=clock,
            alive=alive,
            load=_load(one.load),
            tags=tags,
        )
    return s.OpcuaSource(
        name=name,
        urls=tuple(one.urls),
        security=one.security,
        waiver=one.security_waiver.strip(),
        server_certificate=base / one.server_certificate if one.server_certificate else None,
        trusted=base / one.trusted if one.trusted else None,
        certificate=base / one.certificate,
        private_key=base / one.key,
        application_uri=box.application_uri or f"urn:ebbgate:gateway:{box.id}",
        user=one.user,
        password_file=base / one.password_file if one.password_file else None,
        user_certificate=base / one.user_certificate if one.user_certificate else None,
        user_key=base / one.user_key if one.user_key else None,
        namespaces=dict(one.namespaces),
        interface=one.interface,
        publish_ns=one.publish,
        history_fill_ns=one.history_fill,
        clock=clock,
        alive=alive,
        load=_load(one.load),
        tags=tags,
    )


def _tags(path: Path, sources: set[str]) -> tuple[tuple[s.TagRow, ...], list[ConfigError]]:
    try:
        return tuple(expand_rows(parse_tags(path.read_bytes(), sources, str(path)))), []
    except FileNotFoundError:
        return (), [ConfigError(f"{path}: no such file", "Write the tag table, or name it in [gateway] tags.")]
    except OSError as error:
        return (), [ConfigError(f"{path}: {error.strerror}", "Check owner and mode of the file.")]
    except ConfigError as error:
        return (), [error]


def _check_ring(path: Path, file: GatewayFile, room: int, groups: Iterable[s.Group]) -> None:
    if min([room, *(one.max_bytes for one in groups)]) < limits.RING_BYTES_MIN:
        what = "leaves a stream less than 128 MiB" if file.group else "is below 128 MiB"
        raise ConfigError(f"{path}: ring.max_size {what}", "Give the ring room: 25 GB holds weeks.")
    if not 10 * s.MILLISECOND <= file.ring.commit <= 10 * s.SECOND:
        raise ConfigError(f"{path}: ring.commit is not between 10 ms and 10 s", "Write 1 s; what is not committed yet may be lost.")


def _check_sources(path: Path, sources: tuple[s.OpcuaSource | s.ModbusSource, ...], pinned: bool) -> None:
    for source in sources:
        if source.alive:
            _check_alive(path, source, source.alive)
        _check_arrays(source)
        if isinstance(source, s.OpcuaSource):
            if source.publish_ns < 10 * s.MILLISECOND:
                raise ConfigError(f"{path}: source.{source.name}.publish is below 10 ms", "Write 1 s; 100 ms where a second is too late.")
            _check_security(path, source, pinned)


def _check_alive(path: Path, source: s.OpcuaSource | s.ModbusSource, alive: s.Alive) -> None:
    tag = next((tag for tag in source.tags if tag.id == alive.tag), None)
    if tag is None:
        raise ConfigError(f"{path}: source.{source.name}.alive.tag {alive.tag!r} is not a tag of this source", "Name one of its tags in tags.csv.")
    if isinstance(source, s.OpcuaSource) and alive.within_ns < s.SECOND:
        raise ConfigError(f"{path}: source.{source.name}.alive.within is below 1 s", "Write several times what the tag takes to change.")
    if isinstance(source, s.ModbusSource) and alive.within_ns < 2 * tag.every_ns:
        what = f"{path}: source.{source.name}.alive.within is less than two polls of {tag.id}, which is read every {format_duration(tag.every_ns)}"
        raise ConfigError(what, "Between two polls it would seem to stand still: read it more often, or allow more time.")


def _check_arrays(source: s.OpcuaSource | s.ModbusSource) -> None:
    for tag in source.tags:
        if tag.array and isinstance(source, s.OpcuaSource) and tag.type in ("event", "alarm"):
            raise ConfigError(f"tags.csv: row {tag.line}, expand: events are no array", "Leave the cell empty; write one row for each tag.")


def _check_security(path: Path, source: s.OpcuaSource, pinned: bool) -> None:
    policy = source.security.strip().partition(" ")[0].replace("_", "")
    if policy in s.WEAK_POLICIES and not source.waiver:
        raise ConfigError(
            f"{path}: source.{source.name}.security {source.security!r} protects nothing that an attacker on the wire cannot break",
            f"Use Basic256Sha256 SignAndEncrypt; or, where the server has nothing better, say why: source.{source.name}.security_waiver = \"...\"",
        )
    if pinned and policy != "None" and source.server_certificate is None and source.trusted is None:
        raise ConfigError(f"{path}: source.{source.name} has no server_certificate", f"Pin it: ebbgate trust {source.name} shows and writes it.")
    if (source.user_certificate is None) != (source.user_key is None) or (source.user and source.user_certificate):
        raise ConfigError(
            f"{path}: source.{source.name}: the account is not complete, or there are two",
            "Write user and password_file, or user_certificate and user_key.",
        )


def gathered(checks: Iterable[Callable[[], object]]) -> list[ConfigError]:
    """Return what checks raise, so that a person sees all of it at once."""
    wrong = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            wrong.append(error)
    return wrong


def raise_all(wrong: list[ConfigError]) -> None:
    """Raise one error that says all of them; return where there are none."""
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise ConfigError("\n  ".join(f"{one.message}\n  {one.remedy}" for one in wrong), "Nothing was started.")
