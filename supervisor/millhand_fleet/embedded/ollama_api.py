"""Ollama's native HTTP API for one model in this process.

    app = build_app(engine)
    uvicorn.run(app, host="127.0.0.1", port=11434, log_config=None, access_log=False)

The caller owns the engine, and closes it when the server has stopped. Nothing of what clients send is logged.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from millhand_fleet.embedded.answer import Answer, Say, envelope, rfc3339
from millhand_fleet.embedded.engine import Engine
from millhand_fleet.embedded.errors import AskRefused, EmbeddedError, ModelUnknown
from millhand_fleet.embedded.line import Line
from millhand_fleet.embedded.wire import ChatRequest, GenerateRequest, ShowRequest

MODEL_NAME = "smollm2:135m"
VERSION = "0.12.0-millhand"  # the Ollama whose API this follows
BODY_BYTES_MAX = 4 << 20  # far above what the context can hold, so that the refusal is about that
BODY_S_MAX = 10.0
WAITING_MAX = 64
NEVER_EXPIRES = datetime(2318, 1, 1, tzinfo=UTC)  # what Ollama says, give or take, of a model that stays

_Body = TypeVar("_Body", ChatRequest, GenerateRequest, ShowRequest)


def build_app(engine: Engine, *, model_name: str = MODEL_NAME, waiting_max: int = WAITING_MAX) -> Starlette:
    """Build the app; as many calls run as the engine has slots, `waiting_max` more wait, the next gets a 503.

    `app.state.line` counts the calls that run and wait.
    """
    line = Line(engine, waiting_max=waiting_max)
    api = _Api(engine, line, model_name)
    app = Starlette(
        routes=[
            Route("/", _alive, methods=["GET"]),
            Route("/api/chat", api.chat, methods=["POST"]),
            Route("/api/generate", api.generate, methods=["POST"]),
            Route("/api/tags", api.tags, methods=["GET"]),
            Route("/api/show", api.show, methods=["POST"]),
            Route("/api/ps", api.ps, methods=["GET"]),
            Route("/api/version", _version, methods=["GET"]),
        ],
        exception_handlers={EmbeddedError: _tell_error, HTTPException: _tell_http_error},
    )
    app.state.line = line
    return app


class _Api:
    def __init__(self, engine: Engine, line: Line, model_name: str) -> None:
        self._engine = engine
        self._line = line
        self._model_name = model_name
        family = model_name.partition(":")[0]
        self._names = frozenset({model_name, family, f"{family}:latest"})

    async def chat(self, request: Request) -> Answer | Response:
        return self._answer(await _body(request, ChatRequest), _say_message)

    async def generate(self, request: Request) -> Answer | Response:
        return self._answer(await _body(request, GenerateRequest), _say_response)

    async def show(self, request: Request) -> Response:
        body = await _body(request, ShowRequest)
        self._check_name(body.model or body.name or "")
        header = self._engine.model.header
        return JSONResponse(
            {
                "modified_at": rfc3339(self._engine.model.modified_at),
                "details": self._details(),
                "model_info": {
                    **{key: value for key, value in header.metadata.items() if not key.endswith(".chat_template")},
                    "general.parameter_count": header.parameter_count,
                },
                "template": header.chat_template,
                "parameters": f"num_ctx {self._engine.ctx_tokens}",
                "capabilities": ["completion"],
            }
        )

    async def tags(self, _: Request) -> Response:
        modified_at = rfc3339(self._engine.model.modified_at)
        return JSONResponse({"models": [{**self._identity(), "modified_at": modified_at}]})

    async def ps(self, _: Request) -> Response:
        """Tell of the loaded model; `size` is the file's, without the context's memory."""
        return JSONResponse(
            {
                "models": [
                    {
                        **self._identity(),
                        "expires_at": rfc3339(NEVER_EXPIRES),
                        "size_vram": 0,
                        "context_length": self._engine.ctx_tokens,
                    }
                ]
            }
        )

    def _answer(self, body: ChatRequest | GenerateRequest, say: Say) -> Answer | Response:
        self._check_name(body.model)
        ask = body.ask()
        if ask is None:
            return JSONResponse({**envelope(body.model), **say(""), "done": True, "done_reason": "load"})
        return Answer(self._line, ask, model=body.model, say=say, streams=body.streams)

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            raise ModelUnknown(name)

    def _identity(self) -> dict[str, Any]:
        model = self._engine.model
        return {
            "name": self._model_name,
            "model": self._model_name,
            "size": model.size_bytes,
            "digest": model.sha256,
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        header = self._engine.model.header
        return {
            "parent_model": "",
            "format": "gguf",
            "family": header.architecture,
            "families": [header.architecture],
            "parameter_size": f"{header.parameter_count / 1e6:.2f}M",
            "quantization_level": header.quantization,
        }


def _say_message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _say_response(text: str) -> dict[str, Any]:
    return {"response": text}


async def _body(request: Request, kind: type[_Body]) -> _Body:
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return msgspec.json.decode(await _bounded_bytes(request), type=kind)
    except TimeoutError as error:
        raise HTTPException(408, "the request took too long to arrive") from error
    except ClientDisconnect as error:
        raise AskRefused("the client left before its request was complete") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AskRefused(f"invalid request: {error}") from error


async def _bounded_bytes(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413, f"the request is larger than {BODY_BYTES_MAX} bytes")
    return bytes(body)


async def _alive(_: Request) -> Response:
    return PlainTextResponse("Ollama is running")


async def _version(_: Request) -> Response:
    return JSONResponse({"version": VERSION})


async def _tell_error(_: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, EmbeddedError) else EmbeddedError.status
    return JSONResponse({"error": str(error)}, status_code=status)


async def _tell_http_error(_: Request, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    return JSONResponse({"error": detail}, status_code=status)
