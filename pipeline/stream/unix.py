"""A connection to a server on this host that sends a frame in one go.

redis-py sends each piece of a command by a call of its own, and a frame of 196 kB does not fit the
usual buffer of a socket: the server woke up several times for each frame, and the sender as often.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from redis import UnixDomainSocketConnection, exceptions

if TYPE_CHECKING:
    Piece = bytes | memoryview

SEND_BYTES = 1_000_000  # of the socket's buffer; the system may allow less
PIECES_MAX = 512  # in one call; systems allow 1024


class WholeSending(UnixDomainSocketConnection):
    """A unix socket that takes all pieces of a command at once."""

    def _connect(self) -> socket.socket:
        connected: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        return connected

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: ANN401 - redis-py's signature
        """Send a command, or several, in as few calls as the system takes."""
        pieces = list(command) if isinstance(command, list | tuple) else [command]
        if not 1 < len(pieces) <= PIECES_MAX:
            super().send_packed_command(pieces, check_health)  # type: ignore[no-untyped-call]
            return
        super().send_packed_command([], check_health)  # type: ignore[no-untyped-call]
        try:
            _send_all(self._open_socket, pieces)
        except TimeoutError:
            self._give_up()
            raise exceptions.TimeoutError("Timeout writing to socket") from None
        except OSError as error:
            self._give_up()
            raise exceptions.ConnectionError(f"Error while writing to socket: {error}") from None
        except BaseException:
            self._give_up()  # half a command is on its way
            raise

    @property
    def _open_socket(self) -> socket.socket:
        connected: Any = self._sock  # redis-py gives it no type
        if connected is None:
            raise exceptions.ConnectionError("the connection was closed by another thread")
        return connected  # type: ignore[no-any-return]

    def _give_up(self) -> None:
        self.disconnect()  # type: ignore[no-untyped-call]


def _send_all(connected: socket.socket, pieces: Iterable[Piece]) -> None:
    left = [memoryview(piece).cast("B") for piece in pieces]
    while left:
        sent = connected.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]
