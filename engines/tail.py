"""How unusual a raw score is among good parts: the fitted tail behind every surprise.

Body: the order statistics of held-out good scores, joined linearly on the surprise scale. Beyond
the 90 % quantile: an exponential, so surprise grows linearly with the score for ever and no two
scores tie. A generalised Pareto tail was left out on purpose: 50-500 good parts leave 5-50
excesses, too few to fix a shape, and plans fitted with different shapes would no longer be
comparable far out, where defects lie.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from engines.contracts import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence

Float64 = NDArray[np.float64]

BODY_QUANTILE = 0.9
MAX_KNOTS = 33  # the body is thinned to so many order statistics, a size people can read
GOOD_MIN = 8  # fewer scores have no shape
LN10 = math.log(10)


class Tail(BaseModel):
    """Surprise as a function of the raw score: positive, finite, strictly increasing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    good: int  # how many good scores it was fitted on
    scores: tuple[FiniteFloat, ...]  # knots of the body, strictly increasing
    surprises: tuple[FiniteFloat, ...]  # -log10 of the exceedance probability at each knot
    scale: FiniteFloat  # mean excess over the last knot, in units of the score

    @model_validator(mode="after")
    def _is_increasing(self) -> Self:
        knots = (self.scores, self.surprises)
        if len(self.scores) != len(self.surprises) or not self.scores:
            raise ValueError("a tail needs as many surprises as scores, and at least one")
        if any(np.any(np.diff(values) <= 0) for values in knots):
            raise ValueError("the knots of a tail must increase")
        if self.scale <= 0 or self.surprises[0] <= 0:
            raise ValueError("a tail needs a positive scale and positive surprises")
        return self

    @classmethod
    def fit(cls, good_scores: Sequence[float]) -> Tail:
        """The tail of held-out good scores, by (n + 1) plotting positions.

        Raises BadData where scores are too few or not finite.
        """
        ordered = np.sort(np.asarray(good_scores, np.float64))
        if len(ordered) < GOOD_MIN or not np.all(np.isfinite(ordered)):
            raise BadData(
                f"a tail needs at least {GOOD_MIN} finite scores of good images, "
                f"got {int(np.isfinite(ordered).sum())} of {len(ordered)}"
            )
        body = math.ceil(BODY_QUANTILE * len(ordered))
        body = min(body, len(ordered) - 1)  # at least one excess is left for the tail
        scores, surprises = _knots(ordered, body)
        excess = float(np.mean(ordered[body:] - scores[-1]))
        return cls(
            good=len(ordered),
            scores=tuple(scores.tolist()),
            surprises=tuple(surprises.tolist()),
            scale=max(excess, 1e3 * _resolution(ordered)),
        )

    def surprise(self, score: float) -> float:
        """-log10 of the probability that a good part scores higher; ``score`` must be finite."""
        at = bisect_right(self.scores, score) - 1
        if at < 0:
            return self.surprises[0] / (1 + (self.scores[0] - score) / self._lower_scale())
        if at == len(self.scores) - 1:
            above = (score - self.scores[at]) / (self.scale * LN10)
            return min(self.surprises[at] + above, sys.float_info.max)
        return _on_line(at, score, self.scores, self.surprises)

    def surprise_of(self, values: NDArray[np.floating]) -> Float64:
        """The surprise of every value of an array of any shape, as ``surprise`` gives it."""
        x = np.asarray(values, np.float64)
        low, high = self.scores[0], self.scores[-1]
        body = np.interp(x, self.scores, self.surprises)
        with np.errstate(over="ignore"):
            above = np.maximum(x - high, 0) / (self.scale * LN10)
            # A hyperbola, because an exponential would underflow into ties far below the body.
            below = 1 + np.maximum(low - x, 0) / self._lower_scale()
        return np.minimum(body / below + above, sys.float_info.max)

    def score_at(self, surprise: float) -> float:
        """The raw score that has this surprise (> 0): the inverse of ``surprise``."""
        first, last = self.surprises[0], self.surprises[-1]
        if surprise < first:
            return self.scores[0] - self._lower_scale() * (first / surprise - 1)
        if math.isnan(surprise):
            return surprise
        if surprise > last:
            return self.scores[-1] + (surprise - last) * self.scale * LN10
        at = bisect_right(self.surprises, surprise) - 1
        if at == len(self.scores) - 1:
            return self.scores[at]
        return _on_line(at, surprise, self.surprises, self.scores)

    def _lower_scale(self) -> float:
        """Width of the fall below the smallest knot; its slope continues the first segment's."""
        if len(self.scores) == 1:
            return self.scale
        run = self.scores[1] - self.scores[0]
        return run * self.surprises[0] / (self.surprises[1] - self.surprises[0])


def _on_line(at: int, x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Where the line through the knots ``at`` and ``at`` + 1 is at ``x``."""
    slope = (ys[at + 1] - ys[at]) / (xs[at + 1] - xs[at])
    return ys[at] + slope * (x - xs[at])


def _knots(ordered: Float64, body: int) -> tuple[Float64, Float64]:
    """Order statistics 1..body with their surprise; equal scores share one knot."""
    ranks = np.unique(np.linspace(0, body - 1, min(body, MAX_KNOTS)).round().astype(int))
    surprise = -np.log10((len(ordered) - ranks) / (len(ordered) + 1))  # rank 0 is the smallest
    gap = _resolution(ordered)
    kept = [0]
    for i in range(1, len(ranks)):
        if ordered[ranks[i]] - ordered[ranks[kept[-1]]] > gap:
            kept.append(i)
    return ordered[ranks[kept]], surprise[kept]


def _resolution(ordered: Float64) -> float:
    """Below this difference two scores count as equal; keeps every slope finite."""
    return 1e-9 * max(float(np.max(np.abs(ordered))), 1e-6)
