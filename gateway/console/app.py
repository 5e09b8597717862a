"""The HTTP door of the console: GET pages and facts, nothing else. The only file of the console that knows aiohttp.

A request must name this host (a page elsewhere that resolves its own name to the loopback is refused), and may only read.
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway.console.pages import days, gateways, lines
from gateway.console.pages.html import DAY, STYLE
from gateway.console.views import as_json, views

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.completeness import Day
    from gateway.console.facts import Facts, StreamFacts
    from gateway.runtime import Runtime

QUERY_CHARS_MAX: Final = 200
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "ebbgate",
}

log = logging.getLogger(__name__)


class Pages:
    """Makes pages in threads, under the lock of the facts."""

    def __init__(self, facts: Facts, runtime: Runtime) -> None:
        self._facts = facts
        self._runtime = runtime

    async def _html(self, make: Callable[[int], str]) -> web.Response:
        def locked() -> str:
            with self._facts.lock:
                return make(self._runtime.wall_ns())

        text: str = await self._runtime.offload(locked)
        return web.Response(body=text.encode(errors="replace"), content_type="text/html", charset="utf-8")

    def _streams(self) -> list[StreamFacts]:
        return [follower.facts for follower in self._facts.streams.values()]

    async def lines(self, _: web.Request) -> web.Response:
        """/."""
        return await self._html(lambda now: lines.lines_now(self._streams(), now))

    async def line(self, request: web.Request) -> web.Response:
        """/line?name=..&page=.. ."""
        name = request.query.get("name", "")
        return await self._html(lambda now: lines.one_line(self._streams(), name, _page(request), now))

    async def search(self, request: web.Request) -> web.Response:
        """/search?q=..&page=.. ."""
        text = request.query.get("q", "")[:QUERY_CHARS_MAX]
        return await self._html(lambda now: lines.search(self._streams(), text, _page(request), now))

    async def fleet(self, _: web.Request) -> web.Response:
        """/fleet."""
        return await self._html(lambda now: gateways.fleet(views(self._facts), now))

    async def gateway(self, request: web.Request) -> web.Response:
        """/gateway/<stream>."""
        stream = request.match_info["stream"]
        if stream not in self._facts.streams:
            raise web.HTTPNotFound(text="no such stream has landed here")
        return await self._html(lambda now: gateways.one_gateway(next(v for v in views(self._facts) if v.stream == stream), now))

    async def calendar(self, _: web.Request) -> web.Response:
        """/days."""
        return await self._html(lambda now: days.calendar(self._streams(), now))

    async def day(self, request: web.Request) -> web.Response:
        """/days/<stream>/<date>."""
        follower = self._facts.streams.get(request.match_info["stream"])
        try:
            wanted = (dt.date.fromisoformat(request.match_info["date"]) - dt.date(1970, 1, 1)).days
        except ValueError:
            raise web.HTTPNotFound(text="no such day") from None
        if follower is None or not 0 <= self._runtime.wall_ns() // DAY - wanted < days.DAYS_SHOWN:
            raise web.HTTPNotFound(text="no such stream or day")
        facts = follower.facts
        return await self._html(lambda now: days.one_day(facts, _one(days.of(facts, now), wanted), now))

    async def style(self, _: web.Request) -> web.Response:
        """/style.css."""
        return web.Response(text=STYLE, content_type="text/css")

    async def as_json(self, _: web.Request) -> web.Response:
        """/api/facts."""
        def locked() -> dict[str, Any]:
            with self._facts.lock:
                return as_json(self._facts, self._runtime.wall_ns())

        return web.json_response(await self._runtime.offload(locked))


def _one(found: list[Day], day: int) -> Day:
    one = next((x for x in found if x.day == day), None)
    if one is None:
        raise web.HTTPNotFound(text="nothing is known of this day")
    return one


def _page(request: web.Request) -> int:
    text = request.query.get("page", "1")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1  # noqa: PLR2004 -- digits


def _guard(hosts: frozenset[str]) -> Callable[[web.Request, Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[web.StreamResponse]]:
    """Return the middleware every request passes: reads only, this host only, our headers on every answer."""

    @web.middleware
    async def guarded(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        answer: web.StreamResponse
        try:
            if request.method not in ("GET", "HEAD"):
                raise web.HTTPMethodNotAllowed(request.method, ("GET", "HEAD"))
            if request.headers.get("Host", "").lower() not in hosts:
                raise web.HTTPMisdirectedRequest(text="This console answers to its own address only: open it as it is printed at its start.")
            answer = await handler(request)
        except web.HTTPException as refused:
            answer = refused
        except Exception:
            log.exception("defect")
            answer = web.Response(status=500, text="a defect of the console; its log says more")
        answer.headers.update(_HEADERS)
        return answer

    return guarded


async def start(facts: Facts, runtime: Runtime, listen: tuple[str, int]) -> tuple[web.AppRunner, int]:
    """Listen; return the runner and the port."""
    pages, hosts = Pages(facts, runtime), set[str]()

    app = web.Application(client_max_size=1024)
    for path, handler in (
        ("/", pages.lines), ("/line", pages.line), ("/search", pages.search), ("/fleet", pages.fleet), ("/gateway/{stream}", pages.gateway),
        ("/days", pages.calendar), ("/days/{stream}/{date}", pages.day), ("/style.css", pages.style), ("/api/facts", pages.as_json),
    ):  # fmt: skip
        app.router.add_get(path, handler)
    app.middlewares.append(_guard(hosts))  # type: ignore[arg-type]  # filled below, before anybody asks
    runner = web.AppRunner(app, access_log=None, handle_signals=False, max_line_size=8192, max_field_size=8192, keepalive_timeout=20)
    await runner.setup()
    site = web.TCPSite(runner, listen[0], listen[1])
    await site.start()
    names = {"127.0.0.1", "localhost", "[::1]", f"[{listen[0]}]" if ":" in listen[0] else listen[0]}
    hosts.update({f"{name}:{site.port}" for name in names} | (names if site.port == 80 else set()))  # noqa: PLR2004 -- the default port is left out
    return runner, site.port
