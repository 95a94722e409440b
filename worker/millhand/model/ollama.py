"""Ollama's native API, from the side that asks."""

import asyncio
from typing import Any

import httpx
import msgspec

from millhand.config import Model
from millhand.errors import BadAnswer, Malformed, Misconfigured, ModelAway, ModelBusy, clip
from millhand.model.answer import Answer
from millhand.model.retry_after import retry_after_s
from millhand.tasks.task import Prompt

CONNECT_TIMEOUT_S = 5.0
LISTING_TIMEOUT_S = 10.0
RETRY_TEMPERATURE_STEP = 0.2  # a repeated question at temperature 0 would get the same useless answer

REFUSED_FOR_GOOD = frozenset({400, 413, 414, 422, 431})  # something is wrong with this request, and stays so
FORBIDDEN = frozenset({401, 403, 407})
NOT_FOUND = 404
BUSY = frozenset({429, 503})
SERVER_ERROR = 500
GATEWAY = frozenset({502, 504})  # a proxy's word for a server that is away, or that dies of this very request


class _Message(msgspec.Struct, frozen=True):
    content: str = ""


class _Reply(msgspec.Struct):
    """The members of a reply that matter here; Ollama sends more."""

    message: _Message = _Message()
    done: bool = False
    done_reason: str = ""
    error: Any = None
    total_duration: int = 0  # ns
    prompt_eval_count: int = 0
    eval_count: int = 0


class _Tag(msgspec.Struct):
    name: str
    digest: str = ""


class _Tags(msgspec.Struct):
    models: list[_Tag] = []


