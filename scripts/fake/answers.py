"""Values that fit a JSON schema, each following from the text that it is made for."""

from __future__ import annotations

import functools
import hashlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA_DEPTH_MAX = 8  # deeper down optional parts are left out, so that recursive schemas end
WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grain", "hazel", "iron", "kiln", "loam", "oak")


def digest(text: str, key: bytes = b"") -> bytes:
    """Return what is random about a text, and always the same."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), key=key, digest_size=32).digest()


def instance(schema: Mapping[str, Any], text: str) -> Any:
    """Make a value that the JSON schema accepts; each leaf follows from the text and the leaf's path alone.

    Knows $ref, enum, const, anyOf, oneOf, and the six types with their bounds; refuses `pattern` with ValueError.
    """
    return _Leaf(schema, digest(text), "").make(schema)


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
        return int.from_bytes(digest(self.path, self.seed)[:8]) % count

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[self.pick(len(choices))]

    def is_deep(self) -> bool:
        return self.path.count("/") > SCHEMA_DEPTH_MAX
