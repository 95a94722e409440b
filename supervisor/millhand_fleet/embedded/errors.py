"""What can go wrong with one call of the embedded model, sorted by what the client should do next.

EmbeddedError
├── AskRefused         the request is at fault: do not send it again       400
│   ├── PromptTooLong
│   └── ModelUnknown                                                       404
├── EngineBusy         all places are taken: send it again later           503
├── EngineStopped      cancelled, or the server is going away              503
└── EngineFailed       llama.cpp failed: send it again, look into it       500
"""


class EmbeddedError(Exception):
    """A call of the embedded model that has no reply; `status` is its HTTP status."""

    status = 500


class AskRefused(EmbeddedError):
    """The request is at fault."""

    status = 400


class PromptTooLong(AskRefused):
    """The prompt leaves no room in the context."""

    def __init__(self, prompt_tokens: int, limit_tokens: int) -> None:
        super().__init__(
            f"the input length exceeds the context length: {prompt_tokens} tokens, and fewer than {limit_tokens} fit"
        )


class ModelUnknown(AskRefused):
    """No such model here."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")


class EngineBusy(EmbeddedError):
    """As many calls run and wait as may."""

    status = 503

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


class EngineStopped(EmbeddedError):
    """The call was cancelled."""

    status = 503


class EngineFailed(EmbeddedError):
    """llama.cpp failed."""
