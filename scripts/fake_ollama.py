"""A fake Ollama that does as it is told, for tests and benchmarks.

It speaks Ollama's API over raw sockets on loopback: half bodies, drips and headers that lie are what it is for. What
it answers follows from the user's text and the schema asked for (`instance`). Orders (`Script` lists them) come in the
text, `[[fake status=503 retry_after=5 times=2]]` (a bare name is true, the first order counts), from Python (`script`,
`outage`), or over HTTP: `POST /fake/script`, `POST /fake/release`, `GET /fake/calls?last=100`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import math
import re
import threading
import time
import zlib
from collections import Counter, deque
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self, cast

import msgspec
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HOST = "127.0.0.1"
CONNECTIONS_MAX = 1_000
REQUEST_BYTES_MAX = 1 << 20
CALLS_KEPT_MAX = 20_000  # in the journal; as many texts are remembered for `times`
PADDING_BYTES_MAX = 256 << 20  # also what the gzip bomb becomes when opened
HOLD_S_MAX = 300.0
WAIT_S = 10.0
NDJSON = "application/x-ndjson"
TOKEN_CHARS = 4
CONTEXT_TOKENS = 4096  # Ollama's own default for num_ctx
SCHEMA_DEPTH_MAX = 8  # deeper down optional parts are left out, so that recursive schemas end
WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grain", "hazel", "iron", "kiln", "loam", "oak")

DurationS = Annotated[float, msgspec.Meta(ge=0, le=HOLD_S_MAX)]
PaddingBytes = Annotated[int, msgspec.Meta(ge=0, le=PADDING_BYTES_MAX)]


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with a call; the defaults are an honest Ollama."""

    times: Annotated[int, msgspec.Meta(ge=1)] | None = None  # only the first N calls with the same text
    delay: DurationS = 0.0  # on top of the latency
    hold: bool = False  # answers only when released
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    retry_after: str | int | None = None  # any string, a date or garbage too
    drop: bool = False  # closes the connection without a byte
    redirect: bool = False
    # what the model says
    reply: Any = None  # a string as it is, anything else as JSON
    garbage: bool = False  # no JSON
    wrong_schema: bool = False
    empty: bool = False
    length: bool = False  # cut in the middle
    not_done: bool = False
    error_in_200: bool = False
    # how it travels
    headers: dict[str, str] = {}  # may lie: {"Content-Length": "9"}, {"Content-Encoding": "gzip"}, {"Date": "…"}
    half_body: bool = False  # no Content-Length, and the connection closes in the middle
    drip: DurationS = 0.0  # between one byte and the next; a long one is a stall
    huge: PaddingBytes = 0  # whitespace before the JSON
    gzip_bomb: bool = False

    @property
    def refuses(self) -> bool:
        """Whether calls are answered at the door, without a slot and without latency."""
        return self.status != HTTPStatus.OK or self.drop or self.redirect


class Call(msgspec.Struct):
    """A model call as the server saw it, in `time.monotonic()` seconds, which all processes of a Linux host share.

    `status` is the HTTP status sent, or one of open, dropped (by order) and disconnected (the client left first).
    """

    arrival_s: float
    path: str
    status: int | str = "open"
    text: str = ""  # the user's last message
    request: dict[str, Any] = {}
    started_s: float | None = None  # when it got a slot
    end_s: float | None = None


