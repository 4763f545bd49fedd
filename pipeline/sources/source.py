"""The seam every camera stands behind: an iterator of exposures.

A source never swallows an exposure. One that yields no image (a damaged file, a frame with lost
packets, one that nobody took in time) comes out as a BadExposure, and ingest answers it UNDECIDED
with its reason: the part was there, so it must have a verdict.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from engines.contracts import Frame, Reason

LONGEST_CATCH_UP_S = 0.25


@dataclass(frozen=True, slots=True)
class BadExposure:
    """An exposure of which no image came; answered UNDECIDED with ``reason``."""

    camera: str
    captured_ns: int
    sentence: str  # what happened and the mend
    category: str = ""
    part_id: str = ""
    lot: str = ""
    recipe: str = ""
    source_frame_id: str = ""
    reason: Reason = Reason.BAD_FRAME
    frame_id: str = ""  # "" until ingest stamps it, as a Frame's


Exposure = Frame | BadExposure


class Source(Protocol):
    """Where frames come from: a file, a camera, a recording, a simulator."""

    def frames(self, stop: threading.Event) -> Iterator[Exposure]:
        """Exposures until the source ends or ``stop`` is set; raises SourceLost."""
        ...


class Pace:
    """A conveyor's clock: waits for the due moment, and makes up for lost time in no long burst."""

    def __init__(self) -> None:
        self._start: float | None = None  # set by the first wait, which is thus never late

    def wait_until(self, due_s: float, stop: threading.Event) -> bool:
        """Wait until ``due_s`` seconds on the belt's clock; False where ``stop`` was set first."""
        now = time.monotonic()
        if self._start is None:
            self._start = now - due_s
        left = self._start + due_s - now
        if left < -LONGEST_CATCH_UP_S:
            self._start -= left  # a stalled consumer shifts the clock instead of causing a rush
        return not (stop.wait(left) if left > 0 else stop.is_set())
