"""What all pages read: the feed, the rejected parts, what people said of them, the thresholds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from engines.contracts import InspectionError
from pipeline.dashboard.feed import Feed
from pipeline.dashboard.history import History
from pipeline.dashboard.parts import Parts
from pipeline.dashboard.reconstructions import Reconstructions
from pipeline.dashboard.tape import Tapes
from pipeline.dashboard.tuning import Thresholds
from pipeline.dashboard.vitals import Vitals
from pipeline.review import ReviewLabels

if TYPE_CHECKING:
    from pathlib import Path

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
        self.thresholds = Thresholds(settings)
        self.reconstructions = Reconstructions(self.thresholds.bundle)
        self.tapes = Tapes(settings.run_dir)
        self.vitals = Vitals(settings)
        self.history = History(_log_of(settings))
        self.crops = {camera.name: camera.crop for camera in settings.cameras}

    def calibration(self) -> Calibration | None:
        """The thresholds that judge now; None where they are not at hand."""
        try:
            return self.thresholds.now()
        except InspectionError:
            return None

    def run(self, stop: threading.Event) -> None:
        """Read the line until ``stop``."""
        beside = [
            threading.Thread(target=look, args=(stop,), name=name, daemon=True)
            for name, look in (
                ("parts", self.parts.run),
                ("history", self.history.run),
                ("vitals", self.vitals.run),
            )
        ]
        for one in beside:
            one.start()
        self.feed.run(stop)
        for one in beside:
            one.join(timeout=5)
        self.reconstructions.close()
        self.tapes.close()


def _log_of(settings: LineSettings) -> Path | None:
    """Where the line's verdicts are recorded; None where they are not."""
    jsonl = settings.sinks.jsonl
    return (jsonl.path or settings.run_dir / "verdicts.jsonl") if jsonl else None
