"""What the gate lets through, judged at the model's side: rate, permits, pause, throttling, outage, the limit found.

A real fleet on a durable Valkey, and the fake Ollama, which writes down each call. All on this one machine.

    python scripts/bench/gate.py rate          # 8 workers, 50 calls a second, bursts of 10
    python scripts/bench/gate.py permits       # 4 calls at once, through kills of workers and of Redis
    python scripts/bench/gate.py pause         # a 429 with Retry-After: 5 to one worker
    python scripts/bench/gate.py throttled     # 503 for 70 s
    python scripts/bench/gate.py outage        # the model dead for 30 s
    python scripts/bench/gate.py limit         # in_flight_max = "auto" on models with 1, 4 and 16 slots
    python scripts/bench/gate.py cache         # a stream in which every text comes twice
"""

import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

import click  # noqa: E402 - the project's root has to be found first
from rich.console import Console  # noqa: E402
from tests.fleet.conftest import DEAD, INPUT, OUTPUT, RunningFleet  # noqa: E402
from tests.rig import RedisServer, eventually  # noqa: E402

from scripts.bench.rows import Report, Row  # noqa: E402
from scripts.fake.arrivals import BUCKET_S, Excess, Limit, arrivals_per_bucket, open_peak  # noqa: E402
from scripts.fake.journal import Call  # noqa: E402
from scripts.fake_ollama import FakeOllama  # noqa: E402

BATCH = 500
PATIENCE_S = 180.0
SETTLING_SHARE = 1 / 3  # of a run, before a limit is judged
LOOK_EVERY_S = 0.5
CALMS = 3  # calm thirds of a run
CALLS_AGAIN = 200  # after which the fleet is at work again
TOTALS, GATE = "{events}:totals", "{events}:gate"
console = Console(highlight=False, soft_wrap=True)


class Bench(NamedTuple):
    """What a measurement stands on."""

    fleet: RunningFleet
    server: RedisServer
    fake: FakeOllama
    redis: Any

    def produce(self, count: int) -> None:
        """Add events, each with a text of its own."""
        self.produce_texts([f"event {n}" for n in range(count)])

    def produce_texts(self, texts: Sequence[str]) -> None:
        """Add an event for each text."""
        for first in range(0, len(texts), BATCH):
            with self.redis.pipeline(transaction=False) as pipeline:
                for n, text in enumerate(texts[first : first + BATCH], start=first):
                    pipeline.xadd(INPUT, {"data": json.dumps({"n": n, "text": text})})
                pipeline.execute()

    def calls(self, since_s: float = 0.0) -> list[Call]:
        """Return the calls that arrived at the model since then."""
        return [call for call in list(self.fake.calls) if call.arrival_s >= since_s]

    def under_way(self, calls: int) -> float:
        """Wait until so many calls have arrived; return when."""
        eventually(lambda: self.fake.arrived >= calls, PATIENCE_S, what=f"{calls} calls have arrived")
        return time.monotonic()

    def health(self) -> str:
        """Return how the gate stands, and what health says of it."""
        status = self.fleet.status() or {"gate": {"state": "?"}, "health": {"reasons": ["no answer"]}}
        return f"{status['gate']['state']}: {'; '.join(status['health']['reasons'])}"

    def tell_cost(self) -> None:
        """Print what all of it cost the events."""
        retried = int(self.redis.hget(TOTALS, "retried") or 0)
        enriched, dead = self.redis.xlen(OUTPUT), self.redis.xlen(DEAD)
        console.print(f"enriched {enriched}, attempts spent {retried}, dead letters {dead}")


@contextmanager
def running(*, workers: int = 8, slots: int = 64, latency_s: float = 0.0, **settings: object) -> Iterator[Bench]:
    """Run a fleet; settings are `section__key`."""
    with (
        tempfile.TemporaryDirectory(prefix="millhand-bench-") as folder,
        RedisServer({"appendonly": "yes", "appendfsync": "always"}) as server,
        FakeOllama(slots=slots, latency_s=latency_s).in_thread() as fake,
        server.client() as client,
    ):
        chosen = {
            "redis__url": server.url,
            "model__url": fake.url,
            "model__name": fake.model,
            "fleet__workers": workers,
            "janitor__every_s": 0.5,
            **settings,
        }
        environment = {f"MILLHAND_{name.replace('__', '_').upper()}": str(value) for name, value in chosen.items()}
        with RunningFleet(Path(folder), environment) as fleet:
            fleet.up()
            yield Bench(fleet, server, fake, client)
            fleet.terminate()


