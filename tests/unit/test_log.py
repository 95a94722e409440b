"""The log outlives its reader."""

import os

from millhand.log import _Patient


def test_what_nobody_reads_is_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    patient = _Patient(writer)
    patient.write("one\n")
    os.close(writer)
    patient.write("two\n")
    assert patient.dropped == 2


def test_what_is_read_arrives_whole() -> None:
    reader, writer = os.pipe()
    patient = _Patient(writer)
    patient.write("one\n")
    os.close(writer)
    with os.fdopen(reader) as inbox:
        assert inbox.read() == "one\n"
    assert patient.dropped == 0
