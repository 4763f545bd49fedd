"""Early exit: a row leaves where the steps still to come cannot change its verdict.

At a cut point a part that is calmer than any that failed in the end passes, and one that is
stranger than any that passed in the end fails. Both limits are learned from one half of the parts,
as they are and with synthetic anomalies; the other half says, for every plan, how often leaving
early changes the verdict of a good part and of an odd one, with exact upper bounds (Clopper and
Pearson). A plan whose bounds are not kept has no exits.

Where frames are cut, their tiles leave one by one, and whole frames are counted: one is changed
where any of its tiles ends on the other side of the threshold. A frame's verdict changes in no
other way, so the bound holds whatever plans the other tiles take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from engines.bounds import error_bound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Surprises = NDArray[np.float64]  # [N, cut points + 1], the last at the end of the plan
Flags = NDArray[np.bool_]

SPARED_MIN = 0.5  # denoiser calls that a look must spare in the mean: it costs a finish itself


class Exit(BaseModel):
    """What decides at one cut point of a plan, in surprise; None decides nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pass_below: float | None = None
    fail_above: float | None = None

    def decides(self, surprise: float) -> bool:
        """Whether a row with this surprise may leave."""
        is_calm = self.pass_below is not None and surprise < self.pass_below
        return is_calm or (self.fail_above is not None and surprise > self.fail_above)


class ExitPromise(BaseModel):
    """How often leaving a plan early changes a verdict, and what it spares."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parts: int  # that no limit was learned from, each good and with a synthetic anomaly
    changed_good: int  # of the good: verdicts that differ from those at full depth
    changed_odd: int  # of those with an anomaly
    bound: float  # upper confidence bound of the greater of both rates
    confidence: float
    calls_good: float  # mean denoiser calls of good parts with exits
    calls_good_full: int  # and without

    def sentence(self, plan: int) -> str:
        """What leaving early does, for people."""
        return (
            f"early exit from plan {plan} changes at most {self.bound:.1%} of verdicts "
            f"({self.changed_good} good and {self.changed_odd} odd of {self.parts} parts); good "
            f"parts take {self.calls_good:.1f} steps instead of {self.calls_good_full}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Walks:
    """Rows of a category along one plan; tiles of a frame lie together."""

    steps: tuple[int, ...]  # calls made at each cut point, ascending, and at the end
    surprise: Surprises  # [N, len(steps)]
    is_good: Flags  # [N]: no synthetic anomaly in the frame
    tiles: int = 1  # rows of a frame

    @property
    def parts(self) -> int:
        """Good frames; as many are odd."""
        return int(self.is_good.sum()) // self.tiles


@dataclass(frozen=True, slots=True)
class Fitted:
    """The exits of one plan by calls made, and what they promise."""

    exits: dict[int, Exit]
    promise: ExitPromise


def fit_exits(
    walk: Walks, threshold: float, *, changed_max: float, confidence: float
) -> Fitted | None:
    """Exits of one plan; None where looking spares too little or the bound is not kept.

    Rows of ``walk`` are the good parts, then the same parts in the same order, made odd.
    """
    rows = np.arange(walk.parts * walk.tiles)
    learned = np.tile(rows // walk.tiles % 2 == 0, len(walk.is_good) // len(rows))
    exits = _exits_of(_part(walk, learned), threshold)
    promise = _promise(_part(walk, ~learned), exits, threshold, confidence)
    return Fitted(exits, promise) if exits and promise.bound <= changed_max else None


def _part(walk: Walks, rows: Flags) -> Walks:
    return Walks(walk.steps, walk.surprise[rows], walk.is_good[rows], walk.tiles)


def _exits_of(walk: Walks, threshold: float) -> dict[int, Exit]:
    """Exits at the cut points of one plan where looking spares more than it costs."""
    fails = walk.surprise[:, -1] > threshold
    is_left = np.ones(len(fails), np.bool_)
    found: dict[int, Exit] = {}
    for column, made in enumerate(walk.steps[:-1]):
        at = walk.surprise[:, column]
        limits = Exit(
            pass_below=float(min(at[fails].min(), threshold)) if fails.any() else None,
            fail_above=float(max(at[~fails].max(), threshold)) if not fails.all() else None,
        )
        leaves = is_left & np.array([limits.decides(value) for value in at])
        looked = is_left & walk.is_good
        share = float(leaves[looked].mean()) if looked.any() else 0.0
        if share * (walk.steps[-1] - made) >= SPARED_MIN:
            found[made] = limits
            is_left &= ~leaves
    return found


def _promise(
    walk: Walks, exits: Mapping[int, Exit], threshold: float, confidence: float
) -> ExitPromise:
    """Walk parts that nothing was learned from, with the exits and without."""
    places = np.array([leaves_at(walk.steps, at, exits) for at in walk.surprise])
    fails = np.take_along_axis(walk.surprise, places[:, None], 1)[:, 0] > threshold
    has_changed = (fails != (walk.surprise[:, -1] > threshold)).reshape(-1, walk.tiles).any(1)
    is_good = walk.is_good[:: walk.tiles]  # of frames
    good, odd = int(has_changed[is_good].sum()), int(has_changed[~is_good].sum())
    return ExitPromise(
        parts=walk.parts,
        changed_good=good,
        changed_odd=odd,
        bound=error_bound(max(good, odd), walk.parts, confidence),
        confidence=confidence,
        calls_good=walk.tiles * float(np.asarray(walk.steps)[places[walk.is_good]].mean()),
        calls_good_full=walk.tiles * walk.steps[-1],
    )


def leaves_at(steps: Sequence[int], surprise: Surprises, exits: Mapping[int, Exit]) -> int:
    """The column where a row leaves: its first exit, or the end."""
    for column, made in enumerate(steps[:-1]):
        if made in exits and exits[made].decides(float(surprise[column])):
            return column
    return len(steps) - 1
