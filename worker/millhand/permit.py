"""Leave for one call, and what becomes of the call, as the gate is told."""

import math
from typing import NamedTuple

from millhand.errors import BadAnswer, Misconfigured, ModelAway, ModelBusy, Reasoned


class Permit:
    """Leave for one call at a time."""

    __slots__ = ("fresh_until_s", "generation", "id")

    def __init__(self, permit_id: str, generation: int = 0) -> None:
        self.id = permit_id
        self.generation = generation
        self.fresh_until_s = -math.inf


class End(NamedTuple):
    """How a call ended, as lua/leave.lua takes it. Times in seconds."""

    how: str
    wall_s: float = 0.0
    queue_s: float = 0.0
    asked_s: float | None = None
    says: str = ""


UNUSED = End("unused")
VOID = End("void")


def end_of(error: Reasoned, wall_s: float = 0.0) -> End:
    """Sort a call's error by what it says about the model; "ok" where it says nothing against it."""
    match error:
        case ModelBusy():
            return End("busy", wall_s, asked_s=error.wait_s, says=str(error))
        case Misconfigured():
            return End("refused", wall_s, says=str(error))
        case ModelAway():
            return End("strike", wall_s, says=str(error))
        case BadAnswer(strikes=True):
            return End("late" if error.reason == "timeout" else "strike", wall_s, says=str(error))
        case _:
            return End("ok", wall_s)
