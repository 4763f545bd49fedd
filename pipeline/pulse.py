"""Signs of life: one key per process, gone by itself when the process stops beating.

A process beats from its main loop, so the key says that frames move and not merely that a process
exists. A worker and the sink beat by themselves; a camera's process, whose loop belongs to the
source, is alive as long as the source asks whether to stop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from engines.contracts import StreamLost
from pipeline.lanes import Lane
from pipeline.stream.link import Link

TTL_MS = 3000
BEAT_S = 0.5


def name_of_process() -> str:
    """What a process beats, and reads, by."""
    return f"{socket.gethostname()}-{os.getpid()}"


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
        with self._translated():
            return sorted(self._names(role))

    def notes(self, role: str) -> dict[str, str]:
        """What those processes say with their beats, by their names."""
        with self._translated():
            told = {name: self._commands.get(self._key(role, name)) for name in self._names(role)}
        return {name: note.decode(errors="replace") for name, note in told.items() if note}

    def _names(self, role: str) -> list[str]:
        prefix = self._key(role, "")
        keys = self._commands.scan_iter(match=f"{prefix}*")
        return [key.decode().removeprefix(prefix) for key in keys]

    def _key(self, role: str, name: str) -> str:
        return f"{self.namespace}:alive:{role}:{name}"


class WatchedStop(threading.Event):
    """A stop event that notes when somebody asks it: a loop that still asks does not hang."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop
        self._was_asked = False

    def is_set(self) -> bool:
        """Whether to stop."""
        self._was_asked = True
        return self._stop.is_set()

    def set(self) -> None:
        """Stop."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the stop, asking every now and then."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = BEAT_S if until is None else until - time.monotonic()
            if left <= 0:
                return False
            self._stop.wait(min(BEAT_S, left))
        return True

    def was_asked(self) -> bool:
        """Whether anybody asked since this was called last."""
        asked, self._was_asked = self._was_asked, False
        return asked


@contextlib.contextmanager
def beating(
    role: str,
    url: str,
    namespace: str,
    stop: threading.Event,
    note: Callable[[], str] = str,
) -> Iterator[WatchedStop]:
    """A stop event to hand to a main loop; while the loop asks it, this process beats.

    ``note`` says what each beat tells.
    """
    watched, name = WatchedStop(stop), name_of_process()

    def beat(closing: threading.Event) -> None:
        while not closing.wait(BEAT_S):
            if watched.was_asked():
                pulse.beat(role, name, note())

    with contextlib.closing(Pulse(url, namespace)) as pulse, Lane(f"pulse {role}", beat):
        yield watched  # what ends in order is no longer listened for, however long that takes
