"""What keeps the newest view: verdicts followed without a group, and ledgers, looked at together.

A look takes what came since the last one; who waited for each verdict would wake for each, and have
the server wake him. The newest verdicts outlive their sinks, so a look finds them; one that it
misses all the same is still counted, since counts come from the ledgers.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from engines.contracts import InspectionError
from pipeline.dashboard.view import LineState
from pipeline.dashboard.window import LineWindow
from pipeline.pulse import Pulse
from pipeline.sight import notes_heard, read_notes
from pipeline.stream import Stream, open_stream
from pipeline.telemetry import facts

if TYPE_CHECKING:
    from engines.contracts import Verdict
    from pipeline.config import LineSettings
    from pipeline.dashboard.view import LineView, Reject

ROLE = "dashboard"
LOOK_S = 0.7  # between looks: a reject is seen within a second, drawing and all. Of a camera with
# more than a few hundred verdicts a second some will have left the stream by then, uncounted none.
RETRY_S = 1.0  # after the server went away


class Feed:
    """Reads the stream on a thread of its own; pages only ask for the newest view."""

    def __init__(self, settings: LineSettings) -> None:
        self._settings = settings
        self._cameras = settings.camera_names
        gates_ms = {camera.name: float(camera.gate_ms) for camera in settings.cameras}
        # Pictures are cached by browsers under their key, so keys of two runs must differ.
        self._window = LineWindow(settings.line, gates_ms, run_key=f"{time.time_ns() // 10**6:x}")
        self._lock = threading.Lock()
        self._after = dict.fromkeys(self._cameras, "0")
        self._view = self._window.view(0)
        self.last: Verdict | None = None  # the newest that was decided by looking

    @property
    def view(self) -> LineView:
        """The newest view, at most a second old while the server answers."""
        return self._view

    @property
    def server_lost(self) -> bool:
        """Whether the server is away now."""
        return self._view.state is LineState.NO_SERVER

    def reject(self, key: str) -> Reject | None:
        """A reject that is still kept, by its key."""
        with self._lock:
            return self._window.reject(key)

    def reject_of(self, stem: str) -> Reject | None:
        """A reject that is still kept, by its name in the archive."""
        with self._lock:
            return self._window.reject_of(stem)

    def run(self, stop: threading.Event) -> None:
        """Follow the line until ``stop``, through any loss of the server."""
        redis = self._settings.redis
        while not stop.is_set():
            try:
                address = redis.address(ROLE)
                with (
                    open_stream(address, redis.namespace) as stream,
                    closing(Pulse(address, redis.namespace)) as pulse,
                ):
                    self._follow(stream, pulse, stop)
            except InspectionError as error:
                facts.count("stream_lost_total", role=ROLE)
                facts.event("stream_lost", level="warning", error=str(error))
                self._view = replace(self._view, state=LineState.NO_SERVER)
                stop.wait(RETRY_S)

    def _follow(self, stream: Stream, pulse: Pulse, stop: threading.Event) -> None:
        while not stop.is_set():
            for camera in self._cameras:
                self._see(stream, camera)
            self._listen(pulse)
            self._count(stream)
            stop.wait(LOOK_S)

    def _see(self, stream: Stream, camera: str) -> None:
        """Take in what came since the last look."""
        while found := stream.follow_verdicts(camera, self._after[camera]):
            for one in found:
                self._after[camera] = one.entry_id
                self.last = one.verdict if one.verdict.backend else self.last
                pictures = (one.mask_png, one.picture_png, one.map_png)
                with self._lock:
                    self._window.see(one.verdict, *pictures)

    def _listen(self, pulse: Pulse) -> None:
        notes = notes_heard(pulse)
        with self._lock:
            self._window.hear(None if notes is None else read_notes(notes.values()))

    def _count(self, stream: Stream) -> None:
        ledgers = {camera: stream.ledger(camera) for camera in self._cameras}
        backlogs = {camera: stream.backlog(camera) for camera in self._cameras}
        now_ns = stream.now_ns()
        with self._lock:
            self._window.count(now_ns, ledgers, backlogs)
            self._view = self._window.view(now_ns)
