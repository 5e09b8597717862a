"""The configuration files that `ebbgate init` writes: every key, its default, its unit and its reason. Pure text.

A line that begins with "# key = " shows a key that is off or has another default meaning when absent; take the # away to use it.
tests/unit/test_config.py holds these texts and gateway.configfile together: every key of one is in the other, with the same default.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GATEWAY = """\
# Ebbgate, gateway box: collect and upload. `ebbgate check` explains every mistake in here.
# Paths are relative to this file. Times "1 s", "10 min"; sizes "25 GB"; rates "5 Mbit/s".

[gateway]
id       = "@ID@"                    # for ever; a replaced box keeps it; its ring starts a new generation
site     = "@SITE@"                  # where the readings belong, as acme/ghent
timezone = "@TIMEZONE@"              # for screens and shift reports; everything stored is UTC
stream   = "main"                    # name of this box's ring: @ID@.main
tags     = "tags.csv"                # what is read; as Excel writes it
state    = "@STATE@"                 # collect/, upload/, control/; best on another file system than the ring
data_key = "pki/data.key"            # signs every block; never leaves this box
# renamed = { "old.id" = "new.id" }    # tag ids changed on purpose; without it a table where an id vanishes is refused
# retired = ["old.id"]               # tag ids given up on purpose
# application_uri = "urn:ebbgate:gateway:@ID@"   # as in our OPC UA application certificate

[ring]
path     = "@RING@"                  # a local disk of its own; tmpfs, overlay, NFS and CIFS are refused
max_size = "25 GB"                   # no age limit: the ring forgets its oldest by size only
commit   = "1 s"                     # what is not committed yet is at most this; 250 ms on SSD, 1 s spares eMMC and SD cards
seal     = "15 min"                  # a Parquet segment at least this often

[receiver]
url      = "@URL@"                   # the name is checked in the receiver's certificate
address  = "@ADDRESS@"               # where to connect: no DNS on this box
live     = "1 s"                     # one live request per second at most; it carries all that is new
# proxy  = "http://10.20.0.9:3128"   # CONNECT only; TLS inspection must be switched off for this name
ca          = "pki/receiver-ca.crt"  # the site's CA, installed by enrolment
receipt_key = "pki/receipt.pub"      # who signs receipts, installed by enrolment
certificate = "pki/tls.crt"          # 2 years; renewed by hand: ebbgate identity renew
key         = "pki/tls.key"

[receiver.backfill]                  # a backlog never takes the whole line
limit     = "5 Mbit/s"               # of this gateway
window    = "always"                 # or "22:00-05:00" in the timezone above
in_flight = 4                        # requests at a time; more helps on long lines
newest_first = false                 # true: the newest hour before the oldest

[disclose]
addresses = false                    # true: PLC addresses and node ids leave this box with the tag table

# ---- sources: one table each; then write their tags into tags.csv ----

# [source.press7]                    # Siemens S7-1500
# kind     = "opcua"
# urls     = ["opc.tcp://192.168.10.7:4840"]   # used as written, in this order; discovery answers are not followed
# interface = "ot0"                  # SO_BINDTODEVICE: twin machines may share one subnet; "": any
# security = "Basic256Sha256 SignAndEncrypt"   # or Aes128_Sha256_RsaOaep, Aes256_Sha256_RsaPss; a weak policy needs the next line
# security_waiver = ""               # why a policy is used that protects nothing ("None", Basic256, Basic128Rsa15); shown everywhere
# server_certificate = "pki/trusted/press7.der"   # written by: ebbgate trust press7
# trusted  = "pki/trusted-cas"       # instead of a pin: a directory of CA certificates and revocation lists
# certificate = "pki/opcua.der"      # ours: import it at the server; 20 years, renewing it may mean a download to the PLC
# key      = "pki/opcua.key"
# user     = "ebbgate_ro"            # an account that may read only; "": anonymous
# password_file = "secrets/press7"   # mode 0600; a refused login is retried after 15 min, 1 h, 6 h: no lock-outs
# user_certificate = "pki/user.der"  # instead of user and password: an account known by certificate
# user_key = "pki/user.key"
# namespaces = { s7 = "http://www.siemens.com/simatic-s7-opcua" }   # alias in tags.csv -> namespace URI
# publish  = "1 s"                   # how often the server sends
# history_fill = "24 h"              # never asks the server for more than this after an absence; "0": never
# clock    = { use = "source", max_skew = "5 s" }   # beyond that: gateway time, flagged, the source's time kept
# alive    = { tag = "press7.life", within = "10 s" }   # a PLC in STOP still answers Good: this finds it
# load     = { requests_per_s = 5.0, bytes_per_s = "1 MB", sessions = 1, items = 1000, pause = "0", duty = 0.5 }

