"""The command line as a whole: help, exit codes, one line that says what to do, completion, start-up."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from tests.rig import RedisServer, config_for, free_port

from millhand.config import EMBEDDED, Config
from millhand.keys import Keys
from millhand.pulse import PAUSED
from millhand_fleet import ordering
from millhand_fleet.ctl import demo, desk_client, orders, settings
from millhand_fleet.ctl.cli import COMMANDS, EX_INTERRUPTED, LazyGroup, cli, summary

WORKER_CTL = [sys.executable, "-m", "millhand_fleet.ctl.main"]
EX_UNAVAILABLE, EX_CONFIG, EX_USAGE = 69, 78, 2
HEAVY = {"redis", "httpx", "uvicorn", "starlette", "hiredis"}
TELLS_CODES = {  # whose exit codes say more than done or failed
    "status", "top", "scale", "pause", "drain", "restart", "reload", "produce", "tail", "trim", "verify", "compare",
    "doctor", "demo", "config check", "dead show", "dead requeue", "dead drop",
}  # fmt: skip
ASK_THE_DESK = [
    ["status"], ["status", "--json"], ["top", "--once"], ["scale", "3"], ["scale", "-1", "--json"], ["stop"], ["pause"],
    ["resume"], ["drain"], ["restart"], ["reload", "--wait"],
]  # fmt: skip
ASK_REDIS = [
    ["tail"], ["tail", "--from", "start", "--no-follow", "--json"], ["trim", "--yes"], ["trim", "--dry-run"],
    ["verify"], ["verify", "--json", "--wait", "1"], ["compare", "1-1", "2-1"], ["produce", "--json"],
]  # fmt: skip
WRONG = [
    (["stauts"], "Did you mean 'status'?"),
    (["scale", "many"], "many"),
    (["trim", "--older-than", "5"], "no length of time such as 90s"),
    (["tail", "--from", "yesterday"], "nor an age such as 10m"),
    (["tail", "--count", "0"], "--count"),
    (["verify", "--min-rate", "95"], "--min-rate"),
    (["dead", "list", "--reason", "timeot"], "Did you mean 'timeout'?"),
    (["dead", "drop", "--all"], "give --yes"),
    (["trim"], "give --yes"),
    (["trim", "--yes", "--stream", "enriched"], "--older-than 30d"),
    (["compare", "1-1"], "two ids"),
    (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
    (["top"], "status --json"),
]


@pytest.fixture
def environment(short_path: Path) -> dict[str, str]:
    """Name a fleet that does not run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLHAND_")}
    return {**inherited, "MILLHAND_FLEET_STATE_DIR": str(short_path / "state"), "HOME": str(short_path)}


def run(environment: Mapping[str, str], *arguments: str, stdin: str = "") -> Result:
    """Run a command in this process."""
    runner = CliRunner(env={name: environment.get(name) for name in {*os.environ, *environment}})
    return runner.invoke(cli, list(arguments), input=stdin, prog_name="worker-ctl")


