"""The doctor's patience: whatever hangs is told, and holds nothing up."""

import asyncio
import threading
from pathlib import Path

import pytest

from millhand_fleet.doctor import examination
from millhand_fleet.doctor.aside import aside


async def test_work_aside_returns_or_raises_as_if_it_were_called() -> None:
    assert await aside(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await aside(divmod, 7, 0)


@pytest.mark.timeout(60)
def test_a_probe_that_hangs_is_told_and_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A state directory on a disk that does not answer."""
    over = threading.Event()
    monkeypatch.setenv("MILLHAND_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("MILLHAND_MODEL_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MILLHAND_FLEET_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(examination, "look_at_files", lambda *_: over.wait())
    monkeypatch.setattr(examination, "PROBE_S", 0.5)
    try:
        sections = asyncio.run(examination.examine(None))
    finally:
        over.set()
    (files,) = (section for section in sections if section.title == "Files")
    assert "no result within" in files.findings[0].found
