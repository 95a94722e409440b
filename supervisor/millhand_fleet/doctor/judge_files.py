"""What is wrong with permissions, room and limits: pure, from their facts."""

from collections.abc import Iterator

from millhand_fleet.doctor.facts import FileFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning

ROOT = 0  # may do it all the same
OTHERS = 0o077  # group and world
WORLD_READS = 0o004
GIB = 1 << 30
FREE_BYTES_MIN = GIB
FREE_BYTES_LEAST = GIB // 10
FREE_INODES_SHARE_MIN = 0.02


def state_directory(facts: FileFacts) -> Iterator[Finding]:
    """Whether the fleet's folder is its owner's alone."""
    mode = facts.state_mode
    if mode is None:
        yield note("state directory", f"{facts.state_dir} is not there yet: the first start makes it")
    elif facts.state_uid != facts.uid:
        say = warning if facts.uid == ROOT else error
        yield say(
            "state directory", f"{facts.state_dir} belongs to uid {facts.state_uid}, you are {facts.uid}",
            "run worker-ctl as the user that runs the fleet, or choose another fleet.state_dir",
        )  # fmt: skip
    elif mode & OTHERS:
        yield warning(
            "state directory", f"{facts.state_dir} has mode {mode:04o}: others reach the orders' socket",
            f"chmod 700 {facts.state_dir}",
        )  # fmt: skip
    else:
        yield ok("state directory", f"{facts.state_dir}, mode {mode:04o}")


def control_socket(facts: FileFacts) -> Iterator[Finding]:
    """Whether orders are taken from the owner alone."""
    mode = facts.socket_mode
    if mode is None:
        return
    path = f"{facts.state_dir}/control.sock"
    if facts.socket_uid != facts.uid:
        say = warning if facts.uid == ROOT else error
        yield say(
            "socket", f"{path} belongs to uid {facts.socket_uid}, you are {facts.uid}", "run worker-ctl as its owner"
        )
    elif mode & OTHERS:
        yield error("socket", f"{path} has mode {mode:04o}: others may order the fleet about", f"chmod 600 {path}")
    else:
        yield ok("socket", f"mode {mode:04o}")


def secrets(facts: FileFacts) -> Iterator[Finding]:
    """Whether others can read a password."""
    if facts.file_has_password and facts.file_mode is not None and facts.file_mode & WORLD_READS:
        yield error(
            "secrets", f"{facts.file} holds Redis's password and has mode {facts.file_mode:04o}: every user reads it",
            f"chmod 600 {facts.file}, and change the password",
        )  # fmt: skip
    for process in facts.telltale_processes:
        yield error(
            "secrets", f"the arguments of {process} hold a password: every user sees them in `ps`",
            "give it in the configuration file or in the environment, and change the password",
        )  # fmt: skip


def room(facts: FileFacts) -> Iterator[Finding]:
    """Whether the disk has room."""
    free = facts.free_bytes
    if free is None:
        return
    what = "the embedded Redis keeps its data there" if facts.holds_data else "the fleet keeps its state there"
    text = f"{free / GIB:.1f} GiB free for {facts.state_dir}: {what}"
    remedy = "make room, or set fleet.state_dir to another disk"
    if free < FREE_BYTES_LEAST:
        yield (error if facts.holds_data else warning)("disk", text, remedy)
    elif free < FREE_BYTES_MIN and facts.holds_data:
        yield warning("disk", text, remedy)
    else:
        yield ok("disk", text)
    if facts.free_inodes_share is not None and facts.free_inodes_share < FREE_INODES_SHARE_MIN:
        yield warning("disk", f"{facts.free_inodes_share:.1%} of its inodes are free", "delete files that nobody needs")


def descriptors(facts: FileFacts) -> Iterator[Finding]:
    """Whether a process may open as many files as it needs."""
    limit = facts.descriptors
    if limit is None:
        return
    if limit < facts.descriptors_wanted:
        yield warning(
            "open files", f"the limit is {limit}; {facts.workers} workers may want {facts.descriptors_wanted}",
            "raise it: `ulimit -n`, minfds of supervisord, LimitNOFILE of systemd",
        )  # fmt: skip
    else:
        yield ok("open files", f"the limit is {limit}, {facts.workers} workers may want {facts.descriptors_wanted}")


JUDGEMENTS: tuple[Judgement, ...] = (state_directory, control_socket, secrets, room, descriptors)


def judge_files(facts: FileFacts) -> Iterator[Finding]:
    """Judge permissions, room and limits."""
    for judgement in JUDGEMENTS:
        yield from judgement(facts)
