"""Read what a model file says of itself: the header of a GGUF file, version 2 or 3.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: key-value pairs, then one record per tensor.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

Scalar = str | int | float | bool

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_PAIRS_MAX = 4096
_TENSORS_MAX = 65_536
_DIMENSIONS_MAX = 8

# The values of `general.file_type` that Ollama's library uses.
_QUANTIZATIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """A model file's scalar metadata (arrays, such as the vocabulary, are left out) and its number of weights."""

    metadata: dict[str, Scalar]
    parameter_count: int

    @property
    def architecture(self) -> str:
        """The family of the model, such as `llama`."""
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def quantization(self) -> str:
        """The weights' format in Ollama's spelling, such as `Q4_1`."""
        file_type = self.metadata.get("general.file_type")
        return _QUANTIZATIONS.get(file_type, "unknown") if isinstance(file_type, int) else "unknown"

    @property
    def chat_template(self) -> str:
        """The Jinja template that turns messages into a prompt, or nothing."""
        return str(self.metadata.get("tokenizer.chat_template", ""))


def read_header(path: Path) -> Header:
    """Read the header of the file at `path`; ValueError if it is not a whole GGUF header."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _header(_Cursor(content))
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"{path} has a damaged GGUF header ({error})") from error


class _Cursor:
    """A place in the file that moves on with every read."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def number(self, form: str) -> int | float | bool:
        (value,) = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        if not isinstance(value, int | float):
            raise TypeError(form)
        return value

    def count(self, form: str = "<Q") -> int:
        return int(self.number(form))

    def raw(self) -> bytes:
        size = self.count()
        start, self._at = self._at, self._at + size
        if self._at > len(self._content):
            raise ValueError("a GGUF string reaches beyond the end of the file")
        return self._content[start : self._at]

    def skip(self, size: int) -> None:
        self._at += size


def _header(cursor: _Cursor) -> Header:
    magic, version = cursor.count("<I").to_bytes(4, "little"), cursor.count("<I")
    if magic != _MAGIC or version not in _VERSIONS:
        raise ValueError(f"not a GGUF file of version 2 or 3 (it starts with {magic!r}, version {version})")
    tensors, pairs = cursor.count(), cursor.count()
    if tensors > _TENSORS_MAX or pairs > _PAIRS_MAX:
        raise ValueError(f"a GGUF header with {tensors} tensors and {pairs} pairs is beyond the limits")
    metadata = dict(found for found in (_pair(cursor) for _ in range(pairs)) if found is not None)
    return Header(metadata, sum(_weights(cursor) for _ in range(tensors)))


def _pair(cursor: _Cursor) -> tuple[str, Scalar] | None:
    key, kind = cursor.raw().decode(), cursor.count("<I")
    if kind == _ARRAY:
        _skip_array(cursor)
        return None
    if kind == _STRING:
        return key, cursor.raw().decode(errors="replace")
    return key, cursor.number(_NUMBERS[kind])


def _skip_array(cursor: _Cursor) -> None:
    kind, length = cursor.count("<I"), cursor.count()
    if kind != _STRING:
        cursor.skip(length * struct.calcsize(_NUMBERS[kind]))
        return
    for _ in range(length):
        cursor.skip(cursor.count())


def _weights(cursor: _Cursor) -> int:
    cursor.raw()
    dimensions = cursor.count("<I")
    if dimensions > _DIMENSIONS_MAX:
        raise ValueError(f"a GGUF tensor with {dimensions} dimensions is beyond the limits")
    weights = prod(cursor.count() for _ in range(dimensions))
    cursor.skip(struct.calcsize("<IQ"))
    return weights
