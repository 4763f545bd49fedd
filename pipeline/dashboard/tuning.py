"""The thresholds of the bundle that a line runs, to look at and to change."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.bundle import Bundle, open_bundle
from engines.calibration import Calibration
from engines.contracts import BadBundle
from pipeline.applied import AppliedThresholds, Change, apply_threshold
from pipeline.swap.wanted import wanted_of

if TYPE_CHECKING:
    from pipeline.config import LineSettings


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    place: tuple[Path, int]  # and the number of the order that swapped it in
    bundle: Bundle
    own: Calibration
    applied: AppliedThresholds


class Thresholds:
    """What is in force now; the bundle is opened once, and again where another is swapped in."""

    def __init__(self, settings: LineSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._opened: _Opened | None = None

    def now(self) -> Calibration:
        """The calibration in force; InspectionError where there is none."""
        with self._lock:
            opened = self._open()
            opened.applied.changed()
            return opened.applied.now

    def bundle(self) -> Bundle:
        """The bundle that the line runs; InspectionError where there is none."""
        with self._lock:
            return self._open().bundle

    def apply(
        self, backend_key: str, category: str, threshold: float, who: str, why: str
    ) -> Change:
        """Put another threshold in force; BadConfig where a name or a reason lacks, or the disk."""
        with self._lock:
            opened = self._open()
            return apply_threshold(
                self._settings.run_dir,
                opened.bundle,
                opened.own,
                backend_key=backend_key,
                category=category,
                threshold=threshold,
                who=who,
                why=why,
            )

    def _open(self) -> _Opened:
        wanted = wanted_of(self._settings)
        path = wanted.chosen.bundle if wanted else self._settings.bundle
        place = (path, wanted.number if wanted else 0)
        if self._opened is None or self._opened.place != place:
            bundle = open_bundle(path)
            own = bundle.calibration()
            if own is None:
                raise BadBundle(f"bundle {path} is not calibrated")
            applied = AppliedThresholds(self._settings.run_dir, bundle, own)
            self._opened = _Opened(place, bundle, own, applied)
        return self._opened