def spawned(environment: Mapping[str, str], *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command as a shell does."""
    return subprocess.run(
        [*WORKER_CTL, *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command, and those of the groups in it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


ALL = dict(commands())


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_help_with_an_example_and_fits_eighty_columns(path: str) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(cli, [*path.split(), "--help"], prog_name="worker-ctl")
    assert shown.exit_code == 0, shown.output
    is_group = isinstance(ALL[path], click.Group)
    assert is_group or "Example" in shown.output
    assert is_group or "worker-ctl" in shown.output.partition("Example")[2]
    assert max(map(len, shown.output.splitlines())) <= 80
    if path in TELLS_CODES:
        assert "Exit code" in shown.output


def test_the_help_of_all_lists_each_command_with_its_first_sentence_and_the_exit_codes() -> None:
    """It is read from the sources, so it has to be what click would say."""
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["--help"], prog_name="worker-ctl").output
    words = " ".join(shown.split())
    for name in COMMANDS:
        sentence = summary(name)
        assert sentence
        assert sentence in words
        assert " ".join((ALL[name].help or "").split()).startswith(sentence)
    for code in (0, 1, 2, 3, 69, 75, 78, 130):
        assert shown.count(f"  {code}  ") == 1
    assert "Its events:" in shown


@pytest.mark.parametrize("arguments", [*ASK_THE_DESK, *ASK_REDIS, ["dead", "list"]], ids=" ".join)
def test_a_fleet_that_is_not_running_is_said_in_a_line_with_what_to_do(
    environment: dict[str, str], arguments: list[str]
) -> None:
    answer = run(environment, *arguments, stdin="{}\n")
    assert answer.exit_code == EX_UNAVAILABLE, answer.output
    assert answer.stdout == ""
    first, remedy = answer.stderr.splitlines()
    assert first.startswith("error: ")
    assert "worker-ctl up" in remedy


@pytest.mark.parametrize("arguments", ASK_THE_DESK, ids=" ".join)
def test_a_configuration_that_is_wrong_keeps_nobody_from_the_running_fleet(
    environment: dict[str, str], arguments: list[str]
) -> None:
    """F17: at night somebody has broken the file, and the fleet is to be looked at, or stopped."""
    answer = run(environment | {"MILLHAND_MODEL_SEED": "seven"}, *arguments)
    assert answer.exit_code == EX_UNAVAILABLE, answer.output  # it has got so far as to look for the fleet
    assert "is not running" in answer.stderr
    assert ("warning: " in answer.stderr and "model.seed" in answer.stderr) or arguments[0] == "reload"


@pytest.mark.parametrize(
    "wrong",
    [{"MILLHAND_FLEET_NAME": "a b"}, {"MILLHAND_FLET_NAME": "b"}, {"MILLHAND_CONFIG": "/nowhere/it.toml"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_no_order_goes_to_a_fleet_that_was_perhaps_not_meant(
    environment: dict[str, str], wrong: dict[str, str]
) -> None:
    """F17: where it is unclear which fleet it is, a default would be another one."""
    answer = run(environment | wrong, "stop")
    assert answer.exit_code == EX_CONFIG
    assert answer.stderr.startswith("error: the configuration cannot be used")
    assert "not clear which fleet is meant" in answer.stderr


@pytest.mark.parametrize(
    ("in_hand", "code", "said"),
    [(0, 0, "Redis does not answer, so what waits is not known"), (3, 1, "redis does not answer: Connection refused")],
)
def test_a_drain_without_redis_makes_no_numbers_up_and_says_what_it_waited_for(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, in_hand: int, code: int, said: str
) -> None:
    row = {"name": "worker-1", "state": "ready", "stats": {"in_hand": in_hand, "waits_for": PAUSED}}
    status = {
        "paused": True, "children": [row], "redis": {"reachable": False}, "streams": {"parked": 0, "backlog": 0},
        "health": {"reasons": ["redis does not answer: Connection refused", "paused by an operator"]},
    }  # fmt: skip
    monkeypatch.setattr(orders, "ask", lambda *_: status)
    monkeypatch.setattr(orders, "request", lambda *_: desk_client.Reply(200, status))
    answer = run(environment, "drain", "--timeout", "0")
    assert answer.exit_code == code, answer.output
    assert said in answer.output
    assert "backlog 0" not in answer.output


@pytest.mark.parametrize(
    ("order", "count", "said"),
    [
        ("restart", 0, "no worker is there to be replaced; janitor and desk are"),
        ("restart", 1, "replacing, one by one: 1 worker"),
        ("restart", 2, "replacing, one by one: 2 workers"),
    ],
)
def test_how_many_are_replaced_is_said_in_words(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, order: str, count: int, said: str
) -> None:
    answer = {"rolling": order if count else None, "workers": count}
    monkeypatch.setattr(orders, "ask", lambda *_: answer)
    assert run(environment, order).output == f"{said}\n"


@pytest.mark.parametrize("order", [["drain"], ["restart", "--wait"], ["reload", "--wait"]], ids=" ".join)
def test_nobody_waits_for_a_fleet_that_was_stopped_meanwhile(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    """Two operators at once: one drains, for up to ten minutes, the other stops."""
    monkeypatch.setattr(orders, "ask", lambda *_: {"rolling": "restart", "workers": 2, "changed": ["model.name"]})
    answer = run(environment, *order)
    assert answer.exit_code == EX_UNAVAILABLE
    assert "is not running" in answer.stderr


def test_a_folder_that_may_not_be_entered_is_no_place_for_a_configuration(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the README has it: `sudo -Hu millhand worker-ctl status`, in a home that is its owner's alone."""

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(settings, "PLACES", (Path("millhand.toml"),))
    monkeypatch.setattr(Path, "is_file", forbidden)
    answer = run(environment, "status")
    assert answer.exit_code == EX_UNAVAILABLE, answer.exception
    assert "is not running" in answer.stderr


@pytest.mark.parametrize(("arguments", "is_said"), [(["scale", "+1"], True), (["status"], False)])
def test_an_order_that_a_hanging_desk_may_pass_on_late_is_not_called_lost(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], *, is_said: bool
) -> None:
    """F51: the next desk reads what the killed one left unread, and obeys."""

    def hangs(*_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(desk_client, "request", hangs)
    answer = run(environment, *arguments)
    assert answer.exit_code == EX_UNAVAILABLE
    assert ("it may still obey" in answer.stderr) is is_said


def test_a_supervisor_that_is_silent_is_said_with_what_to_look_at(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F51: the order may be lying before it; `scale +1` given again would be two."""
    monkeypatch.setattr(desk_client, "request", lambda *_: desk_client.Reply(503, {"error": ordering.NO_ANSWER}))
    answer = run(environment, "scale", "+1")
    assert answer.exit_code == EX_UNAVAILABLE
    assert "it may still obey" in answer.stderr
    assert "worker-ctl status" in answer.stderr


@pytest.mark.parametrize("arguments", ASK_REDIS, ids=" ".join)
def test_a_redis_that_is_not_there_is_said_in_a_line_with_what_to_do(
    environment: dict[str, str], arguments: list[str]
) -> None:
    environment["MILLHAND_REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    answer = run(environment, *arguments, stdin='{"text": "a"}\n')
    assert answer.exit_code == EX_UNAVAILABLE, answer.output
    assert "Traceback" not in answer.output
    assert answer.stderr.splitlines()[0].startswith("error: Redis ")
    assert len(answer.stderr.splitlines()) <= 3


@pytest.mark.parametrize("arguments", ASK_THE_DESK, ids=" ".join)
def test_a_socket_without_permission_names_the_user_that_has_it(
    environment: dict[str, str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stub stands for it: root, as whom tests may run, is refused nothing."""

    def refuse(config: Config, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(config.state_dir))

    monkeypatch.setattr(desk_client, "request", refuse)
    answer = run(environment, *arguments)
    assert answer.exit_code == EX_UNAVAILABLE
    first, remedy = answer.stderr.splitlines()
    assert first.startswith("error: no permission to speak to fleet 'events'")
    assert remedy == "  run worker-ctl as the user that runs the fleet"


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=" ".join)
def test_a_wrong_argument_is_refused_with_what_would_be_right(
    environment: dict[str, str], arguments: list[str], said: str
) -> None:
    answer = run(environment, *arguments)
    assert answer.exit_code == EX_USAGE, answer.output
    assert said in answer.stderr
    assert answer.stdout == ""


def test_a_bad_configuration_names_each_problem_also_as_json(environment: dict[str, str]) -> None:
    environment |= {"MILLHAND_FLEET_WORKERS": "many", "MILLHAND_MODEL_TEMPRATURE": "1"}
    for command in ("status", "tail", "config check"):
        answer = run(environment, *command.split())
        assert answer.exit_code == EX_CONFIG
        assert "fleet.workers" in answer.stderr
        assert "did you mean MILLHAND_MODEL_TEMPERATURE?" in answer.stderr
    answer = run(environment, "config", "check", "--json")
    assert answer.exit_code == EX_CONFIG
    report = json.loads(answer.stdout)
    assert (report["good"], len(report["problems"])) == (False, 2)


def test_the_configuration_is_shown_as_json_without_its_password(environment: dict[str, str]) -> None:
    environment["MILLHAND_REDIS_URL"] = "redis://me:secret@127.0.0.1/0"
    answer = run(environment, "config", "show", "--json")
    shown = json.loads(answer.stdout)
    assert shown["redis"]["url"] == {"value": "redis://***@127.0.0.1/0", "origin": "MILLHAND_REDIS_URL"}
    assert shown["model"]["rate_per_s"] == {"value": "inf", "origin": "default"}
    assert json.loads(run(environment, "config", "check", "--json").stdout)["tasks"] == ["sentiment"]


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["top", "--once"]], ids=" ".join)
def test_what_is_typed_most_imports_no_client_and_no_server(environment: dict[str, str], arguments: list[str]) -> None:
    """They take longer to import than all else that these commands do."""
    command = [sys.executable, "-X", "importtime", *WORKER_CTL[1:], *arguments]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    assert "click" in imported
    assert not imported & HEAVY


