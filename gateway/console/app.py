"""The HTTP door of the console: GET pages and facts, nothing else. The only file of the console that knows aiohttp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from gateway.console import pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.console.facts import Facts

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


async def start(facts: Facts, wall_ns: Callable[[], int], listen: tuple[str, int]) -> tuple[web.AppRunner, int]:
    """Listen; return the runner and the port."""

    async def lines(_: web.Request) -> web.Response:
        return _html(pages.lines_now([f.facts for f in facts.streams.values()], wall_ns()))

    async def gateway(request: web.Request) -> web.Response:
        follower = facts.streams.get(request.match_info["stream"])
        if follower is None:
            raise web.HTTPNotFound(text="no such stream has landed here")
        return _html(pages.one_gateway(follower.facts, facts.as_json(wall_ns()), wall_ns(), list(facts.streams)))

    async def style(_: web.Request) -> web.Response:
        return web.Response(text=pages.stylesheet(), content_type="text/css", headers=_HEADERS)

    async def as_json(_: web.Request) -> web.Response:
        return web.json_response(facts.as_json(wall_ns()), headers=_HEADERS)

    app = web.Application(client_max_size=1024)
    app.router.add_get("/", lines)
    app.router.add_get("/gateway/{stream}", gateway)
    app.router.add_get("/style.css", style)
    app.router.add_get("/api/facts", as_json)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, listen[0], listen[1])
    await site.start()
    return runner, site.port


def _html(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/html", headers=_HEADERS)
