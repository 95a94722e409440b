"""A connection to Redis for one round trip after the other.

redis-py's client takes a connection out of its pool for each, looks whether it is sound, bounds every step by a task of
its own and keeps count of all that: several times the work of the round trip itself. Here the connection is kept and
the whole is bounded once. redis-py still connects, logs in, speaks TLS, and reads the replies.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redis import exceptions

if TYPE_CHECKING:
    from redis.asyncio import Redis


class Line:
    """A connection out of a client's pool, which closes it. For one caller at a time."""

    def __init__(self, client: "Redis") -> None:
        self._client = client
        self._connection: Any = None
        self._timeout_s: float | None = None  # of a round trip: the client's for a command

    async def round_trip(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands together; return a reply for each, which may be a ResponseError.

        Raises RedisError where replies are missing: what was sent may have been done, and the connection is closed.
        """
        connection = self._connection or await self._taken()
        try:
            async with asyncio.timeout(self._timeout_s):
                if connection.is_connected and await connection.can_read():
                    await connection.disconnect(nowait=True)  # its end has come, or what nobody has asked for
                if not connection.is_connected:
                    await connection.connect()
                packed = [part for command in commands for part in connection.pack_command(*command)]
                await connection.send_packed_command(packed, check_health=False)
                return [await self._reply(connection) for _ in commands]
        except TimeoutError as error:
            await connection.disconnect(nowait=True)
            raise exceptions.TimeoutError(f"no answer within {self._timeout_s:g} s") from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply. Raises RedisError."""
        (reply,) = await self.round_trip([command])
        if isinstance(reply, exceptions.ResponseError):
            raise reply
        return reply

    async def _taken(self) -> Any:
        pool: Any = self._client.connection_pool
        connection = await pool.get_connection()
        self._timeout_s, connection.socket_timeout = connection.socket_timeout, None
        self._connection = connection
        return connection

    @staticmethod
    async def _reply(connection: Any) -> Any:
        try:
            return await connection.read_response()
        except exceptions.ResponseError as error:
            return error
