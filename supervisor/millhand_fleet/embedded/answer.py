"""The ASGI response to one chat or generate request: it ends the model's work when the client hangs up."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from millhand_fleet.embedded.engine import Ask
from millhand_fleet.embedded.errors import EmbeddedError, EngineFailed
from millhand_fleet.embedded.line import Line
from millhand_fleet.embedded.listener import Finish

SEND_S_MAX = 30.0  # a client that does not read gives its slot back
NDJSON = (b"content-type", b"application/x-ndjson")

Say = Callable[[str], dict[str, Any]]


class Answer:
    """Runs `ask` and tells the client; `say` wraps text in the reply's own shape: message or response.

    An error before the first piece is raised to Starlette's handlers; after it, the last line is `{"error": ...}`.
    """

    def __init__(self, line: Line, ask: Ask, *, model: str, say: Say, streams: bool) -> None:
        self._line = line
        self._ask = ask
        self._model = model
        self._say = say
        self._streams = streams
        self._arrived_ns = time.monotonic_ns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Work until the reply is out or the client is gone, whichever is first."""
        work = asyncio.create_task(self._answer(scope, receive, send))
        watch = asyncio.create_task(_cancel_on_hang_up(receive, work))
        try:
            await work
        except asyncio.CancelledError:
            if not watch.done():
                raise
        finally:
            watch.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._line.generate(self._ask)) as said:
            if self._streams:
                await self._stream(said, send)
            else:
                await JSONResponse(await self._whole(said))(scope, receive, send)

    async def _whole(self, said: AsyncGenerator[str | Finish, None]) -> dict[str, Any]:
        pieces: list[str] = []
        async for piece in said:
            if isinstance(piece, Finish):
                return self._last(piece, "".join(pieces))
            pieces.append(piece)
        raise EngineFailed("the call ended without a result")

    async def _stream(self, said: AsyncGenerator[str | Finish, None], send: Send) -> None:
        line = self._line_of(await anext(said))
        with contextlib.suppress(TimeoutError):
            await _send_within({"type": "http.response.start", "status": 200, "headers": [NDJSON]}, send)
            while line:
                await _send_within({"type": "http.response.body", "body": line, "more_body": True}, send)
                line = await self._next_line(said)
            await _send_within({"type": "http.response.body", "body": b""}, send)

    async def _next_line(self, said: AsyncGenerator[str | Finish, None]) -> bytes:
        try:
            return self._line_of(await anext(said))
        except StopAsyncIteration:
            return b""
        except EmbeddedError as error:
            return _encoded({"error": str(error)})

    def _line_of(self, piece: str | Finish) -> bytes:
        if isinstance(piece, Finish):
            return _encoded(self._last(piece, ""))
        return _encoded({**envelope(self._model), **self._say(piece), "done": False})

    def _last(self, finish: Finish, text: str) -> dict[str, Any]:
        """Give the final object. The model is loaded before the server serves, hence no load duration."""
        return {
            **envelope(self._model),
            **self._say(text),
            "done": True,
            "done_reason": finish.reason,
            "total_duration": time.monotonic_ns() - self._arrived_ns,
            "load_duration": 0,
            "prompt_eval_count": finish.prompt_tokens,
            "prompt_eval_duration": finish.prompt_ns,
            "eval_count": finish.reply_tokens,
            "eval_duration": finish.reply_ns,
        }


def envelope(model: str) -> dict[str, Any]:
    """Give the fields that every reply begins with: the model as the client named it, and the time."""
    return {"model": model, "created_at": rfc3339(datetime.now(UTC))}


def rfc3339(moment: datetime) -> str:
    """Write a UTC moment as Ollama does, with a Z."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _encoded(reply: dict[str, Any]) -> bytes:
    return msgspec.json.encode(reply) + b"\n"


async def _send_within(message: Message, send: Send) -> None:
    async with asyncio.timeout(SEND_S_MAX):
        await send(message)


async def _cancel_on_hang_up(receive: Receive, work: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()
