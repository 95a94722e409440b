"""What a model gives back."""

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """A complete answer: its content, tokens read and written, and the model's own time in seconds."""

    content: str
    tokens_in: int
    tokens_out: int
    model_s: float
