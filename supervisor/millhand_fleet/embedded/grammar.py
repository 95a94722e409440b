"""A JSON Schema as a grammar of compact JSON, which the sampler then cannot leave.

xllamacpp's llama.cpp is built with llguidance, whose `x-guidance` key forbids white space between tokens: about a third
fewer tokens from a small model. Two facts shape this module, both seen with xllamacpp 2026.10:

- A schema that llguidance refuses is **not** an error there: the model simply writes freely. So every schema is tried
  once on a prompt of one token with a grammar that begins with a canary; no canary, no constraint, and so a refusal.
- llama.cpp's own converter (`response_format`) is not a fallback: it ignores numeric bounds, and the process did not
  survive `{"type": "array", "minItems": 5, "maxItems": 3}`.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

SCHEMA_BYTES_MAX = 131_072  # 32 answers, each with an enum of 64 long values, are 72,000
CANARY = "~"

ANY_OBJECT: dict[str, Any] = {"type": "object"}

_COMPACT = {"whitespace_flexible": False, "lenient": True}  # lenient: unknown keywords are ignored, as Ollama does
_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_SUBSCHEMA_KEYS = ("items", "additionalProperties")
_SUBSCHEMA_MAP_KEYS = ("properties", "$defs", "definitions")
_SUBSCHEMA_LIST_KEYS = ("anyOf", "oneOf", "allOf", "prefixItems")


def compact_grammar(schema: dict[str, Any]) -> str:
    """Write the grammar of all compact JSON texts that fit `schema`; keys come in the order of `properties`."""
    return f"%llguidance {{}}\nstart: {_json_rule(schema)}"


def canary_request(schema: dict[str, Any]) -> dict[str, Any]:
    """Build the completion request whose reply is `CANARY` if, and only if, llguidance accepts `schema`."""
    grammar = f'%llguidance {{}}\nstart: "{CANARY}" {_json_rule(schema)}'
    return {"prompt": "1", "max_tokens": 1, "temperature": 0, "grammar": grammar}


def schema_key(schema: dict[str, Any]) -> bytes:
    """Give the bytes that tell one schema from another; ValueError if they are more than `SCHEMA_BYTES_MAX`."""
    key = msgspec.json.encode(schema)
    if len(key) > SCHEMA_BYTES_MAX:
        raise ValueError(f"the JSON Schema is larger than {SCHEMA_BYTES_MAX} bytes")
    return key


def explain_refusal(schema: dict[str, Any]) -> str:
    """Name the first common fault of a refused schema, by its place: llguidance itself does not tell."""
    return next(_faults(schema, "#"), "it uses a construct that the grammar compiler does not know")


def _json_rule(schema: dict[str, Any]) -> str:
    return "%json " + msgspec.json.encode({**schema, "x-guidance": _COMPACT}).decode()


def _faults(schema: Any, place: str) -> Iterator[str]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield f"{place} is not a schema (an object or a boolean)"
        return
    yield from _type_faults(schema, place)
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        yield f"{place}/enum is not a list with at least one value"
    if "$ref" in schema and not str(schema["$ref"]).startswith("#"):
        yield f"{place}/$ref leaves the document"
    for name, subschema in _subschemas(schema):
        yield from _faults(subschema, f"{place}/{name}")


def _type_faults(schema: dict[str, Any], place: str) -> Iterator[str]:
    types = schema.get("type", [])
    for name in types if isinstance(types, list) else [types]:
        if name not in _TYPES:
            yield f"{place}/type {name!r} is not a JSON type"


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _SUBSCHEMA_KEYS:
        if key in schema:
            yield key, schema[key]
    for key in _SUBSCHEMA_MAP_KEYS:
        named = schema.get(key, {})
        yield from (
            ((f"{key}/{name}", found) for name, found in named.items()) if isinstance(named, dict) else [(key, 0)]
        )
    for key in _SUBSCHEMA_LIST_KEYS:
        listed = schema.get(key, [])
        yield from (
            ((f"{key}/{at}", found) for at, found in enumerate(listed)) if isinstance(listed, list) else [(key, 0)]
        )
