"""A folder of image files as a source: every file is one part."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from engines.contracts import BadFrame, Frame, SourceLost
from engines.dataset import image_files
from engines.images import read_image
from pipeline.sources.settings import FolderSettings
from pipeline.sources.source import BadExposure, Exposure, Pace


class FolderSource:
    """Images in the order of their relative names; a damaged file is a BadExposure, not a gap."""

    def __init__(self, settings: FolderSettings, camera: str) -> None:
        self._settings = settings
        self._camera = camera
        folder = settings.path
        if not folder.is_dir():
            raise SourceLost(f"{folder} is not a folder: name a folder of image files.")
        self._files = image_files(folder)
        if not self._files:
            raise SourceLost(f"{folder} holds no images: put PNG, JPEG, BMP or TIFF files there.")

    def frames(self, stop: threading.Event) -> Iterator[Exposure]:
        """One exposure per file, at ``rate_hz`` or flat out, without end where ``loop`` is set."""
        files = itertools.cycle(self._files) if self._settings.loop else iter(self._files)
        period_s = 1 / self._settings.rate_hz if self._settings.rate_hz else 0.0
        pace = Pace()
        for count, path in enumerate(files):
            if not pace.wait_until(count * period_s, stop) if period_s else stop.is_set():
                return
            yield self._exposure(path)

    def _exposure(self, path: Path) -> Exposure:
        part_id = path.relative_to(self._settings.path).with_suffix("").as_posix()
        captured_ns = time.time_ns()
        category = self._settings.category
        try:
            image = read_image(path)
        except BadFrame as error:
            return BadExposure(self._camera, captured_ns, str(error), category, part_id)
        return Frame("", self._camera, captured_ns, image, category, part_id=part_id)
