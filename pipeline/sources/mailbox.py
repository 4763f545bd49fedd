"""The place between a camera's own thread and the line: small, and the newest image stays.

A camera does not wait. When the line does not take a frame in time, its image is let go and a
BadExposure(overrun) stays in its place, so the part is answered although it was not inspected.
"""

from __future__ import annotations

import threading
from collections import deque

from engines.contracts import Frame, Reason
from pipeline.sources.source import BadExposure, Exposure

IMAGES_MAX = 2  # the one to be taken next and the newest
EXPOSURES_MAX = 4096  # answers kept for overruns: over a minute of standstill at 60 Hz


class Mailbox:
    """Exposures from one thread to another; holds at most IMAGES_MAX images."""

    def __init__(self) -> None:
        self._exposures: deque[Exposure] = deque()
        self._images = 0  # always the last ones: the oldest image is let go first
        self._changed = threading.Condition()
        self._ended = False
        self.overruns = 0  # frames whose image was let go

    def put(self, frame: Frame) -> None:
        """Add a frame; where too many images wait, the oldest becomes an overrun."""
        with self._changed:
            if self._images == IMAGES_MAX:
                self._let_go(len(self._exposures) - self._images)
            self._exposures.append(frame)
            self._images += 1
            self._changed.notify_all()

    def end(self) -> None:
        """Say that nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Exposure | None:
        """The oldest exposure, or None where none comes in time or ever again."""
        with self._changed:
            self._changed.wait_for(self._is_settled, timeout_s)
            if not self._exposures:
                return None
            exposure = self._exposures.popleft()
            self._images -= isinstance(exposure, Frame)
            return exposure

    def wait(self, timeout_s: float) -> bool:
        """Wait for an exposure; False where none comes in time or ever again."""
        with self._changed:
            self._changed.wait_for(self._is_settled, timeout_s)
            return bool(self._exposures)

    @property
    def is_exhausted(self) -> bool:
        """Whether the writer has ended and everything was taken."""
        with self._changed:
            return self._ended and not self._exposures

    def _is_settled(self) -> bool:
        return bool(self._exposures) or self._ended

    def _let_go(self, index: int) -> None:
        frame = self._exposures[index]
        sentence = f"{frame.camera} was faster than the line: lower its rate or add workers."
        self._exposures[index] = BadExposure(
            frame.camera, frame.captured_ns, sentence, frame.category, reason=Reason.OVERRUN
        )
        self._images -= 1
        self.overruns += 1
        if len(self._exposures) > EXPOSURES_MAX:
            self._exposures.popleft()
