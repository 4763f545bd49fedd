"""Good parts as the calibration knows them: how many score how high, at one plan and depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engines.calibration import Calibration, Entry
    from engines.contracts import Verdict
    from engines.tail import Tail

BINS = 40
REACH = 4.0  # an axis ends at most so many spans (median to limit) above the median


@dataclass(frozen=True, slots=True)
class GoodParts:
    """A histogram of held-out good parts over the raw score, with what is measured against it."""

    edges: tuple[float, ...]  # one more than counts
    counts: tuple[float, ...]  # expected number of good parts in each bin
    good: int
    limit: float | None  # the raw score at the verdict's threshold
    score: float | None  # of the part
    is_beyond: bool  # the part lies above the last edge


def good_parts(verdict: Verdict, entry: Entry | None) -> GoodParts | None:
    """The good parts that this verdict was measured by; None where nobody knows them."""
    if entry is None or verdict.plan is None:
        return None
    tail = entry.tail(verdict.plan, verdict.steps, verdict.steps_planned)
    return None if tail is None else _histogram(tail, verdict)


def entry_of(calibration: Calibration | None, verdict: Verdict) -> Entry | None:
    """The calibration's entry for a verdict; None where it has none."""
    if calibration is None:
        return None
    known = calibration.entries.get(verdict.backend, {})
    return known.get(verdict.category) or known.get("unknown")


def _histogram(tail: Tail, verdict: Verdict) -> GoodParts:
    limit = tail.score_at(verdict.threshold) if verdict.threshold else None
    score = verdict.anomaly_score
    low, median, high = tail.scores[0], tail.score_at(np.log10(2)), tail.score_at(3.0)
    span = max((limit or high) - median, high - median, 1e-12)
    top = max(high, limit or high, min(score or high, median + REACH * span)) + 0.05 * span
    low = min(low, score if score is not None else low) - 0.05 * span
    edges = np.linspace(low, top, BINS + 1)
    above = 10.0 ** -tail.surprise_of(edges)  # share of good parts that score higher
    above[0] = 1.0
    return GoodParts(
        edges=tuple(edges.tolist()),
        counts=tuple((tail.good * -np.diff(above)).clip(0).tolist()),
        good=tail.good,
        limit=limit,
        score=score,
        is_beyond=score is not None and score > top,
    )
