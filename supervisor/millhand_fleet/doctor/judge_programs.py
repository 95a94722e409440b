"""What is wrong with the programs and the configuration: pure, from their facts."""

from collections.abc import Iterator
from pathlib import PurePath

from millhand_fleet.doctor.facts import ProgramFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning

SAME = "run the worker-ctl of the fleet that runs, or restart the fleet with this one"


def interpreter(facts: ProgramFacts) -> Iterator[Finding]:
    """Which Python this is, and whether the fleet has another."""
    yield ok("Python", f"{facts.python} ({facts.executable})")
    if facts.running_executable and facts.running_executable != facts.executable:
        yield warning("Python", f"the running fleet has another: {facts.running_executable}", SAME)


def package(facts: ProgramFacts) -> Iterator[Finding]:
    """Which millhand this is, and whether the fleet has another."""
    how = f", editable from {facts.editable_from}" if facts.editable_from else ""
    yield ok("millhand", f"{facts.version} ({facts.package}{how})")
    root = PurePath(facts.editable_from) if facts.editable_from else PurePath(facts.package).parent
    if facts.editable_from and not PurePath(facts.package).is_relative_to(root):
        yield note(
            "millhand", f"{facts.package} is used, not the installed {facts.editable_from}",
            "unset PYTHONPATH, unless you mean it",
        )  # fmt: skip
    if facts.running_package and facts.running_package != facts.package:
        yield warning("millhand", f"the running fleet has another copy: {facts.running_package}", SAME)
    if facts.libraries:
        yield ok("libraries", ", ".join(facts.libraries))


def configuration(facts: ProgramFacts) -> Iterator[Finding]:
    """Which file is read, what is wrong in it, and whether the fleet was given another."""
    if facts.problems:
        for problem in facts.problems:
            yield error("configuration", problem, "correct it; `worker-ctl config check` looks again")
        yield note("configuration", "what is wrong was left at its default for what follows")
    else:
        yield ok("configuration", facts.file or "built-in values: there is no file")
    if facts.running_file is not None and facts.running_file != facts.file:
        yield warning(
            "configuration", f"the running fleet was started with {facts.running_file or 'no file'}",
            f"look at that one: worker-ctl --config {facts.running_file or 'FILE'} doctor",
        )  # fmt: skip


def environment(facts: ProgramFacts) -> Iterator[Finding]:
    """Which variables override the file, and whether the fleet was started with others."""
    if facts.overriding:
        listed = ", ".join(f"{variable} ({key})" for key, variable in facts.overriding)
        yield note("environment", f"overrides the file: {listed}")
    if facts.differing:
        yield warning(
            "environment", f"the running fleet was started with other values of: {', '.join(facts.differing)}",
            "set them here as they are there, or what follows is about another fleet",
        )  # fmt: skip


JUDGEMENTS: tuple[Judgement, ...] = (interpreter, package, configuration, environment)


def judge_programs(facts: ProgramFacts) -> Iterator[Finding]:
    """Judge which programs and settings are in use."""
    for judgement in JUDGEMENTS:
        yield from judgement(facts)
