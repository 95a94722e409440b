"""Settles: what was sent, paired with what answered it."""

import math
from collections import defaultdict
from collections.abc import Iterable

import msgspec
from tests.fleet.chaos.records import Delivered, Record, Resending, Sent, Settled, Verdict

STRICT: tuple[Verdict, ...] = ("retry", "bury", "release", "hand_back")  # by owner and count
LAST: tuple[Verdict, ...] = ("done", "bury", "skip")  # nothing comes after them


class Act(msgspec.Struct, frozen=True):
    """One settle, as it was sent, and what answered it: if it was carried out, then between the two."""

    id: str
    process: str
    owner: str
    count: int
    verdict: Verdict
    sent: Sent | None
    answered: Settled | None

    @property
    def sent_s(self) -> float:
        """When it was sent; minus infinity where that is not recorded."""
        return self.sent.mono if self.sent else -math.inf

    @property
    def answered_s(self) -> float:
        """When the answer was there; infinity where none is recorded."""
        return self.answered.mono if self.answered else math.inf

    @property
    def answer(self) -> str | None:
        """What Redis said; None where that is unknown, so that it may have been carried out."""
        return self.answered.settled if self.answered else None

    @property
    def by_worker(self) -> bool:
        """Whether a worker did it, in its own name. The janitor acts in that of others."""
        return is_worker(self.process)

    @property
    def ends_the_event(self) -> bool:
        """Whether its answer says that the event is settled for good."""
        if self.answer == "gone":
            return self.verdict != "retry"  # which is also gone if it was parked before
        return self.answer == "ok" and self.verdict in LAST

    @property
    def records(self) -> tuple[Record, ...]:
        """What is recorded of it."""
        return tuple(record for record in (self.sent, self.answered) if record)


def is_worker(process: str) -> bool:
    """Whether a process of this name is a worker."""
    return process.startswith("worker-")


def token(holding: Delivered | Act) -> tuple[str, int]:
    """Return what entitles to settle: owner and count."""
    return holding.owner, holding.count


def acts_of(story: Iterable[Record]) -> list[Act]:
    """Pair what was sent about one event with its answers, by process, verdict and token.

    What is sent again leaves the earlier sending without an answer. Of two that were sent side by side, by processes of
    the same name, the first gets the first answer: an act may look longer than it was, and never shorter.
    """
    unanswered: dict[tuple[str, Verdict, str, int], list[int]] = defaultdict(list)
    pairs = list[tuple[Sent | None, Settled | None]]()
    for record in story:
        match record:
            case Sent():
                unanswered[_key(record)].append(len(pairs))
                pairs.append((record, None))
            case Resending(process=process):
                for (sender, *_), places in unanswered.items():
                    if sender == process:
                        places.clear()
            case Settled():
                if places := unanswered[_key(record)]:
                    place = places.pop(0)
                    pairs[place] = (pairs[place][0], record)
                else:
                    pairs.append((None, record))
    return [_act(sent, settled) for sent, settled in pairs]


def _key(record: Sent | Settled) -> tuple[str, Verdict, str, int]:
    return record.process, record.verdict, record.owner, record.count


def _act(sent: Sent | None, settled: Settled | None) -> Act:
    known = settled or sent
    assert known is not None
    return Act(known.id, known.process, known.owner, known.count, known.verdict, sent, settled)
