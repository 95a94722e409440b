"""Ollama's native API, from the side that asks."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from typing import cast

import httpx
import msgspec

from millhand import __version__
from millhand.address import model_authorization
from millhand.config import Model
from millhand.errors import BadAnswer, Malformed, ModelAway, Reasoned, clip
from millhand.model.answer import Answer
from millhand.model.context import tokens_told, too_long_detail
from millhand.model.failures import Seen, failure, seen_in
from millhand.model.reply import answer_in
from millhand.model.request import Requests
from millhand.model.retry_after import retry_after_s
from millhand.model.wire import Wire
from millhand.tasks.task import Prompt

CONNECT_TIMEOUT_S = 5.0
LISTING_TIMEOUT_S = 10.0
USER_AGENT = f"millhand/{__version__}"
SAID_CHARS_MAX = 250  # of the server's own words, so that ours stand beside them in the detail


class _Tag(msgspec.Struct):
    name: str
    digest: str = ""


class _Tags(msgspec.Struct):
    models: list[_Tag] = []


class OllamaModel:
    """One model at one Ollama server. Create it inside the process and event loop that use it."""

    def __init__(self, model: Model, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._model = model
        url = httpx.URL(model.url)
        self._transport = transport or Wire(url, model.concurrency + 2, min(CONNECT_TIMEOUT_S, model.timeout_s))
        base = url.raw_path.rstrip(b"/")
        self._chat_url, self._tags_url = (url.copy_with(raw_path=base + path) for path in (b"/api/chat", b"/api/tags"))
        headers = {
            "Accept-Encoding": "identity",  # so that the byte cap counts what is decoded
            "User-Agent": USER_AGENT,
            **model_authorization(model),
        }
        self._headers = httpx.Request("GET", url, headers=headers).headers.raw  # with the host
        self._requests = Requests(model)

    async def generate(self, prompt: Prompt, attempt: int = 1) -> Answer:
        """Ask once, within `timeout_s` in all.

        Raises ModelAway if the model cannot be asked now, Malformed if it refuses this prompt for good (TooLong if for
        its length), BadAnswer if the answer is incomplete, broken, too long or too late.
        """
        started = time.monotonic()
        status, headers, body = await self._ask("POST", self._chat_url, self._requests.body(prompt, attempt))
        if status != httpx.codes.OK:
            raise self._refusal(status, headers, body)
        return answer_in(body, self._model, time.monotonic() - started)

    async def probe(self, prompt: Prompt) -> str:
        """Find out whether the model is back, and return its digest: it must be listed, and say something.

        What it says does not matter, nor that it refuses this prompt. Raises ModelAway, or a BadAnswer that strikes.
        """
        digest = await self.digest()
        try:
            await self.generate(prompt)
        except BadAnswer as error:
            if error.strikes:
                raise
        except Malformed:
            pass
        return digest

    async def digest(self) -> str:
        """Return the digest of the model's weights. Raises ModelAway if the server or the model is not there.

        No event can be the cause of that: it is never `lost`.
        """
        try:
            async with asyncio.timeout(LISTING_TIMEOUT_S):
                status, headers, body = await self._ask("GET", self._tags_url)
            if status != httpx.codes.OK:
                raise self._refusal(status, headers, body)
            tags = msgspec.json.decode(body, type=_Tags)
        except TimeoutError:
            raise ModelAway("model_unreachable", f"no answer within {LISTING_TIMEOUT_S:g} s") from None
        except ModelAway as away:
            away.lost = False
            raise
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
        await self._transport.aclose()

    async def _ask(self, method: str, url: httpx.URL, content: bytes = b"") -> tuple[int, httpx.Headers, bytes]:
        """Send a request and read the whole reply, bounded in time and bytes."""
        headers = [*self._headers, (b"Content-Length", b"%d" % len(content))] if content else self._headers
        request = httpx.Request(method, url, headers=headers, stream=httpx.ByteStream(content))
        try:
            async with asyncio.timeout(self._model.timeout_s):
                reply = await self._transport.handle_async_request(request)
                return reply.status_code, reply.headers, await self._body(reply)
        except (TimeoutError, httpx.TransportError) as error:
            seen = _seen(error)
            if seen is Seen.TIMEOUT:
                raise failure(seen, f"no complete answer within {self._model.timeout_s:g} s") from error
            raise failure(seen, f"{self._model.url}: {clip(str(error), SAID_CHARS_MAX) or seen}") from error

    async def _body(self, reply: httpx.Response) -> bytes:
        stream = cast("httpx.AsyncByteStream", reply.stream)
        body = bytearray()
        try:
            encoding = reply.headers.get("content-encoding", "identity")
            if encoding != "identity":
                raise failure(Seen.ENCODED, f"the reply is encoded as {clip(encoding, 40)}, which was not asked for")
            async for chunk in stream:
                body += chunk
                if len(body) > self._model.reply_bytes_max:
                    raise failure(Seen.TOO_MANY_BYTES, f"over model.reply_bytes_max ({self._model.reply_bytes_max})")
        except httpx.RemoteProtocolError as error:
            raise failure(Seen.BROKEN_OFF, f"the reply broke off: {clip(str(error))}") from error
        finally:
            await stream.aclose()
        return bytes(body)

    def _refusal(self, status: int, headers: httpx.Headers, body: bytes) -> Reasoned:
        said, in_json = _error_text(body)
        seen = seen_in(status, said, in_json=in_json)
        detail = f"HTTP {status} from {self._model.url}: {said}"
        if seen is Seen.MODEL_MISSING:
            return self._missing()
        if seen is Seen.BUSY:
            return failure(seen, detail, wait_s=retry_after_s(headers.get("retry-after"), headers.get("date")))
        if seen is Seen.TOO_LONG:
            tokens, room = tokens_told(said)
            detail = f"{too_long_detail(str(tokens or 'more'), self._model)}; {detail}"
            return failure(seen, detail, tokens=tokens, room=room)
        return failure(seen, detail)

    def _missing(self) -> Reasoned:
        name = self._model.name
        detail = f"{self._model.url} has no model {name!r}; get it with: ollama pull {name}"
        return failure(Seen.MODEL_MISSING, detail)


def _seen(error: Exception) -> Seen:
    """Return what an error of the connection shows."""
    match error:
        case httpx.ConnectTimeout():
            return Seen.CONNECT_TIMEOUT
        case httpx.PoolTimeout():
            return Seen.POOL_FULL
        case TimeoutError() | httpx.TimeoutException():
            return Seen.TIMEOUT
        case httpx.ConnectError():
            return _seen_connecting(error)
        case httpx.RemoteProtocolError() if "disconnected" not in str(error):
            return Seen.NO_HTTP
    return Seen.RESET


def _seen_connecting(error: Exception) -> Seen:
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror | UnicodeError) for cause in causes):
        return Seen.UNKNOWN_HOST
    tls = [cause for cause in causes if isinstance(cause, ssl.SSLError)]
    hung_up = any(isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError) for cause in tls)
    return Seen.NO_TLS if tls and not hung_up else Seen.UNREACHABLE


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _error_text(body: bytes) -> tuple[str, bool]:
    """Return what a refusal says, in one short line, and whether it says so in JSON as Ollama does."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return clip(body[:SAID_CHARS_MAX].decode(errors="replace"), SAID_CHARS_MAX), False
    text = document.get("error", document) if isinstance(document, dict) else document
    return clip(str(text), SAID_CHARS_MAX), isinstance(document, dict) and "error" in document
