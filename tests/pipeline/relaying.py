"""A unix socket before a server, for tests in which what passes through it goes wrong."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path


class Relay(ABC):
    """Listens at ``url`` and hands each client, with a connection to the server, to ``carry``."""

    def __init__(self, folder: Path, server: str) -> None:
        self.url = f"unix://{folder}/relay.sock"
        self._server = server.removeprefix("unix://")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.url.removeprefix("unix://"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    @abstractmethod
    def carry(self, client: socket.socket, server: socket.socket) -> None:
        """Carry requests and replies until one of both ends it."""

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._server)
            self.carry(client, server)
