"""Ollama's requests as they come over the wire, and the asks they become.

Not done, and said here because a client may expect it: shifting the context when a reply fills it (the reply ends with
`length`), unloading by `keep_alive`, thinking, `suffix`, `template` and `context`, which are accepted and ignored.
Images, tools and `raw` are refused. `num_ctx` bounds the prompt alone, and never beyond the context of a slot. Of a
prompt that is too long only whole messages are dropped; the system's and the last one stay.
"""

from typing import Annotated, Any, Literal

import msgspec

from millhand_fleet.embedded.engine import Ask
from millhand_fleet.embedded.errors import AskRefused
from millhand_fleet.embedded.grammar import ANY_OBJECT

MESSAGES_MAX = 256
STOPS_MAX = 16
STOP_CHARS_MAX = 256

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Whole = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Stop = Annotated[str, msgspec.Meta(max_length=STOP_CHARS_MAX)]

_SEEDS = 2**32 - 1  # llama.cpp's own last seed means "any"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options that are honoured, with Ollama's defaults; others are ignored, as Ollama does."""

    num_ctx: Count | None = None
    num_predict: Whole | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    seed: int | None = None
    top_k: Whole | None = None
    top_p: Fraction | None = None
    min_p: Fraction | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    stop: Annotated[list[Stop], msgspec.Meta(max_length=STOPS_MAX)] | None = None

    def sampling(self) -> dict[str, float | int]:
        """Give llama.cpp's sampling parameters; a seed that is negative or missing means any."""
        chosen: dict[str, float | int] = {
            "temperature": _or(self.temperature, 0.8),
            "top_k": _or(self.top_k, 40),
            "top_p": _or(self.top_p, 0.9),
            "min_p": _or(self.min_p, 0.0),
            "repeat_penalty": _or(self.repeat_penalty, 1.1),
        }
        if self.seed is not None and self.seed >= 0:
            chosen["seed"] = self.seed % _SEEDS
        return chosen


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str = ""
    images: list[Any] | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and generate requests share."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    format: dict[str, Any] | str | None = None
    options: Options | None = None
    stream: bool | None = None
    truncate: bool | None = None
    shift: bool | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None

    @property
    def streams(self) -> bool:
        """Whether the reply comes in lines, as it does unless told otherwise."""
        return self.stream is not False

    def ask_of(self, messages: list[Message]) -> Ask:
        """Build the ask that these messages become under this request's options."""
        options = self.options or Options()
        unlimited = options.num_predict is None or options.num_predict <= 0
        return Ask(
            messages=tuple({"role": message.role, "content": message.content} for message in messages),
            schema=self._schema(),
            sampling=options.sampling(),
            stop=tuple(text for text in options.stop or () if text),
            reply_tokens_max=None if unlimited else options.num_predict,
            prompt_tokens_max=options.num_ctx,
            truncate=self.truncate is not False,
        )

    def _schema(self) -> dict[str, Any] | None:
        if isinstance(self.format, dict):
            return self.format
        if self.format == "json":
            return ANY_OBJECT
        if self.format:
            raise AskRefused(f'invalid format: "{self.format[:40]}"; expected "json" or a valid JSON Schema object')
        return None


class ChatRequest(Request, frozen=True, kw_only=True):
    """The body of /api/chat."""

    messages: Annotated[list[Message], msgspec.Meta(max_length=MESSAGES_MAX)] | None = None
    tools: list[Any] | None = None

    def ask(self) -> Ask | None:
        """Build the ask, or none if there are no messages: the client only wants the model loaded."""
        if self.tools:
            raise AskRefused(f"{self.model} does not support tools")
        if any(message.images for message in self.messages or ()):
            raise AskRefused(f"{self.model} does not support images")
        return self.ask_of(self.messages) if self.messages else None


class GenerateRequest(Request, frozen=True, kw_only=True):
    """The body of /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None

    def ask(self) -> Ask | None:
        """Build the ask, or none if there is no prompt: the client only wants the model loaded."""
        if self.raw:
            raise AskRefused("raw prompts are not supported")
        if self.images:
            raise AskRefused(f"{self.model} does not support images")
        if not self.prompt:
            return None
        system = [Message(role="system", content=self.system)] if self.system else []
        return self.ask_of([*system, Message(role="user", content=self.prompt)])


class ShowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /api/show; `name` is what older clients send."""

    model: str | None = None
    name: str | None = None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
