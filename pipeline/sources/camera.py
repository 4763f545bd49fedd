"""A USB camera by its index or a network camera by its URL, read by OpenCV.

OpenCV may block longer than its own time limits (name look-up, a driver that hangs), so everything
that touches a capture happens on one thread per session, and the line waits for that thread with a
limit of its own. URLs carry passwords: what is shown of one is its scheme, host and port.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import cv2

from engines.contracts import Frame, SourceLost
from engines.images import MAX_PIXELS, MIN_SIDE
from pipeline.sources.live import reconnecting
from pipeline.sources.mailbox import Mailbox
from pipeline.sources.settings import CameraSettings
from pipeline.sources.source import Exposure
from pipeline.telemetry import facts

POLL_S = 0.25  # how often a waiting reader looks at its stop event
JOIN_S = 1.0
OPENING_SPARE_S = 1.0  # name look-up comes on top of OpenCV's own limits


class CameraSource:
    """A live camera that reconnects by itself until an outage lasts ``give_up_s``."""

    def __init__(self, settings: CameraSettings, camera: str) -> None:
        self._settings = settings
        self._camera = camera

    def frames(self, stop: threading.Event) -> Iterator[Exposure]:
        """Exposures as they come; raises SourceLost when the camera stays away too long."""
        return reconnecting(self._connect, self._camera, self._settings.give_up_s, stop)

    def _connect(self) -> CameraSession:
        session = CameraSession(self._settings, self._camera)
        try:
            session.wait_first()
        except SourceLost:
            session.close()
            raise
        return session


class CameraSession:
    """One connection: a thread that grabs, and a mailbox between it and the line."""

    def __init__(self, settings: CameraSettings, camera: str) -> None:
        self._settings = settings
        self._camera = camera
        self._mailbox = Mailbox()
        self._closing = threading.Event()
        # A daemon: a driver that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._grab, name=f"grab-{camera}", daemon=True)
        self._thread.start()

    def wait_first(self) -> None:
        """Wait until the first frame is there; raises SourceLost where none comes in time."""
        settings = self._settings
        limit_s = settings.open_timeout_s + settings.read_timeout_s + OPENING_SPARE_S
        if not self._mailbox.wait(limit_s):
            raise self._lost()

    def exposures(self, stop: threading.Event) -> Iterator[Exposure]:
        """Exposures until ``stop``; raises SourceLost after ``read_timeout_s`` of silence."""
        heard = time.monotonic()
        while not stop.is_set():
            exposure = self._mailbox.take(POLL_S)
            if exposure is not None:
                yield exposure
                heard = time.monotonic()
            elif self._mailbox.is_exhausted or self._is_silent_since(heard):
                raise self._lost()

    def close(self) -> None:
        """Tell the thread to end, and wait a moment for it to let the camera go."""
        self._closing.set()
        self._thread.join(JOIN_S)

    def _is_silent_since(self, heard: float) -> bool:
        return time.monotonic() - heard > self._settings.read_timeout_s

    def _lost(self) -> SourceLost:
        return SourceLost(
            f"camera {self._camera} ({address_of(self._settings)}) gives no frames: "
            "check its power, cable, address and password."
        )

    def _grab(self) -> None:
        """Open, grab until told to end or nothing comes, release: all on this thread."""
        capture = open_capture(self._settings)
        try:
            while not self._closing.is_set() and capture.grab():
                captured_ns = time.time_ns()
                taken, pixels = capture.retrieve()
                if not taken or not _is_bearable(*pixels.shape[:2]):
                    return
                image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype("uint8", copy=False)
                category = self._settings.category
                self._mailbox.put(Frame("", self._camera, captured_ns, image, category))
        except cv2.error as error:
            # A driver went away in the middle of a call; the text may hold the URL.
            facts.event("camera_driver_error", camera=self._camera, code=error.code)
        finally:
            capture.release()
            self._mailbox.end()


def open_capture(settings: CameraSettings) -> cv2.VideoCapture:
    """OpenCV's capture; unopened where the camera does not answer within ``open_timeout_s``."""
    if settings.url is None:
        return cv2.VideoCapture(settings.index or 0, cv2.CAP_ANY)
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        round(settings.open_timeout_s * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        round(settings.read_timeout_s * 1000),
    ]
    return cv2.VideoCapture(settings.url.get_secret_value(), cv2.CAP_FFMPEG, limits)


def address_of(settings: CameraSettings) -> str:
    """What may be shown of a camera's address: nothing that could hold a password."""
    if settings.url is None:
        return f"index {settings.index}"
    try:
        parts = urlsplit(settings.url.get_secret_value())
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that is no URL"
    return f"{parts.scheme}://{parts.hostname}{port}"


def _is_bearable(height: int, width: int) -> bool:
    return min(height, width) >= MIN_SIDE and height * width <= MAX_PIXELS
