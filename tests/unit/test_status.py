"""The document that status, top and the web page render."""

from millhand_fleet.snapshot import Snapshot
from millhand_fleet.status import GOOD_S, Kept, status_document

SNAPSHOT = Snapshot("events", 0.0, "tiny:1b")
NEWER = Snapshot("events", 1.0, "tiny:1b")


def test_many_who_ask_are_one_rendering_until_there_is_a_newer_snapshot() -> None:
    """F50: 500 clients cost the desk no more than one."""
    rendered: list[float] = []

    def render(snapshot: Snapshot, now_s: float) -> bytes:
        rendered.append(now_s)
        return f"{snapshot.taken_at} at {now_s}".encode()

    kept = Kept(render)
    assert {kept.of(SNAPSHOT, GOOD_S * n / 500) for n in range(500)} == {b"0.0 at 0.0"}
    assert rendered == [0.0]
    assert kept.of(NEWER, 0.1) == b"1.0 at 0.1"


def test_a_rendering_does_not_grow_old() -> None:
    """It holds ages, which go on where nothing is heard any more."""
    kept = Kept(lambda _, now_s: str(now_s).encode())
    kept.of(SNAPSHOT, 0.0)
    assert kept.of(SNAPSHOT, GOOD_S + 1) == str(GOOD_S + 1).encode()


def test_what_the_supervisor_says_besides_is_passed_on_and_takes_no_other_place() -> None:
    snapshot = Snapshot("events", 0.0, "tiny:1b", more={"new": 1, "health": "mine", "fleet": "mine"})
    document = status_document(snapshot, 0.0)
    assert document["new"] == 1
    assert document["health"]["status"] == "down"
    assert document["fleet"] == "events"
    assert not {"more", "measured"} & document.keys()
