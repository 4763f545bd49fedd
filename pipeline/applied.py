"""The thresholds that a line judges by: the bundle's, or those that people have applied since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.bundle import open_bundle

if TYPE_CHECKING:
    from engines.calibration import Calibration
    from pipeline.config import LineSettings


def calibration_now(settings: LineSettings) -> Calibration | None:
    """The calibration in force."""
    return open_bundle(settings.bundle).calibration()
