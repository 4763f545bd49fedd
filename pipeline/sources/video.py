"""A video file or an animated GIF as a source: every picture is one part."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from engines.contracts import Frame, SourceLost, UInt8
from engines.images import MAX_PIXELS, MIN_SIDE
from pipeline.sources.settings import VideoSettings
from pipeline.sources.source import Exposure, Pace
from pipeline.telemetry import facts

USUAL_FPS = 25.0  # for files that state no rate or an absurd one


class VideoSource:
    """Pictures of a file at its own rate, faster or slower by ``speed``, or flat out."""

    def __init__(self, settings: VideoSettings, camera: str) -> None:
        self._settings = settings
        self._camera = camera
        with opened(settings.path) as capture:
            fps = capture.get(cv2.CAP_PROP_FPS)
        self._fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else USUAL_FPS

    def frames(self, stop: threading.Event) -> Iterator[Exposure]:
        """One frame per picture; ``part_id`` is the file's name and the picture's number."""
        settings = self._settings
        speed = settings.speed
        period_s = 0.0 if speed == "max" else 1 / (self._fps * speed)
        pace = Pace()
        for count, image in enumerate(self._images()):
            if not pace.wait_until(count * period_s, stop) if period_s else stop.is_set():
                return
            part_id = f"{settings.path.stem}-{count:06d}"
            now_ns = time.time_ns()
            yield Frame("", self._camera, now_ns, image, settings.category, part_id=part_id)

    def _images(self) -> Iterator[UInt8]:
        yield from pictures(self._settings.path)
        while self._settings.loop:
            yield from pictures(self._settings.path)


def pictures(path: Path) -> Iterator[UInt8]:
    """RGB images [H, W, 3] of a video file; raises SourceLost where it holds none."""
    with opened(path) as capture:
        count = 0
        while (image := _next(capture)) is not None:
            yield image
            count += 1
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if count == 0:
        raise SourceLost(f"{path} holds no picture that can be decoded: convert it to MP4.")
    if count < promised:  # some containers only estimate, so this is told and no more
        facts.event("video_cut_short", level="warning", path=path, count=count, promised=promised)


def _next(capture: cv2.VideoCapture) -> UInt8 | None:
    taken, pixels = capture.read()
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype("uint8", copy=False) if taken else None


@contextmanager
def opened(path: Path) -> Iterator[cv2.VideoCapture]:
    """OpenCV's capture of a file of bearable picture size; raises SourceLost."""
    if not path.is_file():
        raise SourceLost(f"{path} is not a file: name a video file.")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise SourceLost(f"{path} is damaged or no video: convert it to MP4.")
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
            limits = f"{MIN_SIDE} pixels a side to {MAX_PIXELS // 1_000_000} megapixels"
            raise SourceLost(f"{path} is {width}x{height}: scale it to {limits}.")
        yield capture
    finally:
        capture.release()
