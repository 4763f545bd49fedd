"""What all pages read: the feed, the rejected parts, what people said of them, the thresholds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from engines.contracts import InspectionError
from pipeline.dashboard.feed import Feed
from pipeline.dashboard.parts import Parts
from pipeline.review import ReviewLabels

if TYPE_CHECKING:
    from engines.calibration import Calibration
    from pipeline.config import LineSettings


class Desk:
    """One for all visitors of a line's pages; ``run`` keeps it up to date."""

    def __init__(self, settings: LineSettings) -> None:
        archive = settings.sinks.archive
        folder = (archive.folder or settings.run_dir / "archive") if archive else None
        self.settings = settings
        self.line = settings.line
        self.feed = Feed(settings)
        self.parts = Parts(folder, self.feed.reject_of)
        self.labels = ReviewLabels(settings.run_dir)
        self.crops = {camera.name: camera.crop for camera in settings.cameras}

    def calibration(self) -> Calibration | None:
        """The thresholds that judge now; None where they are not at hand."""
        from pipeline.applied import calibration_now

        try:
            return calibration_now(self.settings)
        except InspectionError:
            return None

    def run(self, stop: threading.Event) -> None:
        """Read the line until ``stop``."""
        looking = threading.Thread(target=self.parts.run, args=(stop,), name="parts", daemon=True)
        looking.start()
        self.feed.run(stop)
        looking.join(timeout=5)
