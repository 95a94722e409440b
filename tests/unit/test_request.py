"""What Ollama is asked, in bytes that are partly made before."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from millhand.config import Model
from millhand.model.request import Requests
from millhand.tasks.task import Message, Prompt

QUIET = settings(deadline=None, database=None, max_examples=100)
MODELS = st.sampled_from(
    [Model(name="tiny:1b"), Model(name='a "b" \\', temperature=0.7, seed=3, keep_alive="5m", num_ctx=999)]
)
TURNS = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), st.text()), max_size=2).map(tuple)
SCHEMAS = st.sampled_from([{"type": "object"}, {"type": "object", "properties": {"é": {"enum": ["\u2028", 'x"']}}}])
PROMPTS = st.builds(Prompt, st.sampled_from(["describe", "säg\n漢"]), st.text(), SCHEMAS, TURNS)


def asked(model: Model, prompt: Prompt, attempt: int) -> dict[str, Any]:
    """Return a request member by member."""
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    return {
        "model": model.name,
        "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}, *turns],
        "format": prompt.schema,
        "stream": False,
        "truncate": False,
        "shift": False,
        "options": {
            "num_ctx": model.num_ctx,
            "num_predict": model.num_predict,
            "temperature": model.temperature + 0.2 * (attempt - 1),
            "seed": model.seed + attempt - 1,
        },
    } | ({"keep_alive": model.keep_alive} if model.keep_alive else {})


@QUIET
@given(MODELS, st.lists(st.tuples(PROMPTS, st.integers(1, 5)), min_size=1, max_size=5))
def test_whatever_was_asked_before_a_request_says_all_of_this_prompt_and_nothing_else(
    model: Model, questions: list[tuple[Prompt, int]]
) -> None:
    requests = Requests(model)
    for prompt, attempt in questions:
        assert msgspec.json.decode(requests.body(prompt, attempt)) == asked(model, prompt, attempt)
