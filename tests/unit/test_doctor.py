"""What the doctor reads of files and durations, and how it shows what it found."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from millhand.address import told
from millhand.config import Config
from millhand.keys import Keys
from millhand.layers import load_what_is_right
from millhand_fleet.doctor import page
from millhand_fleet.doctor.finding import Level, Section, error, note, ok, warning, worst
from millhand_fleet.doctor.parallelism import Call, at_once
from millhand_fleet.doctor.permissions import NEEDED, needed
from millhand_fleet.doctor.processes import ancestors, look_at
from millhand_fleet.doctor.server_versions import parsed
from millhand_fleet.doctor.setup import given_file
from millhand_fleet.doctor.supervision_probe import supervisord_programs, systemd_units

CONF = Path(__file__).resolve().parents[2] / "conf"
FILE = Path("/etc/x.conf")
SECTIONS = (Section("Redis", (ok("version", "7.0"), error("durability", "none … at all", "appendonly yes"))),)


@pytest.mark.parametrize(
    ("lines", "wait_s", "signals_all", "kills_all"),
    [
        pytest.param("", 10.0, False, False, id="supervisord's own defaults"),
        pytest.param("stopwaitsecs=45 ; enough\nkillasgroup=true", 45.0, False, True, id="as shipped"),
        pytest.param("stopasgroup=true", 10.0, True, True, id="a stop for the group is a kill for the group too"),
    ],
)
def test_a_program_of_supervisord_is_read_as_supervisord_reads_it(
    lines: str, wait_s: float, *, signals_all: bool, kills_all: bool
) -> None:
    text = f"[program:m]\ncommand=/opt/worker-ctl --config x up\n{lines}\n[program:other]\ncommand=sleep 1"
    (program,) = supervisord_programs(FILE, text)
    assert (program.stop_wait_s, program.signals_all, program.kills_all) == (wait_s, signals_all, kills_all)


def test_the_shipped_supervisord_file_is_found_to_be_good() -> None:
    (program,) = supervisord_programs(FILE, (CONF / "supervisord.conf").read_text(encoding="utf-8"))
    assert program.stop_wait_s >= 37
    assert not program.signals_all
    assert not program.opens_port


def test_a_network_port_of_supervisord_without_a_password_is_seen() -> None:
    text = "[inet_http_server]\nport=*:9001\n{}\n[program:m]\ncommand=worker-ctl up"
    assert supervisord_programs(FILE, text.format(""))[0].opens_port
    assert not supervisord_programs(FILE, text.format("password=x"))[0].opens_port


@pytest.mark.parametrize(
    ("setting", "wait_s"),
    [
        ("", 90.0),
        ("TimeoutStopSec=45", 45.0),
        ("TimeoutStopSec=45s", 45.0),
        ("TimeoutStopSec=1min 30s", 90.0),
        ("TimeoutSec=20", 20.0),
        ("TimeoutStopSec=infinity", float("inf")),
        ("# TimeoutStopSec=1", 90.0),
    ],
)
def test_the_stop_time_of_a_unit_is_read_as_systemd_writes_it(setting: str, wait_s: float) -> None:
    (unit,) = systemd_units(FILE, f"[Service]\nExecStart=/opt/worker-ctl \\\n  up\n{setting}\nKillMode=mixed\n")
    assert unit.stop_wait_s == wait_s
    assert not unit.signals_all
    assert unit.kills_all


def test_a_unit_of_something_else_is_left_alone() -> None:
    assert systemd_units(FILE, "[Service]\nExecStart=/usr/bin/redis-server\n") == []


@pytest.mark.parametrize(
    ("works", "number"),
    [
        pytest.param([(0, 1), (0, 2), (0, 3), (0, 4)], 1, id="one after another"),
        pytest.param([(0, 1), (0, 1), (0, 2), (0, 2)], 2, id="by twos"),
        pytest.param([(0, 1), (0, 1), (0, 1), (0, 1)], 4, id="all"),
    ],
)
def test_calls_that_ran_at_once_are_told_from_those_that_waited(works: list[tuple[int, int]], number: int) -> None:
    assert at_once([Call(began, ended) for began, ended in works]) == number
    assert at_once([Call(began, ended, work_s=1.0) for began, ended in works]) == number


def test_calls_that_slow_each_other_down_still_ran_at_once() -> None:
    """A batch on a GPU takes longer than a call alone; the model's own account of its work tells it from a queue."""
    assert at_once([Call(0, 4.0, 4.0), Call(0, 5.0, 5.0), Call(0, 6.5, 6.5)]) == 3
    assert at_once([Call(0, 4.0, 4.0), Call(0, 8.0, 4.0)]) == 1


def test_every_needed_command_names_keys_that_there_are() -> None:
    keys = Keys.of(Config())
    commands = needed(keys)
    assert len(commands) == len(NEEDED)
    assert ["XADD", keys.output, "*", "data", "x"] in commands


