"""The web page's files, and the doorkeeper of loopback TCP: who may ask there, and what a browser may do with it."""

from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "draw.js": "text/javascript",
    "words.js": "text/javascript",
}
FORBIDDEN, MISDIRECTED = 403, 421

OWN_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

HEADERS = {
    # All that the page needs comes from the desk; the picture is the icon, which the script draws. Nothing may turn
    # text into markup (Trusted Types), and no other page may frame this one.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def page_routes() -> list[Route]:
    """Return the routes of the page; its files are read once, now."""
    kept = {name: files("millhand_fleet").joinpath("web", name).read_bytes() for name in MEDIA_TYPES}

    async def give(request: "Request") -> Response:
        name = request.url.path.removeprefix("/") or "page.html"
        return Response(kept[name], media_type=MEDIA_TYPES[name])

    return [Route(path, give) for path in ("/", *(f"/{name}" for name in MEDIA_TYPES))]


class Doorkeeper:
    """An ASGI app in front of another, for a port that every program and every web page on this host can reach.

    A page of a stranger's whose name has been pointed at 127.0.0.1 (DNS rebinding) gives itself away by its Host, and
    one that merely asks across origins by Sec-Fetch-Site: both are refused, before anything is looked up. Programs
    that give no Host at all (HTTP/1.0 health checks) are let through; browsers always give one.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a refusal, or let the app answer, under strict headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def strictly(message: "Message") -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (refusal(scope["headers"]) or self._app)(scope, receive, strictly)


def refusal(headers: "Iterable[tuple[bytes, bytes]]") -> Response | None:
    """Say why a request is not answered; None if it is."""
    asked = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    for host in (value for name, value in asked if name == "host"):
        if _without_port(host) not in OWN_HOSTS:
            return PlainTextResponse(
                f"the desk answers to localhost, 127.0.0.1 and [::1] only, not to {host!r}; from another machine: "
                "ssh -L 8642:127.0.0.1:8642 HOST, or a proxy that sends `Host: 127.0.0.1`\n",
                MISDIRECTED,
            )
    fetch = {name: value for name, value in asked if name.startswith("sec-fetch-")}
    if fetch.get("sec-fetch-site") in {"cross-site", "same-site"} and fetch.get("sec-fetch-mode") != "navigate":
        return PlainTextResponse("another site's page may link here, but not read from here\n", FORBIDDEN)
    return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()
