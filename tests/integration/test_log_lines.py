"""What a whole process says."""

import json
import subprocess
import sys

import pytest

SPEAKER = """
import logging, sys, warnings
from millhand.config import Log
from millhand.log import configure, logger
configure(Log(format=sys.argv[1]), "worker-1")
logger().info("worker.started", pid=1, consumer="\\x1b[31mred")
try:
    (lambda secret: 1 / 0)("hunter2")
except ZeroDivisionError as error:
    logger().critical("process.failed", error=str(error), exc_info=True)
logging.getLogger("uvicorn.error").warning("Invalid HTTP\\nrequest")
warnings.warn("old", stacklevel=1)
"""


FLOODED = """
import sys
from millhand.config import Log
from millhand.log import configure, dropped, logger
configure(Log(format="json", level=sys.argv[1]), "worker-1")
for n in range(500):
    logger().warning("event.settled", id=str(n))
    assert dropped() == 0
"""


@pytest.mark.parametrize(("level", "told", "left_out"), [("info", 100, 400), ("debug", 500, 0)])
def test_a_flood_of_one_event_is_cut_and_counted_at_the_end_but_not_where_everything_is_asked_for(
    level: str, told: int, left_out: int
) -> None:
    command = [sys.executable, "-c", FLOODED, level]
    said = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    records = [json.loads(line) for line in said.splitlines()]
    passed = sum(record["event"] == "event.settled" for record in records)
    assert told <= passed < told + 50, "some tokens come back meanwhile"
    counted = sum(record["count"] for record in records if record["event"] == "log.suppressed")
    assert counted == 500 - passed
    assert bool(counted) == bool(left_out)


def spoken(how: str) -> str:
    """Return what a process says into a pipe, up to its end."""
    return subprocess.run([sys.executable, "-c", SPEAKER, how], stderr=subprocess.PIPE, text=True, check=True).stderr


def test_whatever_a_process_says_is_one_json_object_a_line() -> None:
    records = [json.loads(line) for line in spoken("json").splitlines()]
    assert [record["event"] for record in records] == [
        "worker.started", "process.failed", "library.said", "library.said",
    ]  # fmt: skip
    assert {record["process"] for record in records} == {"worker-1"}
    assert list(records[0])[:4] == ["timestamp", "level", "process", "event"]
    assert records[1]["exception"].endswith("ZeroDivisionError: division by zero")
    assert records[2]["detail"] == "Invalid HTTP request"


def test_a_traceback_shows_no_variables_on_a_terminal_either() -> None:
    assert "ZeroDivisionError" in spoken("console")
    assert "hunter2" not in spoken("console").replace('("hunter2")', "")


def test_what_is_no_terminal_gets_no_colours_and_says_who_speaks_first() -> None:
    first = spoken("console").splitlines()[0]
    assert first[8:].split() == ["[info", "]", "worker-1", "worker.started", "pid=1", r"consumer=\x1b[31mred"]
