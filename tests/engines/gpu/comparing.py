"""Rows for the GPU worker and the CPU alike, and whether both answer the same."""

from __future__ import annotations

import numpy as np

from engines.contracts import Progress, Rows
from tests.engines.exported import Exported, draw_parts, rows_of


def drawn(sketch: Exported, count: int, seed: int) -> Rows:
    """Frames of every category and plan."""
    return rows_of(draw_parts(sketch.method, count, seed))


def agree(ours: Progress, theirs: Progress) -> bool:
    """Whether two backends chose the same."""
    return all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("steps_left", "plan", "level")
    )
