"""What the gate lets through, judged at the model's side: rate, permits, pause, throttling, outage, and the limit found.

A real fleet on a durable Valkey, and the fake Ollama, which writes down each call. Each command prints what it saw.

    python scripts/bench/gate.py rate          # 8 workers, 50 calls a second, bursts of 10
    python scripts/bench/gate.py permits       # 4 calls at once, with kills of workers and of Redis
    python scripts/bench/gate.py pause         # a 429 with Retry-After: 5 to one worker
    python scripts/bench/gate.py throttled     # 503 for 70 s
    python scripts/bench/gate.py outage        # the model dead for 30 s
    python scripts/bench/gate.py limit         # in_flight_max = "auto" on models with 1, 4 and 16 slots
"""

import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

import click  # noqa: E402 - the project's root has to be found first
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tests.fleet.conftest import DEAD, INPUT, OUTPUT, RunningFleet  # noqa: E402
from tests.rig import RedisServer, eventually  # noqa: E402

from scripts.fake_ollama import FakeOllama  # noqa: E402

BATCH = 500
WINDOW_S = 0.25
PATIENCE_S = 180.0
console = Console(highlight=False)


class Bench(NamedTuple):
    """What a measurement stands on."""

    fleet: RunningFleet
    server: RedisServer
    fake: FakeOllama
    redis: Any

    def produce(self, count: int, text: str = "event {n}") -> None:
        """Add events."""
        for first in range(0, count, BATCH):
            with self.redis.pipeline(transaction=False) as pipeline:
                for n in range(first, min(first + BATCH, count)):
                    pipeline.xadd(INPUT, {"data": json.dumps({"n": n, "text": text.format(n=n)})})
                pipeline.execute()

    def arrivals(self, since_s: float = 0.0) -> list[float]:
        """Return when calls arrived at the model."""
        return [call.arrival_s for call in list(self.fake.calls) if call.arrival_s >= since_s]

    def gate(self) -> dict[str, Any]:
        """Return how the gate stands."""
        status = self.fleet.status()
        return status["gate"] if status else {}


@contextmanager
def running(*, workers: int = 8, slots: int = 64, latency_s: float = 0.0, **settings: str) -> Iterator[Bench]:
    """Run a fleet; settings are environment variables without their prefix."""
    environment = {
        "MILLHAND_FLEET_WORKERS": str(workers),
        "MILLHAND_JANITOR_EVERY_S": "0.5",
        **{f"MILLHAND_{name}": value for name, value in settings.items()},
    }
    with (
        tempfile.TemporaryDirectory(prefix="millhand-bench-") as folder,
        RedisServer({"appendonly": "yes", "appendfsync": "always"}) as server,
        FakeOllama(slots=slots, latency_s=latency_s).in_thread() as fake,
        server.client() as client,
    ):
        places = {"MILLHAND_REDIS_URL": server.url, "MILLHAND_MODEL_URL": fake.url, "MILLHAND_MODEL_NAME": fake.model}
        with RunningFleet(Path(folder), {**places, **environment}) as fleet:
            fleet.up()
            yield Bench(fleet, server, fake, client)
            fleet.terminate()


@click.group()
def main() -> None:
    """Measure the gate."""
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, Valkey with appendfsync always; model, workers and server on one machine"
    )


def excess(arrivals: list[float], rate_per_s: float, burst: int) -> float:
    """Return by how many calls the fullest of all windows is over rate x its length + burst; below 0: room left."""
    worst, level, before_s = -float(burst), 0.0, 0.0
    for arrival_s in arrivals:
        level = max(0.0, level - rate_per_s * (arrival_s - before_s)) + 1
        before_s = arrival_s
        worst = max(worst, level - burst)
    return worst


def at_once(calls: list[Any]) -> int:
    """Return how many calls were open at once at the most."""
    moments = sorted([(c.arrival_s, 1) for c in calls] + [(c.end_s, -1) for c in calls if c.end_s is not None])
    open_calls = most = 0
    for _, change in moments:
        open_calls += change
        most = max(most, open_calls)
    return most


@main.command()
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--rate", "rate_per_s", default=50.0, show_default=True)
@click.option("--burst", default=10, show_default=True)
def rate(seconds: float, rate_per_s: float, burst: int) -> None:
    """Give more events than the bucket lets through, and look at every window."""
    with running(MODEL_RATE_PER_S=str(rate_per_s), MODEL_BURST=str(burst), MODEL_IN_FLIGHT_MAX="64") as bench:
        bench.produce(int(rate_per_s * seconds * 1.5) + burst)
        eventually(lambda: bench.fake.arrived, PATIENCE_S)
        first_s = bench.arrivals()[0]
        eventually(lambda: time.monotonic() > first_s + seconds, seconds + PATIENCE_S)
        arrivals = [one - first_s for one in bench.arrivals() if one <= first_s + seconds]
        budget = rate_per_s * seconds + burst
        console.print(
            f"{len(arrivals)} calls in {seconds:g} s of {budget:g} allowed: {len(arrivals) / budget:.3f} of the budget; "
            f"fullest window over rate x w + burst: {excess(arrivals, rate_per_s, burst):+.2f} calls"
        )


