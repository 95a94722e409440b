"""The files of conf/ say what the program does."""

import configparser
import re
import tomllib
from pathlib import Path

import msgspec

from millhand.config import SECTIONS
from millhand.layers import load
from millhand_fleet.supervisor import STOP_GRACE_S, TICK_S

CONF = Path(__file__).resolve().parents[2] / "conf"
TOML = CONF / "millhand.toml"


def test_the_shipped_configuration_equals_the_defaults() -> None:
    shipped = load(TOML, {})
    assert msgspec.structs.replace(shipped, origins={}) == load(None, {})


def test_the_shipped_configuration_names_every_key() -> None:
    document = tomllib.loads(TOML.read_text(encoding="utf-8"))
    assert {section: list(table) for section, table in document.items()} == {
        section: [field.name for field in msgspec.structs.fields(struct)] for section, struct in SECTIONS.items()
    }


def test_the_example_of_a_task_in_it_is_right(tmp_path: Path) -> None:
    text = TOML.read_text(encoding="utf-8")
    example = text[text.index("# [task.urgency]") : text.index("# …")]
    file = tmp_path / "example.toml"
    file.write_text(re.sub(r"^# ?", "", example, flags=re.MULTILINE), encoding="utf-8")
    assert len(load(file, {}).task["urgency"].fields) == 5


def test_supervisord_waits_longer_than_a_drain_takes() -> None:
    program = _program()
    assert int(program["stopwaitsecs"]) > load(None, {}).fleet.drain_s + 3 * STOP_GRACE_S


def test_supervisord_brings_a_crashed_fleet_back_but_not_a_refused_one() -> None:
    program = _program()
    assert program["autorestart"] == "unexpected"
    assert program["exitcodes"] == "0,78"
    assert program["stopasgroup"] == "false"
    assert program["killasgroup"] == "true"


def test_supervisord_opens_no_network_port() -> None:
    assert not _parser().has_section("inet_http_server")


def test_the_systems_supervisord_treats_the_fleet_as_a_supervisord_of_its_own_does() -> None:
    own, systems = dict(_program()), dict(_parser("millhand.supervisor.conf")["program:millhand"])
    named_otherwise = {"command", "user", "environment", "directory", *(key for key in systems if "logfile" in key)}
    for program in (own, systems):
        for key in named_otherwise:
            program.pop(key, None)
    assert own == systems


def _program() -> configparser.SectionProxy:
    return _parser()["program:millhand"]


def _parser(name: str = "supervisord.conf") -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read(CONF / name, encoding="utf-8")
    return parser


def test_systemd_waits_longer_than_a_drain_takes() -> None:
    assert int(_unit()["TimeoutStopSec"]) > load(None, {}).fleet.drain_s + 3 * STOP_GRACE_S


def test_systemd_stops_the_supervisor_alone_and_kills_all_in_the_end() -> None:
    """A SIGTERM to the whole group would reach the children twice."""
    unit = _unit()
    assert (unit["KillMode"], unit["Type"], unit["OOMPolicy"]) == ("mixed", "notify", "continue")
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == ("on-failure", "78")


def test_systemds_watchdog_waits_for_many_ticks() -> None:
    assert int(_unit()["WatchdogSec"]) > 40 * TICK_S


def _unit() -> dict[str, str]:
    lines = (CONF / "millhand.service").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))  # the last one wins
