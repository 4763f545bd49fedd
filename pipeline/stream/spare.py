"""Connections that threads take in turn.

redis-py's own pool spends on its telemetry and its locks, for each exchange, more than a quarter of
what the exchange costs. So a connection that it has opened stays here.
"""

from __future__ import annotations

from typing import Any

from redis import Redis, exceptions


class Spare:
    """The open connections of one client that nobody uses just now; ``list`` keeps them safely."""

    def __init__(self, client: Redis) -> None:
        self._pool: Any = client.connection_pool
        self._idle: list[Any] = []

    def take(self) -> Any:  # noqa: ANN401 - redis-py has many kinds of connections
        """One for this thread alone, until it is given back."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._pool.get_connection()
        if not _is_stale(connection):
            return connection
        self.drop(connection)
        return self._pool.get_connection()

    def give(self, connection: Any) -> None:  # noqa: ANN401 - as above
        """It is free for the next exchange; nothing may be on its way to it."""
        self._idle.append(connection)

    def drop(self, connection: Any) -> None:  # noqa: ANN401 - as above
        """It is not to be trusted; the pool may connect it anew."""
        connection.disconnect()
        self._pool.release(connection)


def _is_stale(connection: Any) -> bool:  # noqa: ANN401 - as above
    """Whether its server has gone, or something came that nobody had asked for."""
    try:
        return bool(connection.can_read())
    except (exceptions.RedisError, OSError):
        return True