def until(moment_s: float) -> None:
    """Wait until then."""
    time.sleep(max(0.0, moment_s - time.monotonic()))


@click.group()
def main() -> None:
    """Measure the gate."""
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, Valkey with appendfsync always; model, workers and server on one machine"
    )


@main.command()
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--rate", "rate_per_s", default=50.0, show_default=True)
@click.option("--burst", default=10, show_default=True)
def rate(seconds: float, rate_per_s: float, burst: int) -> None:
    """Give more events than the bucket lets through, and judge every window."""
    calls, used, worst = run_rate(seconds, rate_per_s, burst)
    console.print(
        f"{calls} calls in {seconds:g} s, {used:.3f} of the rate; "
        f"the fullest window, {worst.end_s - worst.begin_s:.3f} s, is at {worst.calls:+.2f} calls of rate x w + burst"
    )


@main.command()
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--permits", "at_once", default=4, show_default=True)
@click.option("--latency", "latency_s", default=0.1, show_default=True)
def permits(seconds: float, at_once: int, latency_s: float) -> None:
    """Leave the fleet alone for a third of the time, then kill workers, and Redis too."""
    peak, used, kills, restarts = run_permits(seconds, at_once, latency_s)
    console.print(
        f"open at once: {peak} at the most, {at_once} allowed, through {kills} kills of workers and {restarts} of "
        f"Redis; in the calm before, {used:.3f} of the time of all permits was spent in calls"
    )


@main.command()
@click.option("--for", "for_s", default=5, show_default=True)
def pause(for_s: int) -> None:
    """Turn one call away with Retry-After, and look at the arrivals around it."""
    with running(latency_s=0.02, model__in_flight_max=16) as bench:
        bench.produce(8000)
        bench.under_way(500)
        bench.fake.script({"status": HTTPStatus.TOO_MANY_REQUESTS, "retry_after": for_s, "times": 1})
        refused = eventually(
            lambda: [call for call in bench.calls() if call.status == HTTPStatus.TOO_MANY_REQUESTS], PATIENCE_S
        )
        refused_s = refused[0].end_s or time.monotonic()
        until(refused_s + for_s + 2)
        calls = bench.calls()
        before = 1.0
        counts = arrivals_per_bucket(calls, refused_s - before, refused_s + for_s + 2)
        console.print(f"a 429 with Retry-After: {for_s} at 0 s; calls that arrived in {BUCKET_S:g} s from")
        for second in range(-1, for_s + 2):
            quarters = counts[round((second + before) / BUCKET_S) :][: round(1 / BUCKET_S)]
            console.print(f"  {second:+d} s: {' '.join(f'{count:4d}' for count in quarters)}")
        after = [call.arrival_s - refused_s for call in calls if call.arrival_s > refused_s]
        last = max((at_s for at_s in after if at_s < for_s), default=0.0)
        first = min(at_s for at_s in after if at_s >= for_s)
        console.print(f"last call {last:.3f} s after the reply, first one again at {first:.3f} s")
        bench.tell_cost()


@main.command()
@click.option("--seconds", default=70.0, show_default=True)
def throttled(seconds: float) -> None:
    """Turn every call away for longer than a minute."""
    with running(latency_s=0.02, model__in_flight_max=16) as bench:
        bench.produce(8000)
        bench.under_way(200)
        bench.fake.outage(503, path="/api/chat")
        began_s = time.monotonic()
        said = ""
        while time.monotonic() < began_s + seconds:
            if (now := bench.health()).partition(":")[0] != said:
                said = now.partition(":")[0]
                console.print(f"{time.monotonic() - began_s:5.1f} s  gate {now}")
            until(time.monotonic() + LOOK_EVERY_S)
        console.print(f"{seconds:5.1f} s  gate {bench.health()}")
        tell_return(bench, began_s, seconds)