class OllamaModel:
    """One model at one Ollama server. Create it inside the process and event loop that use it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._client = httpx.AsyncClient(
            base_url=model.url,
            trust_env=False,  # a proxy from the environment would see every event
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},  # so that the byte cap counts what is decoded
            timeout=httpx.Timeout(model.timeout_s, connect=min(CONNECT_TIMEOUT_S, model.timeout_s)),
            limits=httpx.Limits(max_connections=model.concurrency + 2, max_keepalive_connections=model.concurrency + 2),
        )

    async def generate(self, prompt: Prompt, attempt: int = 1) -> Answer:
        """Ask once, within `timeout_s` in all.

        Raises ModelAway if the model cannot be asked now, Malformed if it refuses this prompt for good, BadAnswer if
        the answer is incomplete, broken, too long or too late.
        """
        status, headers, body = await self._exchange("POST", "/api/chat", self._request(prompt, attempt))
        if status != httpx.codes.OK:
            raise self._refusal(status, headers, body)
        return _answer(body)

    async def digest(self) -> str:
        """Return the digest of the model's weights. Raises ModelAway if the server or the model is not there."""
        try:
            async with asyncio.timeout(LISTING_TIMEOUT_S):
                status, headers, body = await self._exchange("GET", "/api/tags", None)
            if status != httpx.codes.OK:
                raise self._refusal(status, headers, body)
            tags = msgspec.json.decode(body, type=_Tags)
        except TimeoutError:
            raise ModelAway("model_unreachable", f"no answer within {LISTING_TIMEOUT_S:g} s") from None
        except (BadAnswer, Malformed) as error:
            raise ModelAway("model_error", f"{self._model.url}/api/tags: {error.detail}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelAway("model_error", f"{self._model.url}/api/tags is not Ollama's: {error}") from error
        wanted = {self._model.name, f"{self._model.name}:latest"}
        for tag in tags.models:
            if tag.name in wanted:
                return tag.digest
        raise self._missing()

    async def close(self) -> None:
        """Close all connections; what is being generated is cancelled by it."""
        await self._client.aclose()

    def _request(self, prompt: Prompt, attempt: int) -> bytes:
        model = self._model
        request: dict[str, Any] = {
            "model": model.name,
            "messages": prompt.messages,
            "format": prompt.schema,
            "stream": False,
            "truncate": False,  # true: a long prompt loses its beginning without a word
            "shift": False,
            "options": {
                "num_ctx": model.num_ctx,
                "num_predict": model.num_predict,  # a grammar can loop to the end of the context
                "temperature": model.temperature + RETRY_TEMPERATURE_STEP * (attempt - 1),
                "seed": model.seed + attempt - 1,
            },
        }
        if model.keep_alive:
            request["keep_alive"] = model.keep_alive
        return msgspec.json.encode(request)

    async def _exchange(self, method: str, path: str, content: bytes | None) -> tuple[int, httpx.Headers, bytes]:
        """Send a request and read the whole reply, bounded in time and bytes."""
        try:
            async with (
                asyncio.timeout(self._model.timeout_s),
                self._client.stream(method, path, content=content) as reply,
            ):
                return reply.status_code, reply.headers, await self._body(reply)
        except TimeoutError:
            raise BadAnswer("timeout", f"no complete answer within {self._model.timeout_s:g} s", strikes=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ModelAway("model_unreachable", f"{self._model.url}: {clip(str(error)) or 'timed out'}") from error
        except httpx.TimeoutException as error:
            raise BadAnswer(
                "timeout", f"no complete answer within {self._model.timeout_s:g} s", strikes=True
            ) from error
        except (httpx.TransportError, RuntimeError, AttributeError) as error:
            # the last two are what the libraries below httpx make of a connection that is reset while they look at it
            detail = f"{self._model.url}: connection lost: {clip(str(error))}"
            raise ModelAway("model_unreachable", detail, lost=True) from error

    async def _body(self, reply: httpx.Response) -> bytes:
        encoding = reply.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise BadAnswer("invalid_answer", f"the reply is encoded as {clip(encoding, 40)}, which was not asked for")
        body = bytearray()
        try:
            async for chunk in reply.aiter_raw():
                body += chunk
                if len(body) > self._model.reply_bytes_max:
                    raise BadAnswer("answer_too_long", f"over model.reply_bytes_max ({self._model.reply_bytes_max})")
        except (httpx.ReadError, httpx.RemoteProtocolError) as error:
            raise BadAnswer("invalid_answer", f"the reply broke off: {clip(str(error))}") from error
        return bytes(body)

    def _refusal(self, status: int, headers: httpx.Headers, body: bytes) -> Exception:
        detail = f"HTTP {status} from {self._model.url}: {_error_text(body)}"
        if status in REFUSED_FOR_GOOD:
            return Malformed("rejected", detail)
        if status == NOT_FOUND:
            return self._missing()
        if status in BUSY:
            wait_s = retry_after_s(headers.get("retry-after"), headers.get("date"))
            return ModelBusy(detail, wait_s)
        if status >= SERVER_ERROR and status not in GATEWAY:
            return BadAnswer("model_error", detail, strikes=True)
        if status in GATEWAY:
            return ModelAway("model_unreachable", detail, lost=True)
        return Misconfigured("model_refuses", detail, lost=status not in FORBIDDEN)

    def _missing(self) -> Misconfigured:
        name = self._model.name
        return Misconfigured(
            "model_missing", f"{self._model.url} has no model {name!r}; get it with: ollama pull {name}"
        )


def _answer(body: bytes) -> Answer:
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer("invalid_answer", f"the reply is not Ollama's: {error}") from error
    if reply.error is not None:
        raise BadAnswer("model_error", f"an error inside a 200: {clip(str(reply.error))}")
    if reply.done and reply.done_reason == "length":
        raise BadAnswer("answer_too_long", f"cut off after {reply.eval_count} tokens: model.num_predict is too small")
    if not reply.done or reply.done_reason != "stop":
        raise BadAnswer("invalid_answer", f"done {reply.done}, done_reason {clip(reply.done_reason, 40)!r}, not stop")
    return Answer(reply.message.content, reply.prompt_eval_count, reply.eval_count, reply.total_duration / 1e9)


def _error_text(body: bytes) -> str:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return clip(body[:400].decode(errors="replace"))
    text = document.get("error", document) if isinstance(document, dict) else document
    return clip(str(text))
