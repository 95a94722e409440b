"""How the gate stands, read from Redis: what health, metrics and status say of it."""

import math
from typing import TYPE_CHECKING

import msgspec

from millhand.config import Config
from millhand.gate import LIMIT_UNTRIED, burst_let_through

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from millhand.keys import Keys

CALL_ENDS = ("ok", "strike", "late", "busy", "refused")


class GateView(msgspec.Struct, frozen=True):
    """The gate at one moment."""

    state: str = (
        "closed"  # as a circuit is: lets through | paused | throttled, away, misconfigured: nobody, but a probe
    )
    since_s: float = 0.0  # how long nobody has been let through; throttling counts from its beginning
    until_s: float = 0.0  # to the end of the pause, or to the next probe
    says: str = ""
    permits: int = 0  # calls under way, fleet-wide, and places that readers hold
    permits_max: int = 0
    tokens: float | None = None  # below 0: so many calls have theirs reserved; None: no rate is set
    strikes: int = 0  # failures in a row
    calls: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(CALL_ENDS, 0))  # as leave.lua names it

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: nobody reads, one call at a time probes."""
        return self.state not in {"closed", "paused"}


async def look_at_gate(redis: "Redis", keys: "Keys", config: Config) -> GateView:
    """Return how the gate stands. Raises RedisError."""
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hgetall(keys.gate)
        pipeline.zcount(keys.permits, 1, "+inf")
        (seconds, microseconds), raw, permits = await pipeline.execute()
    fields = {name.decode(): value for name, value in raw.items()}
    return gate_view(fields, permits, seconds * 1000.0 + microseconds / 1000, config)


def gate_view(fields: dict[str, bytes], permits: int, now_ms: float, config: Config) -> GateView:
    """Make a view of the gate's fields. `now_ms` by the server's clock."""
    model = config.model
    opened_ms, paused_until_ms = _number(fields, "open"), _number(fields, "pause_until")
    throttled_ms = _number(fields, "throttled_since")
    state, since_ms, until_ms = "closed", now_ms, now_ms
    if opened_ms:
        state = fields.get("kind", b"away").decode()
        since_ms = throttled_ms if state == "throttled" and throttled_ms else opened_ms
        until_ms = _number(fields, "probe_at")
    elif paused_until_ms > now_ms:
        state, since_ms, until_ms = "paused", throttled_ms or now_ms, paused_until_ms
    limit = _number(fields, "limit") or LIMIT_UNTRIED if model.in_flight_max == "auto" else float(model.in_flight_max)
    return GateView(
        state=state,
        since_s=round(max(0.0, now_ms - since_ms) / 1000, 3),
        until_s=round(max(0.0, until_ms - now_ms) / 1000, 3),
        says=fields.get("says", b"").decode(errors="replace") if state != "closed" else "",
        permits=permits,
        permits_max=int(limit),
        tokens=_tokens(fields, now_ms, config),
        strikes=int(_number(fields, "strikes")),
        calls={end: int(_number(fields, f"calls:{end}")) for end in CALL_ENDS},
    )


def _tokens(fields: dict[str, bytes], now_ms: float, config: Config) -> float | None:
    rate_per_s = config.model.rate_per_s
    if math.isinf(rate_per_s):
        return None
    if "tat" not in fields:
        return 1.0  # a bucket that is new, or lost
    full_in_s = max(0.0, _number(fields, "tat") / 1000 - now_ms) / 1000
    return round(burst_let_through(config.model) - full_in_s * rate_per_s, 3)


def _number(fields: dict[str, bytes], name: str) -> float:
    return float(fields.get(name, 0))