def tell_return(bench: Bench, began_s: float, seconds: float) -> None:
    """Let the model answer again, and tell of the calls before and after."""
    refused = [f"{call.arrival_s - began_s:.1f}" for call in bench.calls(began_s)]
    bench.fake.script()
    back_s = time.monotonic()
    console.print(f"{len(refused)} calls in {seconds:g} s, at {' '.join(refused)}")
    answered = eventually(lambda: [one for one in bench.calls(back_s) if one.status == HTTPStatus.OK], PATIENCE_S)
    eventually(lambda: len(bench.calls(back_s)) > CALLS_AGAIN, PATIENCE_S)
    console.print(f"back: first answer {(answered[0].end_s or 0) - back_s:.2f} s after; gate {bench.health()}")
    bench.tell_cost()


@main.command()
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--events", default=4000, show_default=True)
def outage(seconds: float, events: int) -> None:
    """Let the model die under load and come back."""
    with running(latency_s=0.1, model__in_flight_max=16, slots=16) as bench:
        bench.produce(events)
        before_s = bench.under_way(300)
        until(before_s + 2)
        full_per_bucket = len(bench.calls(before_s)) / 2 * BUCKET_S
        bench.fake.die()
        died_s = time.monotonic()
        until(died_s + seconds)
        console.print(f"after {seconds:g} s gate {bench.health()}")
        bench.fake.revive()
        back_s = time.monotonic()
        eventually(lambda: len(bench.calls(back_s)) > full_per_bucket * 12, PATIENCE_S)
        counts = arrivals_per_bucket(bench.calls(back_s), back_s, time.monotonic())
        first = next(number for number, count in enumerate(counts) if count)
        full = next(number for number, count in enumerate(counts) if count >= 0.9 * full_per_bucket)
        console.print(
            f"back: first calls after {first * BUCKET_S:.2f} s, 90 % of full speed "
            f"({full_per_bucket / BUCKET_S:.0f}/s) after {full * BUCKET_S:.2f} s"
        )
        eventually(lambda: bench.redis.xlen(OUTPUT) + bench.redis.xlen(DEAD) >= events, PATIENCE_S)
        bench.tell_cost()


@main.command()
@click.option("--latency", "latency_s", default=0.1, show_default=True)
@click.option("--seconds", default=15.0, show_default=True)
@click.option("--slots", multiple=True, type=int, default=(1, 4, 16), show_default=True)
def limit(latency_s: float, seconds: float, slots: tuple[int, ...]) -> None:
    """Let the fleet find the number of calls at once, and compare it with fixed ones."""
    for count in slots:
        found_per_s, seen = run_limit(count, latency_s, seconds, "auto")
        fixed = {at_once: run_limit(count, latency_s, seconds, at_once)[0] for at_once in fixed_limits(count)}
        best = max(fixed.values())
        steps = " ".join(f"{value}@{at_s:.1f}s" for at_s, value in seen)
        settled = [value for at_s, value in seen if at_s >= seconds * SETTLING_SHARE] or [seen[-1][1]]
        console.print(
            f"{count} slots of {latency_s:g} s: auto {found_per_s:.1f}/s, {found_per_s / best:.3f} of the best fixed; "
            f"in the last two thirds the limit was {min(settled)} to {max(settled)}; its steps: {steps}"
        )
        console.print("  fixed: " + ", ".join(f"{at_once}: {per_s:.1f}/s" for at_once, per_s in fixed.items()))


@main.command()
@click.option("--events", default=2000, show_default=True)
def cache(events: int) -> None:
    """Let every text come twice, at random places, and count the calls."""
    texts = [f"event {n // 2}" for n in range(events)]
    random.Random(1).shuffle(texts)  # noqa: S311 - the same stream each time
    for ttl_s in (0, 3600):
        with running(workers=4, latency_s=0.05, slots=16, model__in_flight_max=18, cache__ttl_s=ttl_s) as bench:
            began_s = time.monotonic()
            bench.produce_texts(texts)
            eventually(lambda: bench.redis.xlen(OUTPUT) >= events, PATIENCE_S)
            seconds = time.monotonic() - began_s
            counts = {
                name: int(bench.redis.hget(TOTALS, f"cache_{name}") or 0) for name in ("hits", "joined", "misses")
            }
            console.print(
                f"cache.ttl_s {ttl_s}: {bench.fake.arrived} calls for {events} events in {seconds:.1f} s; {counts}"
            )


