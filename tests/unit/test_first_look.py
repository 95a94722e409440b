"""How a desk begins: with a look, or with a stop."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from millhand.stop import Stop
from millhand_fleet import desk
from millhand_fleet.desk import _first_look


@pytest.mark.parametrize("is_stopped", [True, False])
async def test_a_first_look_that_does_not_come_is_no_complaint_of_asyncios(
    monkeypatch: pytest.MonkeyPatch, *, is_stopped: bool
) -> None:
    """A fleet that stopped while its desk was starting ended with a traceback in the log."""
    monkeypatch.setattr(desk, "FIRST_LOOK_S", 0.01)
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    stop, nobody = Stop(1), SimpleNamespace(looked=asyncio.Event(), heard=asyncio.Event())
    if is_stopped:
        stop.request()
    await _first_look(nobody, stop)  # type: ignore[arg-type]
    for _ in range(3):  # until all that was cancelled is let go
        await asyncio.sleep(0)
    assert complaints == []
