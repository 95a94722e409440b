"""What state a child is in, and what follows for the fleet: pure decisions."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

CRASHES_MAX = 3  # in a row and each within a healthy minute: from then on a slot is in a crash loop


class State(StrEnum):
    """What a slot's child is about. They stand in the order in which the fleet does without them."""

    RESTARTING = "restarting"  # there is none: the next is waited for
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


READINESS = list(State)


class Worker(NamedTuple):
    """A worker's slot, as far as decisions need to know it."""

    number: int
    state: State
    in_hand: int = 0
    old: bool = False  # to be replaced by another


class Change(NamedTuple):
    """What is to be done now: slots to be opened, and workers to be sent away. At most one of the two is not empty."""

    opened: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()


def state_of(*, alive: bool, ready: bool, stopping: bool) -> State:
    """Return the state of a slot whose child is there, has said that it is ready, was told to stop."""
    if not alive:
        return State.RESTARTING
    if stopping:
        return State.STOPPING
    return State.READY if ready else State.STARTING


def in_crash_loop(workers: Sequence[int], janitor: int) -> bool:
    """Whether nothing works because everything dies: given the failures in a row of each worker and of the janitor.

    The janitor counts where there is no worker: it clears the way for them. One worker that lives breaks the loop.
    """
    return all(failures >= CRASHES_MAX for failures in workers or [janitor])


def converge(workers: Sequence[Worker], desired: int) -> Change:
    """Decide on the next step from these workers to so many, none of them old.

    - There are never more slots than desired, but for those that still drain after a scale-down, and for one spare
      while somebody old is left: a successor is ready before its predecessor is sent away.
    - Who is too many goes by `least_busy`; so does nobody who works while somebody does not.
    - A new slot gets the lowest number that is free.
    """
    staying = [worker for worker in workers if worker.state is not State.STOPPING]
    spare = 1 if desired and any(worker.old for worker in staying) else 0
    surplus = len(staying) - desired - spare
    if surplus > 0:
        return Change(closed=tuple(worker.number for worker in least_busy(staying)[:surplus]))
    if len(staying) > desired:
        return Change(closed=tuple(worker.number for worker in next_replaced(staying)))
    room = desired + spare - len(workers)  # who drains still has its memory and its number
    return Change(opened=tuple(_free_numbers(workers, room)))


def least_busy(workers: Iterable[Worker]) -> list[Worker]:
    """Order workers by who is missed least: not there, not ready, little in hand; among equals the latest slot."""
    return sorted(workers, key=lambda one: (READINESS.index(one.state), one.in_hand, -one.number))


def next_replaced(workers: Sequence[Worker]) -> list[Worker]:
    """Return the old worker that is sent away next, if one can be spared: at most one.

    One that is not ready is no loss. Any other stays until all who are not old are ready.
    """
    old = sorted((worker for worker in workers if worker.old), key=lambda one: one.number)
    idle = [worker for worker in old if worker.state is not State.READY]
    others_work = all(worker.state is State.READY for worker in workers if not worker.old)
    return idle[:1] or (old[:1] if others_work else [])


def _free_numbers(workers: Sequence[Worker], count: int) -> Iterable[int]:
    taken = {worker.number for worker in workers}
    free = (number for number in range(1, len(taken) + max(count, 0) + 1) if number not in taken)
    return [number for number, _ in zip(free, range(count), strict=False)]
