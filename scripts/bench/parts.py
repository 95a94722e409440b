"""The pure parts of an event's walk, each as one call, and a fixed piece of work to measure them by.

As a program it makes so many calls of one part and says nothing, for a tool that counts instructions.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from millhand import event as events
from millhand.config import Config
from millhand.model.reply import answer_in
from millhand.model.request import Requests
from millhand.tasks.catalogue import chosen_tasks
from millhand.tasks.task import META, Questions, enrichment_hash
from millhand.verdict import Delivery, Enriched, Policy, judge

PARAGRAPH = "The kettle boils quickly but its lid opens at every second pour, and the handle gets too hot. " * 2
DATA = msgspec.json.encode(
    {"id": 4711, "sent_us": 1_790_000_000_000_000, "source": "shop", "customer": 17, "text": PARAGRAPH}
)
CONTENT = '{"sentiment":{"label":"neutral","confidence":50}}'
REPLY = msgspec.json.encode(
    {
        "model": "fake:1b",
        "created_at": "2026-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": CONTENT},
        "done": True,
        "done_reason": "stop",
        "total_duration": 50_000_000,
        "load_duration": 0,
        "prompt_eval_count": 220,
        "prompt_eval_duration": 10_000_000,
        "eval_count": 14,
        "eval_duration": 40_000_000,
    }
)
META_OF_IT = {
    "model": "fake:1b",
    "model_digest": "f" * 64,
    "prompt_hash": "0123456789abcdef",
    "attempts": 1,
    "tokens_in": 220,
    "tokens_out": 14,
    "model_s": 0.05,
    "total_s": 0.0512,
    "worker": "host:w1:12345678",
    "at": "2026-01-01T00:00:00.000Z",
}

_decode, _encode = msgspec.json.decode, msgspec.json.encode


def yardstick() -> object:
    """Do a fixed piece of such work as the parts do: JSON in and out, a few objects, some text."""
    payload = _decode(DATA)
    words = [name.upper() for name in payload if isinstance(name, str)]
    delivery = Delivery(f"{payload['id']}-0", payload, "somebody", len(words))
    return _encode({**payload, "words": words, "id": delivery.id, "count": delivery.count + 1})


def parts() -> Mapping[str, Callable[[], object]]:
    """Return the parts in the order of the walk, and last all of them together."""
    config = Config()
    questions, requests = Questions(chosen_tasks(config)), Requests(config.model)
    fields, delivery = {b"data": DATA}, Delivery("1790000000000-0", {b"data": DATA}, "host:w1:12345678", 1)
    policy = Policy(3, 1.0, 60.0, 86_400.0)
    event = events.decode(fields, config.enrich)
    results = questions.parse(CONTENT)
    enrichment = {**results, META: META_OF_IT}
    enriched = Enriched(events.merge(event, enrichment), enrichment_hash(results))
    return {
        "decode": partial(events.decode, fields, config.enrich),
        "question": partial(_question, questions, requests, event.text),
        "reply": partial(answer_in, REPLY, config.model, 0.05),
        "parse": partial(questions.parse, CONTENT),
        "merge": partial(events.merge, event, enrichment),
        "hash": partial(enrichment_hash, results),
        "judge": partial(judge, delivery, enriched, policy, 0.5),
        "all of them": partial(_walk, delivery, questions, requests, config, policy),
    }


def _question(questions: Questions, requests: Requests, text: str) -> bytes:
    return requests.body(questions.prompt(text), 1)


def _walk(delivery: Delivery, questions: Questions, requests: Requests, config: Config, policy: Policy) -> object:
    """Take an event from its bytes to its verdict, without a server and a model."""
    event = events.decode(delivery.fields, config.enrich)
    _question(questions, requests, event.text)
    results = questions.parse(answer_in(REPLY, config.model, 0.05).content)
    merged = events.merge(event, {**results, META: META_OF_IT})
    return judge(delivery, Enriched(merged, enrichment_hash(results)), policy, 0.5)


if __name__ == "__main__":
    part = parts()[sys.argv[1]]
    for _ in range(int(sys.argv[2])):
        part()