class FakeOllama:
    """A fake server: `async with FakeOllama() as fake`, or from synchronous code `with FakeOllama().in_thread()`.

    May be entered again in the same loop; port and journal stay. `in_flight` counts queued calls too, and
    `concurrency_max` is its peak; `running` calls have a slot, `held` ones wait for `release`; `probes` counts by path
    the requests that were no model calls; `refused` is how many of both were turned away.
    """

    def __init__(self, *, model: str = "fake:1b", port: int = 0, latency_s: float = 0.0, slots: int = 4) -> None:
        self.model, self.port, self.latency_s = model, port, latency_s
        self.calls: deque[Call] = deque(maxlen=CALLS_KEPT_MAX)
        self.probes: Counter[str] = Counter()
        self.arrived = self.refused = self.in_flight = self.concurrency_max = self.running = self.held = 0
        self.peers: set[_Connection] = set()
        self.changed, self._released = _Bell(), _Bell()
        self._slots = asyncio.Semaphore(slots)
        self._default = Script()
        self._tally: Counter[str] = Counter()

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        return f"http://{HOST}:{self.port}"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(lambda: _Connection(self), HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Vanish as a killed server does: connections are reset, open calls count as disconnected."""
        self._server.close()
        for peer in list(self.peers):
            peer.transport.abort()
        await self.until(lambda: not self.peers and not self.in_flight)

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Serve from a thread; `script`, `outage`, `release` and `block_until` may be called from the caller's."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.ExitStack() as stack:
            loop = runner.get_loop()
            thread = threading.Thread(target=loop.run_forever, name="fake-ollama", daemon=True)
            thread.start()
            stack.callback(thread.join, WAIT_S)
            stack.callback(loop.call_soon_threadsafe, loop.stop)
            asyncio.run_coroutine_threadsafe(self.__aenter__(), loop).result(WAIT_S)
            stack.callback(lambda: asyncio.run_coroutine_threadsafe(self.__aexit__(), loop).result(WAIT_S))
            yield self

    def script(self, default: Mapping[str, object] | None = None) -> None:
        """Do so with every call whose text orders nothing; without a script be honest again.

        A default that refuses is an outage: it holds on every /api path, whatever the text says.
        """
        self._default = msgspec.convert(dict(default or {}), Script)
        self._tally.pop("", None)

    def outage(self, status: int = 503, retry_after: int | str | None = None) -> None:
        """Refuse everything until `script` says otherwise."""
        self.script({"status": status, "retry_after": retry_after})

    def release(self) -> None:
        """Let those calls go on that are held now."""
        self._loop.call_soon_threadsafe(self._released.ring)

    async def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Wait for a fact about the calls; raises TimeoutError that says what was true instead."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self.changed.wait()
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s} s: {self._counts()}") from None

    async def seen(self, count: int, timeout_s: float = WAIT_S) -> None:
        """Wait until so many model calls have arrived."""
        await self.until(lambda: self.arrived >= count, timeout_s)

    def block_until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Do as `until`, outside the server's thread."""
        asyncio.run_coroutine_threadsafe(self.until(condition, timeout_s), self._loop).result(timeout_s + WAIT_S)

    async def serve(self, request: _Request, transport: asyncio.Transport) -> bool:
        """Answer one request; tells whether the connection must close then."""
        if request.path in {"/api/chat", "/api/generate"}:
            return await self._serve_call(request, transport)
        outage = self._default.refuses and request.path.startswith("/api/")
        self.refused += outage
        reply = _refusal(self._default) if outage else self._probe(request)
        pieces, must_close = _wire(reply, self._default if outage else Script())
        transport.write(b"".join(pieces))
        return must_close

    async def _serve_call(self, request: _Request, transport: asyncio.Transport) -> bool:
        call, status = Call(time.monotonic(), request.path), cast("int | str", "disconnected")
        self.calls.append(call)
        self.arrived += 1
        self.in_flight += 1
        self.concurrency_max = max(self.concurrency_max, self.in_flight)
        self.changed.ring()
        try:
            reply, script = await self._perform(call, request.body)
            pieces, must_close = _wire(reply, script)
            for piece in pieces[:-1]:
                transport.write(piece)
                await asyncio.sleep(script.drip)
            status = "dropped" if script.drop else reply.status
        finally:
            call.end_s, call.status = time.monotonic(), status
            self.in_flight -= 1
            self.changed.ring()
        transport.write(pieces[-1])  # after the journal, so that whoever has the reply finds the call finished
        return must_close

    async def _perform(self, call: Call, body: bytes) -> tuple[_Reply, Script]:
        try:
            call.request = msgspec.json.decode(body, type=dict[str, Any])
            ask = msgspec.convert(call.request, _Ask)
            call.text = ask.prompt or next((m.content for m in reversed(ask.messages) if m.role == "user"), "")
            script = self._script_for(call.text)
            if script.refuses:
                self.refused += 1
                await self._linger(call, script, script.delay)
                return _refusal(script), script
            if ask.model != self.model:
                return _error(404, f"model '{ask.model}' not found"), script
            async with self._slots:
                await self._linger(call, script, script.delay + self.latency_s)
            return _answer(call, ask, script), script
        except (ValueError, RecursionError) as error:
            return _error(400, str(error)), Script()

    def _script_for(self, text: str) -> Script:
        ordered = None if self._default.refuses else parse_script(text)
        for key, script in ((text, ordered), ("", self._default)):
            if script is None or (script.times is not None and self._tally[key] >= script.times):
                continue
            if script.times is not None:
                self._tally[key] += 1
            if len(self._tally) > CALLS_KEPT_MAX:
                del self._tally[next(iter(self._tally))]
            return script
        return Script()

    async def _linger(self, call: Call, script: Script, pause_s: float) -> None:
        call.started_s = time.monotonic()
        self.running += 1
        self.held += script.hold
        self.changed.ring()
        try:
            if script.hold:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._released.wait(), HOLD_S_MAX)
            if pause_s:
                await asyncio.sleep(pause_s)
        finally:
            self.running -= 1
            self.held -= script.hold

    def _counts(self) -> dict[str, Any]:
        names = ("arrived", "in_flight", "concurrency_max", "running", "held", "probes")
        return {name: getattr(self, name) for name in names}

    def _probe(self, request: _Request) -> _Reply:
        try:
            found = self._control(request) if request.path.startswith("/fake/") else self._look_up(request)
        except ValueError as error:
            return _error(400, str(error))
        return _error(404, "not found") if found is None else _json(found)

    def _control(self, request: _Request) -> dict[str, Any]:
        if request.path == "/fake/script":
            self.script(msgspec.json.decode(request.body, type=dict[str, Any]))
        elif request.path == "/fake/release":
            self.release()
        last = int(request.query.removeprefix("last=") or CALLS_KEPT_MAX)
        return self._counts() | {"calls": list(self.calls)[-last:]}

    def _look_up(self, request: _Request) -> dict[str, Any] | None:
        now = datetime.now(UTC)
        card = {"name": self.model, "model": self.model, "digest": _digest(self.model).hex(), "size": 1 << 30}
        card |= {"modified_at": now.isoformat(), "details": {"family": "fake", "parameter_size": "1B"}}
        loaded = {"expires_at": (now + timedelta(minutes=5)).isoformat(), "size_vram": 0}
        info = {"general.architecture": "fake", "fake.context_length": CONTEXT_TOKENS}
        found: dict[str, dict[str, Any]] = {
            "/api/version": {"version": "0.12.6"},
            "/api/tags": {"models": [card]},
            "/api/ps": {"models": [card | loaded | {"context_length": CONTEXT_TOKENS}]},
            "/api/show": card | {"template": "{{ .Prompt }}", "model_info": info, "capabilities": ["completion"]},
        }
        self.probes[request.path if request.path in found else "unknown"] += 1
        if request.path == "/api/show" and msgspec.json.decode(request.body, type=_Ask).model != self.model:
            return None
        return found.get(request.path)


