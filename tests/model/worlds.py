"""The worlds that are explored whole: small enough for a few seconds, and every fault is in one of them."""

import functools
from collections.abc import Mapping

from tests.model.exploration import Explored, explore
from tests.model.state import Bounds, Left

WORLDS: Mapping[str, Bounds] = {
    "a worker dies, and a reply is lost": Bounds(Left(crashes=1, losses=1)),
    "a worker dies, an entry is deleted, and the zset is lost": Bounds(
        Left(crashes=1, deletions=1, zset_losses=1), repeated=True
    ),
    "a failover rolls back": Bounds(Left(failovers=1)),
    "a failover rolls back, and there are two retries": Bounds(Left(failovers=1), retries=2, sights=0),
    "two janitors, who retire consumers": Bounds(Left(zset_losses=1), sights=2, retiring=True),
    "two entries": Bounds(entries=2, sights=0),
    "two entries, and three deliveries": Bounds(entries=2, retries=0, deliveries_max=3, sights=0),
    "two entries, and one is deleted": Bounds(Left(deletions=1), entries=2, retries=0, sights=0),
}


@functools.cache
def explored(bounds: Bounds) -> Explored:
    """Explore a world by the right rules, once."""
    return explore(bounds)
