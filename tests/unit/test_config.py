"""The configuration's layers, and everything it refuses."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millhand.config import (
    ASKING,
    CONTROL_SOCKET,
    ENVIRONMENT_FILE,
    OWN_KEYS,
    SECTIONS,
    SEEN,
    SOCKET_PATH_BYTES_MAX,
    Config,
    default_state_dir,
    guess,
)
from millhand.errors import ConfigError, Unusable
from millhand.layers import load
from millhand_fleet.ctl import settings

KEYS = [(section, field.name) for section, struct in SECTIONS.items() for field in msgspec.structs.fields(struct)]

Write = Callable[[str], Path]
Refuse = Callable[[str], list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a TOML file and return its path."""

    def written(text: str) -> Path:
        path = tmp_path / "millhand.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.fixture
def refused(write: Write) -> Refuse:
    """Load a TOML text that must be refused; return the problems."""

    def problems(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(write(text), {})
        return caught.value.problems

    return problems


def refused_environment(**environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, environment)
    return caught.value.problems


# -- layers ------------------------------------------------------------------------------------------------------------


def test_nothing_set_is_a_configuration_that_works() -> None:
    assert load(None, {}) == Config()


def test_the_file_beats_the_default(write: Write) -> None:
    assert load(write("[fleet]\nworkers = 5"), {}).fleet.workers == 5


def test_the_environment_beats_the_file(write: Write) -> None:
    config = load(write("[fleet]\nworkers = 5"), {"MILLHAND_FLEET_WORKERS": "6"})
    assert config.fleet.workers == 6


def test_a_flag_beats_the_environment(write: Write) -> None:
    config = load(write("[fleet]\nworkers = 5"), {"MILLHAND_FLEET_WORKERS": "6"}, {"fleet.workers": 7})
    assert config.fleet.workers == 7


def test_a_layer_replaces_single_keys_and_leaves_their_neighbours(write: Write) -> None:
    config = load(write('[fleet]\nworkers = 5\nname = "mill"'), {"MILLHAND_FLEET_WORKERS": "6"})
    assert (config.fleet.workers, config.fleet.name, config.fleet.drain_s) == (6, "mill", 20.0)


def test_every_value_knows_where_it_came_from(write: Write) -> None:
    file = write('[fleet]\nname = "mill"\nworkers = 1\n[model]\nseed = 1\n[desk]\nport = 1')
    config = load(file, {"MILLHAND_FLEET_WORKERS": "6", "MILLHAND_DESK_PORT": "2"}, {"desk.port": 3})
    assert config.origins == {
        "fleet.name": str(file),
        "fleet.workers": "MILLHAND_FLEET_WORKERS",
        "model.seed": str(file),
        "desk.port": "--port",
    }


def test_a_flag_is_named_as_it_is_typed() -> None:
    assert load(None, {}, {"fleet.drain_s": 3.0}).origins == {"fleet.drain_s": "--drain-s"}


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_can_be_set_from_the_environment(section: str, key: str) -> None:
    value = getattr(getattr(Config(), section), key)
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    variable = f"MILLHAND_{section}_{key}".upper()
    config = load(None, {variable: text})
    assert getattr(getattr(config, section), key) == value
    assert config.origins == {f"{section}.{key}": variable}


def test_a_list_from_the_environment_is_split_at_commas() -> None:
    config = load(None, {"MILLHAND_ENRICH_TASKS": " sentiment , spam,", "MILLHAND_ENRICH_TEXT_FIELDS": "a.b"})
    assert config.enrich.tasks == ("sentiment", "spam")
    assert config.enrich.text_fields == ("a.b",)


def test_a_single_value_from_the_environment_keeps_its_commas() -> None:
    assert load(None, {"MILLHAND_ENRICH_TRANSLATE_TO": "plain, simple English"}).enrich.translate_to == (
        "plain, simple English"
    )


def test_an_empty_list_from_the_environment_is_refused() -> None:
    (problem,) = refused_environment(MILLHAND_ENRICH_TASKS=" , ")
    assert problem.startswith("enrich.tasks (MILLHAND_ENRICH_TASKS): ")


def test_numbers_from_the_environment_are_read_as_numbers() -> None:
    config = load(None, {"MILLHAND_DELIVERY_LEASE_S": "12.5", "MILLHAND_DELIVERY_RETRIES": "0"})
    assert (config.delivery.lease_s, config.delivery.retries) == (12.5, 0)


def test_foreign_variables_and_the_one_that_names_the_file_are_no_keys() -> None:
    assert load(None, {"PATH": "/bin", "MILL": "x", ENVIRONMENT_FILE: "/etc/millhand.toml"}) == Config()


def test_a_whole_number_will_do_for_seconds(write: Write) -> None:
    assert load(write("[delivery]\nlease_s = 7"), {}).delivery.lease_s == 7.0


def test_a_configuration_is_frozen() -> None:
    config = Config()
    with pytest.raises(AttributeError):
        config.fleet = Config().fleet  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.fleet.workers = 3  # type: ignore[misc]


def test_a_configuration_error_stops_the_start() -> None:
    with pytest.raises(Unusable):
        load(None, {"MILLHAND_FLEET_WORKERS": "many"})


def test_the_state_directory_follows_the_fleets_name() -> None:
    assert load(None, {"MILLHAND_FLEET_NAME": "mill"}).state_dir == default_state_dir("mill")


def test_a_state_directory_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/miller")
    assert load(None, {"MILLHAND_FLEET_STATE_DIR": "~/mill"}).state_dir == Path("/home/miller/mill")


def test_the_embedded_servers_addresses_replace_nothing_else() -> None:
    before = load(None, {"MILLHAND_MODEL_SEED": "3"})
    after = before.with_urls(redis="redis://127.0.0.1:1/0", model="http://127.0.0.1:2")
    assert (after.redis.url, after.model.url) == ("redis://127.0.0.1:1/0", "http://127.0.0.1:2")
    assert (after.model.seed, after.origins, after.fleet) == (3, before.origins, before.fleet)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_an_unknown_section_is_refused_with_a_guess(refused: Refuse, tmp_path: Path) -> None:
    assert refused("[flet]\nworkers = 1") == [
        f"flet ({tmp_path / 'millhand.toml'}): there is no such section; did you mean fleet?"
    ]


def test_an_unknown_key_is_refused_with_a_guess(refused: Refuse, tmp_path: Path) -> None:
    assert refused("[fleet]\nworker = 1") == [
        f"fleet.worker ({tmp_path / 'millhand.toml'}): there is no such key; did you mean workers?"
    ]


def test_an_unknown_variable_is_refused_with_a_guess() -> None:
    assert refused_environment(MILLHAND_FLEET_WORKER="1") == [
        "MILLHAND_FLEET_WORKER (environment): no key has this name; did you mean MILLHAND_FLEET_WORKERS?"
    ]


def test_a_word_like_no_other_is_refused_without_a_guess(refused: Refuse) -> None:
    (problem,) = refused("[zzz]\nqqq = 1")
    assert "did you mean" not in problem


def test_a_guess_is_the_closest_known_word() -> None:
    assert guess("retrys", ["retries", "lease_s", "retry_backoff_s"]) == "retries"
    assert guess("qqq", ["retries"]) is None


def test_what_tells_the_origins_is_no_section(refused: Refuse) -> None:
    (problem,) = refused('[origins]\n"fleet.name" = "x"')
    assert problem.startswith("origins (")


def test_a_section_that_is_a_value_is_refused_with_the_way_to_write_it(refused: Refuse) -> None:
    (problem,) = refused("fleet = 3")
    assert "write [fleet] and its keys below it" in problem


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('[fleet]\nworkers = "2"', "fleet.workers"),
        ("[fleet]\nworkers = 2.5", "fleet.workers"),
        ("[fleet]\nworkers = true", "fleet.workers"),
        ("[fleet]\nname = 3", "fleet.name"),
        ('[enrich]\ntasks = "sentiment"', "enrich.tasks"),
        ("[enrich]\ntext_fields = [1]", "enrich.text_fields"),
        ("[redis]\nurl = 2026-01-01", "redis.url"),
        ('[log]\nlevel = "loud"', "log.level"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(refused: Refuse, toml: str, expected: str) -> None:
    (problem,) = refused(toml)
    assert problem.startswith(f"{expected} (")
    assert "will not do" in problem or "is none of" in problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fleet.workers", "-1"),
        ("fleet.workers", "257"),
        ("fleet.drain_s", "0.4"),
        ("fleet.drain_s", "601"),
        ("desk.port", "65536"),
        ("redis.embedded_port", "-1"),
        ("model.concurrency", "0"),
        ("model.timeout_s", "0.09"),
        ("model.temperature", "2.1"),
        ("model.seed", "2147483648"),
        ("enrich.event_bytes_max", "63"),
        ("enrich.tasks", "[]"),
        ("delivery.lease_s", "nan"),
        ("delivery.lease_s", "inf"),
        ("delivery.retries", "101"),
        ("delivery.deliveries_max", "0"),
        ("delivery.age_max_s", "0"),
        ("delivery.age_max_s", "-inf"),
        ("delivery.age_max_s", "nan"),
        ("input.keep_s", "-0.001"),
        ("input.keep_s", "-inf"),
        ("input.keep_s", "nan"),
        ("input.dedupe_event_id_s", "-1"),
        ("input.dedupe_event_id_s", "inf"),
        ("input.dedupe_event_id_s", "nan"),
        ("input.dedupe_event_id_s", "31536001"),
        ("janitor.every_s", "0"),
        ("redis.group", "''"),
        ("fleet.name", "'Events'"),
        ("fleet.name", "'9lives'"),
        ("fleet.name", "'a}b'"),
        ("fleet.name", "''"),
        ("fleet.name", f"'{'a' * 41}'"),
    ],
)
def test_a_value_out_of_bounds_is_refused(refused: Refuse, key: str, value: str) -> None:
    section, name = key.split(".")
    (problem,) = refused(f"[{section}]\n{name} = {value}")
    assert problem.startswith(f"{key} (")


