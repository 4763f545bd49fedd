"""A network between a line and its server whose weather changes: cut, slow, lossy."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.pipeline.relaying import Relay

PIECE = 65_536
CALM = (False, 0.0, 0.0)


class Weather(Relay):
    """Carries everything, until told otherwise.

    ``is_cut``: nothing arrives and nobody is told, as behind a pulled cable. ``delay_s``: a piece
    takes so much longer. ``loss``: the share of pieces that arrive a retransmission late.
    """

    def __init__(self, folder: Path, server: str, seed: int = 0) -> None:
        self.is_cut, self.delay_s, self.loss = CALM
        self._random = random.Random(seed)
        self._open: set[socket.socket] = set()
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, server)

    def calm(self) -> None:
        """Everything arrives again."""
        self.is_cut, self.delay_s, self.loss = CALM

    def drop(self) -> None:
        """End every connection."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def carry(self, client: socket.socket, server: socket.socket) -> None:
        """Both ways at once, until either end goes."""
        self._open.add(client)
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        try:
            self._pump(client, server)
            back.join()
        finally:
            self._open.discard(client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                self._wait()
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _wait(self) -> None:
        if self.delay_s or self.loss:
            is_lost = self._random.random() < self.loss
            time.sleep(self.delay_s + 0.2 * is_lost)
        while self.is_cut:
            time.sleep(0.01)
