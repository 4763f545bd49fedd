"""Signs of life: one key per process, gone by itself when the process stops beating.

A worker beats from its inspection loop, so the key says that frames move and not merely that a
process exists.
"""

from __future__ import annotations

import contextlib

from engines.contracts import StreamLost
from pipeline.stream.link import Link

TTL_MS = 3000


class Pulse(Link):
    """Writes and reads the signs of life of a namespace."""

    def beat(self, role: str, name: str, note: str = "") -> None:
        """Live for another three seconds; a lost server is somebody else's concern."""
        with contextlib.suppress(StreamLost), self._translated():
            self._commands.set(self._key(role, name), note, px=TTL_MS)

    def end(self, role: str, name: str) -> None:
        """Say that this process ends in order."""
        with contextlib.suppress(StreamLost), self._translated():
            self._commands.delete(self._key(role, name))

    def living(self, role: str) -> list[str]:
        """Names of the processes of a role that beat within the last three seconds."""
        prefix = self._key(role, "")
        with self._translated():
            keys = [key.decode() for key in self._commands.scan_iter(match=f"{prefix}*")]
        return sorted(key.removeprefix(prefix) for key in keys)

    def _key(self, role: str, name: str) -> str:
        return f"{self.namespace}:alive:{role}:{name}"
