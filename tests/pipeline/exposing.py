"""What tests of sources share: flat pictures, and a source played to its end."""

from __future__ import annotations

import itertools
import threading

import numpy as np

from pipeline.sources import open_source
from pipeline.sources.settings import SourceSettings
from pipeline.sources.source import Exposure


def grey(level: int) -> np.ndarray:
    """A flat picture [48, 64, 3]."""
    return np.full((48, 64, 3), level, np.uint8)


def exposures(settings: SourceSettings, count: int | None = None) -> list[Exposure]:
    """The first ``count`` exposures of a source, or all; the source is closed again."""
    stop = threading.Event()
    with open_source(settings, "cam") as source:
        taken = source.frames(stop)
        found = list(itertools.islice(taken, count))
        stop.set()
        assert list(itertools.islice(taken, 1)) == []  # a stopped source ends
    return found
