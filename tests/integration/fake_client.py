"""How a test speaks to the fake Ollama."""

from typing import Any

import httpx

MODEL = "fake:1b"


def ask(text: str, **more: Any) -> dict[str, Any]:
    """Make a request to /api/chat."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": False, **more}


async def say(http: httpx.AsyncClient, text: str, **more: Any) -> httpx.Response:
    """Send one user message."""
    return await http.post("/api/chat", json=ask(text, **more))
