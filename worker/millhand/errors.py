"""The error tree, sorted by what the caller does next.

MillhandError
├── Unusable        stop the start: a person must change something (a key, a version, a password)
│   └── ConfigError     … in the configuration
├── Malformed       bury the event: it will never be good
├── BadAnswer       spend an attempt: the model's answer to this event is of no use
└── ModelAway       wait and ask again: nothing about this event, nothing is spent
"""

DETAIL_CHARS_MAX = 500  # of foreign text in a message: enough to recognise it, too little to flood a log


def clip(text: str, chars_max: int = DETAIL_CHARS_MAX) -> str:
    """Shorten foreign text for a message, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


class MillhandError(Exception):
    """The root of what millhand raises itself."""


class Unusable(MillhandError):
    """Nothing that waits or restarts can cure this; the message says what to change."""


class ConfigError(Unusable):
    """The configuration cannot be used; one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Reasoned(MillhandError):
    """An error with a reason from the fixed list of `verdict.Reason`, and a detail for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = clip(detail)
        super().__init__(f"{reason}: {self.detail}")


class Malformed(Reasoned):
    """The event itself can never be enriched."""


class BadAnswer(Reasoned):
    """The model answered, or ran out of time, and the answer is of no use."""


class ModelAway(Reasoned):
    """The model cannot be asked now. `wait_s` is what it asked for, None where it did not say.

    `lost` says that the call was sent and came to nothing, so that the event may be what brings the model down.
    """

    def __init__(self, reason: str, detail: str, wait_s: float | None = None, *, lost: bool = False) -> None:
        super().__init__(reason, detail)
        self.wait_s = wait_s
        self.lost = lost
