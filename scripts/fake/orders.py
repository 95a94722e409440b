r"""What the fake is told to do with a call: by its text, `[[fake status=503 times=2]]`, or by default.

A bare name is true; a value is a word, or JSON in full. The first order in a text counts. In a text that travels inside
JSON, a quote may be spelled \".
"""

from __future__ import annotations

import json
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

HOLD_S_MAX = 300.0
PADDING_BYTES_MAX = 256 << 20  # also what the gzip bomb becomes when opened
TEXTS_KEPT_MAX = 20_000  # remembered for `times` and `for_s`
BY_DEFAULT = ""  # the key under which the default's uses are counted

DurationS = Annotated[float, msgspec.Meta(ge=0, le=HOLD_S_MAX)]
PaddingBytes = Annotated[int, msgspec.Meta(ge=0, le=PADDING_BYTES_MAX)]


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with a call; the defaults are an honest Ollama."""

    # when; a default counts from when it was given, the orders of a text from the first call with that text
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None  # only the first N calls
    for_s: DurationS | None = None  # only so long
    path: str = "/api/"  # of a default: only there; where it names a look-up in full, all orders hold for that too
    # whether
    delay: DurationS = 0.0  # on top of the latency
    hold: bool = False  # no byte until released
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    retry_after: str | int | None = None  # any string, a date or garbage too
    retry_date: float | None = None  # Retry-After as a date, so many seconds from now; negative: in the past
    date_form: Literal["imf", "rfc850", "asctime"] = "imf"  # the three that HTTP knows
    clock: float = 0.0  # so many seconds the server's clock is off, in `Date` and `retry_date`
    drop: bool = False  # closes the connection without a byte
    redirect: bool = False
    missing: bool = False  # there is no such model, and none is listed
    truncates: bool = False  # a long prompt loses its beginning without a word, whatever the request says
    # what the model says
    reply: Any = None  # a string as it is, anything else as JSON
    garbage: bool = False  # no JSON
    wrong_schema: bool = False
    empty: bool = False
    length: bool = False  # cut in the middle
    not_done: bool = False
    error_in_200: bool = False
    # how it travels
    headers: dict[str, str | None] = {}  # may lie: {"Content-Length": "9"}; null leaves one out: {"Date": null}
    header_bytes: PaddingBytes = 0  # one more header, so long
    raw: str | None = None  # the body in full, such as a proxy's page
    half_body: bool = False  # no Content-Length, and the connection closes in the middle
    drip: DurationS = 0.0  # between one byte and the next
    stall: PaddingBytes | None = None  # after so many bytes of the body no more come until released
    huge: PaddingBytes = 0  # whitespace before the JSON
    gzip: Literal["whole", "cut", "broken"] | None = None
    gzip_bomb: bool = False

    @property
    def refuses(self) -> bool:
        """Whether calls are answered at the door, without a slot and without latency."""
        return self.status != HTTPStatus.OK or self.drop or self.redirect

    @property
    def for_the_call(self) -> Script:
        """Itself without what the model says: what remains of a member's orders for the call that brings it."""
        silent = {"reply": None, "garbage": False, "wrong_schema": False, "empty": False}
        return msgspec.structs.replace(self, times=None, for_s=None, **silent)


HONEST = Script()


class _Use(msgspec.Struct):
    since_s: float
    count: int = 0


class ForCall(NamedTuple):
    """What to do with one call; of several texts in it, `members` says how the model is to answer each."""

    script: Script
    members: Mapping[str, Script] = {}


class Orders:
    """The default and the orders of texts; remembers how often and since when those were followed that have an end."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}
        self.give({})

    def give(self, default: Mapping[str, object]) -> None:
        """Make this the default from now on."""
        self._default = msgspec.convert(dict(default), Script)
        self._uses[BY_DEFAULT] = _Use(time.monotonic())

    def for_call(self, path: str, text: str, members: Mapping[str, str]) -> ForCall:
        """Count one call and return what to do with it; ValueError if its text orders what the fake does not know.

        An outage holds whatever is ordered; otherwise a text beats the default. Of members that order something for the
        whole call, the first decides.
        """
        default = self._default if path.startswith(self._default.path) else HONEST
        if default.refuses and self._follow(BY_DEFAULT, default):
            return ForCall(default)
        texts = members or {"": text}
        ordered = {number: script for number, each in texts.items() if (script := self._ordered(each))}
        if not ordered:
            return ForCall(default if not default.refuses and self._follow(BY_DEFAULT, default) else HONEST)
        if not members:
            return ForCall(ordered[""])
        whole = (script.for_the_call for script in ordered.values())
        return ForCall(next((script for script in whole if script != HONEST), HONEST), ordered)

    def for_look_up(self, path: str) -> Script:
        """Return what to do with a request that is no model call; only an order for this very path counts it."""
        default = self._default
        if default.path == path:
            return default if self._follow(BY_DEFAULT, default) else HONEST
        aimed = (default.refuses or default.missing) and path.startswith(default.path)
        return default if aimed and self._holds(BY_DEFAULT, default) else HONEST

    def _ordered(self, text: str) -> Script | None:
        script = parse_script(text)
        return script if script is not None and self._follow(text, script) else None

    def _follow(self, key: str, script: Script) -> bool:
        if script.times is None and script.for_s is None:
            return True
        if key not in self._uses:
            self._uses[key] = _Use(time.monotonic())
        if len(self._uses) > TEXTS_KEPT_MAX:
            del self._uses[next(old for old in self._uses if old != BY_DEFAULT)]
        holds = self._holds(key, script)
        self._uses[key].count += holds
        return holds

    def _holds(self, key: str, script: Script) -> bool:
        use = self._uses[key]
        over = script.for_s is not None and time.monotonic() - use.since_s >= script.for_s
        return not over and (script.times is None or use.count < script.times)


def parse_script(text: str) -> Script | None:
    """Read the first `[[fake …]]` in a text; ValueError if it orders what the fake does not know."""
    _, opened, rest = text.partition("[[fake ")
    if not opened:
        return None
    try:
        return _read_orders(rest)
    except ValueError:
        return _read_orders(rest.replace('\\"', '"'))


def _read_orders(text: str) -> Script:
    orders: dict[str, Any] = {}
    while not (text := text.lstrip()).startswith("]]"):
        found = re.match(r"(\w+)(=)?([^\s\]\[\\\"{]+)?", text)
        if found is None:
            raise ValueError(f"no order for the fake: {text[:40]!r}")
        name, value, end = found[1], found[3] or True, found.end()
        if found[2] and not found[3]:
            value, end = json.JSONDecoder().raw_decode(text, end)
        orders[name], text = value, text[end:]
    return msgspec.convert(orders, Script, strict=False)
