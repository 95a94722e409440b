"""What Ollama is asked, as the body of a request to /api/chat."""

from typing import Any

import msgspec

from millhand.config import Model
from millhand.tasks.task import Message, Prompt

RETRY_TEMPERATURE_STEP = 0.2  # a repeated question at temperature 0 would get the same useless answer


class Requests:
    """Spells prompts for one model. Instructions and schema are encoded anew only when they are other ones."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._same: dict[str, Any] = {
            "model": model.name,
            "stream": False,
            "truncate": False,  # true: a long prompt loses its beginning without a word
            "shift": False,
        }
        if model.keep_alive:
            self._same["keep_alive"] = model.keep_alive
        self._prompt: Prompt | None = None  # the one that these are of:
        self._system = self._schema = msgspec.Raw()

    def body(self, prompt: Prompt, attempt: int) -> bytes:
        """Return the body that asks so for the given time, from 1."""
        last, self._prompt = self._prompt, prompt
        if last is None or last.system is not prompt.system or last.schema is not prompt.schema:
            self._system = msgspec.Raw(msgspec.json.encode(Message("system", prompt.system)))
            self._schema = msgspec.Raw(msgspec.json.encode(prompt.schema))
        model = self._model
        return msgspec.json.encode(
            {
                **self._same,
                "messages": (self._system, Message("user", prompt.user), *prompt.turns),
                "format": self._schema,
                "options": {
                    "num_ctx": model.num_ctx,
                    "num_predict": model.num_predict,  # a grammar can loop to the end of the context
                    "temperature": model.temperature + RETRY_TEMPERATURE_STEP * (attempt - 1),
                    "seed": model.seed + attempt - 1,
                },
            }
        )
