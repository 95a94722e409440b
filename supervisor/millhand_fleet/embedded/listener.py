"""The callback that llama.cpp reports to while it works on one call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from millhand_fleet.embedded.errors import AskRefused, EmbeddedError, EngineFailed, EngineStopped, PromptTooLong

Tell = Callable[[str], None]
FinishReason = Literal["stop", "length"]

_CONTEXT_EXCEEDED = "exceed_context_size_error"
_CLIENT_FAULTS = range(400, 500)
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a call: `prompt_tokens` counts those found in the cache too, the durations only the work done."""

    reason: FinishReason
    prompt_tokens: int
    prompt_ns: int
    reply_tokens: int
    reply_ns: int


class Listener:
    """Hears the chunks of one call: tells their text on, keeps the numbers, and returns True to end the call."""

    def __init__(self, tell: Tell, *, prompt_tokens_max: int, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped
        self._tell = tell
        self._prompt_tokens_max = prompt_tokens_max
        self._reason: FinishReason | None = None
        self._totals: dict[str, Any] | None = None
        self._error: Exception | None = None

    def __call__(self, chunk: dict[str, Any]) -> bool:
        """Hear one chunk. An exception would be swallowed by the bindings, and the call go on unheard: keep it."""
        try:
            if self.stopped():
                raise EngineStopped("the call was cancelled")  # noqa: TRY301 - one road for all that ends a call
            self._hear(chunk)
        except Exception as error:  # noqa: BLE001 - raised again by `finish`, in the caller's frame
            self._error = error
        return self._error is not None

    def finish(self) -> Finish:
        """Give the numbers of the call that has returned, or raise what ended it."""
        if self._error is not None:
            raise self._error
        if self._totals is None or self._reason is None:
            raise EngineFailed("llama.cpp ended the call without a result")
        usage, timings = self._totals["usage"], self._totals["timings"]
        return Finish(
            reason=self._reason,
            prompt_tokens=usage["prompt_tokens"],
            prompt_ns=round(timings["prompt_ms"] * _NS_PER_MS),
            reply_tokens=usage["completion_tokens"],
            reply_ns=round(timings["predicted_ms"] * _NS_PER_MS),
        )

    def _hear(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise self._sorted(chunk["error"])
        if "prompt_progress" in chunk:
            self._check_prompt(chunk["prompt_progress"]["total"])
        if "usage" in chunk:
            self._totals = chunk
        for choice in chunk["choices"]:
            self._reason = choice["finish_reason"] or self._reason
            if text := choice["delta"].get("content"):
                self._tell(text)

    def _check_prompt(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self._prompt_tokens_max:
            raise PromptTooLong(prompt_tokens, self._prompt_tokens_max)

    def _sorted(self, error: dict[str, Any]) -> EmbeddedError:
        message = str(error.get("message"))
        if error.get("type") == _CONTEXT_EXCEEDED:
            return PromptTooLong(error["n_prompt_tokens"], min(error["n_ctx"], self._prompt_tokens_max))
        return AskRefused(message) if error.get("code") in _CLIENT_FAULTS else EngineFailed(message)
