"""F14: nobody reads what the fleet says."""

import json
import os
import signal
import subprocess
import threading

from tests.fleet.conftest import BIN, STOP_S_MAX, RunningFleet, Streams
from tests.rig import eventually

EVENTS = 400  # at level debug, some six records each: several times what pipe and queues hold


def test_a_log_that_nobody_reads_stops_nothing_and_what_was_dropped_is_told(
    fleet: RunningFleet, streams: Streams
) -> None:
    """F14: as under a supervisord that is stopped, the pipe is full; every event ends, and the drops are counted."""
    fleet.environment["MILLHAND_LOG_LEVEL"] = "debug"
    reader, writer = os.pipe()
    fleet.process = subprocess.Popen(
        [BIN / "worker-ctl", "up"], env=fleet.environment, cwd=fleet.folder, stdout=writer, stderr=writer
    )
    os.close(writer)
    fleet.eventually_ready()
    streams.produce(EVENTS)
    eventually(lambda: streams.settled_once(EVENTS), 60)
    produced = EVENTS
    while not dropped(fleet):
        streams.produce(EVENTS)
        produced += EVENTS
        eventually(lambda: streams.settled_once(produced), 60)  # noqa: B023 - called at once
    with os.fdopen(reader, "rb") as pipe:
        said: list[bytes] = []
        reading = threading.Thread(target=lambda: said.extend(pipe), daemon=True)
        reading.start()
        eventually(lambda: [line for line in list(said) if b'"log.dropped"' in line], 20)
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(STOP_S_MAX) == 0
        reading.join(STOP_S_MAX)
    records = [json.loads(line) for line in said]
    assert len(streams.enriched()) == produced
    assert {"worker.stopped", "supervisor.stopped"} <= {record["event"] for record in records}


def test_a_fleet_whose_log_nobody_reads_stops_in_time(fleet: RunningFleet) -> None:
    """F14, F15: what is queued at the end waits for a reader, but not for long."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    fleet.process = subprocess.Popen(
        [BIN / "worker-ctl", "up"], env=fleet.environment, cwd=fleet.folder, stdout=writer, stderr=writer
    )
    os.close(writer)
    fleet.eventually_ready()
    assert fleet.terminate() == 0
    os.close(reader)


def dropped(fleet: RunningFleet) -> int:
    status = fleet.status()
    assert status is not None
    return sum(row.get("stats", {}).get("log_dropped", 0) for row in status["children"])
