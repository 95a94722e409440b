"""What each class of faults does to the promises: while it lasts, and until the fleet has recovered."""

import math
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

import msgspec
from tests.fleet.chaos.records import FaultBegan, FaultEnded, Healed, Record

POISON, BLOCK = b"[[poison]]", b"[[block]]"  # in an event's text: kills, or hangs, whatever worker has it in hand


class Effect(Enum):
    """What a fault takes away."""

    REDIS_AWAY = auto()  # Redis does not answer or refuses: nothing moves
    REDIS_SHAKY = auto()  # calls fail or are late: things move, but nothing is in time
    MODEL_AWAY = auto()  # the model does not answer, or turns everybody away, or the gate does
    FLEET_AWAY = auto()  # supervisor or janitor are down
    FROZEN = auto()  # a process stands still, and does not know it
    DELETES = auto()  # pending entries vanish: their tombstones are legal
    FORGETS = auto()  # Redis falls back or is emptied: what it had accepted may be gone
    REGROUPS = auto()  # the consumer group begins anew, and owners and counts with it


NOTHING: frozenset[Effect] = frozenset()

FAULTS: dict[str, frozenset[Effect]] = {
    # processes
    "kill_worker": NOTHING,
    "freeze_worker": frozenset({Effect.FROZEN}),
    "block_worker": frozenset({Effect.FROZEN}),
    "poison": NOTHING,
    "kill_janitor": frozenset({Effect.FLEET_AWAY}),
    "freeze_janitor": frozenset({Effect.FLEET_AWAY, Effect.FROZEN}),
    "second_janitor": NOTHING,
    "kill_supervisor": frozenset({Effect.FLEET_AWAY}),
    "freeze_supervisor": frozenset({Effect.FLEET_AWAY}),
    "scale": NOTHING,
    # the way to Redis
    "kill_connections": frozenset({Effect.REDIS_SHAKY}),
    "reset": frozenset({Effect.REDIS_SHAKY}),
    "delay": frozenset({Effect.REDIS_SHAKY}),
    "slice": frozenset({Effect.REDIS_SHAKY}),
    "half_close": frozenset({Effect.REDIS_SHAKY}),
    "swallow": frozenset({Effect.REDIS_SHAKY}),
    "black_hole": frozenset({Effect.REDIS_AWAY}),
    # Redis
    "kill_redis": frozenset({Effect.REDIS_AWAY}),
    "freeze_redis": frozenset({Effect.REDIS_AWAY}),
    "pause_redis": frozenset({Effect.REDIS_AWAY}),
    "busy_script": frozenset({Effect.REDIS_AWAY}),
    "max_clients": frozenset({Effect.REDIS_AWAY}),
    "read_only": frozenset({Effect.REDIS_AWAY}),
    "out_of_memory": frozenset({Effect.REDIS_AWAY}),
    "disk_full": frozenset({Effect.REDIS_AWAY}),
    "revoke_permission": frozenset({Effect.REDIS_AWAY}),
    "flush_scripts": frozenset({Effect.REDIS_SHAKY}),
    "clock_jump": NOTHING,
    "delete_entries": frozenset({Effect.DELETES}),
    "lose_parked": NOTHING,
    "lose_gate": frozenset({Effect.MODEL_AWAY}),
    "destroy_group": frozenset({Effect.REDIS_AWAY, Effect.REGROUPS}),
    "rollback": frozenset({Effect.REDIS_AWAY, Effect.FORGETS, Effect.REGROUPS}),
    "flush": frozenset({Effect.REDIS_AWAY, Effect.DELETES, Effect.FORGETS, Effect.REGROUPS}),
    # the model
    "model_down": frozenset({Effect.MODEL_AWAY}),
    "model_hangs": frozenset({Effect.MODEL_AWAY}),
    "model_throttles": frozenset({Effect.MODEL_AWAY}),
    "model_answers_badly": NOTHING,
}


class Fault(msgspec.Struct, frozen=True):
    """One fault of the run. What was never ended lasted until all was healed."""

    name: str
    number: int
    began_s: float
    ended_s: float
    process: str | None = None  # the one that it hits; None: every one
    felt: int = 0  # how often it struck, where the server or the proxy counted that

    @property
    def effects(self) -> frozenset[Effect]:
        """What it takes away."""
        return FAULTS[self.name]


def faults_of(records: Iterable[Record]) -> list[Fault]:
    """Pair beginnings and ends. Raises ValueError for a class that FAULTS does not name."""
    began = list[FaultBegan]()
    ended = dict[int, FaultEnded]()
    healed_s = math.inf
    for record in records:
        match record:
            case FaultBegan():
                if record.fault not in FAULTS:
                    raise ValueError(f"faults.FAULTS does not say what {record.fault!r} takes away")
                began.append(record)
            case FaultEnded():
                ended[record.number] = record
            case Healed():
                healed_s = record.mono
    return [_fault(one, ended.get(one.number), healed_s) for one in began]


def _fault(began: FaultBegan, ended: FaultEnded | None, healed_s: float) -> Fault:
    ended_s = max(began.mono, ended.mono if ended else healed_s)
    process, felt = _told(began.detail, "process"), _told(ended.detail if ended else None, "felt")
    return Fault(began.fault, began.number, began.mono, ended_s, process, felt or 0)


def _told(detail: Any, name: str) -> Any:
    return detail.get(name) if isinstance(detail, dict) else None
