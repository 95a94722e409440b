"""What a worker process had in hand when it ended."""

from collections.abc import Iterator

from tests.fleet.chaos.records import Delivered, Renewed, Sent, Settled
from tests.fleet.chaos.timeline import Life, Timeline


def held_at_end(run: Timeline, life: Life) -> Iterator[Delivered]:
    """Yield the deliveries that a worker surely held when it ended.

    Not what it had sent a settle for, which may have been carried out; nor what it had been told it had lost; nor what
    others had taken up, or settled, before it ended.
    """
    held = dict[str, Delivered]()
    for record in run.records_of(life):
        match record:
            case Delivered(id=entry_id):
                held[entry_id] = record
            case Sent(id=entry_id) | Settled(id=entry_id):
                held.pop(entry_id, None)
            case Renewed(lost=lost):
                for entry_id in lost:
                    held.pop(entry_id, None)
    return (delivery for delivery in held.values() if not _passed_on(run, delivery, life.ended_s))


def _passed_on(run: Timeline, delivery: Delivered, until_s: float) -> bool:
    taken = any(delivery.mono < one.mono < until_s for one in run.story(delivery.id, Delivered))
    return taken or any(
        act.answer == "ok" and act.answered_s > delivery.mono and act.sent_s < until_s
        for act in run.acts_on(delivery.id)
    )
