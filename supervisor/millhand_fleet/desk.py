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
from millhand_fleet.page import Doorkeeper, page_routes
from millhand_fleet.serving import serve
from millhand_fleet.snapshot import Observer
from millhand_fleet.state import WORKERS_MAX
from millhand_fleet.status import health_document, status_document

ORDER_ANSWER_S = 5.0
ORDER_BYTES_MAX = 4096

OK, ACCEPTED, BAD_REQUEST, UNAVAILABLE = 200, 202, 400, 503


def attend(config: Config, tcp: socket.socket, unix: socket.socket, birth: Birth) -> None:
    """Be the desk process until told to stop."""

    async def life(stop: Stop, pulse: Pulse) -> None:
        observer = Observer(config)
        pulse.hear = observer.hear
        live = Live(lambda: status_document(observer.snapshot, time.monotonic()), observer.past, stop)
        desk = Desk(observer, pulse, [*page_routes(), live.route()])
        public = Doorkeeper(desk.public())
        pulse.send({"ready": True})
        logger().info("desk.open", url=f"http://127.0.0.1:{tcp.getsockname()[1]}")
        await asyncio.gather(observer.run(stop), serve(public, [tcp], stop), serve(desk.private(), [unix], stop))

    run_child(birth, config, life)


class Desk:
    """The two faces of one snapshot: what anybody on this host may read, and what the owner may order."""

    def __init__(self, observer: Observer, pulse: Pulse, page: Sequence[Route] = ()) -> None:
        self._observer = observer
        self._pulse = pulse
        self._page = page

    def public(self) -> Starlette:
        """Return the app for loopback TCP."""
        return Starlette(routes=self._reading())

    def private(self) -> Starlette:
        """Return the app for the unix socket, whose directory and mode admit the owner alone."""
        ordering = [
            Route("/scale", self._scale, methods=["POST"]),
            Route("/stop", self._stop, methods=["POST"]),
        ]
        return Starlette(routes=[*self._reading(), *ordering])

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
        return _json(status_document(self._observer.snapshot, time.monotonic()))

    async def _metrics(self, _: Request) -> Response:
        exposition = render(self._observer.snapshot, time.monotonic())
        return Response(exposition, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _scale(self, request: Request) -> Response:
        if int(request.headers.get("content-length", ORDER_BYTES_MAX + 1)) > ORDER_BYTES_MAX:
            return _json({"error": f"an order has a length, of at most {ORDER_BYTES_MAX} bytes"}, BAD_REQUEST)
        try:
            workers = msgspec.json.decode(await request.body(), type=dict[str, int])["workers"]
        except (msgspec.DecodeError, KeyError):
            return _json({"error": 'send {"workers": N}'}, BAD_REQUEST)
        if not 0 <= workers <= WORKERS_MAX:
            return _json({"error": f"workers must be 0 to {WORKERS_MAX}, not {workers}"}, BAD_REQUEST)
        before = self._observer.snapshot.desired
        self._pulse.send({"scale": workers})
        if not await self._heard(lambda: self._observer.snapshot.desired == workers):
            return _json({"error": "the supervisor did not answer"}, UNAVAILABLE)
        return _json({"workers": workers, "before": before})

    async def _stop(self, _: Request) -> Response:
        self._pulse.send({"stop_fleet": True})
        return _json({"stopping": True}, ACCEPTED)

    async def _heard(self, so: Any) -> bool:
        """Wait until the supervisor's picture says so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ORDER_ANSWER_S):
                while not so():
                    self._observer.heard.clear()
                    await self._observer.heard.wait()
                return True
        return False


def _json(document: Any, status: int = OK) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
