"""Every Redis key of a fleet. All carry the fleet's hash tag, so that one fleet sits in one cluster slot."""

from typing import Self

import msgspec

from millhand.config import Config

PARKED_CONSUMER = "@parked"  # owns what waits for its retry time; no process has this name


class Keys(msgspec.Struct, frozen=True):
    """The keys of one fleet and the group that reads its input."""

    input: str
    output: str
    dead_letter: str
    parked: str
    attempts: str
    totals: str
    group: str

    @classmethod
    def of(cls, config: Config) -> Self:
        """Name the keys: the streams as configured, the rest after the fleet."""
        tag = "{" + config.fleet.name + "}"
        raw, enriched, dead_letter = config.stream_names()
        return cls(
            input=raw,
            output=enriched,
            dead_letter=dead_letter,
            parked=f"{tag}:parked",
            attempts=f"{tag}:attempts",
            totals=f"{tag}:totals",
            group=config.redis.group,
        )
