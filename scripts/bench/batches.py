"""What it brings to ask about several events in one call: events a second, and how many answers are valid.

The embedded model, asked by the product's own client; no fleet around it. Each line of FILE is an event. Single calls
and batches take turns over slices of the same texts, so that whatever else the machine does hits both. On cores that
others use too, set OMP_WAIT_POLICY=passive: llama.cpp's threads spin where they wait.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import uvicorn
from rich.console import Console

import millhand_fleet
from millhand.config import Config, Enrich, Model
from millhand.errors import BadAnswer, Reasoned
from millhand.event import DATA, decode
from millhand.model.ollama import OllamaModel
from millhand.tasks.catalogue import chosen_tasks
from millhand.tasks.room import fitting
from millhand.tasks.task import Questions
from millhand_fleet.embedded.engine import Engine
from millhand_fleet.embedded.ollama_api import build_app
from millhand_fleet.embedded.preflight import require_model_server
from scripts.bench.rows import Report, Row

SLOTS = 2
SLICE_CALLS = 6  # batches of a slice: three for each slot
TIMEOUT_S = 300.0
BATCH = 8
DEMO_EVENTS = Path(millhand_fleet.__file__).with_name("demo_events.jsonl")

Outcome = dict[str, Any] | Reasoned


class Tally(msgspec.Struct):
    """What was seen of one way to ask."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    outcomes: list[Outcome] = []

    @property
    def valid(self) -> int:
        """How many events have valid results."""
        return sum(isinstance(outcome, dict) for outcome in self.outcomes)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=DEMO_EVENTS)
@click.option("--task", "tasks", multiple=True, default=("sentiment",), show_default=True, help="May be repeated.")
@click.option("--events", default=200, show_default=True)
@click.option("--batch", default=BATCH, show_default=True, help="Events a call.")
def main(file: Path, tasks: tuple[str, ...], events: int, batch: int) -> None:
    """Measure single calls against batches."""
    report, refusals = compared(texts_of(file, events), tasks, batch)
    Console(highlight=False).print(report.table("micro-batches"), report.about, *refusals, sep="\n", markup=False)


def measure(*, short: bool = False) -> Report:
    """Measure it on the demo's events, for the common report."""
    report, _ = compared(texts_of(DEMO_EVENTS, 16 if short else 48), ("sentiment",), BATCH)
    return report


def texts_of(file: Path, most: int) -> list[str]:
    """Return the texts of up to so many events."""
    return [decode({DATA: line}, Enrich()).text for line in file.read_bytes().splitlines()[:most]]


def compared(texts: Sequence[str], tasks: tuple[str, ...], batch: int) -> tuple[Report, Sequence[str]]:
    """Ask about all texts both ways; return what was seen, and what was wrong with answers."""
    questions = Questions(chosen_tasks(Config(enrich=Enrich(tasks=tasks))))
    with serving(Model()) as model:
        alone, together = asyncio.run(ask_both_ways(model, questions, texts, batch))
        about = (
            f"{model.name} with {SLOTS} slots, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}, "
            f"num_ctx {model.num_ctx}, num_predict {model.num_predict}; {len(texts)} texts, {', '.join(tasks)}; "
            "CPU and tokens an event; a label is any text in the results"
        )
    outcomes = (*alone.outcomes, *together.outcomes)
    refusals = sorted({str(outcome) for outcome in outcomes if isinstance(outcome, Reasoned)})
    return Report(about, [row(1, alone, alone), row(batch, together, alone)]), refusals


def row(size: int, tally: Tally, alone: Tally) -> Row:
    """Return what was seen of one way to ask, beside single calls."""
    count = len(tally.outcomes)
    same = sum(labels(one) == labels(other) for one, other in zip(alone.outcomes, tally.outcomes, strict=True))
    return {
        "events_a_call": size,
        "calls": tally.calls,
        "events_per_s": count / tally.wall_s,
        "cpu_s": tally.cpu_s / count,
        "tokens_in": tally.tokens_in / count,
        "tokens_out": tally.tokens_out / count,
        "valid": tally.valid / count,
        "labels_as_alone": same / count,
    }


def labels(outcome: Outcome) -> object:
    """Return what an outcome says in words; numbers differ between any two calls."""
    if not isinstance(outcome, dict):
        return None
    return {task: [value for value in result.values() if isinstance(value, str)] for task, result in outcome.items()}


async def ask_both_ways(settings: Model, questions: Questions, texts: Sequence[str], batch: int) -> tuple[Tally, Tally]:
    """Ask about all texts, alone and together, slice by slice."""
    model = OllamaModel(settings)
    alone, together = Tally(), Tally()
    for start in range(0, len(texts), batch * SLICE_CALLS):
        part = texts[start : start + batch * SLICE_CALLS]
        for tally, size in ((alone, 1), (together, batch)):
            groups = fitting(questions, part, size, settings.num_ctx, settings.num_predict)
            began_s, began_cpu_s = time.monotonic(), time.process_time()
            turns = asyncio.Semaphore(SLOTS)
            asking = (ask(model, questions, [part[at] for at in group], tally, turns) for group in groups)
            for outcomes in await asyncio.gather(*asking):
                tally.outcomes += outcomes
            tally.wall_s += time.monotonic() - began_s
            tally.cpu_s += time.process_time() - began_cpu_s
    await model.close()
    return alone, together


async def ask(
    model: OllamaModel, questions: Questions, texts: list[str], tally: Tally, turns: asyncio.Semaphore
) -> Sequence[Outcome]:
    """Make one call, and return the outcome for each text."""
    prompt = questions.batch(texts) if len(texts) > 1 else questions.prompt(texts[0])
    try:
        async with turns:
            answer = await model.generate(prompt)
    except Reasoned as error:
        return [error] * len(texts)
    finally:
        tally.calls += 1
    tally.tokens_in += answer.tokens_in
    tally.tokens_out += answer.tokens_out
    if len(texts) > 1:
        return questions.parse_batch(answer.content, len(texts))
    try:
        return [questions.parse(answer.content)]
    except BadAnswer as error:
        return [error]


@contextmanager
def serving(settings: Model) -> Iterator[Model]:
    """Serve the embedded model from a thread, so that its CPU time is this process's; yield how to ask it."""
    engine = Engine(model_path=require_model_server(), slots=SLOTS, ctx_tokens=settings.num_ctx, threads=SLOTS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(build_app(engine), lifespan="off", ws="none", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield msgspec.structs.replace(settings, url=url, timeout_s=TIMEOUT_S)
        finally:
            server.should_exit = True
            thread.join()
            engine.close()


if __name__ == "__main__":
    main()