@main.command()
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--permits", default=4, show_default=True)
@click.option("--latency", "latency_s", default=0.1, show_default=True)
def permits(seconds: float, permits: int, latency_s: float) -> None:
    """Kill workers and Redis while no more than so many calls may be open."""
    with running(MODEL_IN_FLIGHT_MAX=str(permits), latency_s=latency_s) as bench:
        bench.produce(int(seconds / latency_s * permits * 1.5))
        eventually(lambda: bench.fake.arrived, PATIENCE_S)
        began_s = time.monotonic()
        calm_until_s = began_s + seconds / 3
        eventually(lambda: time.monotonic() > calm_until_s, seconds)
        calm = len([one for one in bench.arrivals(began_s) if one < calm_until_s])
        kills = 0
        while time.monotonic() < began_s + seconds:
            for pid in list(bench.fleet.pids().values())[:1]:
                os.kill(pid, signal.SIGKILL)
                kills += 1
            if kills % 5 == 3:
                bench.server.restart()
            bench.fake.block_until(lambda: not bench.fake.in_flight or bench.fake.in_flight > 1, PATIENCE_S)
            time.sleep(0.5)
        ideal = seconds / 3 / latency_s * permits
        console.print(
            f"open at once: {at_once(list(bench.fake.calls))} at the most, {permits} allowed, over {kills} kills of "
            f"workers and {kills // 5} restarts of Redis; before them {calm / ideal:.3f} of the ideal"
        )


@main.command()
@click.option("--for", "for_s", default=5, show_default=True)
def pause(for_s: int) -> None:
    """Turn one call away with Retry-After, and look at the arrivals around it."""
    with running(latency_s=0.02, MODEL_IN_FLIGHT_MAX="16") as bench:
        bench.produce(20000)
        eventually(lambda: bench.fake.arrived > 500, PATIENCE_S)
        bench.redis.xadd(INPUT, {"data": json.dumps({"text": f"[[fake status=429 retry_after={for_s} times=1]]"})})
        bench.fake.script({"status": 429, "retry_after": for_s, "times": 1})
        eventually(lambda: any(call.status == 429 for call in list(bench.fake.calls)), PATIENCE_S)
        refused_s = next(call.end_s for call in list(bench.fake.calls) if call.status == 429)
        bench.fake.script()
        eventually(lambda: time.monotonic() > refused_s + for_s + 3, PATIENCE_S)
        table = Table("from", "calls in 250 ms", title=f"429 with Retry-After: {for_s} at 0 s")
        arrivals = [one - refused_s for one in bench.arrivals()]
        for step in range(-4, int((for_s + 3) / WINDOW_S)):
            count = sum(step * WINDOW_S <= one < (step + 1) * WINDOW_S for one in arrivals)
            table.add_row(f"{step * WINDOW_S:+.2f} s", str(count))
        console.print(table)
        spent = bench.redis.hget("{events}:totals", "retried")
        console.print(f"attempts spent: {int(spent or 0)}, dead letters: {bench.redis.xlen(DEAD)}")


@main.command()
@click.option("--seconds", default=70.0, show_default=True)
def throttled(seconds: float) -> None:
    """Turn every call away for longer than a minute."""
    with running(latency_s=0.02, MODEL_IN_FLIGHT_MAX="16") as bench:
        bench.produce(20000)
        eventually(lambda: bench.fake.arrived > 200, PATIENCE_S)
        bench.fake.outage(503)
        began_s = time.monotonic()
        said = ""
        while time.monotonic() < began_s + seconds:
            status = bench.fleet.status()
            text = " | ".join(status["health"]["reasons"]) if status else "no answer"
            gate = bench.gate().get("state", "")
            if gate != said:
                said = gate
                console.print(f"{time.monotonic() - began_s:5.1f} s  gate {gate}: {text}", soft_wrap=True)
            time.sleep(0.5)
        bench.fake.script()
        back_s = time.monotonic()
        refused = [one - began_s for one in bench.arrivals(began_s)]
        console.print(f"calls during {seconds:g} s: {len(refused)}, at " + " ".join(f"{one:.1f}" for one in refused))
        before = bench.fake.arrived
        eventually(lambda: bench.fake.arrived > before + 50, PATIENCE_S)
        first_s = next(call.end_s for call in list(bench.fake.calls) if call.arrival_s > back_s and call.status == 200)
        console.print(f"back: first success {first_s - back_s:.1f} s after, gate {bench.gate()['state']}")
        spent = bench.redis.hget("{events}:totals", "retried")
        console.print(f"attempts spent: {int(spent or 0)}, dead letters: {bench.redis.xlen(DEAD)}")


