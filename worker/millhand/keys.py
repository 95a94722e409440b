"""Every Redis key of a fleet. All carry the fleet's hash tag, so that one fleet sits in one cluster slot."""

import hashlib
from typing import Self

import msgspec

from millhand.config import ASKING, OWN_KEYS, SEEN, Config

PARKED_CONSUMER = "@parked"  # owns what waits for its retry time; no process has this name


class Keys(msgspec.Struct, frozen=True):
    """The keys of one fleet and the group that reads its input."""

    input: str
    output: str
    dead_letter: str
    parked: str
    attempts: str
    redrives: str
    closed: str
    totals: str
    gate: str
    permits: str
    answers: str
    answer_times: str
    seen_prefix: str
    asking_prefix: str
    group: str

    @classmethod
    def of(cls, config: Config) -> Self:
        """Name the keys: the streams as configured, the rest after the fleet."""
        tag = "{" + config.fleet.name + "}"
        raw, enriched, dead_letter = config.stream_names()
        own = {name: f"{tag}:{name}" for name in OWN_KEYS}
        return cls(
            input=raw,
            output=enriched,
            dead_letter=dead_letter,
            **own,
            seen_prefix=f"{tag}:{SEEN}",
            asking_prefix=f"{tag}:{ASKING}",
            group=config.redis.group,
        )

    def seen(self, event_id: bytes) -> str:
        """Name the marker that says which entry has an event_id; the id itself may be long, or no text."""
        return self.seen_prefix + hashlib.blake2b(event_id, digest_size=16).hexdigest()

    def asking(self, question: str) -> str:
        """Name the marker that says who asks a question."""
        return self.asking_prefix + question
