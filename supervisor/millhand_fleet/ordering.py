"""The desk's order side: what may be ordered from the fleet, and the supervisor's own answer to it."""

import asyncio
import itertools
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millhand.pulse import Pulse
from millhand_fleet.state import WORKERS_MAX

ORDER_ANSWER_S = 5.0
ORDER_BYTES_MAX = 4096
NO_ANSWER = (
    f"the supervisor has not answered for {ORDER_ANSWER_S:.0f} s; it may still obey\n"
    "see `worker-ctl status` before you order it again"
)

OK, ACCEPTED, BAD_REQUEST, CONFLICT, UNAVAILABLE = 200, 202, 400, 409, 503
REFUSALS = {"invalid": BAD_REQUEST, "conflict": CONFLICT}  # how the supervisor refuses, and what that is in HTTP


class ScaleOrder(msgspec.Struct, forbid_unknown_fields=True):
    """How many workers there shall be: a number, or a difference."""

    workers: Annotated[int, Meta(ge=0, le=WORKERS_MAX)] | None = None
    by: Annotated[int, Meta(ge=-WORKERS_MAX, le=WORKERS_MAX)] | None = None


class Ordering:
    """Passes orders on to the supervisor, each with a number, and its answers back."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._numbers = itertools.count(1)
        self._awaited: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def routes(self) -> list[Route]:
        """Return the routes of the unix socket, whose directory and mode admit the owner alone."""
        return [
            Route("/scale", self._scale, methods=["POST"]),
            Route("/pause", self._plain("pause"), methods=["POST"]),
            Route("/resume", self._plain("resume"), methods=["POST"]),
            Route("/restart", self._plain("restart"), methods=["POST"]),
            Route("/reload", self._plain("reload"), methods=["POST"]),
            Route("/stop", self._plain("stop", ACCEPTED), methods=["POST"]),
        ]

    def hear(self, message: dict[str, Any]) -> None:
        """Take in the supervisor's answer to an order."""
        if (answered := self._awaited.get(message.get("answer", 0))) and not answered.done():
            answered.set_result(message)

    async def _scale(self, request: Request) -> Response:
        if int(request.headers.get("content-length", ORDER_BYTES_MAX + 1)) > ORDER_BYTES_MAX:
            return _error(f"an order has a length, of at most {ORDER_BYTES_MAX} bytes", BAD_REQUEST)
        try:
            order = msgspec.json.decode(await request.body(), type=ScaleOrder)
        except msgspec.DecodeError as error:
            return _error(f'send {{"workers": N}}, 0 to {WORKERS_MAX}, or {{"by": N}}: {error}', BAD_REQUEST)
        if (order.workers is None) == (order.by is None):
            return _error('send {"workers": N} or {"by": N}', BAD_REQUEST)
        return await self._answer({"order": "scale", "workers": order.workers, "by": order.by})

    def _plain(self, order: str, status: int = OK) -> Any:
        """Return the endpoint of an order that has no parameters."""

        async def endpoint(request: Request) -> Response:
            # Whole before it is obeyed: `restart` ends this desk, and whoever still sends would never hear the answer.
            size = 0
            async for part in request.stream():
                size += len(part)
                if size > ORDER_BYTES_MAX:
                    return _error(f"an order has at most {ORDER_BYTES_MAX} bytes", BAD_REQUEST)
            return await self._answer({"order": order}, status)

        return endpoint

    async def _answer(self, order: dict[str, Any], status: int = OK) -> Response:
        """Give the order to the supervisor; return what it says to it."""
        number = next(self._numbers)
        answered = self._awaited[number] = asyncio.get_running_loop().create_future()
        try:
            self._pulse.send({**order, "number": number})
            answer = await asyncio.wait_for(answered, ORDER_ANSWER_S)
        except TimeoutError:
            return _error(NO_ANSWER, UNAVAILABLE)
        finally:
            del self._awaited[number]
        for refusal, code in REFUSALS.items():
            if refusal in answer:
                return _error(answer[refusal], code)
        return _json(answer["said"], status)


def _error(message: str, status: int) -> Response:
    return _json({"error": message}, status)


def _json(document: Any, status: int) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
