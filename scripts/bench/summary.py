"""The runs of one entrant at one cell in one row, and the goals that they are measured against."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from scripts.bench.cases import W2, Cell
from scripts.bench.figures import Spread
from scripts.bench.trial import Result

Key = tuple[str, str, str]  # row, durability, cell
MILLHAND, LOOPS, GOAL_DURABILITY = "millhand", ("hand-written",), "none"
FRAMEWORK_TIMES, PEER_TIMES = 8.0, 3.0
W2_SHARE, W3_SHARE, W2_CPU_MS, W2_P99_TIMES = 0.985, 0.97, 0.5, 1.05


class Summary(msgspec.Struct, frozen=True, omit_defaults=True):
    """What several runs gave; latencies and the model's own time in ms."""

    row: str
    durability: str
    cell: str
    events_per_s: Spread
    cpu_ms: Spread
    server_cpu_ms: Spread
    share: Spread | None = None  # of the model's ideal
    latency_p50_ms: Spread | None = None
    latency_p99_ms: Spread | None = None
    own_p99_ms: Spread | None = None


class Goal(msgspec.Struct, frozen=True):
    """A goal, and how it stands: `reached` against `wanted`; None where it was not measured."""

    name: str
    wanted: float
    reached: float | None
    at_most: bool = False
    remark: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is reached."""
        if self.reached is None:
            return None
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


def summarise(row: str, cell: Cell, results: Sequence[Result]) -> Summary:
    """Put the runs of a row at a cell together."""

    def spread(figure: Callable[[Result], float]) -> Spread:
        return Spread.of([figure(result) for result in results])

    ideal = cell.case.ideal_per_s if cell.load is None else None
    paced = cell.load is not None
    return Summary(
        row,
        results[0].durability,
        cell.name,
        spread(lambda result: result.events_per_s),
        spread(lambda result: result.cpu_ms),
        spread(lambda result: result.server_cpu_ms),
        share=spread(lambda result: result.events_per_s / ideal) if ideal else None,
        latency_p50_ms=spread(lambda result: result.latency_ms["p50"]) if paced else None,
        latency_p99_ms=spread(lambda result: result.latency_ms["p99"]) if paced else None,
        own_p99_ms=spread(lambda result: result.own_ms["p99"]) if paced else None,
    )


def goals(found: Mapping[Key, Summary]) -> list[Goal]:
    """Return the goals of speed, each with what millhand reached in this run."""
    at = {key[2]: summary for key, summary in found.items() if key[:2] == (MILLHAND, GOAL_DURABILITY)}
    rivals = [summary for key, summary in found.items() if not key[0].startswith(MILLHAND)]
    frameworks = [summary for summary in rivals if not summary.row.startswith(LOOPS)]
    loops = [summary for summary in rivals if summary.row.startswith(LOOPS)]
    told = []
    for cell in ("W0 1p", "W0 2p"):
        told.append(_times(f"{cell}: the best framework", FRAMEWORK_TIMES, cell, at, frameworks))
        told += [
            _times(f"{cell}: the {row}", 1.0, cell, at, [one for one in loops if one.row == row])
            for row in dict.fromkeys(one.row for one in loops if one.cell == cell)
        ]
    told.append(_times("W1 2p: the best peer", PEER_TIMES, "W1 2p", at, rivals))
    w2, paced = at.get("W2 2p"), at.get("W2 2p at 80%")
    p99, own = (paced.latency_p99_ms, paced.own_p99_ms) if paced else (None, None)
    told += [
        Goal("W2 2p: share of the ideal", W2_SHARE, _median(w2.share) if w2 else None),
        Goal("W2 2p: CPU ms an event", W2_CPU_MS, w2.cpu_ms.median if w2 else None, at_most=True),
        Goal(
            f"W2 2p at 80%: p99, times the model's {W2.latency_ms:g} ms",
            W2_P99_TIMES,
            p99.median / W2.latency_ms if p99 else None,
            at_most=True,
            remark=f"{p99.median:.1f} ms, {own.median:.1f} ms of it inside the model" if p99 and own else "",
        ),
    ]
    for cell in ("W3 1p", "W3 2p"):
        told.append(Goal(f"{cell}: share of the ideal", W3_SHARE, _median(at[cell].share) if cell in at else None))
    return told


def _times(name: str, wanted: float, cell: str, at: Mapping[str, Summary], rivals: Sequence[Summary]) -> Goal:
    there = [one for one in rivals if one.cell == cell and one.durability == GOAL_DURABILITY]
    best = max(there, key=lambda one: one.events_per_s.median, default=None)
    if best is None or cell not in at:
        return Goal(f"{name}, times", wanted, None)
    reached = at[cell].events_per_s.median / best.events_per_s.median
    return Goal(f"{name}, times", wanted, reached, remark=f"{best.row}: {best.events_per_s.median:,.0f}/s")


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread else None
