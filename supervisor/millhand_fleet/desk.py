"""The desk: answers health, metrics and worker-ctl. Read only on loopback; orders come through the unix socket."""

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millhand.config import Config
from millhand.log import logger
from millhand.process import run_child
from millhand.pulse import Birth, Pulse
from millhand.stop import Stop
from millhand_fleet.health import judge_health
from millhand_fleet.live import Live
from millhand_fleet.metrics import render
from millhand_fleet.ordering import Ordering
from millhand_fleet.page import Doorkeeper, page_routes
from millhand_fleet.serving import serve
from millhand_fleet.snapshot import Observer
from millhand_fleet.status import Kept, health_document, status_json

OK, UNAVAILABLE = 200, 503
FIRST_LOOK_S = 1.0


def attend(config: Config, tcp: socket.socket, unix: socket.socket, birth: Birth) -> None:
    """Be the desk process until told to stop."""

    async def life(stop: Stop, pulse: Pulse) -> None:
        observer = Observer(config)
        document = Kept(status_json)
        live = Live(lambda: document.of(observer.snapshot, time.monotonic()), observer.past, stop)
        desk = Desk(observer, pulse, [*page_routes(), live.route()])
        public = Doorkeeper(desk.public())
        pulse.hear = desk.hear

        async def open_up() -> None:
            await _first_look(observer, stop)
            pulse.send({"ready": True})
            logger().info("desk.open", url=f"http://127.0.0.1:{tcp.getsockname()[1]}")
            await asyncio.gather(serve(public, [tcp], stop), serve(desk.private(), [unix], stop))

        await asyncio.gather(observer.run(stop), open_up())

    run_child(birth, config, life)


async def _first_look(observer: Observer, stop: Stop) -> None:
    """Wait for the first picture, but not for a Redis that hangs: a desk that was replaced does not say `down`."""

    async def picture() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await observer.looked.wait()
                await observer.heard.wait()

    await stop.or_result(picture())


class Desk:
    """The two faces of one snapshot: what anybody on this host may read, and what the owner may order."""

    def __init__(self, observer: Observer, pulse: Pulse, page: Sequence[Route] = ()) -> None:
        self._observer = observer
        self._ordering = Ordering(pulse)
        self._status_json = Kept(status_json)
        self._exposition = Kept(render)
        self._page = page

    def public(self) -> Starlette:
        """Return the app for loopback TCP."""
        return Starlette(routes=self._reading())

    def private(self) -> Starlette:
        """Return the app for the unix socket, whose directory and mode admit the owner alone."""
        return Starlette(routes=[*self._reading(), *self._ordering.routes()])

    def hear(self, message: dict[str, Any]) -> None:
        """Take in what the supervisor says: its picture of the fleet, or its answer to an order."""
        self._observer.hear(message)
        self._ordering.hear(message)

    def _reading(self) -> list[Route]:
        return [
            *self._page,
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/status", self._status),
            Route("/metrics", self._metrics),
        ]

    async def _healthz(self, _: Request) -> Response:
        document = health_document(self._observer.snapshot, time.monotonic())
        return _json(document, UNAVAILABLE if document["status"] == "down" else OK)

    async def _readyz(self, _: Request) -> Response:
        health = judge_health(self._observer.snapshot, time.monotonic())
        document = {"ready": health.ready, "reasons": health.reasons, "notes": health.notes}
        return _json(document, OK if health.ready else UNAVAILABLE)

    async def _status(self, _: Request) -> Response:
        document = self._status_json.of(self._observer.snapshot, time.monotonic())
        return Response(document, media_type="application/json")

    async def _metrics(self, _: Request) -> Response:
        exposition = self._exposition.of(self._observer.snapshot, time.monotonic())
        return Response(exposition, media_type="text/plain; version=0.0.4; charset=utf-8")


def _json(document: Any, status: int = OK) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
