"""A recording as a source: the same parts again, at any pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.recording import check_recording, read_exposures
from pipeline.sources.settings import Speed
from pipeline.sources.source import Exposure, Pace


class ReplaySource:
    """A recording as a source: its exposures again, stamped now, ``source_frame_id`` as recorded.

    ``speed`` 1.0 keeps the recorded pace, 2.0 halves the pauses, "max" leaves none.
    """

    def __init__(
        self,
        path: str | Path,
        speed: Speed = 1.0,
        camera: str = "",
        recorded_camera: str = "",
    ) -> None:
        self._path = Path(path)
        self._speed = speed
        self._camera = camera
        self._recorded_camera = recorded_camera
        check_recording(self._path)

    def frames(self, stop: threading.Event) -> Iterator[Exposure]:
        """Exposures at the recorded pace times ``speed``, until the end or ``stop``."""
        pace = Pace()
        first_ns: int | None = None
        for exposure in read_exposures(self._path, self._recorded_camera):
            first_ns = exposure.captured_ns if first_ns is None else first_ns
            if stop.is_set():
                return
            if self._speed != "max":
                due_s = (exposure.captured_ns - first_ns) / 1e9 / self._speed
                if not pace.wait_until(due_s, stop):
                    return
            yield replace(
                exposure,
                camera=self._camera or exposure.camera,
                captured_ns=time.time_ns(),
                source_frame_id=exposure.frame_id,
            )
