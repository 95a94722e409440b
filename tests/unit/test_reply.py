"""How long a call waited for its turn, by the shape of the reply."""

import json
from typing import Any

import pytest

from millhand.config import Model
from millhand.model.reply import WIRE_S, answer_in

NS = 1_000_000_000
MODEL = Model(num_ctx=2048, num_predict=512)


def queue_s(wall_s: float, **durations_s: float) -> float:
    reply: dict[str, Any] = {"done": True, "done_reason": "stop", "message": {"content": "{}"}}
    reply |= {f"{name}_duration": int(value * NS) for name, value in durations_s.items()}
    return answer_in(json.dumps(reply).encode(), MODEL, wall_s).queue_s


@pytest.mark.parametrize(
    ("wall_s", "durations_s", "expected_s"),
    [
        pytest.param(
            3.0, {"total": 3, "prompt_eval": 0.2, "eval": 0.8}, 2.0, id="Ollama: its total has the wait in it"
        ),
        pytest.param(3.0, {"total": 3, "load": 1, "prompt_eval": 0.2, "eval": 0.8}, 1.0, id="loading is no waiting"),
        pytest.param(1.0, {"total": 1, "prompt_eval": 0.2, "eval": 0.8}, 0.0, id="no wait"),
        pytest.param(4.0, {"total": 1, "prompt_eval": 0.2, "eval": 0.8}, 3 - WIRE_S, id="a proxy queues before it"),
        pytest.param(4.0, {"total": 1}, 3 - WIRE_S, id="a total alone"),
        pytest.param(1.01, {"total": 1}, 0.0, id="a total alone, and the way there and back"),
        pytest.param(1.0, {"total": 3}, 0.0, id="a total beyond our own time"),
        pytest.param(1.0, {"total": 1, "prompt_eval": 2, "eval": 2}, 0.0, id="more work than time"),
        pytest.param(9.0, {}, 0.0, id="nothing told"),
        pytest.param(9.0, {"eval": 1}, 0.0, id="no total"),
        pytest.param(9.0, {"total": -1}, 0.0, id="a negative total"),
    ],
)
def test_the_wait_for_a_turn_is_what_neither_work_nor_wire_explains(
    wall_s: float, durations_s: dict[str, float], expected_s: float
) -> None:
    assert queue_s(wall_s, **durations_s) == pytest.approx(expected_s)