@main.command()
@click.option("--seconds", default=30.0, show_default=True)
def outage(seconds: float) -> None:
    """Let the model die under load and come back."""
    with running(latency_s=0.05, MODEL_IN_FLIGHT_MAX="16", slots=16) as bench:
        bench.produce(6000)
        eventually(lambda: bench.fake.arrived > 300, PATIENCE_S)
        fast = per_second(bench)
        loop = bench.fake._loop
        import asyncio

        asyncio.run_coroutine_threadsafe(bench.fake.__aexit__(), loop).result(10)
        died_s = time.monotonic()
        eventually(lambda: time.monotonic() > died_s + seconds, PATIENCE_S)
        console.print(f"after {seconds:g} s: {bench.fleet.status()['health']['reasons']}")
        asyncio.run_coroutine_threadsafe(bench.fake.__aenter__(), loop).result(10)
        back_s = time.monotonic()
        arrivals = eventually(lambda: len(found := bench.arrivals(back_s)) > 200 and found, PATIENCE_S)
        full_s = next(
            late
            for early, late in pairwise(range(len(arrivals)))
            if late >= 50 and 50 / (arrivals[late] - arrivals[late - 50]) > 0.9 * fast
        )
        console.print(
            f"back: first call {arrivals[0] - back_s:.2f} s after, full speed ({fast:.0f}/s) {arrivals[full_s] - back_s:.2f} s after"
        )
        eventually(lambda: bench.redis.xlen(OUTPUT) + bench.redis.xlen(DEAD) >= 6000, PATIENCE_S)
        spent = bench.redis.hget("{events}:totals", "retried")
        console.print(
            f"enriched {bench.redis.xlen(OUTPUT)}, dead letters {bench.redis.xlen(DEAD)}, attempts spent {int(spent or 0)}"
        )


def per_second(bench: Bench) -> float:
    """Return how many calls arrive in a second."""
    since_s = time.monotonic()
    eventually(lambda: time.monotonic() > since_s + 2, PATIENCE_S)
    return len(bench.arrivals(since_s)) / 2


@main.command()
@click.option("--latency", "latency_s", default=0.05, show_default=True)
@click.option("--seconds", default=15.0, show_default=True)
@click.option("--slots", multiple=True, type=int, default=(1, 4, 16), show_default=True)
def limit(latency_s: float, seconds: float, slots: tuple[int, ...]) -> None:
    """Let the fleet find the number of calls at once; compare with the best fixed number."""
    for count in slots:
        found = [run_limit(count, latency_s, seconds, "auto")]
        for fixed in (count, count + 1, count + 2, count + 4):
            found.append(run_limit(count, latency_s, seconds / 2, str(fixed)))
        best = max(rate_per_s for rate_per_s, _ in found[1:])
        rate_per_s, seen = found[0]
        steps = " ".join(f"{at:.1f}s:{value}" for at, value in seen)
        console.print(
            f"{count} slots: auto {rate_per_s:.1f}/s, best fixed {best:.1f}/s, ratio {rate_per_s / best:.3f}; "
            f"limit over time {steps}",
            soft_wrap=True,
        )
        console.print("  fixed: " + "  ".join(f"{r:.1f}/s" for r, _ in found[1:]))


def run_limit(slots: int, latency_s: float, seconds: float, at_once: str) -> tuple[float, list[tuple[float, int]]]:
    """Return calls a second after the settling, and the limit over time where it changed."""
    with running(
        workers=4, latency_s=latency_s, slots=slots, MODEL_IN_FLIGHT_MAX=at_once, MODEL_CONCURRENCY="8"
    ) as bench:
        bench.produce(int(slots / latency_s * seconds * 1.5))
        eventually(lambda: bench.fake.arrived, PATIENCE_S)
        began_s = time.monotonic()
        seen: list[tuple[float, int]] = []
        while (at_s := time.monotonic() - began_s) < seconds:
            now = float(bench.redis.hget("{events}:gate", "limit") or 0)
            if not seen or seen[-1][1] != int(now):
                seen.append((at_s, int(now)))
            time.sleep(0.02)
        settled_s = began_s + seconds / 3
        arrivals = bench.arrivals(settled_s)
        return len(arrivals) / (began_s + seconds - settled_s), seen


if __name__ == "__main__":
    main()