@pytest.mark.parametrize(
    "variable", ["MILLHAND_INPUT_KEEP_S", "MILLHAND_INPUT_DEDUPE_EVENT_ID_S", "MILLHAND_DELIVERY_AGE_MAX_S"]
)
@pytest.mark.parametrize("text", ["nan", "-nan", "-inf", "-1", "1 day", "", "1e400"])
def test_a_time_that_is_none_is_refused_from_the_environment_too(variable: str, text: str) -> None:
    (problem,) = refused_environment(**{variable: text})
    assert f"({variable}): {text!r} will not do: " in problem


@pytest.mark.parametrize(("section", "key"), [("input", "keep_s"), ("delivery", "age_max_s")])
@pytest.mark.parametrize(("text", "seconds"), [("inf", math.inf), ("0.5", 0.5), ("1e9", 1e9)])
def test_what_is_kept_and_how_old_an_event_may_be_have_no_limit(
    write: Write, section: str, key: str, text: str, seconds: float
) -> None:
    """`inf` is how it is said that nothing is deleted, or expires; in the file as in the environment."""
    from_file = load(write(f"[{section}]\n{key} = {text}"), {})
    from_environment = load(None, {f"MILLHAND_{section}_{key}".upper(): text})
    assert getattr(getattr(from_file, section), key) == seconds
    assert getattr(getattr(from_environment, section), key) == seconds


