"""What a changed configuration concerns, and what it may not change."""

from typing import Any

import pytest

from millhand.config import Config
from millhand.errors import ConfigError
from millhand.layers import load
from millhand_fleet.blueprint import RefusedError
from millhand_fleet.reloading import EVERYBODY, Reloader, changed_keys, concerned, fixed_keys

OWN = {"redis.url": "redis://h:1/0", "model.url": "http://h:1"}


def configured(**flags: Any) -> Config:
    return load(None, {}, {**OWN, **{key.replace("__", "."): value for key, value in flags.items()}})


def reloader(before: Config, after: Config) -> Reloader:
    return Reloader(before, lambda: after, lambda config: config)  # type: ignore[arg-type, return-value]


def test_an_equal_configuration_has_changed_nothing() -> None:
    renewal = reloader(configured(), configured())()
    assert (renewal.changed, renewal.concerns) == ((), frozenset())


@pytest.mark.parametrize(
    ("flags", "concerns"),
    [
        ({"model__name": "other:1b"}, EVERYBODY),
        ({"log__level": "debug"}, EVERYBODY),
        ({"fleet__drain_s": 7.0}, EVERYBODY),
        ({"janitor__every_s": 9.0}, frozenset({"janitor"})),
        ({"fleet__workers": 9, "fleet__recycle_mib": 99}, frozenset()),
        ({"fleet__workers": 9, "janitor__every_s": 9.0}, frozenset({"janitor"})),
    ],
)
def test_a_change_concerns_who_reads_it(flags: dict[str, Any], concerns: frozenset[str]) -> None:
    renewal = reloader(configured(), configured(**flags))()
    assert renewal.changed == tuple(key.replace("__", ".") for key in flags)
    assert renewal.concerns == concerns
    assert renewal.workers == flags.get("fleet__workers", 2)


def test_a_task_of_ones_own_is_compared_whole(tmp_path: Any) -> None:
    def with_prompt(prompt: str) -> Config:
        file = tmp_path / "m.toml"
        file.write_text(f'[task.urgency]\nprompt = "{prompt}"\n[task.urgency.fields]\nlevel = {{ type = "string" }}\n')
        return load(file, {}, OWN)

    assert changed_keys(with_prompt("how soon"), with_prompt("how late")) == ("task.urgency",)
    assert changed_keys(configured(), with_prompt("how soon")) == ("task.urgency",)
    assert concerned(("task.urgency",)) == EVERYBODY


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ({"fleet__name": "others"}, "fleet.name"),
        ({"fleet__state_dir": "/var/x"}, "fleet.state_dir"),
        ({"redis__url": "redis://other:1/0"}, "redis.url"),
        ({"redis__url": "embedded"}, "redis.url"),
        ({"redis__input_stream": "x"}, "redis.input_stream"),
        ({"desk__port": 1}, "desk.port"),
        ({"model__url": "embedded"}, "model.url"),
        ({"log__format": "json"}, "log.format"),
    ],
)
def test_what_cannot_change_while_the_fleet_runs_is_refused_by_name(flags: dict[str, Any], key: str) -> None:
    with pytest.raises(RefusedError) as refused:
        reloader(configured(), configured(**flags, model__name="other:1b"))()
    assert refused.value.kind == "conflict"
    first, *rest = str(refused.value).splitlines()
    assert "stop the fleet and start it" in first
    assert rest[0].startswith(f"{key} (--")
    assert len(rest) == 1, "the model's name alone could have changed"


def test_an_embedded_model_keeps_its_context() -> None:
    before, after = load(None, {}, {}), load(None, {}, {"model.num_ctx": 4096})
    assert list(fixed_keys(changed_keys(before, after), before, after))
    before, after = configured(), configured(model__num_ctx=4096)
    assert not list(fixed_keys(changed_keys(before, after), before, after))


def test_a_wrong_configuration_is_refused_with_every_problem() -> None:
    def read() -> Config:
        raise ConfigError(["model.nme (x.toml): there is no such key", "log.levl (x.toml): there is no such key"])

    with pytest.raises(RefusedError) as refused:
        Reloader(configured(), read, lambda config: config)()  # type: ignore[arg-type, return-value]
    assert refused.value.kind == "invalid"
    assert str(refused.value).splitlines()[1:] == [
        "model.nme (x.toml): there is no such key",
        "log.levl (x.toml): there is no such key",
    ]


def test_a_task_that_does_not_exist_is_found_before_anything_changes() -> None:
    with pytest.raises(RefusedError, match="did you mean sentiment"):
        reloader(configured(), configured(enrich__tasks=("sentimnt",)))()


def test_a_plug_in_that_raises_is_refused_and_does_no_harm() -> None:
    def read() -> Config:
        raise ZeroDivisionError("in somebody's module")

    with pytest.raises(RefusedError, match="ZeroDivisionError: in somebody's module"):
        Reloader(configured(), read, lambda config: config)()  # type: ignore[arg-type, return-value]


def test_a_refused_configuration_is_compared_with_the_last_good_one() -> None:
    read = iter([configured(fleet__name="others"), configured(log__level="debug"), configured(log__level="debug")])
    renew = Reloader(configured(), lambda: next(read), lambda config: config)  # type: ignore[arg-type, return-value]
    with pytest.raises(RefusedError):
        renew()
    assert renew().changed == ("log.level",)
    assert renew().changed == ()