# [source.mdb1]                      # an energy meter
# kind     = "modbus-tcp"            # or modbus-rtu-tcp (a serial line behind a converter), modbus-rtu (a serial line here)
# address  = "192.168.10.40:502"     # modbus-rtu: "/dev/serial/by-id/..."
# interface = "ot0"
# unit     = 1                       # 1-247; 0 or 255 for many TCP devices
# order    = "ABCD"                  # of bytes; per tag in tags.csv where it differs
# gap      = 0                       # reads only registers that a tag names; raise after reading the manual
# allowed  = ["hr:0-199"]            # registers that may be read along whatever gap says
# forbidden = ["hr:500-509"]         # registers that are never read, as those that a read resets
# max_registers = 125                # of one request; small devices take less
# max_bits = 2000                    # of one request
# timeout  = "1 s"                   # for one answer
# identify = false                   # true: asks for device identification (43/14) on connecting
# close_after_poll = false           # true: for devices with few connections
# baud     = 19200                   # serial lines only
# parity   = "E"                     # N, E, O; serial lines only
# stop_bits = 1                      # serial lines only
# clock    = { use = "gateway", max_skew = "5 s" }   # a Modbus device has no clock of its own
# alive    = { tag = "mdb1.counter", within = "1 min" }
# load     = { requests_per_s = 5.0, connections = 1, pause = "50 ms", duty = 0.5 }

# [group.line2]                      # these sources get a collect process, a ring and a data key of their own (pki/data-line2.key)
# sources  = ["mdb1"]
# max_size = "5 GB"                  # of [ring] max_size; without it all that state none share alike
"""

SITE = """\
# Ebbgate, IT side: receive, deliver, console. `ebbgate check` explains every mistake in here.
# Paths are relative to this file. Times "1 s", "10 min"; sizes "25 GB"; rates "5 Mbit/s".

[receiver]
name     = "@NAME@"
listen   = "@LISTEN@"                # mutual TLS 1.3 only
landing  = "@LANDING@"               # write-once; back this up together with its index
deliver  = "@DELIVER@"               # where deliver keeps its cursors
min_free = "50 GB"                   # below: 503, gateways wait and lose nothing
receipt_key = "pki/receipt.key"      # signs what gateways may forget

[tls]
certificate = "pki/receiver.crt"     # 2 years; renewed by hand: ebbgate identity renew
key         = "pki/receiver.key"
gateways_ca = "pki/gateways-ca.crt"  # the CA's own key lives with: ebbgate ca (another user, better another machine)
revoked     = "pki/revoked"          # the list that `ebbgate ca revoke` writes; read again every 30 s
grace       = "90 d"                 # a gateway's expired certificate still counts for so long, with an alarm; "0": not a day

# [[gateway]]                        # one for each gateway that may send here
# id      = "hall1"
# site    = "acme/ghent"             # "": the id
# streams = ["hall1.*"]              # what it may send; []: all that begin with its id
# silence = "60 s"                   # nothing for this long: shown as silent
# rate    = "100 Mbit/s"             # at most this fast

