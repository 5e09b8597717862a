"""What collect remembers of one OPC UA server over restarts, beside the ring: `<state>/collect/<source>.json`. Pure; a secret (0600).

    {"version": 2, "session": {...}|null, "asked": {url: ns},
     "refused": n, "refused_ns": n, "secret": "..", "subscription": {...}|null, "load": {...}, "hand": {...}}

A file that is missing or damaged costs a new session and a new subscription, nothing else. Two rules live here (G10):

* a new session at a URL only when the one before there is known to be gone - closed and confirmed, or denied by the server: then it is no
  longer in `asked` - or was asked for longer ago than a session's timeout;
* a refused login is tried again after 15 min, then 1 h, then every 6 h, or at once after the secret changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

_MINUTE: Final = 60 * 10**9
LOGIN_PAUSES_NS: Final = (15 * _MINUTE, 60 * _MINUTE, 360 * _MINUTE)  # before a server locks the account (OPC 10000-4, 7.40: after five)
URLS_KEPT_MAX: Final = 16  # sessions remembered: four URLs, and those of the configuration before
STATE_BYTES_MAX: Final = 4 * 1024 * 1024  # 100,000 refused tags; more is not a state file


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription of ours at the server. identity: server and its start; digest: of the items asked for; refused: tag numbers."""

    id: int
    identity: str
    digest: str
    keep_alive_s: float
    refused: tuple[int, ...] = ()


@dataclass(slots=True)
class SourceState:
    """The file's content. Times are wall ns; `now` is passed in."""

    session: dict[str, str] | None = None  # session.Resume.export()
    asked: dict[str, int] = field(default_factory=dict)  # url -> when a session that may still be there was asked for
    refused: int = 0
    refused_ns: int = 0
    secret: str = ""
    subscription: Subscription | None = None
    load: dict[str, Any] = field(default_factory=dict)
    hand: dict[str, Any] = field(default_factory=dict)  # what came of the last fill by hand

    @property
    def session_gone(self) -> bool:
        """Whether no server can still hold a session of ours."""
        return not self.asked

    def wait_for_session_ns(self, now_ns: int, timeout_ns: int, url: str) -> int:
        """Return how long to wait before a new session may be asked for at this URL."""
        age = now_ns - self.asked.get(url, now_ns - timeout_ns)
        return timeout_ns - age if 0 <= age < timeout_ns else 0

    def has_session(self, url: str) -> bool:
        """Say whether there is a session to be taken up at this URL."""
        return self.session is not None and self.session.get("url") == url

    def session_asked(self, now_ns: int, url: str) -> None:
        """Note, before it is sent, that a new session is asked for."""
        self.session = None
        self.asked = dict(sorted((self.asked | {url: now_ns}).items(), key=lambda one: one[1])[-URLS_KEPT_MAX:])

    def gone(self, url: str) -> None:
        """Note that the session at this URL is no more: closed and confirmed, or denied by the server."""
        self.asked.pop(url, None)
        if self.has_session(url):
            self.session = None

    def wait_for_login_ns(self, now_ns: int, secret: str) -> int:
        """Return how long to wait before the next login. secret: changes when the account or its password file changes."""
        if not self.refused or secret != self.secret:
            return 0
        pause = LOGIN_PAUSES_NS[min(self.refused, len(LOGIN_PAUSES_NS)) - 1]
        age = now_ns - self.refused_ns
        return pause - age if 0 <= age < pause else 0

    def login_refused(self, now_ns: int, secret: str) -> None:
        """Note a refused login."""
        self.refused = self.refused + 1 if secret == self.secret else 1
        self.refused_ns, self.secret = now_ns, secret

    def login_accepted(self) -> None:
        """Note a good login."""
        self.refused = self.refused_ns = 0

    def encode(self) -> bytes:
        """Return the file."""
        return json.dumps({"version": 2, **asdict(self)}, sort_keys=True).encode()


def parse_state(data: bytes | None) -> SourceState:
    """Return what a file says; a fresh state where there is none or it is not ours."""
    try:
        body = json.loads(data or b"")
        if body.pop("version") != 2:
            return SourceState()
        subscription = body.pop("subscription")
        kept = None
        if subscription is not None:
            refused = tuple(int(number) for number in subscription.pop("refused"))
            kept = Subscription(refused=refused, **subscription)
        state = SourceState(subscription=kept, **body)
        whole = (*state.asked.values(), state.refused, state.refused_ns, 0 if kept is None else kept.id)
        good = all(isinstance(number, int) and number >= 0 for number in whole) and isinstance(state.load, dict) and isinstance(state.hand, dict)
        good &= isinstance(state.secret, str)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return SourceState()
    return state if good else SourceState()
