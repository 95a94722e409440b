"""What can be configured: every key with its type, bounds and default, and what cannot work together."""

import difflib
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, parse_qs, urlsplit

import msgspec
from msgspec import Meta

EMBEDDED = "embedded"
ENVIRONMENT_PREFIX = "MILLHAND_"
ENVIRONMENT_FILE = "MILLHAND_CONFIG"  # names the file itself, so it is no key of it
SOCKET_PATH_BYTES_MAX = 107  # sun_path of a unix socket, less its closing NUL
CONTROL_SOCKET = "control.sock"
OWN_KEYS = (  # the fleet's, after its hash tag
    "parked", "attempts", "redrives", "closed", "totals", "gate", "permits", "answers", "answer_times",
)  # fmt: skip
SEEN = "seen:"  # what the markers of event_ids begin with, after the hash tag
ASKING = "asking:"  # what the markers of questions that are being asked begin with
SECRETS = ("redis.url", "redis.password")  # keys whose values are never told as they are
INTEGER_BOUND_MAX = 2**53  # beyond it a TOML float, and many a JSON reader, is no longer exact

TASK_NAME = r"[a-z][a-z0-9_]{0,39}"
NAME_RULE = "a name has up to 40 lower-case letters, digits and _ (a fleet's also -), and begins with a letter"
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,39}\Z")]
TaskName = Annotated[str, Meta(pattern=rf"^{TASK_NAME}\Z")]
Key = Annotated[str, Meta(max_length=200)]
Port = Annotated[int, Meta(ge=0, le=65535)]
InFlight = Annotated[int, Meta(ge=1, le=65_536)] | Literal["auto"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """A table of the TOML file."""


class Fleet(Section, frozen=True):
    """The fleet and its processes."""

    name: Name = "events"
    workers: Annotated[int, Meta(ge=0, le=256)] = 2
    state_dir: str = ""
    drain_s: Annotated[float, Meta(ge=0.5, le=600)] = 20.0
    recycle_events: Annotated[int, Meta(ge=0)] = 0
    recycle_mib: Annotated[int, Meta(ge=0)] = 0


class Redis(Section, frozen=True):
    """Where the streams are."""

    url: str = EMBEDDED
    password: str = ""
    password_file: str = ""
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    embedded_port: Port = 0
    input_stream: Key = ""
    output_stream: Key = ""
    dead_letter_stream: Key = ""
    group: Annotated[str, Meta(min_length=1, max_length=100)] = "enrichers"


class Input(Section, frozen=True):
    """What is kept of the input stream, and what counts as a repetition."""

    keep_s: Annotated[float, Meta(ge=0)] = 86_400.0
    dedupe_event_id_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0


class Model(Section, frozen=True):
    """The model and one call to it."""

    url: str = EMBEDDED
    token_file: str = ""
    name: Annotated[str, Meta(min_length=1, max_length=200)] = "smollm2:135m"
    in_flight_max: InFlight = "auto"
    rate_per_s: Annotated[float, Meta(gt=0)] = math.inf
    burst: Annotated[int, Meta(ge=1, le=100_000)] = 10
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 8
    events_per_call: Annotated[int, Meta(ge=1, le=32)] = 1
    timeout_s: Annotated[float, Meta(ge=0.1, le=3600)] = 60.0
    reply_bytes_max: Annotated[int, Meta(ge=1024, le=64 << 20)] = 262_144
    num_ctx: Annotated[int, Meta(ge=256, le=1 << 20)] = 2048
    num_predict: Annotated[int, Meta(ge=1, le=1 << 20)] = 512
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 7
    keep_alive: str = ""


class Gate(Section, frozen=True):
    """When the one door to the model closes for the whole fleet."""

    failures_max: Annotated[int, Meta(ge=1, le=10_000)] = 5
    throttled_max_s: Annotated[float, Meta(ge=1, le=86_400)] = 60.0
    probe_every_max_s: Annotated[float, Meta(ge=0.5, le=3600)] = 15.0


class Cache(Section, frozen=True):
    """Answers that are kept, so that an equal question is not asked twice."""

    ttl_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0


class Enrich(Section, frozen=True):
    """What is asked about each event."""

    tasks: Annotated[tuple[TaskName, ...], Meta(min_length=1, max_length=16)] = ("sentiment",)
    text_fields: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)] = (
        "title",
        "subject",
        "text",
        "body",
        "message",
        "content",
        "review",
        "comment",
        "description",
        "msg",
    )
    translate_to: Annotated[str, Meta(min_length=2, max_length=40)] = "English"
    event_bytes_max: Annotated[int, Meta(ge=64, le=64 << 20)] = 1 << 20
    too_long: Literal["bury", "truncate_text"] = "bury"


