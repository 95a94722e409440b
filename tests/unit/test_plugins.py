"""Tasks from other Python packages."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from millhand.config import Config, Enrich, TaskField, TaskTable
from millhand.errors import ConfigError
from millhand.tasks import catalogue
from millhand.tasks.builtin import Spam
from millhand.tasks.catalogue import ENTRY_POINT_GROUP, chosen_tasks
from millhand.tasks.task import Task

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package `plugged` whose entry points are the given objects."""

    def installed(**tasks: Any) -> None:
        package = ModuleType("plugged")
        package.__dict__.update(tasks)
        monkeypatch.setitem(sys.modules, "plugged", package)
        points = [EntryPoint(name, f"plugged:{name}", ENTRY_POINT_GROUP) for name in tasks]
        points.append(EntryPoint("broken", "plugged:absent", ENTRY_POINT_GROUP))
        monkeypatch.setattr(catalogue, "entry_points", lambda group: [p for p in points if p.group == group])

    return installed


def choose(*names: str, **config: Any) -> list[Task]:
    return chosen_tasks(Config(enrich=Enrich(tasks=names), **config))


def refused(*names: str, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        choose(*names, **config)
    (problem,) = caught.value.problems
    return problem


def test_a_task_comes_from_an_entry_point(install: Install) -> None:
    task = Task("tone", "the tone", Spam)
    install(tone=task)
    assert choose("tone") == [task]


def test_a_task_from_an_entry_point_stands_beside_those_that_come_along(install: Install) -> None:
    install(tone=Task("tone", "the tone", Spam))
    assert [task.name for task in choose("sentiment", "tone")] == ["sentiment", "tone"]


def test_a_broken_plugin_that_nobody_asked_for_is_not_even_loaded(install: Install) -> None:
    install()
    assert [task.name for task in choose("sentiment")] == ["sentiment"]


def test_a_plugin_that_cannot_be_loaded_is_refused_with_its_error(install: Install) -> None:
    install()
    assert refused("broken").startswith("entry point broken = plugged:absent: cannot be loaded: AttributeError: ")


def test_a_plugin_that_wants_to_exit_is_refused_like_any_other_that_cannot_be_loaded(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that reloads would go with it, and leave its children behind."""
    install()

    def leave(_: EntryPoint) -> None:
        raise SystemExit("give me a GPU")

    monkeypatch.setattr(EntryPoint, "load", leave)
    assert refused("broken").endswith("cannot be loaded: SystemExit: give me a GPU")


def test_a_plugin_that_is_no_task_is_refused(install: Install) -> None:
    install(tone="positive")
    assert refused("tone") == "entry point tone = plugged:tone: is a str, not a millhand.tasks.task.Task"


def test_a_guess_may_be_a_plugin(install: Install) -> None:
    install(tone=Task("tone", "the tone", Spam))
    assert refused("tome").endswith("did you mean tone?")


def test_a_table_of_the_configuration_beats_a_plugin(install: Install) -> None:
    install(tone=Task("tone", "the plug-in's", Spam))
    table = TaskTable(prompt="the table's", fields={"ok": TaskField(type="boolean")})
    assert [task.prompt for task in choose("tone", task={"tone": table})] == ["the table's"]


@pytest.mark.parametrize("name", ["meta", "sentiment"])
def test_a_plugin_whose_task_takes_anothers_name_is_refused(install: Install, name: str) -> None:
    """Its result would stand in the place of another task's, or vanish under `meta`."""
    install(tone=Task(name, "the tone", Spam))
    assert refused("sentiment", "tone")