def test_what_every_child_imports_of_the_command_again_loads_nothing() -> None:
    """Each worker would pay for it in memory."""
    command = [sys.executable, "-c", "import sys, millhand_fleet.ctl.main; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "millhand_fleet.ctl.main" in loaded
    assert not {"click", "ast", "difflib", "msgspec"} & set(loaded)


def completed(environment: dict[str, str], line: str) -> list[str]:
    """Do what the script for bash does when the key is pressed at the end of a line."""
    words = line.split(" ")
    asked = {"_WORKER_CTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    answer = spawned({**environment, **asked})
    assert answer.stderr == ""
    return [row.partition(",")[2] for row in answer.stdout.splitlines()]


def test_a_shell_completes_commands_options_and_the_reasons_of_dead_letters(environment: dict[str, str]) -> None:
    assert set(completed(environment, "worker-ctl t")) == {"top", "tail", "trim"}
    assert set(completed(environment, "worker-ctl dead re")) == {"requeue"}
    assert "--older-than" in completed(environment, "worker-ctl dead list --o")
    assert set(completed(environment, "worker-ctl dead list --reason t")) == {"timeout", "too_large", "too_long"}
    assert completed(environment, "worker-ctl completion z") == ["zsh"]
    assert completed(environment, "worker-ctl --conf") == ["--config"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_one_that_it_can_read(environment: dict[str, str], shell: str) -> None:
    script = run(environment, "completion", shell)
    assert script.exit_code == 0
    assert "_WORKER_CTL_COMPLETE" in script.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n", "/dev/stdin"], input=script.stdout, text=True, check=True)


def test_bash_completes_by_the_script(environment: dict[str, str], tmp_path: Path) -> None:
    """What happens between the key and our command is the shell's own, so it is tried with one."""
    program = tmp_path / "worker-ctl"
    program.write_text(f'#!/bin/sh\nexec {" ".join(WORKER_CTL)} "$@"\n')
    program.chmod(0o755)
    lines = (
        "source <(worker-ctl completion bash)", "COMP_WORDS=(worker-ctl dead ex)", "COMP_CWORD=2",
        "_worker_ctl_completion worker-ctl ex dead", 'echo "${COMPREPLY[@]}"',
    )  # fmt: skip
    path = f"{tmp_path}:{environment['PATH']}"
    answer = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.stdout, answer.stderr) == ("export\n", "")


def test_a_sign_that_the_terminal_cannot_show_ends_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "mühle-…-€.toml"
    file.write_text("")
    answer = spawned(
        {**environment, "PYTHONIOENCODING": "latin-1"}, "--config", str(file), "config", "check", encoding="latin-1"
    )
    assert answer.returncode == 0, answer.stderr
    assert "mühle-\\u2026-\\u20ac.toml: good" in answer.stdout
    posix = spawned({**environment, "LC_ALL": "C", "LANG": ""}, "--config", str(file), "config", "check")
    assert (posix.returncode, posix.stderr) == (0, "")


def test_what_came_of_a_command_can_be_had_as_json(environment: dict[str, str], redis_url: str) -> None:
    environment["MILLHAND_REDIS_URL"] = redis_url

    def told(exit_code: int, *arguments: str) -> Any:
        answer = run(environment, *arguments, stdin='{"text": "a"}\nno json\n')
        assert answer.exit_code == exit_code, answer.output
        return json.loads(answer.stdout)

    assert told(1, "produce", "--json") == {"written": 1, "refused": 1}
    report = told(1, "verify", "--json")
    assert (report["input_count"], report["passed"], report["reasons"]) == (1, False, ["no event was enriched"])
    assert told(0, "trim", "--dry-run", "--json") == {"would_trim": 0}
    assert told(0, "trim", "--yes", "--stream", "enriched", "--older-than", "0s", "--json") == {"trimmed": 0}
    assert told(0, "dead", "drop", "--all", "--yes", "--json") == {"dropped": 0, "by_reason": {}, "dry_run": False}
    requeued = {"requeued": 0, "refused": 0, "gone": 0, "dry_run": True}
    assert told(0, "dead", "requeue", "--all", "--dry-run", "--json") == requeued


def test_verify_says_in_words_what_is_proven_and_waits_no_longer_than_it_has_to(
    environment: dict[str, str], redis_server: RedisServer, redis_url: str
) -> None:
    """Two of three events are enriched; then the third is settled while it waits."""
    environment["MILLHAND_REDIS_URL"] = redis_url
    keys = Keys.of(config_for(redis_url))
    with redis_server.client() as client:
        client.xgroup_create(keys.input, keys.group, "0", mkstream=True)
        ids = [client.xadd(keys.input, {"data": "{}"}).decode() for _ in range(3)]
        client.xreadgroup(keys.group, "c", {keys.input: ">"})
        enriched = '{"ai_enrichment":{"spam":{"is":true}}}'
        for entry_id in ids[:2]:
            client.xadd(keys.output, {"src": entry_id, "data": enriched})
            client.xack(keys.input, keys.group, entry_id)
        early = run(environment, "verify", "--wait", "0.1")
        assert early.exit_code == 1
        assert "waiting       1 (1 delivered, 0 not yet)" in early.stdout
        assert early.stdout.splitlines()[-1] == "not proven: the enrichment rate 0.6667 is below 0.95"
        client.xadd(keys.output, {"src": ids[2], "data": enriched})
        client.xack(keys.input, keys.group, ids[2])
    late = run(environment, "verify", "--wait", "3600")
    assert late.exit_code == 0
    assert late.stdout.splitlines() == [
        "events        3",
        "enriched      3 (100.00%)",
        "dead letters  0",
        "doubled       0",
        "proven",
    ]


def test_the_demo_brings_its_events_along_and_leaves_the_fleets_in_earnest_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It writes events, so no variable that names some other Redis may reach it."""
    monkeypatch.setenv("MILLHAND_REDIS_URL", "redis://production/0")
    monkeypatch.setenv("MILLHAND_FLEET_NAME", "production")
    config = demo._prepared(tmp_path / "demo")
    assert (config.redis.url, config.model.url, config.fleet.name) == (EMBEDDED, EMBEDDED, "demo")
    assert not [name for name in demo._environment() if name.startswith("MILLHAND_")]
    events = resources.files("millhand_fleet").joinpath(demo.EVENTS).read_bytes().splitlines()
    assert len(events) == 60


def test_colour_is_for_terminals_that_want_it(environment: dict[str, str]) -> None:
    """A stand-in for a terminal: click and rich ask the stream."""
    coloured = CliRunner(env=environment).invoke(cli, ["status"], color=True, prog_name="worker-ctl")
    plain = CliRunner(env={**environment, "NO_COLOR": "1"}).invoke(cli, ["status"], color=True, prog_name="worker-ctl")
    assert "\x1b[" in coloured.stderr
    assert "\x1b[" not in plain.stderr


def test_ctrl_c_ends_any_command_as_shells_expect() -> None:
    @click.group(cls=LazyGroup)
    def group() -> None:
        """Stand for the whole."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    group.get_command = lambda *_: click.Command("status", callback=interrupt)  # type: ignore[method-assign]
    answer = CliRunner().invoke(group, ["status"])
    assert (answer.exit_code, answer.stderr) == (EX_INTERRUPTED, "interrupted\n")


def test_the_demo_leaves_a_folder_alone_that_is_not_its_own(environment: dict[str, str], tmp_path: Path) -> None:
    """It makes its folder anew, so it must know it."""
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    answer = run(environment, "demo", "--folder", str(tmp_path))
    assert answer.exit_code == 1
    assert "name another --folder" in answer.stderr
    assert mine.read_text() == "years of work"
