"""What shares one run of a script: calls of the same kind, neither too many nor too large."""

import asyncio
from typing import Any

import pytest

from millhand.courier import RUN_BYTES_MAX, _Call, _runs
from millhand.settle import FINISHED_MAX, in_runs
from millhand.stream import Script
from millhand.verdict import Delivery, Enriched

NOBODY: Any = None
HALF = b"x" * (RUN_BYTES_MAX // 2)


def finished(*datas: bytes) -> list[tuple[Delivery, Enriched]]:
    return [(Delivery(f"{n}-1", {}, "here:w1:a", 1), Enriched(data, "h")) for n, data in enumerate(datas)]


@pytest.mark.parametrize(
    ("datas", "sizes"),
    [
        pytest.param([b"x"], [1], id="one"),
        pytest.param([b"x"] * FINISHED_MAX, [FINISHED_MAX], id="as many as go together"),
        pytest.param([b"x"] * (2 * FINISHED_MAX + 1), [FINISHED_MAX, FINISHED_MAX, 1], id="too many"),
        pytest.param([HALF] * 5, [2, 2, 1], id="too large together"),
        pytest.param([b"x", 3 * HALF, b"x", b"x"], [1, 1, 2], id="one alone is too large"),
    ],
)
def test_what_is_written_out_together_is_neither_too_many_nor_too_large(datas: list[bytes], sizes: list[int]) -> None:
    all_of_them = finished(*datas)
    runs = list(in_runs(all_of_them))
    assert [len(run) for run in runs] == sizes
    assert [one for run in runs for one in run] == all_of_them


@pytest.mark.parametrize(
    ("keys", "args", "runs"),
    [
        pytest.param(["a"], ["g"], 1, id="they differ in their parts alone"),
        pytest.param(["b"], ["g"], 2, id="other keys"),
        pytest.param(["a"], ["h"], 2, id="other arguments"),
    ],
)
async def test_calls_share_a_run_where_they_differ_in_their_parts_alone(
    keys: list[str], args: list[str], runs: int
) -> None:
    script = Script(NOBODY, "finish")
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    calls = [_Call(script, ["a"], ["g"], [("1-1",)], answer), _Call(script, keys, args, [("2-1",)], answer)]
    assert len(_runs(calls)) == runs
