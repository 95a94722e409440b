"""What a model gives back."""

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """A complete answer: its content, tokens read and written, and the model's own time in seconds.

    `queue_s` is how long the call waited for its turn at the model, as far as the reply tells; 0 where it does not.
    """

    content: str
    tokens_in: int
    tokens_out: int
    model_s: float
    queue_s: float = 0.0