def test_input_is_kept_for_a_day_nothing_expires_and_no_event_id_is_remembered_by_default() -> None:
    config = load(None, {})
    assert (config.input.keep_s, config.input.dedupe_event_id_s) == (86_400.0, 0.0)
    assert config.delivery.age_max_s == math.inf


def test_a_name_that_ends_in_a_line_break_is_refused(refused: Refuse) -> None:
    (problem,) = refused('[fleet]\nname = "events\\n"')
    assert problem.startswith("fleet.name (")


def test_the_same_bounds_hold_for_the_environment_and_for_flags() -> None:
    (problem,) = refused_environment(MILLHAND_FLEET_WORKERS="257")
    assert problem.startswith("fleet.workers (MILLHAND_FLEET_WORKERS): '257' will not do: ")
    with pytest.raises(ConfigError, match=r"^fleet\.workers \(--workers\): 257 will not do: "):
        load(None, {}, {"fleet.workers": 257})


def test_an_unknown_key_among_the_flags_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^fleet\.worker \(--worker\): there is no such key"):
        load(None, {}, {"fleet.worker": 1})


def test_several_problems_are_reported_at_once_each_with_key_place_and_reason(write: Write) -> None:
    file = write('[flet]\nx = 1\n[fleet]\nworker = 1\n[model]\nnum_ctx = "a"\nnum_predict = 0\n[task.x]\nprompt = "p"')
    with pytest.raises(ConfigError) as caught:
        load(file, {"MILLHAND_FLEET_WORKERS": "x", "MILLHAND_DESK_PROT": "1"}, {"desk.port": -1})
    found = [(problem.split(" (")[0], problem.split("(")[1].split(")")[0]) for problem in caught.value.problems]
    assert found == [
        ("flet", str(file)),
        ("fleet.worker", str(file)),
        ("model.num_ctx", str(file)),
        ("model.num_predict", str(file)),
        ("task.x", str(file)),
        ("MILLHAND_DESK_PROT", "environment"),
        ("fleet.workers", "MILLHAND_FLEET_WORKERS"),
        ("desk.port", "--port"),
    ]
    assert all(problem.partition("): ")[2] for problem in caught.value.problems)
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_a_long_value_is_shown_in_part(refused: Refuse) -> None:
    (problem,) = refused(f"[fleet]\nworkers = '{'x' * 10_000}'")
    assert len(problem) < 400


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load(tmp_path / "absent.toml", {})


