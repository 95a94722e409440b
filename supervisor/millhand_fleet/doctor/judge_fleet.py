"""What is wrong with the fleet that runs here: pure, from its facts."""

from collections.abc import Iterator
from typing import Any

from millhand_fleet.doctor.facts import FleetFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning


def runs(facts: FleetFacts) -> Iterator[Finding]:
    """Whether there is one."""
    where = f"fleet {facts.name!r} (state directory {facts.state_dir})"
    if facts.is_private:
        yield error("runs", f"{where} is another user's", "run worker-ctl as the user that runs the fleet")
    elif facts.is_running:
        yield ok("runs", f"{where}, process {_status(facts).get('supervisor_pid') or 'unknown'}")
    else:
        yield note("runs", f"{where} does not run", "worker-ctl up")


def version(facts: FleetFacts) -> Iterator[Finding]:
    """Whether it runs what is installed."""
    running = _status(facts).get("version")
    if running and running != facts.version:
        yield warning(
            "version", f"it runs millhand {running}, installed is {facts.version}", "restart it: worker-ctl restart"
        )  # fmt: skip


def desk(facts: FleetFacts) -> Iterator[Finding]:
    """Whether its desk answers, on both of its faces."""
    taken = facts.port_taken and not facts.is_running
    if taken:
        yield warning(
            "desk", f"another program listens on port {facts.port} (desk.port): a fleet could not start",
            "stop it, or set desk.port; 0 takes any free one",
        )  # fmt: skip
    if not facts.is_running or facts.is_private:
        return
    again = "try again; if that lasts, see the fleet's log for the desk"
    if facts.error:
        yield error("desk", f"does not answer on its socket: {facts.error}", again)
    if facts.desk_error:
        yield error("desk", f"does not answer at {facts.desk_url}: {facts.desk_error}", again)
    if not facts.error and not facts.desk_error:
        yield ok("desk", f"answers at {facts.desk_url} and on its socket")


def health(facts: FleetFacts) -> Iterator[Finding]:
    """Pass on what it says of itself."""
    said = _status(facts).get("health") or {}
    reasons = "; ".join(said.get("reasons") or ()) or "no reason given"
    match said.get("status"):
        case "ok":
            ready, desired = said.get("workers_ready"), said.get("workers_desired")
            yield ok("health", f"ok, {ready} of {desired} workers are ready")
        case "down":
            yield error("health", f"down: {reasons}", "worker-ctl status, and the fleet's log")
        case str(status):
            yield warning("health", f"{status}: {reasons}", "worker-ctl status, and the fleet's log")


def standstill(facts: FleetFacts) -> Iterator[Finding]:
    """Whether somebody has stopped it on purpose, or its workers cannot live."""
    status = _status(facts)
    if status.get("crash_loop"):
        exits = sorted({str(row["last_exit"]) for row in _children(facts) if row.get("last_exit")})
        yield error(
            "crash loop", f"its processes die again and again (last exits: {', '.join(exits) or 'unknown'})",
            "see the fleet's log for what they say before they die",
        )  # fmt: skip
    if status.get("paused"):
        yield note("paused", "by an operator: nothing is read", "worker-ctl resume")
    restarts = {str(row.get("name")): row["restarts"] for row in _children(facts) if row.get("restarts")}
    if restarts:
        listed = ", ".join(f"{name} {count}" for name, count in restarts.items())
        yield note("restarts", f"so many since the fleet was started: {listed}", "the fleet's log says why: child.died")


JUDGEMENTS: tuple[Judgement, ...] = (runs, version, desk, health, standstill)


def judge_fleet(facts: FleetFacts) -> Iterator[Finding]:
    """Judge the fleet that runs here."""
    for judgement in JUDGEMENTS:
        yield from judgement(facts)


def _status(facts: FleetFacts) -> dict[str, Any]:
    return facts.status or {}


def _children(facts: FleetFacts) -> list[dict[str, Any]]:
    return list(_status(facts).get("children") or ())