class _Bell:
    """Wakes all who wait now; who comes later waits for the next stroke."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


class _Message(msgspec.Struct):
    role: str
    content: str = ""


class _Options(msgspec.Struct):
    num_ctx: int = CONTEXT_TOKENS
    num_predict: int = -1


class _Ask(msgspec.Struct):
    model: str
    messages: list[_Message] = []
    prompt: str = ""
    stream: bool = True
    format: dict[str, Any] | str | None = None
    options: _Options = msgspec.field(default_factory=_Options)
    truncate: bool = True


class _Request(NamedTuple):
    path: str
    query: str
    body: bytes


class _Reply(NamedTuple):
    status: int
    body: bytes
    kind: str = "application/json"


class _Connection(asyncio.Protocol):
    """One client, its requests one after the other; when the client leaves, the work for it is cancelled."""

    def __init__(self, fake: FakeOllama) -> None:
        self._fake = fake
        self._inbox = bytearray()
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._fake.peers.add(self)
        if len(self._fake.peers) > CONNECTIONS_MAX:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        self._advance()

    def connection_lost(self, _: Exception | None) -> None:
        self._fake.peers.discard(self)
        self._fake.changed.ring()
        if self._work is not None:
            self._work.cancel()

    def _advance(self) -> None:
        try:
            request = None if self._work else _take_request(self._inbox)
        except ValueError:
            self.transport.abort()
            return
        if request is not None:
            self._work = asyncio.get_running_loop().create_task(self._answer(request))
        elif len(self._inbox) > REQUEST_BYTES_MAX:
            self.transport.abort()

    async def _answer(self, request: _Request) -> None:
        must_close = await self._fake.serve(request, self.transport)
        self._work = None
        if must_close:
            self.transport.close()
        else:
            self._advance()


def _take_request(inbox: bytearray) -> _Request | None:
    end = inbox.find(b"\r\n\r\n")
    head = bytes(inbox[: max(end, 0)])
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    total = end + 4 + (int(length[1]) if length else 0)
    if end < 0 or len(inbox) < total:
        return None
    _, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    path, _, query = target.partition("?")
    request = _Request(path, query, bytes(inbox[end + 4 : total]))
    del inbox[:total]
    return request


def _json(value: object, status: int = 200) -> _Reply:
    return _Reply(status, msgspec.json.encode(value))


def _error(status: int, message: str) -> _Reply:
    return _json({"error": message}, status)


def _refusal(script: Script) -> _Reply:
    return _error(307 if script.redirect else script.status, "server busy, please try again")


def _wire(reply: _Reply, script: Script) -> tuple[list[bytes], bool]:
    """Cut the reply into the pieces to send, mangled as ordered; tells too whether the connection closes after them."""
    if script.drop:
        return [b""], True
    headers = {"Content-Type": reply.kind, "Date": formatdate(usegmt=True)}
    body = b" " * script.huge + reply.body
    if script.gzip_bomb:
        headers["Content-Encoding"], body = "gzip", _gzip_bomb()
    if script.redirect:
        headers["Location"] = "/elsewhere"
    if script.retry_after is not None:
        headers["Retry-After"] = str(script.retry_after)
    if script.half_body:
        headers["Connection"], body = "close", body[: len(body) // 2]
    elif reply.kind == NDJSON:
        headers["Transfer-Encoding"] = "chunked"
        body = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in [*body.splitlines(keepends=True), b""])
    else:
        headers["Content-Length"] = str(len(body))
    lines = [f"{name}: {value}" for name, value in (headers | script.headers).items()]
    head = "\r\n".join([f"HTTP/1.1 {reply.status} Fake", *lines, "\r\n"]).encode()
    pieces = [head, *(bytes([byte]) for byte in body)] if script.drip else [head + body]
    return pieces, script.half_body or "Content-Length" in script.headers


@functools.cache
def _gzip_bomb() -> bytes:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    spaces = b" " * (1 << 20)
    return b"".join(packer.compress(spaces) for _ in range(PADDING_BYTES_MAX >> 20)) + packer.flush()


def _answer(call: Call, ask: _Ask, script: Script) -> _Reply:
    prompt_tokens = 1 + sum(len(m.content) for m in ask.messages) // TOKEN_CHARS + len(ask.prompt) // TOKEN_CHARS
    if prompt_tokens > ask.options.num_ctx and not ask.truncate:
        return _error(400, "the input length exceeds the context length")
    content = _content(call.text, ask, script)
    tokens = 1 + len(content) // TOKEN_CHARS
    tokens_max = tokens // 2 if script.length else ask.options.num_predict
    cut = 0 <= tokens_max < tokens
    content = content[: tokens_max * TOKEN_CHARS] if cut else content
    now_s = time.monotonic()
    work_ns = int((now_s - (call.started_s or now_s)) * 1e9)
    final = {"done": True, "done_reason": "length" if cut else "stop", "load_duration": 0}
    final |= {"total_duration": int((now_s - call.arrival_s) * 1e9)}  # like Ollama's: with the time in the queue
    final |= {"prompt_eval_count": min(prompt_tokens, ask.options.num_ctx), "prompt_eval_duration": work_ns // 5}
    final |= {"eval_count": tokens_max if cut else tokens, "eval_duration": work_ns - work_ns // 5}

    def part(words: str, end: Mapping[str, object]) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": words}} if call.path == "/api/chat" else {"response": words}
        return {"model": ask.model, "created_at": datetime.now(UTC).isoformat(), **said, **end}

    going_on = {"done": False}
    words = re.findall(r"\s*\S+\s*", content) if ask.stream else []
    parts = [part(word, going_on) for word in words]
    parts.append(part("" if ask.stream else content, going_on if script.not_done else final))
    if script.error_in_200:
        parts[-1] = {"error": "the model runner has stopped"}
    lines = b"\n".join(msgspec.json.encode(each) for each in parts)
    return _Reply(200, lines, NDJSON) if ask.stream else _Reply(200, lines)


def _content(text: str, ask: _Ask, script: Script) -> str:
    if script.empty:
        return ""
    if script.garbage:
        return "Sure! Here is your JSON: {"
    if script.wrong_schema:
        return '{"unexpected": [1, 2, 3]}'
    if isinstance(script.reply, str):
        return script.reply
    schema: Mapping[str, Any] = ask.format if isinstance(ask.format, dict) else {"type": "string", "minLength": 20}
    value = instance(schema, text) if script.reply is None else script.reply
    return str(value) if ask.format is None and isinstance(value, str) else msgspec.json.encode(value).decode()


def parse_script(text: str) -> Script | None:
    r"""Read the first `[[fake …]]` in a text; ValueError if it orders what the fake does not know.

    A value is a word, or JSON in full. In a text that travels inside JSON, a quote may be spelled \".
    """
    _, opened, rest = text.partition("[[fake ")
    if not opened:
        return None
    try:
        return _read_orders(rest)
    except ValueError:
        return _read_orders(rest.replace('\\"', '"'))


def _read_orders(text: str) -> Script:
    orders: dict[str, Any] = {}
    while not (text := text.lstrip()).startswith("]]"):
        found = re.match(r"(\w+)(=)?([^\s\]\[\\\"{]+)?", text)
        if found is None:
            raise ValueError(f"no order for the fake: {text[:40]!r}")
        name, value, end = found[1], found[3] or True, found.end()
        if found[2] and not found[3]:
            value, end = json.JSONDecoder().raw_decode(text, end)
        orders[name], text = value, text[end:]
    return msgspec.convert(orders, Script, strict=False)


def _digest(text: str, key: bytes = b"") -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), key=key, digest_size=32).digest()


def instance(schema: Mapping[str, Any], text: str) -> Any:
    """Make a value that the JSON schema accepts; each leaf follows from the text and the leaf's path alone.

    Knows $ref, enum, const, anyOf, oneOf, and the six types with their bounds; refuses `pattern` with ValueError.
    """
    return _Leaf(schema, _digest(text), "").make(schema)


class _Leaf(NamedTuple):
    """A place in the value to be made."""

    root: Mapping[str, Any]
    seed: bytes
    path: str

    def make(self, schema: Mapping[str, Any]) -> Any:
        if "$ref" in schema:
            return self.make(functools.reduce(lambda at, name: at[name], schema["$ref"].split("/")[1:], self.root))
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.one_of(schema["enum"])
        choices = schema.get("anyOf") or schema.get("oneOf")
        if choices and self.is_deep():
            return self.make(next((choice for choice in choices if choice.get("type") == "null"), choices[-1]))
        return self.make(self.one_of(choices)) if choices else self._of_type(schema)

    def _of_type(self, schema: Mapping[str, Any]) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        match self.one_of(kind) if isinstance(kind, list) else kind:
            case "object":
                parts = schema.get("properties", {})
                names = schema.get("required", []) if self.is_deep() else parts
                return {name: self.at(name).make(parts.get(name, {})) for name in names}
            case "array":
                low = schema.get("minItems", 0)
                extra = 0 if self.is_deep() else min(schema.get("maxItems", math.inf) - low, 3)
                return [self.at(i).make(schema.get("items", {})) for i in range(low + self.pick(int(extra) + 1))]
            case "string":
                return self._string(schema)
            case "integer" | "number" as number:
                return self._number(schema, whole=number == "integer")
            case "boolean":
                return self.pick(2) == 1
        return None

    def _string(self, schema: Mapping[str, Any]) -> str:
        if "pattern" in schema:
            raise ValueError("the fake cannot make strings that match a pattern")
        low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        length = max(low + self.pick(int(min(high - low, 40)) + 1), min(int(min(high, 1)), 1))
        words = " ".join(self.at(i).one_of(WORDS) for i in range(length // 4 + 1))  # no word has less than 3 letters
        return words[:length].rstrip().ljust(length, "s")

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> float:
        low, high = (schema.get(f"{end}", schema.get(f"exclusive{end.title()}")) for end in ("minimum", "maximum"))
        low = min(0, high - 100 if high is not None else 0) if low is None else low
        high = low + 100 if high is None else high
        if not whole:
            return float(low + (high - low) * (1 + self.pick(99)) / 100)
        first = math.floor(low) + 1 if "exclusiveMinimum" in schema else math.ceil(low)
        last = math.ceil(high) - 1 if "exclusiveMaximum" in schema else math.floor(high)
        return first + self.pick(last - first + 1)

    def at(self, name: object) -> _Leaf:
        return self._replace(path=f"{self.path}/{name}")

    def pick(self, count: int) -> int:
        return int.from_bytes(_digest(self.path, self.seed)[:8]) % count

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[self.pick(len(choices))]

    def is_deep(self) -> bool:
        return self.path.count("/") > SCHEMA_DEPTH_MAX


async def _run(options: argparse.Namespace) -> None:
    latency_s = options.latency_ms / 1000
    async with FakeOllama(model=options.model, port=options.port, latency_s=latency_s, slots=options.slots) as fake:
        print(json.dumps({"url": fake.url, "model": fake.model}), flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted; the first line of output is JSON with the URL."""
    parser = argparse.ArgumentParser(description="A fake Ollama on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--model", default="fake:1b")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=4, help="calls answered at once; more are queued")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