def test_a_file_that_is_not_toml_is_refused_with_the_line(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"millhand\.toml: is not TOML: .*line 2"):
        load(write("[fleet]\nworkers = = 1"), {})


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "millhand.toml"
    file.write_bytes(b'[fleet]\nname = "\xff"')
    with pytest.raises(ConfigError, match="is not TOML"):
        load(file, {})


# -- impossible values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "key", "reason"),
    [
        (
            "[delivery]\nretry_backoff_s = 5\nretry_backoff_max_s = 4",
            "delivery.retry_backoff_max_s",
            "is below delivery.retry_backoff_s (5.0)",
        ),
        ("[model]\nnum_ctx = 512\nnum_predict = 512", "model.num_predict", "leaves no room"),
        ('[model]\nurl = "http://me:secret@host"', "model.url", "must not hold a user name or password"),
        ('[model]\nurl = "http://me@host"', "model.url", "must not hold a user name or password"),
        ('[model]\nurl = "http://:secret@host"', "model.url", "must not hold a user name or password"),
        ('[model]\nurl = "http://host:1/?a=1"', "model.url", "must hold no ?query"),
        ('[model]\nurl = "http://host:1/api#x"', "model.url", "must hold no ?query"),
        ('[model]\nurl = "ftp://host"', "model.url", "http:// or https://"),
        ('[model]\nurl = "localhost:11434"', "model.url", "http:// or https://"),
        ('[model]\nurl = "http://"', "model.url", "http:// or https://"),
        ('[model]\nurl = ""', "model.url", "http:// or https://"),
        ('[redis]\nurl = "http://localhost:6379"', "redis.url", "redis://, rediss:// or unix://"),
        ('[redis]\nurl = "redis://h/0?password=secret"', "redis.url", "must hold no ?options"),
        ('[redis]\nurl = "redis://h/0?socket_timeout="', "redis.url", "must hold no ?options"),
        ('[redis]\nurl = "unix:///run/redis.sock?db=1&retry=5"', "redis.url", "must hold no ?options"),
        ('[redis]\nurl = "localhost:6379"', "redis.url", "redis://, rediss:// or unix://"),
        ('[redis]\ninput_stream = "a"\noutput_stream = "a"', "redis.output_stream", "three different ones"),
        ('[redis]\ninput_stream = "a"\ndead_letter_stream = "a"', "redis.output_stream", "three different ones"),
    ],
)
def test_an_impossible_value_is_refused(refused: Refuse, toml: str, key: str, reason: str) -> None:
    (problem,) = refused(toml)
    assert problem.startswith(f"{key} (")
    assert reason in problem


def test_a_password_in_a_url_stays_out_of_the_problem(refused: Refuse) -> None:
    (problem,) = refused('[model]\nurl = "http://me:secret@host"')
    assert "secret" not in problem