def run_rate(seconds: float, rate_per_s: float, burst: int) -> tuple[int, float, Excess]:
    """Return how many calls came, how much of the rate was used, and the fullest window."""
    with running(model__rate_per_s=rate_per_s, model__burst=burst, model__in_flight_max=64) as bench:
        bench.produce(int(rate_per_s * seconds * 1.5) + burst)
        bench.under_way(1)
        first_s = bench.calls()[0].arrival_s
        until(first_s + seconds)
        calls = [call for call in bench.calls() if call.arrival_s < first_s + seconds]
    used = Limit(rate_per_s, 0).share_used(calls, first_s, first_s + seconds)
    return len(calls), used, Limit(rate_per_s, burst).worst_excess(calls)


def run_permits(seconds: float, at_once: int, latency_s: float) -> tuple[int, float, int, int]:
    """Return the most calls at once, the share of the permits' time in the calm, and the kills of workers and Redis."""
    with running(model__in_flight_max=at_once, latency_s=latency_s, slots=at_once) as bench:
        bench.produce(int(seconds / latency_s * at_once * 1.5))
        began_s = bench.under_way(at_once)
        until(began_s + seconds / CALMS)
        calm = bench.calls(began_s)
        kills = restarts = 0
        while time.monotonic() < began_s + seconds:
            for pid in list(bench.fleet.pids().values())[kills % 4 :][:1]:
                os.kill(pid, signal.SIGKILL)
                kills += 1
            if kills % 5 == CALMS:
                bench.server.restart()
                restarts += 1
            until(time.monotonic() + LOOK_EVERY_S)
        calls = bench.calls()
    busy = sum((call.end_s or 0) - call.arrival_s for call in calm if call.end_s)
    return open_peak(calls).calls, busy / (seconds / CALMS * at_once), kills, restarts


def measure(*, short: bool = False) -> Report:
    """Judge rate and permits at the model's side, for the common report."""
    seconds = 10.0 if short else 20.0
    rate_per_s, burst, at_once = 50.0, 10, 4
    calls, used, worst = run_rate(seconds, rate_per_s, burst)
    peak, busy, kills, restarts = run_permits(seconds, at_once, 0.1)
    rows: list[Row] = [
        {
            "limit": f"{rate_per_s:g} calls a second, bursts of {burst}",
            "used": used,
            "at_worst": f"{worst.calls:+.2f} calls in the fullest window",
            "meanwhile": f"{calls} calls",
        },
        {
            "limit": f"{at_once} calls at once",
            "used": busy,
            "at_worst": f"{peak - at_once:+d} calls at once",
            "meanwhile": f"{kills} x kill -9 of workers, {restarts} of the server",
        },
    ]
    return Report(
        "8 workers, judged by the arrivals at the model, appendfsync always; above +0 a limit is broken", rows
    )


def fixed_limits(slots: int) -> list[int]:
    """Return limits to compare with: around the slots, and far above."""
    return [max(1, slots - 1), slots, slots + 1, slots + 2, 2 * slots + 2]


def run_limit(slots: int, latency_s: float, seconds: float, at_once: object) -> tuple[float, list[tuple[float, int]]]:
    """Return calls a second after the settling, and the limit over time where it changed."""
    settings = {"model__in_flight_max": at_once, "model__concurrency": 10}
    with running(workers=4, latency_s=latency_s, slots=slots, **settings) as bench:
        bench.produce(int(slots / latency_s * seconds * 1.5) + 50)
        began_s = bench.under_way(1)
        seen: list[tuple[float, int]] = []
        while (at_s := time.monotonic() - began_s) < seconds:
            now = int(float(bench.redis.hget(GATE, "limit") or 0))
            if not seen or seen[-1][1] != now:
                seen.append((at_s, now))
            until(time.monotonic() + latency_s / 4)
        settled_s = began_s + seconds * SETTLING_SHARE
        return len(bench.calls(settled_s)) / (began_s + seconds - settled_s), seen


if __name__ == "__main__":
    main()