# [lake]                             # Parquet that any tool reads
# path  = "/srv/lake"
# every = "60 s"                     # files are closed this often; shorter means more and smaller files
# partition = ["site", "date"]       # date in UTC

# [sink.historian]                   # PostgreSQL or TimescaleDB; as many as you like
# kind     = "postgres"
# dsn_file = "secrets/historian"     # mode 0600: host=.. dbname=.. user=.. password=..
# tags     = ["**"]                  # which paths, as ["press/**", "utilities/**"]
# future   = "10 min"                # later than this: quarantined, not written
# views    = true                    # readings_good, last, gaps, notices, tags_asof

# [alarm]                            # read and checked; sent by a later release: until then see ebbgate status
# webhook_file = "secrets/teams-webhook"
# mail = { to = ["ot-duty@acme.example"], via = "smtp.acme.example:25" }

[console]
listen = "127.0.0.1:8080"            # the loopback only; put a reverse proxy with TLS and users before it
users  = "none"                      # local: logins, in a later release; until then the proxy's
"""

_LAKE = "# [lake]"
_SINK = "# [sink.historian]"
_GATEWAY = "# [[gateway]]"


def site_text(gateways: Sequence[str], **words: str) -> str:
    """Return receiver.toml; with gateways, their tables and the lake are in force. words: NAME, LISTEN, LANDING, DELIVER, LAKE, SITE."""
    head, gateway, lake, sinks = SITE[: SITE.index(_GATEWAY)], *_between(_GATEWAY, _LAKE, _SINK), SITE[SITE.index(_SINK) :]
    tables = [fill(uncommented(gateway).replace("hall1", one).replace("acme/ghent", words["SITE"] or one)) for one in gateways]
    parts = [*tables, uncommented(lake).replace("/srv/lake", words["LAKE"])] if gateways else [gateway, lake]
    return fill(head + "".join(parts) + sinks, **words)


def _between(*marks: str) -> list[str]:
    return [SITE[SITE.index(a) : SITE.index(b)] for a, b in itertools.pairwise(marks)]


def fill(template: str, **words: str) -> str:
    """Return a template with its @WORDS@ replaced; the comments stay in their column where there is room."""
    out = []
    for line in template.splitlines():
        code, mark, comment = line.partition("  # ")
        for word, text in words.items():
            code = code.replace(f"@{word}@", _quoted(text))
            comment = comment.replace(f"@{word}@", text)
        at = 37 if len(code.rstrip()) < 36 else 0  # noqa: PLR2004 -- the column of the comments
        out.append(code.rstrip().ljust(at - 1) + (" # " if at else "   # ") + comment if mark else code)
    return "\n".join(out) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def uncommented(template: str) -> str:
    """Return a template with every shown key in force."""
    return re.sub(r"(?m)^# (?=\[|[a-z_]+ +=|[a-z_]+ = )", "", template)


def example(model: str, place: Sequence[str]) -> str:
    """Return the line of a template that shows a key, as `key = value`, or "". model: GatewayFile or SiteFile."""
    if len(place) < 2:  # noqa: PLR2004 -- a whole table
        return f"a table [{place[0]}]" if place else ""
    table, key = place[0], place[-1]
    inside = ""
    for line in uncommented(GATEWAY if model == "GatewayFile" else SITE).splitlines():
        if line.startswith("["):
            inside = line.strip("[ ").partition("]")[0]
            continue
        name, equals, rest = line.partition("=")
        if equals and name.strip() == key and inside.split(".")[0] == table and (table == "source" or inside == ".".join(place[:-1])):
            value = rest.partition("  #")[0].strip()
            return f"{key} = {value}" if "@" not in value else f'{key} = "{_SAMPLES.get(key, "...")}"'
    return ""


_SAMPLES = {
    "id": "hall1",
    "site": "acme/ghent",
    "url": "https://ebbgate.acme.example:8443",
    "address": "10.20.0.5",
    "name": "dmz",
    "listen": "10.20.0.5:8443",
    "timezone": "Europe/Brussels",
}