@pytest.mark.parametrize("url", ["redis://host/0", "rediss://me:secret@host:1/0", "unix:///run/redis.sock", "embedded"])
def test_redis_may_be_reached_in_three_ways_or_be_embedded(write: Write, url: str) -> None:
    assert load(write(f'[redis]\nurl = "{url}"'), {}).redis.url == url


@pytest.mark.parametrize(
    ("section", "url"),
    [
        ("model", "http://["),
        ("model", "http://host:99999"),
        ("model", "http://host:port"),
        ("redis", "redis://["),
        ("redis", "redis://host:99999"),
        ("redis", "redis://host:port"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(refused: Refuse, section: str, url: str) -> None:
    (problem,) = refused(f'[{section}]\nurl = "{url}"')
    assert problem.startswith(f"{section}.url (")


@pytest.mark.parametrize(
    "toml",
    ['input_stream = "{events}:enriched"', 'output_stream = "{events}:raw"', 'dead_letter_stream = "{events}:raw"'],
)
def test_a_stream_named_like_anothers_default_is_refused(refused: Refuse, toml: str) -> None:
    """A fleet that reads what it writes never comes to an end."""
    (problem,) = refused(f"[redis]\n{toml}")
    assert "three different ones" in problem


@pytest.mark.parametrize("stream", ["input_stream", "output_stream", "dead_letter_stream"])
@pytest.mark.parametrize("key", [*OWN_KEYS, SEEN, f"{SEEN}0123", ASKING, f"{ASKING}0123"])
def test_a_stream_named_like_a_key_of_the_fleets_own_is_refused(refused: Refuse, stream: str, key: str) -> None:
    """A stream under the markers' prefix could be taken for one, and expire."""
    (problem,) = refused(f'[fleet]\nname = "mill"\n[redis]\n{stream} = "{{mill}}:{key}"')
    assert f"{{mill}}:{key} is a key that the fleet itself uses" in problem


@pytest.mark.parametrize(
    "name", ["{events}:redrives", "{events}:seen:1", "redrives", "{mill}:seen", "{mill}:redrives2", "{mill}:asking"]
)
def test_a_stream_may_have_the_name_of_what_is_no_key_of_this_fleet(write: Write, name: str) -> None:
    config = load(write(f'[fleet]\nname = "mill"\n[redis]\ninput_stream = "{name}"'), {})
    assert config.stream_names()[0] == name


def test_the_keys_of_a_fleets_own_are_these() -> None:
    of_the_cache, of_the_gate = {"answers", "answer_times"}, {"gate", "permits"}
    assert set(OWN_KEYS) == {"parked", "attempts", "redrives", "closed", "totals"} | of_the_cache | of_the_gate


def test_a_state_directory_too_long_for_a_socket_is_refused(write: Write, refused: Refuse) -> None:
    room = SOCKET_PATH_BYTES_MAX - len(f"/{CONTROL_SOCKET}") - 1
    assert load(write(f'[fleet]\nstate_dir = "/{"x" * room}"'), {})
    (problem,) = refused(f'[fleet]\nstate_dir = "/{"x" * (room + 1)}"')
    assert problem.startswith("fleet.state_dir (")
    assert "too long" in problem


def test_the_length_of_a_state_directory_is_counted_in_bytes(refused: Refuse) -> None:
    (problem,) = refused(f'[fleet]\nstate_dir = "/{"ü" * 60}"')
    assert problem.startswith("fleet.state_dir (")


def test_a_state_directory_of_an_unknown_user_is_refused(refused: Refuse) -> None:
    (problem,) = refused('[fleet]\nstate_dir = "~no_such_user_here/mill"')
    assert problem.startswith("fleet.state_dir (")


def test_an_impossible_value_that_nobody_set_is_called_a_default(refused: Refuse) -> None:
    """2048 tokens of context are the default, so 256 leave no room for the default of 512 to be written."""
    (problem,) = refused("[model]\nnum_ctx = 256")
    assert problem.startswith("model.num_predict (default): ")


# -- tasks of one's own ------------------------------------------------------------------------------------------------


def test_a_task_table_is_read_as_it_stands(write: Write) -> None:
    file = write(
        """
        [task.urgency]
        prompt = "how urgent it is"
        [task.urgency.fields]
        level = { type = "enum", values = ["low", "high"] }
        score = { type = "integer", min = 0, max = 10 }
        """
    )
    config = load(file, {})
    table = config.task["urgency"]
    assert table.prompt == "how urgent it is"
    assert table.fields["level"].values == ("low", "high")
    assert (table.fields["score"].min, table.fields["score"].max) == (0, 10)
    assert config.origins == {"task.urgency": str(file)}


def field(text: str) -> str:
    return f'[task.x]\nprompt = "p"\n[task.x.fields]\nf = {{ {text} }}'


@pytest.mark.parametrize(
    ("toml", "key", "reason"),
    [
        ("task = 1", "task", "write [task.NAME]"),
        ("[task]\nx = 1", "task.x", "write [task.x]"),
        ('[task.x]\nprompt = "p"', "task.x", "has no `fields`"),
        ('[task.x.fields]\nf = { type = "boolean" }', "task.x", "has no `prompt`"),
        ('[task.x]\nprompt = "p"\nfields = {}', "task.x", "has no `fields`"),
        ('[task.x]\nprompt = ""\nfields = { f = { type = "boolean" } }', "task.x.prompt", "length >= 1"),
        ('[task.X-y]\nprompt = "p"\nfields = { f = { type = "boolean" } }', "task.X-y", "lower-case letters"),
        (field('type = "bool"'), "task.x.fields.f.type", "'bool' is none of: string, enum"),
        (field('type = "string", length = 3'), "task.x.fields.f.length", "did you mean length_max?"),
        (field('type = "string", length_max = 0'), "task.x.fields.f.length_max", ">= 1"),
        (field('type = "list", items_max = 101'), "task.x.fields.f.items_max", "<= 100"),
        (field('type = "enum"'), "task.x", "an enum needs them"),
        (field('type = "string", values = ["a"]'), "task.x", "values belong to an enum"),
        (field('type = "boolean", min = 1'), "task.x", "min and max belong to integer and number, not to boolean"),
        (field('type = "integer", min = 2, max = 1'), "task.x", "min 2.0 is above max 1.0"),
    ],
)
def test_a_wrong_task_table_is_refused(refused: Refuse, toml: str, key: str, reason: str) -> None:
    (problem,) = refused(toml)
    assert problem.startswith(f"{key} (")
    assert reason in problem


@pytest.mark.parametrize(
    "text",
    [
        'type = "integer", min = inf',
        'type = "integer", max = nan',
        'type = "integer", max = 1e30',
        'type = "number", max = inf',
        'type = "number", min = nan',
        'type = "integer", min = 0.2, max = 0.8',
    ],
)
def test_a_bound_that_no_number_can_keep_is_refused(refused: Refuse, text: str) -> None:
    (problem,) = refused(field(text))
    assert problem.startswith("task.x (")


def test_a_misspelt_key_of_a_task_is_refused_with_a_guess_and_missed(refused: Refuse) -> None:
    problems = refused('[task.x]\nprmpt = "p"\nfields = { f = { type = "boolean" } }')
    assert [problem.partition("): ")[2] for problem in problems] == [
        "there is no such key; did you mean prompt?",
        "has no `prompt`",
    ]


def test_every_wrong_task_is_reported(refused: Refuse) -> None:
    problems = refused('[task.a]\nprompt = "p"\n[task.b]\nprompt = "p"')
    assert [problem.split(" ")[0] for problem in problems] == ["task.a", "task.b"]


def test_a_problem_in_a_field_names_the_field(refused: Refuse) -> None:
    (problem,) = refused(field('type = "enum"'))
    assert "fields.f: " in problem


def test_defaults_pass_their_own_checks() -> None:
    document: Any = msgspec.to_builtins(Config())
    assert msgspec.convert(document, Config) == Config()


def test_a_folder_that_the_user_may_not_enter_holds_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sudo -u millhand worker-ctl …` from another's folder finds the one in /etc."""

    class Forbidden(type(tmp_path)):  # type: ignore[misc]
        def is_file(self) -> bool:
            raise PermissionError(13, "Permission denied")

    installed = tmp_path / "millhand.toml"
    installed.touch()
    monkeypatch.setattr(settings, "PLACES", (Forbidden("millhand.toml"), installed))

    assert settings.found_file() == installed
