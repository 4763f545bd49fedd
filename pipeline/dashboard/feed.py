"""What keeps the newest view: verdicts followed without a group, ledgers once a second.

A follower blocks on each camera's verdicts, so it sees them before the sinks' acknowledgement lets
them be trimmed; one it misses all the same is still counted, since counts come from the ledgers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
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
COUNT_S = 1.0  # between readings of the ledgers, at most
LEAST_S = 0.2  # and at least, however many rejects there are
LISTEN_S = 1.0  # between looks at the cameras' signs of life
BLOCK_MS = 500  # how long a follower waits before it looks whether to stop
RETRY_S = 1.0  # after the server went away


class Feed:
    """Reads the stream on threads of its own; pages only ask for the newest view."""

    def __init__(self, settings: LineSettings) -> None:
        self._settings = settings
        self._cameras = settings.camera_names
        gates_ms = {camera.name: float(camera.gate_ms) for camera in settings.cameras}
        # Pictures are cached by browsers under their key, so keys of two runs must differ.
        self._window = LineWindow(settings.line, gates_ms, run_key=f"{time.time_ns() // 10**6:x}")
        self._lock = threading.Lock()
        self._after = dict.fromkeys(self._cameras, "0")
        self._has_reject = threading.Event()
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
        listen_at = 0.0  # monotonic seconds
        with self._followers(stream) as any_ended:
            while not stop.is_set() and not any_ended.is_set():
                self._has_reject.clear()
                if time.monotonic() >= listen_at:
                    self._listen(pulse)
                    listen_at = time.monotonic() + LISTEN_S
                self._count(stream)
                stop.wait(LEAST_S)
                self._has_reject.wait(COUNT_S - LEAST_S)  # people see it within a second

    @contextmanager
    def _followers(self, stream: Stream) -> Iterator[threading.Event]:
        """One thread per camera; the event is set when one of them has lost the server."""
        ended = threading.Event()
        with ThreadPoolExecutor(len(self._cameras), thread_name_prefix="verdicts") as pool:
            running = [pool.submit(self._see, stream, camera, ended) for camera in self._cameras]
            try:
                yield ended
            finally:
                ended.set()
        for follower in running:
            follower.result()

    def _see(self, stream: Stream, camera: str, ended: threading.Event) -> None:
        try:
            while not ended.is_set():
                for found in stream.follow_verdicts(camera, self._after[camera], block_ms=BLOCK_MS):
                    self._after[camera] = found.entry_id
                    self.last = found.verdict if found.verdict.backend else self.last
                    with self._lock:
                        pictures = (found.mask_png, found.picture_png, found.map_png)
                        is_shown = self._window.see(found.verdict, *pictures)
                    if is_shown:
                        self._has_reject.set()
        finally:
            ended.set()

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
