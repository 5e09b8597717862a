"""Configuration files: the practitioner's examples parse, init writes every default, every mistake is named at once with what to write."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gateway import templates
from gateway.config import is_gateway_file, load_gateway, load_identity, load_site
from gateway.configerrors import line_of
from gateway.configfile import GatewayFile, GroupTable, ModbusTable, OpcuaTable, SiteFile, parse_text
from gateway.errors import ConfigError
from gateway.settings import AlarmSettings, ModbusSource, OpcuaSource

EXAMPLES = Path(__file__).parents[1] / "support" / "files"
GATEWAY_WORDS = {"ID": "hall1", "SITE": "acme/ghent", "URL": "https://ebbgate.acme.example:8443", "ADDRESS": "10.20.0.5",
                 "TIMEZONE": "UTC", "RING": "/var/lib/ebbgate/ring", "STATE": "/var/lib/ebbgate"}  # fmt: skip
SITE_WORDS = {"NAME": "dmz", "LISTEN": "10.20.0.5:8443", "LANDING": "/var/lib/ebbgate/landing", "DELIVER": "/var/lib/ebbgate/deliver"}
MADE_UP = {  # shown in the template with a value that is no default, because there is none or it is off
    *("id", "site", "url", "address", "name", "listen", "proxy", "urls", "interface", "server_certificate", "user", "password_file"),
    *("namespaces", "alive", "load", "allowed", "forbidden", "kind", "application_uri", "revoked", "streams", "path", "dsn_file"),
    *("webhook_file", "mail", "clock", "renamed", "retired", "sources", "max_size", "trusted", "user_certificate", "user_key"),
}  # fmt: skip


@pytest.fixture
def examples(tmp_path) -> Path:
    shutil.copytree(EXAMPLES, tmp_path / "etc")
    return tmp_path / "etc"


def test_the_practitioners_gateway_parses_and_means_what_it_says(examples: Path) -> None:
    box = load_gateway(examples / "gateway.toml")
    press, meter = box.sources
    assert isinstance(press, OpcuaSource) and isinstance(meter, ModbusSource)
    assert box.timezone == "Europe/Brussels" and box.ring.max_bytes == 25 * 10**9 and box.ring.commit_ns == 10**9
    assert press.interface == "ot0" and press.namespaces == {"s7": "http://www.siemens.com/simatic-s7-opcua"}
    assert press.clock.max_skew_ns == 5 * 10**9 and press.alive is not None and press.alive.within_ns == 10 * 10**9
    assert press.history_fill_ns == 24 * 3600 * 10**9 and press.password_file == examples / "secrets/press7"
    assert meter.max_registers == 80 and meter.timeout_ns == 10**9 and meter.load.pause_ns == 50 * 10**6 and meter.gap == 0
    assert meter.load.requests_per_s == 2 and not box.disclose_addresses
    assert [tag.id for tag in press.tags] == ["press7.life", "press7.state", "press7.temp", "press7.good", "press7.recipe"]
    assert press.tags[1].states == ((0, "stopped"), (1, "running"), (2, "fault"), (3, "setup"))
    assert is_gateway_file(examples / "gateway.toml") and not is_gateway_file(examples / "receiver.toml")
    assert load_identity(examples / "gateway.toml").request == examples / "pki/hall1.request"


def test_the_practitioners_receiver_parses_and_means_what_it_says(examples: Path) -> None:
    site = load_site(examples / "receiver.toml")
    assert site.listen == ("10.20.0.5", 8443) and site.min_free_bytes == 50 * 10**9
    policy, sink = site.gateways[0], site.sinks[0]
    assert (policy.id, policy.streams, policy.silence_ns, policy.rate_bps) == ("hall1", ("hall1.*",), 60 * 10**9, 100 * 10**6)
    assert (sink.name, sink.kind, sink.tags, sink.future_ns, sink.views) == ("historian", "postgres", ("press/**", "utilities/**"), 600 * 10**9, True)
    assert site.alarm == AlarmSettings(examples / "secrets/teams-webhook", ("ot-duty@acme.example",), "smtp.acme.example:25")
    assert site.console_users == "local"
    assert load_identity(examples / "receiver.toml").request == examples / "pki/acme-dmz.request"


# ---- init's templates and the models hold each other ----


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    return {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}


def compared(model: type[BaseModel], table: dict[str, Any], default: Any, where: str) -> None:
    """Every key of the model stands in the template's table; what is no made-up value equals the model's default."""
    assert set(table) == set(model.model_fields) - ({"connections"} if "connections" not in table else set()) - (
        {"sessions", "items", "bytes_per_s"} if "connections" in table else set()), where  # fmt: skip
    parsed = model.model_validate(table)
    for name, shown in table.items():
        value, wanted = getattr(parsed, name), getattr(default, name, None) if default is not None else fields_of(model)[name]
        if isinstance(value, BaseModel) and isinstance(shown, dict) and name not in MADE_UP:
            compared(type(value), shown, wanted, f"{where}.{name}")
        elif name not in MADE_UP:
            assert value == wanted, f"{where}.{name}: the template says {shown!r}, the default is {wanted!r}"


def test_init_writes_every_key_of_a_gateway_with_its_default() -> None:
    text = templates.uncommented(templates.fill(templates.GATEWAY, **GATEWAY_WORDS))
    tables = tomllib.loads(text)
    parse_text(GatewayFile, text, Path("gateway.toml"))
    assert set(tables) == set(GatewayFile.model_fields)
    for name in ("gateway", "ring", "receiver", "disclose"):
        compared(GatewayFile.model_fields[name].annotation, tables[name], None, name)
    compared(OpcuaTable, tables["source"]["press7"], None, "opcua")
    compared(ModbusTable, tables["source"]["mdb1"], None, "modbus")
    compared(GroupTable, tables["group"]["line2"], None, "group")


def test_init_writes_every_key_of_a_receiver_with_its_default() -> None:
    text = templates.uncommented(templates.fill(templates.SITE, **SITE_WORDS))
    tables = tomllib.loads(text)
    file = parse_text(SiteFile, text, Path("receiver.toml"))
    assert set(tables) == set(SiteFile.model_fields)
    for name in ("receiver", "tls", "console"):
        compared(SiteFile.model_fields[name].annotation, tables[name], None, name)
    assert file.alarm is not None and file.lake is not None
    compared(type(file.gateway[0]), tables["gateway"][0], None, "gateway")
    compared(type(file.lake), tables["lake"], None, "lake")
    compared(type(file.sink["historian"]), tables["sink"]["historian"], None, "sink")
    compared(type(file.alarm), tables["alarm"], None, "alarm")


def test_every_line_that_init_writes_says_why() -> None:
    for template in (templates.GATEWAY, templates.SITE):
        for line in template.splitlines():
            if " = " in line.partition("#")[0] and not line.startswith(("key ", "name ")):
                assert "  # " in line, line


# ---- mistakes ----


def mistakes(text: str, change: dict[str, str], model: Any = GatewayFile) -> str:
    for a, b in change.items():
        assert a in text, a
        text = text.replace(a, b, 1)
    with pytest.raises(ConfigError) as caught:
        parse_text(model, text, Path("etc/gateway.toml"))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_all_mistakes_at_once_in_order_of_the_file_each_with_line_path_and_what_to_write(examples: Path) -> None:
    text = (examples / "gateway.toml").read_text()
    said = mistakes(text, {
        "timezone =": "timezon =", '"25 GB"': "true", 'commit   = "1 s"': 'commit = "1"', 'address  = "10.20.0.5"': "", "5 Mbit/s": "5 Mb",
        'kind     = "opcua"': 'kind = "opc-ua"', '"192.168.10.40:502"': '"meter:502"', "unit     = 1": "unit = 500", "pause =": "pauze =",
    })  # fmt: skip
    lines = said.splitlines()
    assert lines[0] == "etc/gateway.toml: 9 mistakes"
    numbers = [int(line.split()[1].rstrip(",")) for line in lines[1:-1]]
    assert numbers == sorted(numbers)
    for number, line in zip(numbers, lines[1:-1], strict=True):
        key = line.split(":")[0].split(".")[-1]
        assert key in text.splitlines()[number - 1] or key in ("timezon", "pauze", "address", "press7"), line
    for part in (
        "gateway.timezon: unknown key; did you mean 'timezone'?",
        "ring.max_size: True: write it as a text with its unit",
        "ring.commit: '1' has no unit: write a time",
        'receiver.address: is missing; write address = "10.20.0.5"',
        "receiver.backfill.limit: '5 Mb' is not a rate: write one as \"5 Mbit/s\"",
        "source.press7: kind = 'opc-ua' is not known; did you mean 'opcua'?",
        "source.mdb1.address: 'meter:502': write a literal IP address",
        "source.mdb1.unit: 500: input should be less than or equal to 255; write unit = 1",
        "source.mdb1.load.pauze: unknown key; did you mean 'pause'?",
    ):
        assert part in said, (part, said)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"[ring]": "[rings]"}, "rings: unknown key; did you mean 'ring'?"),
        ({'kind     = "opcua"': ""}, "source.press7: is missing"),
        ({"opc.tcp://192.168.10.7:4840": "opc.tcp://plc7:4840"}, "literal IP address"),
        ({"opc.tcp://192.168.10.7:4840": "opc.tcp://a:b@192.168.10.7:4840"}, "without user and password"),
        ({"Europe/Brussels": "Brussels"}, "as Europe/Brussels"),
        ({"https://ebbgate": "http://ebbgate"}, 'write url = "https://ebbgate.acme.example:8443"'),
        ({'id       = "hall1"': 'id = "Hall 1"'}, "begins with a letter or digit"),
        ({"[source.press7]": "[source.Press7]"}, "begins with a letter or digit"),
        ({'window = "always"': 'window = "night"'}, "HH:MM-HH:MM"),
        ({'order    = "ABCD"': 'order = "abcd"'}, 'write order = "ABCD"'),
    ],
)
def test_one_mistake(examples: Path, change: dict[str, str], told: str) -> None:
    said = mistakes((examples / "gateway.toml").read_text(), change)
    assert "1 mistake" in said
    assert told in said


def test_no_toml_no_utf8_no_file_too_long(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    for data, told in ((b"[gateway\n", "line 1"), (b"id = hall1", "line 1"), (b"\xff\xfe", "not UTF-8"), (b"#" * 2_000_000, "1 MiB")):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=told):
            load_gateway(path)
    with pytest.raises(ConfigError, match="ebbgate init"):
        load_gateway(tmp_path / "absent.toml")


def test_a_mark_that_windows_editors_write_first_is_no_mistake(examples: Path) -> None:
    path = examples / "gateway.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_gateway(path).id == "hall1"


@pytest.mark.parametrize(
    ("written", "instead", "told"),
    [('publish  = "1 s"', 'publish  = "0"', "press7.publish is below 10 ms"), ('within = "10 s"', 'within = "500 ms"', "press7.alive.within is below 1 s")],
)
def test_times_that_nobody_can_keep(examples: Path, written: str, instead: str, told: str) -> None:
    path = examples / "gateway.toml"
    assert written in path.read_text()
    path.write_text(path.read_text().replace(written, instead))
    with pytest.raises(ConfigError, match=told):
        load_gateway(path)


def test_mistakes_of_table_and_sources_come_together(examples: Path) -> None:
    path = examples / "gateway.toml"
    path.write_text(path.read_text().replace('"press7.life", within', '"press7.live", within').replace('"25 GB"', '"1 MB"'))
    with pytest.raises(ConfigError) as caught:
        load_gateway(path)
    assert "'press7.live' is not a tag" in str(caught.value) and "below 128 MiB" in str(caught.value)
    table = examples / "tags.csv"
    table.write_text(table.read_text().replace("mdb1.p,", "MDB1,"))
    with pytest.raises(ConfigError) as caught:
        load_gateway(path)
    assert "row 7, id (A7)" in str(caught.value) and "below 128 MiB" in str(caught.value)


def test_a_life_bit_must_be_read_twice_in_the_time_it_has_to_change(examples: Path) -> None:
    path = examples / "gateway.toml"
    text = path.read_text()
    path.write_text(text.replace('address  = "192', 'alive = { tag = "mdb1.p", within = "2 s" }\naddress  = "192'))
    assert load_gateway(path).sources[1].alive is not None
    path.write_text(text.replace('address  = "192', 'alive = { tag = "mdb1.p", within = "1 s" }\naddress  = "192'))
    with pytest.raises(ConfigError, match="less than two polls of mdb1.p, which is read every 1 ?s"):
        load_gateway(path)


def test_the_line_of_a_key() -> None:
    text = '[a]\nx = 1\n[[g]]\nid = "1"\n[[g]]\nid = "2"\n[s."b.c"]\ny = { z = 1 }\n'
    assert line_of(text, ("a", "x")) == 2
    assert line_of(text, ("a", "missing")) == 1
    assert line_of(text, ("g", 1, "id")) == 6
    assert line_of(text, ("s", "b.c", "y", "z")) == 8
    assert line_of(text, ("nowhere",)) == 0


@pytest.mark.parametrize("listen", ["127.evil:8080", "127.0.0.1.evil.example:8080", "10.0.0.1:8080", "[::]:8080", "localhost.evil:8080"])
def test_a_console_that_others_could_reach_is_refused(listen: str, tmp_path: Path) -> None:
    path = tmp_path / "receiver.toml"
    text = templates.fill(templates.SITE, **SITE_WORDS)
    path.write_text(text.replace('"127.0.0.1:8080"', f'"{listen}"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"listen"):
        load_site(path)


def test_a_configuration_without_an_end_is_refused_and_not_read_whole() -> None:
    with pytest.raises(ConfigError, match="longer than 1 MiB"):
        load_site(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{b = " * 3_000, "a = " + "9" * 5_000])
def test_toml_that_breaks_its_parser_is_a_mistake_like_any_other(text):
    with pytest.raises(ConfigError, match="gateway.toml"):
        parse_text(GatewayFile, text, Path("gateway.toml"))


def modbus(**written: object) -> ModbusTable:
    return ModbusTable.model_validate({"kind": "modbus-tcp", "address": "10.0.0.9:502"} | written)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"address": "10.0.0.9:0"}, "no place where a device can be"),
        ({"address": "0.0.0.0:502"}, "no place where a device can be"),
        ({"address": "224.0.0.1:502"}, "no place where a device can be"),
        ({"address": "10.0.0.9:٥٠٢"}, "write host:port"),
        ({"kind": "modbus-rtu", "address": "/dev/ttyUSB0", "unit": 0}, "a call to all units"),
        ({"kind": "modbus-rtu-tcp", "unit": 0}, "a call to all units"),
        ({"kind": "modbus-rtu", "address": "/dev/ttyUSB0", "baud": 0}, "greater than or equal to 50"),
        ({"timeout": "0"}, 'from "1 ms" to "10 min"'),
        ({"timeout": "1 d"}, 'from "1 ms" to "10 min"'),
        ({"load": {"bytes_per_s": "0"}}, "greater than or equal to 1"),
        ({"load": {"requests_per_s": 1e-300}}, "greater than or equal to 0.001"),
        ({"load": {"duty": 5e-324}}, "greater than or equal to 0.001"),
        ({"alive": {"tag": "x", "within": "0"}}, "greater than 0"),
    ],
)
def test_what_no_device_could_be_read_with_is_a_mistake_not_a_crash_of_collect(written: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        modbus(**written)
    assert modbus(unit=0).unit == 0  # over TCP many devices answer to it


@pytest.mark.parametrize(
    ("written", "one"),
    [
        ("10.0.0.9:0502", "10.0.0.9:502"),
        ("[::ffff:10.0.0.9]:502", "10.0.0.9:502"),
        ("[0:0:0::1]:502", "[::1]:502"),
        ("::1:502", "[::1]:502"),
        ("[FE80::1%eth0]:502", "[fe80::1%eth0]:502"),
    ],
)
def test_a_device_has_one_address_however_it_is_written(written: str, one: str) -> None:
    assert modbus(address=written).address == one