def test_an_address_is_shown_without_its_password() -> None:
    assert told("rediss://u:p@w@host:6380/0") == "rediss://***@host:6380/0"
    assert told("redis://host") == "redis://host"


def test_the_numbers_of_a_version_are_found_before_its_suffix() -> None:
    assert parsed("0.12.0-millhand") == (0, 12, 0)
    assert parsed("7.0.15") == (7, 0, 15)
    assert parsed("") == ()


@pytest.fixture
def make_process(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder like /proc with one process in it."""

    def make(*arguments: str, environment: str = "A=1") -> Path:
        place = tmp_path / "7"
        place.mkdir()
        (place / "cmdline").write_bytes("\0".join(arguments).encode() + b"\0")
        (place / "environ").write_text(environment)
        (place / "status").write_text("Name:\tpython3\nPPid:\t1\n")
        (place / "limits").write_text("Max open files            1024                 4096                 files\n")
        (place / "cwd").symlink_to(tmp_path)
        return tmp_path

    return make


def test_a_process_is_seen_as_proc_shows_it(make_process: Callable[..., Path]) -> None:
    seen = look_at(7, make_process("/opt/python", "worker-ctl", "up"))
    assert seen is not None
    assert (seen.name, seen.parent, seen.descriptors, seen.environment) == ("python3", 1, 1024, {"A": "1"})
    assert seen.arguments == ("/opt/python", "worker-ctl", "up")


def test_a_process_that_is_gone_is_none_and_has_no_ancestors(make_process: Callable[..., Path]) -> None:
    proc = make_process("worker-ctl", "up")
    assert look_at(8, proc) is None
    seven = look_at(7, proc)
    assert seven is not None
    assert ancestors(seven, proc) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "name"),
    [
        (("worker-ctl", "--config", "a.toml", "up"), "", "a.toml"),
        (("worker-ctl", "--config=a.toml", "up"), "", "a.toml"),
        (("worker-ctl", "up"), "MILLHAND_CONFIG=b.toml", "b.toml"),
        (("worker-ctl", "up"), "", "millhand.toml"),
    ],
)
def test_the_file_that_a_fleet_was_given_is_found(
    make_process: Callable[..., Path], arguments: tuple[str, ...], environment: str, name: str
) -> None:
    proc = make_process(*arguments, environment=environment)
    for file in ("a.toml", "b.toml", "millhand.toml"):
        (proc / file).touch()
    seen = look_at(7, proc)
    assert seen is not None
    assert given_file(seen) == str(proc / name)


def test_of_a_broken_file_what_is_right_is_used(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('[fleet]\nworkrs = 3\nworkers = 5\n[redis]\nurl = "redis://h:1/0"\n[model]\nnum_ctx = "x"\n')
    config, problems = load_what_is_right(file, {})
    assert (config.fleet.workers, config.redis.url, config.model.num_ctx) == (5, "redis://h:1/0", 2048)
    assert len(problems) == 2


def test_of_a_file_that_is_no_toml_the_environment_is_still_used(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text("[fleet")
    config, problems = load_what_is_right(file, {"MILLHAND_FLEET_WORKERS": "5"})
    assert config.fleet.workers == 5
    assert "is not TOML" in problems[0]


def test_the_page_has_marks_a_remedy_and_a_sum() -> None:
    lines = list(page.lines(SECTIONS, width=None, unicode=True))
    plain = "\n".join(lines)
    assert "✓" in plain
    assert "✗" in plain
    assert "→ appendonly yes" in plain
    assert "1 error, 1 good" in plain


def test_the_page_is_ascii_where_the_locale_is() -> None:
    assert "\n".join(page.lines(SECTIONS, width=70, unicode=False)).isascii()


def test_the_quiet_page_leaves_out_what_is_well() -> None:
    said = "\n".join(page.lines(SECTIONS, width=None, unicode=True, quiet=True))
    assert "version" not in said
    assert "durability" in said


def test_foreign_words_do_not_reach_the_terminal_as_commands() -> None:
    section = Section("Model", (warning("answers", f"HTTP 500: \x1b[2J{os.linesep}x", "y"),))
    assert "[2J\\nx" in "".join(page.lines((section,), width=None, unicode=True))
    assert "\x1b[2J" not in "".join(page.lines((section,), width=None, unicode=True))


def test_a_long_finding_is_wrapped_below_its_own_beginning() -> None:
    section = Section("Model", (note("deadlines", "word " * 40),))
    lines = list(page.lines((section,), width=70, unicode=True))
    assert max(len(line) for line in lines[2:-2]) <= 70
    assert lines[2].startswith(" " * 21 + "word")


def test_the_worst_of_nothing_is_well() -> None:
    assert worst(()) is Level.OK
    assert worst(SECTIONS) is Level.ERROR
