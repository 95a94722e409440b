"""What the fake says of itself and its one model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from scripts.fake.answers import digest
from scripts.fake.model import CONTEXT_TOKENS, Ask
from scripts.fake.wire import error_reply, json_reply

if TYPE_CHECKING:
    from scripts.fake.wire import Reply, Request

LOOK_UPS = frozenset({"/api/version", "/api/tags", "/api/ps", "/api/show"})


def look_up(request: Request, model: str, *, listed: bool, loaded: bool, ctx_tokens: int, gpu_share: float) -> Reply:
    """Answer a look-up; `listed` says whether the model is there at all, `loaded` whether it is in memory.

    It is loaded with a context of `ctx_tokens`, and with `gpu_share` of it on the GPU.
    """
    now = datetime.now(UTC)
    card: dict[str, Any] = {"name": model, "model": model, "digest": digest(model).hex(), "size": 1 << 30}
    card |= {"modified_at": now.isoformat(), "details": {"family": "fake", "parameter_size": "1B"}}
    in_memory = {"expires_at": (now + timedelta(minutes=5)).isoformat(), "size_vram": int(card["size"] * gpu_share)}
    info = {"general.architecture": "fake", "fake.context_length": CONTEXT_TOKENS}
    match request.path:
        case "/api/version":
            return json_reply({"version": "0.12.6"})
        case "/api/tags":
            return json_reply({"models": [card] if listed else []})
        case "/api/ps":
            models = [card | in_memory | {"context_length": ctx_tokens}] if listed and loaded else []
            return json_reply({"models": models})
        case "/api/show":
            if listed and msgspec.json.decode(request.body, type=Ask).model == model:
                more = {"template": "{{ .Prompt }}", "model_info": info, "capabilities": ["completion"]}
                return json_reply(card | more)
            return error_reply(404, "model not found")
    return error_reply(404, "not found")
