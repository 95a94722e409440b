"""The whole examination: probe, judge, and let no failing probe spoil the rest."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from millhand.errors import ConfigError, clip
from millhand.tasks.catalogue import chosen_tasks
from millhand_fleet.doctor.aside import aside
from millhand_fleet.doctor.facts import FleetFacts, RedisFacts
from millhand_fleet.doctor.finding import Finding, Section, error, note
from millhand_fleet.doctor.fleet_probe import ask_fleet, children_of
from millhand_fleet.doctor.judge_files import judge_files
from millhand_fleet.doctor.judge_fleet import judge_fleet
from millhand_fleet.doctor.judge_model import judge_model
from millhand_fleet.doctor.judge_programs import judge_programs
from millhand_fleet.doctor.judge_redis import judge_redis
from millhand_fleet.doctor.judge_streams import judge_streams
from millhand_fleet.doctor.judge_supervision import judge_supervision
from millhand_fleet.doctor.machine_probe import look_at_files, look_at_programs
from millhand_fleet.doctor.model_probe import ask_model
from millhand_fleet.doctor.parallelism import MEASURE_S
from millhand_fleet.doctor.redis_probe import ask_redis
from millhand_fleet.doctor.setup import Setup, set_up
from millhand_fleet.doctor.streams_probe import ask_streams
from millhand_fleet.doctor.supervision_probe import look_at_supervision

PROBE_S = 15.0  # for one probe, whose single requests have shorter limits

Probe = Callable[[], Awaitable[Any]]
Judge = Callable[[Any], Iterator[Finding]]


async def examine(file: Path | None, *, measured: bool = False) -> tuple[Section, ...]:
    """Examine the machine. Takes seconds, whatever hangs; longer only for a measurement."""
    setup = await aside(set_up, file)
    fleet, fleet_section = await _section("Fleet", lambda: ask_fleet(setup), judge_fleet)
    children = children_of(fleet) if isinstance(fleet, FleetFacts) else []
    said = str((fleet.status or {}).get("stop_wait_note") or "") if isinstance(fleet, FleetFacts) else ""

    async def programs() -> Any:
        return await aside(look_at_programs, setup)

    async def files() -> Any:
        return await aside(look_at_files, setup, children)

    async def supervision() -> Any:
        return await aside(look_at_supervision, setup, said)

    sections = await asyncio.gather(
        _section("Programs", programs, _with_tasks(setup)),
        _redis_and_streams(setup),
        _section(
            "Model", lambda: ask_model(setup, measured=measured), judge_model,
            3 * MEASURE_S if measured else 0.0,
        ),
        _section("Files", files, judge_files),
        _section("Supervision", supervision, judge_supervision),
    )  # fmt: skip
    (_, first), redis, (_, model), (_, files_), (_, above) = sections
    found = (first, *redis, model, fleet_section, files_, above)
    return tuple(section for section in found if section.findings)


async def _section(title: str, probe: Probe, judge: Judge, more_s: float = 0.0) -> tuple[Any, Section]:
    """Run one probe and judge what it brings; return the facts too, None where it failed."""
    within_s = PROBE_S + more_s
    try:
        async with asyncio.timeout(within_s):
            facts = await probe()
        return facts, Section(title, tuple(judge(facts)))
    except TimeoutError:
        finding = error("probe", f"no result within {within_s:g} s", "something it looks at hangs: a disk, a server")
    except Exception as failed:  # noqa: BLE001 - whatever it is, the others go on, and it is told
        what = f"{type(failed).__name__}: {clip(str(failed))}"
        finding = error("probe", f"failed with {what}", "if that is no fault of the machine's, report it")
    return None, Section(title, (finding,))


async def _redis_and_streams(setup: Setup) -> tuple[Section, Section]:
    """Ask about the streams only where the server answers."""
    facts, section = await _section("Redis", lambda: ask_redis(setup), judge_redis)
    if isinstance(facts, RedisFacts) and not facts.error and not facts.is_asleep:
        _, streams = await _section("Streams", lambda: ask_streams(setup), judge_streams)
        return section, streams
    return section, Section("Streams", (note("streams", "not examined: there is no Redis to ask"),))


def _with_tasks(setup: Setup) -> Judge:
    """Judge the programs, and whether the tasks that are configured can be had."""

    def judge(facts: Any) -> Iterator[Finding]:
        yield from judge_programs(facts)
        try:
            chosen_tasks(setup.config)
        except ConfigError as failed:
            for problem in failed.problems:
                yield error("tasks", problem, "correct enrich.tasks, or install what brings the task")

    return judge
