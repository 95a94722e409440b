"""What the probes bring home: plain values, so that a judgement needs no machine."""

from typing import Any

import msgspec


class Facts(msgspec.Struct, frozen=True):
    """A table of facts."""


class ProgramFacts(Facts, frozen=True):
    """Which programs these are, and which configuration they read."""

    python: str
    executable: str
    version: str
    package: str  # the folder of millhand
    fleet_package: str  # the folder of millhand_fleet
    editable_from: str = ""  # the project's folder, where the installation is an editable one
    libraries: tuple[str, ...] = ()  # name and version of those that matter
    running_executable: str = ""  # the interpreter of the fleet that runs; "" where none does, or it cannot be seen
    running_package: str = ""  # what its PYTHONPATH puts in front; the same
    file: str = ""  # of the configuration; "" = built-in values
    running_file: str | None = None  # that the running fleet was given; None: it was not told which
    problems: tuple[str, ...] = ()  # of the configuration
    overriding: tuple[tuple[str, str], ...] = ()  # (key, variable of the environment that sets it)
    differing: tuple[str, ...] = ()  # variables that the fleet was started with otherwise


STILL_LOADING = "it still loads its data"  # the one reason of Redis's not to answer that goes by itself
LOGIN_REFUSED = "Redis refuses the login"  # what this and the next reason begin with
SILENT = "no answer"


class RedisFacts(Facts, frozen=True):
    """What the server says of itself, and how it answers."""

    url: str  # without the password
    is_embedded: bool = False
    is_asleep: bool = False  # embedded, and no fleet runs: there is nothing to ask
    fault: tuple[str, str] | None = None  # why the embedded one could not start here, and the remedy
    error: str = ""  # why it does not answer; nothing else is known then
    ping_s: float = 0.0
    clock_ahead_s: float = 0.0  # of the server's clock before this host's
    info: dict[str, Any] = {}
    settings: dict[str, str] | None = None  # None: CONFIG GET is forbidden
    user: str = ""
    refused: tuple[str, ...] | None = None  # what the user may not do of what the roles do; None: not to be found out
    is_remote: bool = False
    is_encrypted: bool = False
    has_password: bool = False
    block_s: float = 0.0  # for which a worker's read waits
    reader_timeout_s: float = 0.0  # after which a worker gives a read up
    connections_wanted: int = 0


class Consumer(Facts, frozen=True):
    """A consumer of the group."""

    name: str
    pending: int
    idle_s: float


class Pending(Facts, frozen=True):
    """An entry that was delivered and is not settled."""

    id: str
    owner: str
    idle_s: float
    count: int


class StreamFacts(Facts, frozen=True):
    """What stands in the fleet's keys."""

    input: str
    output: str
    dead_letter: str
    group: str
    is_running: bool
    lease_s: float
    host_prefix: str  # what the names of this host's consumers begin with
    wrong_types: tuple[tuple[str, str], ...] = ()  # (key, what it should be)
    input_exists: bool = True
    group_exists: bool = True
    other_groups: tuple[str, ...] = ()
    length: int = 0
    last_delivered: str = "0-0"
    max_deleted: str = "0-0"
    backlog: int | None = 0  # None: too many to count in time
    oldest_waiting_s: float | None = None
    pending: int = 0
    parked: int = 0
    oldest_pending: Pending | None = None
    abandoned: tuple[Pending, ...] = ()  # that nobody has renewed for two leases
    consumers: tuple[Consumer, ...] = ()
    totals: dict[str, int] = {}
    output_length: int = 0
    dead_length: int = 0


class Loaded(Facts, frozen=True):
    """A model in memory, as /api/ps says it. None: this server does not say it."""

    size: int = 0
    size_vram: int = 0
    context_length: int | None = None
    expires_s: float | None = None


class Parallel(Facts, frozen=True):
    """What came of short calls that were made at once."""

    calls: int
    at_once: int  # so many ran at the same time
    lone_s: float  # one call alone
    all_s: float  # all of them


class ModelFacts(Facts, frozen=True):
    """The model's server, and the model."""

    url: str
    name: str
    is_embedded: bool = False
    is_asleep: bool = False  # as for Redis
    fault: tuple[str, str] | None = None
    error: str = ""
    version: str = ""
    listed: tuple[str, ...] = ()
    digest: str | None = None  # None: the model is not there
    loaded: Loaded | None = None
    others_loaded: tuple[str, ...] = ()
    parallel: Parallel | None = None
    unmeasured: str = ""  # why there is no measurement
    num_ctx: int = 2048
    keep_alive: str = ""
    in_flight_max: int | str = "auto"
    timeout_s: float = 60.0
    drain_s: float = 20.0
    lease_s: float = 30.0
    redis_timeout_s: float = 4.0


class FleetFacts(Facts, frozen=True):
    """The fleet that runs here, or none."""

    name: str
    state_dir: str
    is_running: bool = False
    is_private: bool = False  # somebody else's: this user may not look
    status: dict[str, Any] | None = None  # the desk's document
    error: str = ""  # why the desk does not answer on its socket
    desk_url: str = ""
    desk_error: str = ""  # why it does not answer on its port
    port_taken: bool = False  # no fleet runs, and somebody listens on desk.port
    port: int = 0
    version: str = ""  # installed here


class FileFacts(Facts, frozen=True):
    """Permissions, room and limits."""

    uid: int
    state_dir: str
    state_mode: int | None = None  # None: there is no such folder yet
    state_uid: int = 0
    socket_mode: int | None = None
    socket_uid: int = 0
    file: str = ""
    file_mode: int | None = None
    file_has_password: bool = False
    telltale_processes: tuple[str, ...] = ()  # whose arguments hold a password, where every user of the host reads it
    free_bytes: int | None = None
    free_inodes_share: float | None = None
    holds_data: bool = False  # an embedded Redis writes there
    descriptors: int | None = None  # RLIMIT_NOFILE, of the running fleet if there is one
    descriptors_wanted: int = 0
    workers: int = 0


class Program(Facts, frozen=True):
    """A supervisord program or a systemd unit that starts a fleet."""

    file: str
    name: str
    kind: str  # supervisord | systemd
    stop_wait_s: float
    signals_all: bool = False  # a stop sends SIGTERM to every process, not to the supervisor alone
    kills_all: bool = True
    opens_port: bool = False  # supervisord's [inet_http_server] without a password


class SupervisionFacts(Facts, frozen=True):
    """Who keeps the fleet up."""

    is_running: bool = False
    parents: tuple[str, ...] = ()  # names of the processes above the supervisor
    programs: tuple[Program, ...] = ()
    unreadable: tuple[str, ...] = ()
    stop_wait_note: str = ""  # the running fleet's own finding
    stop_s: float = 0.0  # until the workers have drained or were killed
