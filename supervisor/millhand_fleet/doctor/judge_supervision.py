"""What is wrong with who keeps the fleet up: pure, from the facts."""

from collections.abc import Iterator

from millhand_fleet.doctor.facts import SupervisionFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning

STOP_SETTING = {"supervisord": "stopwaitsecs", "systemd": "TimeoutStopSec"}


def parents(facts: SupervisionFacts) -> Iterator[Finding]:
    """Under whom it runs."""
    if facts.is_running and facts.parents:
        yield ok("runs under", " < ".join(facts.parents))
    is_told_below = any(program.stop_wait_s < facts.stop_s for program in facts.programs)
    if facts.stop_wait_note and not is_told_below:
        yield warning("stop", facts.stop_wait_note, "raise stopwaitsecs (supervisord) or TimeoutStopSec (systemd)")


def stop_wait(facts: SupervisionFacts) -> Iterator[Finding]:
    """Whether a drain is given the time it needs, before everything is killed."""
    for program in facts.programs:
        setting = STOP_SETTING[program.kind]
        text = f"{program.file} [{program.name}]: {setting} is {program.stop_wait_s:g} s"
        text += f", a drain may take {facts.stop_s:g} s"
        if program.stop_wait_s < facts.stop_s:
            more = f"set {setting} to {facts.stop_s:.0f} or more, or lower fleet.drain_s"
            yield warning("stop", f"{text}: events in hand are killed and done again", more)
        else:
            yield ok("stop", text)


def stop_signals(facts: SupervisionFacts) -> Iterator[Finding]:
    """Whether a stop reaches the supervisor alone, and a kill everybody."""
    for program in facts.programs:
        where = f"{program.file} [{program.name}]"
        if program.signals_all:
            setting = "stopasgroup=false" if program.kind == "supervisord" else "KillMode=mixed"
            yield warning(
                "stop", f"{where}: a stop sends SIGTERM to every process at once, out of order", f"set {setting}"
            )
        if not program.kills_all:
            setting = "killasgroup=true" if program.kind == "supervisord" else "KillMode=mixed"
            yield note(
                "stop",
                f"{where}: a kill reaches the supervisor alone; its children leave by themselves",
                f"set {setting}",
            )


def open_port(facts: SupervisionFacts) -> Iterator[Finding]:
    """Whether supervisord takes orders from the network."""
    for file in sorted({program.file for program in facts.programs if program.opens_port}):
        yield error(
            "supervisord", f"{file}: [inet_http_server] without a password takes orders from whoever reaches it",
            "use [unix_http_server] with chmod=0600 instead",
        )  # fmt: skip


def unreadable(facts: SupervisionFacts) -> Iterator[Finding]:
    """Which files could not be looked at."""
    for file in facts.unreadable:
        yield note("unreadable", file, "run the doctor as a user that may read it")


JUDGEMENTS: tuple[Judgement, ...] = (parents, stop_wait, stop_signals, open_port, unreadable)


def judge_supervision(facts: SupervisionFacts) -> Iterator[Finding]:
    """Judge who keeps the fleet up."""
    for judgement in JUDGEMENTS:
        yield from judgement(facts)
