"""The error tree, sorted by what the caller does next.

MillhandError
├── Unusable        stop the start: a person must change something (a key, a version, a password)
│   └── ConfigError     … in the configuration
├── Malformed       this event's fault: bury it, it will never be good
├── BadAnswer       this event's fault, as far as one can tell: spend an attempt
└── ModelAway       the model is away: wait and ask again, nothing is spent
    ├── ModelBusy       … or busy: the whole fleet pauses
    └── Misconfigured   … or not to be had as configured: nobody asks until a person has changed something
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
    """The model answered, or ran out of time, and the answer is of no use.

    `strikes` says that the model may be at fault as well as the event (a 5xx, no answer in time): enough of them in a
    row, over the whole fleet, are an outage. `content` is an answer that broke the schema, to be repaired.
    """

    def __init__(self, reason: str, detail: str, *, strikes: bool = False, content: str = "") -> None:
        super().__init__(reason, detail)
        self.strikes = strikes
        self.content = content


class ModelAway(Reasoned):
    """The model cannot be asked now.

    `lost` says that the call was sent and came to nothing, so that the event may be what brings the model down.
    """

    def __init__(self, reason: str, detail: str, *, lost: bool = False) -> None:
        super().__init__(reason, detail)
        self.lost = lost


class ModelBusy(ModelAway):
    """The model turns callers away for a while: `wait_s` is what it asked for, None where it did not say."""

    def __init__(self, detail: str, wait_s: float | None = None) -> None:
        super().__init__("model_busy", detail)
        self.wait_s = wait_s


class Misconfigured(ModelAway):
    """What is asked for is not to be had: no such model, no permission, another kind of server; says what to change."""