class Delivery(Section, frozen=True):
    """How often and how long an event is tried."""

    lease_s: Annotated[float, Meta(ge=0.5, le=3600)] = 30.0
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    retry_backoff_s: Annotated[float, Meta(ge=0, le=600)] = 1.0
    retry_backoff_max_s: Annotated[float, Meta(ge=0, le=3600)] = 60.0
    deliveries_max: Annotated[int, Meta(ge=1, le=100)] = 3
    age_max_s: Annotated[float, Meta(gt=0)] = math.inf


class Janitor(Section, frozen=True):
    """The process that hands back what nobody holds any more."""

    every_s: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0


class Desk(Section, frozen=True):
    """The process that answers health, metrics and worker-ctl."""

    port: Port = 8642
    show_payloads: bool = False


class Log(Section, frozen=True):
    """What the processes say."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class TaskField(Section, frozen=True):
    """One member of the result of a task of one's own."""

    type: Literal["string", "enum", "integer", "number", "boolean", "list"]
    values: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    min: float | None = None
    max: float | None = None
    length_max: Annotated[int, Meta(ge=1, le=10_000)] = 200
    items_max: Annotated[int, Meta(ge=1, le=100)] = 10


class TaskTable(Section, frozen=True):
    """A task of one's own: what to ask, and the shape of the answer."""

    prompt: Annotated[str, Meta(min_length=1, max_length=4000)]
    fields: Annotated[dict[TaskName, TaskField], Meta(min_length=1)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set; `origins` says where each value came from."""

    fleet: Fleet = Fleet()
    redis: Redis = Redis()
    input: Input = Input()
    model: Model = Model()
    gate: Gate = Gate()
    cache: Cache = Cache()
    enrich: Enrich = Enrich()
    delivery: Delivery = Delivery()
    janitor: Janitor = Janitor()
    desk: Desk = Desk()
    log: Log = Log()
    task: dict[TaskName, TaskTable] = {}
    origins: dict[str, str] = {}

    @property
    def state_dir(self) -> Path:
        """Where the fleet keeps its lock, sockets, desired count and embedded data."""
        return Path(self.fleet.state_dir).expanduser() if self.fleet.state_dir else default_state_dir(self.fleet.name)

    def stream_names(self) -> tuple[str, str, str]:
        """Return the names of input, output and dead-letter stream: as configured, or after the fleet."""
        tag = "{" + self.fleet.name + "}"
        return (
            self.redis.input_stream or f"{tag}:raw",
            self.redis.output_stream or f"{tag}:enriched",
            self.redis.dead_letter_stream or f"{tag}:dead_letter",
        )

    def with_urls(self, *, redis: str, model: str) -> "Config":
        """Return the same configuration with the embedded servers' real addresses.

        They ask for no secret, whatever is configured for others.
        """
        own, own_model = self.redis.url == EMBEDDED, self.model.url == EMBEDDED
        names = {"password", "password_file", "tls_ca_file", "tls_cert_file", "tls_key_file"}
        return msgspec.structs.replace(
            self,
            redis=msgspec.structs.replace(self.redis, url=redis, **(dict.fromkeys(names, "") if own else {})),
            model=msgspec.structs.replace(self.model, url=model, **({"token_file": ""} if own_model else {})),
        )


def default_state_dir(fleet_name: str) -> Path:
    """Return the fleet's folder below the user's state folder."""
    return Path("~/.local/state/millhand").expanduser() / fleet_name


SECTIONS: dict[str, type[Section]] = {
    field.name: field.type
    for field in msgspec.structs.fields(Config)
    if isinstance(field.type, type) and issubclass(field.type, Section)
}


def impossible(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) for values that are each of the right type and cannot work, or not together."""
    yield from _impossible_addresses(config)
    model, delivery = config.model, config.delivery
    if delivery.retry_backoff_max_s < delivery.retry_backoff_s:
        yield "delivery.retry_backoff_max_s", f"is below delivery.retry_backoff_s ({delivery.retry_backoff_s})"
    if model.num_predict >= model.num_ctx:
        yield "model.num_predict", f"leaves no room for the event: model.num_ctx is {model.num_ctx}"
    for name, table in config.task.items():
        for field_name, field in table.fields.items():
            yield from ((f"task.{name}", f"fields.{field_name}: {reason}") for reason in _impossible_field(field))


def _impossible_addresses(config: Config) -> Iterator[tuple[str, str]]:
    if config.redis.url != EMBEDDED and _address(config.redis.url, {"redis", "rediss", "unix"}) is None:
        meant = meant_clause(guess(config.redis.url, [EMBEDDED]))
        yield "redis.url", f'must be "embedded" or a redis://, rediss:// or unix:// address{meant}'
    elif set(parse_qs(urlsplit(config.redis.url).query, keep_blank_values=True)) - (
        {"db"} if config.redis.url.startswith("unix:") else set()
    ):
        yield "redis.url", "must hold no ?options: write redis://user:password@host:port/db"
    yield from _impossible_secrets(config.redis)
    yield from _impossible_model_address(config.model.url)
    streams = config.stream_names()
    tag = "{" + config.fleet.name + "}"
    own = {f"{tag}:{key}" for key in OWN_KEYS} & set(streams)
    own |= {stream for stream in streams if stream.startswith((f"{tag}:{SEEN}", f"{tag}:{ASKING}"))}
    if own:
        yield "redis.input_stream", f"{', '.join(own)} is a key that the fleet itself uses: name the stream differently"
    if len(streams) != len(set(streams)):
        yield (
            "redis.output_stream",
            f"input, output and dead-letter stream must be three different ones, not {', '.join(streams)}",
        )
    try:
        too_long = len(bytes(config.state_dir / CONTROL_SOCKET)) > SOCKET_PATH_BYTES_MAX
    except RuntimeError as error:
        yield "fleet.state_dir", f"cannot be found: {error}"
        return
    if too_long:
        yield "fleet.state_dir", f"is too long a path for a unix socket (over {SOCKET_PATH_BYTES_MAX} bytes)"


def _impossible_model_address(url: str) -> Iterator[tuple[str, str]]:
    if url == EMBEDDED:
        return
    address = _address(url, {"http", "https"})
    if address is None or not address.hostname:
        yield "model.url", f'must be "embedded" or an http:// or https:// address{meant_clause(guess(url, [EMBEDDED]))}'
    elif address.username or address.password:
        yield "model.url", "must not hold a user name or password: they would end up in logs"
    elif address.query or address.fragment:
        yield "model.url", "must hold no ?query and no #fragment: what is asked for is put behind it"


def _impossible_secrets(redis: Redis) -> Iterator[tuple[str, str]]:
    if redis.url == EMBEDDED:
        return
    parts = _address(redis.url, {"redis", "rediss", "unix"})
    given = [key for key in ("password", "password_file") if getattr(redis, key)]
    if parts is not None and parts.password is not None and given:
        yield f"redis.{given[0]}", "is given although there is a password in redis.url: keep one of them"
    elif len(given) > 1:
        yield "redis.password_file", "is given beside redis.password: keep one of them"
    files = [key for key in ("tls_ca_file", "tls_cert_file", "tls_key_file") if getattr(redis, key)]
    if files and parts is not None and parts.scheme != "rediss":
        yield f"redis.{files[0]}", "is for TLS, and redis.url does not ask for it: write rediss://"
    if bool(redis.tls_cert_file) != bool(redis.tls_key_file):
        yield "redis.tls_cert_file", "and redis.tls_key_file belong together: give both or neither"


def _address(url: str, schemes: set[str]) -> SplitResult | None:
    """Return the parts of an address of one of these schemes; None if it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return parts if parts.scheme in schemes and port != 0 else None


def _impossible_field(field: TaskField) -> Iterator[str]:
    if (field.type == "enum") != bool(field.values):
        yield "values belong to an enum, and an enum needs them"
    if field.type not in {"integer", "number"} and (field.min is not None or field.max is not None):
        yield f"min and max belong to integer and number, not to {field.type}"
    bounds = [bound for bound in (field.min, field.max) if bound is not None]
    if not all(math.isfinite(bound) for bound in bounds):
        yield "min and max must be finite numbers"
    elif field.type == "integer" and any(abs(bound) > INTEGER_BOUND_MAX for bound in bounds):
        yield f"min and max of an integer must be within {INTEGER_BOUND_MAX} of 0"
    elif bounds and bounds[0] > bounds[-1]:
        yield f"min {field.min} is above max {field.max}"
    elif field.type == "integer" and bounds and math.ceil(bounds[0]) > math.floor(bounds[-1]) and len(bounds) > 1:
        yield f"there is no whole number from {field.min} to {field.max}"


def guess(word: str, known: typing.Iterable[str]) -> str | None:
    """Return the known word that was perhaps meant."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def meant_clause(word: str | None) -> str:
    """Return the end of a message that says what was perhaps meant."""
    return f"; did you mean {word}?" if word else ""
