"""Where frames come from: files, cameras, recordings and a simulator behind one seam."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.sources.settings import (
    CameraSettings,
    FolderSettings,
    GigeSettings,
    ReplaySettings,
    SimulatorSettings,
    SourceSettings,
    VideoSettings,
)
from pipeline.sources.source import BadExposure, Exposure, Source

__all__ = ["BadExposure", "Exposure", "Source", "SourceSettings", "open_source"]


# FFmpeg prints failed URLs, passwords included; it reads this when OpenCV first opens a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@contextmanager
def open_source(settings: SourceSettings, camera: str) -> Iterator[Source]:
    """The source that ``settings`` describe; raises SourceLost where it cannot exist.

    Each kind is imported when it is opened, so a line without an industrial camera needs no
    driver for one. A live camera connects when its frames are first asked for.
    """
    yield _source(settings, camera)


def _source(settings: SourceSettings, camera: str) -> Source:
    match settings:
        case FolderSettings():
            from pipeline.sources.folder import FolderSource

            return FolderSource(settings, camera)
        case VideoSettings():
            from pipeline.sources.video import VideoSource

            return VideoSource(settings, camera)
        case CameraSettings():
            from pipeline.sources.camera import CameraSource

            return CameraSource(settings, camera)
        case GigeSettings():
            from pipeline.sources.gige import GigeSource

            return GigeSource(settings, camera)
        case ReplaySettings():
            from pipeline.sources.replay import ReplaySource

            return ReplaySource(settings.path, settings.speed, camera, settings.camera)
        case SimulatorSettings():
            return _simulator(settings, camera)


def _simulator(settings: SimulatorSettings, camera: str) -> Source:
    from pipeline.simulator import Fault, SimulatedLine

    return SimulatedLine(
        camera,
        parts=settings.parts,
        seed=settings.seed,
        rate_hz=settings.rate_hz or None,
        frames=settings.frames,
        defect_rate=settings.defect_rate,
        jitter=settings.jitter,
        rendered=settings.rendered,
        shown=settings.shown,
        faults=[Fault(f.kind, f.first, f.last, f.strength) for f in settings.faults],
    )
