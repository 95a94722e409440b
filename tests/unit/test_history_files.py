"""The files of a chaos run: written, merged, kept, and what in them is no record."""

from pathlib import Path

import msgspec
import pytest
from tests.fleet.chaos.checker import judge
from tests.fleet.chaos.history import BrokenHistoryError, Entry, Final, History, Reading, Scribe, load, read, save
from tests.fleet.chaos.tape import green


def test_a_run_that_was_kept_is_judged_the_same(tmp_path: Path) -> None:
    run = green(open_end=True)
    run.input.append(Entry("1060-0", ((b"data", b"\xff\x00"), (b"data", b"again"))))
    run.settle("1060-0", "bury")
    run.write_dead("1060-0", "malformed")
    run.end()
    save(run.history(), tmp_path / "kept")
    assert load(tmp_path / "kept") == run.history()
    assert judge(tmp_path / "kept") == run.judged()


def test_an_entry_is_made_of_a_dict_or_of_what_the_server_says() -> None:
    assert Entry.of("1-0", {b"a": b"1"}).pairs == ((b"a", b"1"),)
    assert Entry.of("1-0", [b"a", b"1", b"a", b"2"]).pairs == ((b"a", b"1"), (b"a", b"2"))


def test_files_are_merged_by_time_and_what_is_no_record_is_counted(tmp_path: Path) -> None:
    log, journal = tmp_path / "fleet.log", tmp_path / "journal.jsonl"
    log.write_bytes(
        b'{"event":"worker.started","pid":1}\n'
        b'{"event":"settle.resending","id":"1-0","mono":3.0,"process":"worker-1","in_s":0.1}\n'
        b"Fatal Python error: Aborted\n\n"
        b'{"event":"event.delivered","id":"1-0","owner":"host:w1:a","count":1,"mono":1.0,"process":"worker-1"}\n'
        b'{"event":"event.deliv'
    )
    with Scribe(journal, "producer") as scribe:
        scribe.tell("event.produced", mono=2.0, n=1, outcome="ok", id="1-0", sha="00")
        scribe.tell("model.arrived", arrival_s=2.5, end_s=2.6, status=200, n=1)
    history = History.of([log, journal], Final(), green().terms)
    assert [(record.mono, record.process) for record in history.records] == [
        (1.0, "worker-1"),
        (2.0, "producer"),
        (3.0, "worker-1"),
    ]
    assert [call.n for call in history.calls] == [1]
    assert (history.reading.torn, history.reading.skipped) == (1, 1)


@pytest.mark.parametrize("line", [b'{"event":"event.deliv', b'{"event":"healed"}', b'{"event":"healed","mono":"\xff"}'])
def test_a_broken_record_that_nobody_tore_is_refused_with_its_place(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "fleet.log"
    file.write_bytes(b'{"event":"healed","mono":1.0}\n' + line + b"\n")
    with pytest.raises(BrokenHistoryError, match=r"fleet\.log:2: "):
        read([file])


def test_the_scribe_refuses_a_record_of_a_wrong_shape(tmp_path: Path) -> None:
    with Scribe(tmp_path / "nemesis.jsonl", "nemesis") as scribe:
        with pytest.raises(msgspec.ValidationError, match="fault"):
            scribe.tell("fault.began", number=1)
        with pytest.raises(KeyError):
            scribe.tell("fault.begun", number=1)
    assert read([tmp_path / "nemesis.jsonl"]) == ((), (), Reading())
