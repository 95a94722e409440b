"""The log outlives its reader."""

import os

from millhand.log import _Patient


def test_what_nobody_reads_is_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as pipe:
        patient = _Patient(pipe)
        patient.write("one\n")
        patient.flush()
        assert patient.dropped == 1
        pipe.detach()
    os.close(writer)


def test_what_is_read_arrives_whole() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as inbox, os.fdopen(writer, "w") as pipe:
        patient = _Patient(pipe)
        patient.write("one\n")
        patient.flush()
        assert inbox.readline() == "one\n"
        assert patient.dropped == 0
