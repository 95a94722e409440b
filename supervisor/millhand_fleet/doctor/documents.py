"""JSON documents over HTTP, for the doctor: one request, bounded in time and bytes, by no proxy."""

import asyncio
import ssl
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import msgspec

from millhand.errors import clip

BYTES_MAX = 4 << 20


class NoDocument(Exception):
    """There is none; the message says why, and `status` what the server said, if it said anything."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


async def document(
    url: str,
    path: str,
    *,
    timeout_s: float,
    socket: Path | None = None,
    body: dict[str, Any] | None = None,
    login: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Ask for a JSON object, with a body by POST, and a header that lets us in. Raises NoDocument, whatever happens."""
    transport = httpx.AsyncHTTPTransport(verify=_tls(), uds=str(socket) if socket else None, trust_env=False)
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(
                transport=transport, base_url=url, timeout=timeout_s, trust_env=False,
                headers={"Accept-Encoding": "identity", **(login or {})},
            ) as client,
            client.stream("POST" if body is not None else "GET", path, json=body) as reply,
        ):  # fmt: skip
            raw = bytearray()
            async for chunk in reply.aiter_raw():
                raw += chunk
                if len(raw) > BYTES_MAX:
                    raise NoDocument(f"{path} is longer than {BYTES_MAX} bytes")
            return _decoded(path, reply.status_code, bytes(raw))
    except TimeoutError:
        raise NoDocument(f"no answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
        raise NoDocument(clip(str(error)) or type(error).__name__) from error


@cache
def _tls() -> ssl.SSLContext:
    """Make it once: it takes longer than a request."""
    return httpx.create_ssl_context(trust_env=False)


def _decoded(path: str, status: int, raw: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    if status != httpx.codes.OK:
        said = found.get("error") if isinstance(found, dict) else None
        raise NoDocument(f"HTTP {status} from {path}" + (f": {clip(str(said))}" if said else ""), status)
    if not isinstance(found, dict):
        raise NoDocument(f"{path} is no JSON object", status)
    return found
