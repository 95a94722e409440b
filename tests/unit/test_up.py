"""What `worker-ctl up` says before any process is started."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millhand.config import Config, Desk, Model, Redis
from millhand_fleet.ctl.up import _assembled
from millhand_fleet.state import StateDir


def test_a_full_disk_is_told_in_a_sentence_and_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not 78, after which supervisord and systemd try no more: the disk may have room again in a minute."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    config = Config(redis=Redis(url="redis://127.0.0.1:1"), model=Model(url="http://127.0.0.1:1"), desk=Desk(port=0))
    config = msgspec.structs.replace(config, fleet=msgspec.structs.replace(config.fleet, state_dir=str(tmp_path)))
    monkeypatch.setattr(StateDir, "write", full)
    with pytest.raises(SystemExit) as left:
        _assembled(config, lambda: config)
    assert left.value.code == os.EX_IOERR
    assert f"the state directory {tmp_path} cannot be written: No space left on device" in capsys.readouterr().err
