"""Asks the model's server about itself, and about the model."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from millhand.address import model_authorization
from millhand.errors import Unusable
from millhand.stream import COMMAND_TIMEOUT_S
from millhand_fleet.doctor.documents import NoDocument, document
from millhand_fleet.doctor.facts import Loaded, ModelFacts
from millhand_fleet.doctor.parallelism import CALLS, measure
from millhand_fleet.doctor.setup import Setup
from millhand_fleet.embedded.preflight import EmbeddedUnavailable, require_model_server

ANSWER_S = 5.0


async def ask_model(setup: Setup, *, measured: bool) -> ModelFacts:
    """Return what there is to know; a server that does not answer is a fact too."""
    config, model = setup.config, setup.config.model
    facts = ModelFacts(
        url=setup.model_url,
        name=model.name,
        is_embedded=setup.is_model_embedded,
        num_ctx=model.num_ctx,
        keep_alive=model.keep_alive,
        in_flight_max=model.in_flight_max,
        timeout_s=model.timeout_s,
        drain_s=config.fleet.drain_s,
        lease_s=config.delivery.lease_s,
        redis_timeout_s=COMMAND_TIMEOUT_S,
        unmeasured=f"it costs {CALLS + 2} short calls, beside the fleet's gate",
    )
    if not facts.url:
        return msgspec.structs.replace(facts, is_asleep=True, fault=_fault())
    try:
        facts = await _look(facts, model_authorization(model))
    except (NoDocument, Unusable) as error:
        return msgspec.structs.replace(facts, error=str(error))
    return await _measured(facts, setup) if measured and facts.digest is not None else facts


async def _look(facts: ModelFacts, login: Mapping[str, str]) -> ModelFacts:
    tags = _models(await document(facts.url, "/api/tags", timeout_s=ANSWER_S, login=login))
    names = {facts.name, f"{facts.name}:latest"}
    digest = next((str(tag.get("digest", "")) for tag in tags if tag.get("name") in names), None)
    in_memory = await _in_memory(facts.url, login)
    loaded = next((row for row in in_memory if row.get("name") in names), None)
    return msgspec.structs.replace(
        facts,
        version=await _version(facts.url, login),
        listed=tuple(str(tag.get("name")) for tag in tags),
        digest=digest,
        loaded=None if loaded is None else _loaded(loaded),
        others_loaded=tuple(str(row.get("name")) for row in in_memory if row is not loaded),
    )


async def _version(url: str, login: Mapping[str, str]) -> str:
    try:
        return str((await document(url, "/api/version", timeout_s=ANSWER_S, login=login)).get("version", ""))
    except NoDocument as error:
        if error.status is None:
            raise
        return ""


async def _in_memory(url: str, login: Mapping[str, str]) -> list[dict[str, Any]]:
    try:
        return _models(await document(url, "/api/ps", timeout_s=ANSWER_S, login=login))
    except NoDocument as error:
        if error.status is None:
            raise
        return []


def _models(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = found.get("models")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _loaded(row: dict[str, Any]) -> Loaded:
    length, size, vram = row.get("context_length"), row.get("size", 0), row.get("size_vram", 0)
    return Loaded(
        size=size if isinstance(size, int) else 0,
        size_vram=vram if isinstance(vram, int) else 0,
        context_length=length if isinstance(length, int) and length else None,
        expires_s=_expires_s(row.get("expires_at")),
    )


def _expires_s(text: Any) -> float | None:
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return None
    return (moment - datetime.now(UTC)).total_seconds() if moment.tzinfo else None


async def _measured(facts: ModelFacts, setup: Setup) -> ModelFacts:
    if setup.config.model.rate_per_s < math.inf:
        return msgspec.structs.replace(facts, unmeasured="the calls would break model.rate_per_s")
    try:
        return msgspec.structs.replace(facts, parallel=await measure(facts.url, setup.config.model))
    except NoDocument as error:
        return msgspec.structs.replace(facts, unmeasured=f"a call failed: {error}")


def _fault() -> tuple[str, str] | None:
    try:
        require_model_server()
    except EmbeddedUnavailable as error:
        return error.fault, error.remedy
    return None
