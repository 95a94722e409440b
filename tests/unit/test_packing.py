"""How commands are spelled for the server: in C, and as the client would in Python."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import DataError

from millhand.stream import connect

QUIET = settings(deadline=None, database=None, max_examples=50)
ARGUMENTS = st.lists(st.binary() | st.text() | st.integers() | st.floats(allow_nan=False), max_size=8)


def connection() -> Any:
    pool: Any = connect("redis://127.0.0.1:9").connection_pool
    return pool.make_connection()


@QUIET
@given(name=st.sampled_from(["EVALSHA", "XREADGROUP", "SCRIPT LOAD", "CLIENT SETNAME"]), arguments=ARGUMENTS)
def test_command_is_the_same_bytes_as_the_clients_own(name: str, arguments: list[Any]) -> None:
    ours = connection()
    assert b"".join(ours.pack_command(name, *arguments)) == b"".join(
        AbstractConnection.pack_command(ours, name, *arguments)
    )


def test_long_pipeline_is_the_same_bytes_as_the_clients_own() -> None:
    ours = connection()
    commands = [("XADD", "k", "*", "data", b"x" * size) for size in (0, 1, 5_999, 6_000, 6_001, 1 << 20)]
    theirs = b"".join(b"".join(AbstractConnection.pack_command(ours, *command)) for command in commands)
    assert b"".join(ours.pack_commands(commands)) == theirs


@pytest.mark.parametrize("value", [None, [1], {"a": 1}])
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(DataError):
        connection().pack_command("SET", "k", value)
