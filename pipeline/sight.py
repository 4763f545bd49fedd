"""How a camera is, as its own process sees it; said with each of its signs of life.

Whoever looks on (the page) adds what only it can know: a camera of which no process speaks is down,
and one that is open and has shown nothing for a while is starving.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

import numpy as np

from engines.contracts import BadConfig, UInt8
from pipeline.pulse import Pulse
from pipeline.telemetry import facts

EVERY = 16  # of its rows is looked at first
NOT_SUMMED = -1
FROZEN_AFTER = 5  # exposures in a row that are the same in every pixel: no sensor is that quiet


class CameraState(StrEnum):
    """One word for a camera, best first."""

    RUNNING = "running"
    STARVING = "starving"  # open, and no part comes: the belt stands, or no trigger arrives
    FROZEN = "frozen"  # it delivers one exposure again and again
    DOWN = "down"  # its source is lost, or nobody reads it


Seen = Literal[CameraState.RUNNING, CameraState.FROZEN, CameraState.DOWN]  # from inside
KNOWN: dict[str, Seen] = {
    one.value: one for one in (CameraState.RUNNING, CameraState.FROZEN, CameraState.DOWN)
}


def _check_sum(rows: UInt8) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).data)


class Sight:
    """Looks at what one camera delivers; ``note`` may be asked from another thread."""

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._last = (-1, -1)  # check sums of the newest image: of a few rows, and of all
        self._repeats = 1
        self._is_frozen = False
        facts.gauge("camera_frozen", 0, camera=camera)

    def see(self, image: UInt8) -> None:
        """Take in the newest model input [H, W, 3]."""
        last_few, last_all = self._last
        few = _check_sum(image[::EVERY])
        # Of most images a few rows tell that they are new; the sum of all is for the others.
        every = _check_sum(image) if few == last_few else NOT_SUMMED
        is_same = few == last_few and last_all in {every, NOT_SUMMED}
        self._repeats = self._repeats + 1 if is_same else 1
        self._last = (few, every)
        is_frozen = self._repeats >= FROZEN_AFTER
        if is_frozen and not self._is_frozen:
            facts.event("camera_frozen", level="warning", camera=self._camera, same=self._repeats)
        if is_frozen != self._is_frozen:
            facts.gauge("camera_frozen", is_frozen, camera=self._camera)
        self._is_frozen = is_frozen

    @property
    def state(self) -> Seen:
        """How the camera is."""
        if not facts.last("camera_connected", camera=self._camera):
            return CameraState.DOWN
        return CameraState.FROZEN if self._is_frozen else CameraState.RUNNING

    def note(self) -> str:
        """The camera's state and name, for a sign of life."""
        return f"{self.state} {self._camera}"


def notes_heard(pulse: Pulse) -> dict[str, str] | None:
    """What the cameras' processes say, by their names.

    None where nobody may listen: users of an older ``doctor --setup`` may not ask.
    """
    try:
        return pulse.notes("ingest")
    except BadConfig:
        return None


def camera_of(note: str) -> str:
    """Which camera a note speaks of."""
    return note.partition(" ")[2]


def read_notes(notes: Iterable[str]) -> dict[str, Seen]:
    """States by camera; what is no such note is passed over.

    Of a camera that two processes speak of (one was started again) the worse is believed.
    """
    told: dict[str, Seen] = {}
    worst = list(CameraState)
    for note in notes:
        state, camera = note.partition(" ")[0], camera_of(note)
        if state in KNOWN and camera:
            both = (KNOWN[state], told.get(camera, KNOWN[state]))
            told[camera] = max(both, key=worst.index)
    return told
