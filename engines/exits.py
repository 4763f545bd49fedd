"""Early exit: a row leaves where the steps still to come cannot change its verdict.

At a cut point a part that is calmer than any that failed in the end passes, and one that is
stranger than any that passed in the end fails. Both limits are learned from one half of the good
parts and their synthetic anomalies; the other half says how often leaving early changes a verdict,
with an exact upper bound (Clopper and Pearson). Without a bound that is kept there are no exits.
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
    """How often leaving early changes a verdict, and what it spares."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    frames: int  # good parts and synthetic anomalies that no limit was learned from
    changed: int  # of them: verdicts that differ from those at full depth
    bound: float  # upper confidence bound of that rate
    confidence: float
    calls_good: float  # mean denoiser calls of good parts with exits
    calls_good_full: float  # and without

    def sentence(self, *, is_used: bool) -> str:
        """What leaving early does, for people."""
        rate = f"changes at most {self.bound:.1%} of verdicts ({self.changed} of {self.frames})"
        spared = (
            f"good parts take {self.calls_good:.1f} steps instead of {self.calls_good_full:.1f}"
        )
        return f"early exit {rate}; {spared if is_used else 'it is not used'}"


@dataclass(frozen=True, slots=True, eq=False)
class Walks:
    """Frames of a category along one plan."""

    steps: tuple[int, ...]  # calls made at each cut point, ascending, and at the end
    surprise: Surprises  # [N, len(steps)]
    is_good: Flags  # [N]: no synthetic anomaly


def fit_exits(
    walks: Mapping[int, Walks],
    taken: Sequence[int],
    threshold: float,
    *,
    changed_max: float,
    confidence: float,
) -> tuple[dict[int, dict[int, Exit]], ExitPromise]:
    """Exits by plan and calls made, and what they promise; none where the bound is not kept.

    ``taken``: the plan that each frame, in the order of every ``Walks``, takes by itself.
    """
    learned = np.arange(len(taken)) % 2 == 0
    exits = {
        plan: found
        for plan, walk in walks.items()
        if (found := _exits_of(_part(walk, learned), threshold))
    }
    ends = [
        _End.of(walks[taken[row]], row, exits.get(taken[row], {}), threshold)
        for row in np.flatnonzero(~learned).tolist()
    ]
    promise = _promise(ends, confidence)
    return (exits if promise.bound <= changed_max else {}), promise


def _part(walk: Walks, rows: Flags) -> Walks:
    return Walks(walk.steps, walk.surprise[rows], walk.is_good[rows])


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


@dataclass(frozen=True, slots=True)
class _End:
    """Where one frame leaves its plan."""

    calls: int
    calls_full: int
    is_changed: bool  # its verdict is not that of the whole plan
    is_good: bool

    @classmethod
    def of(cls, walk: Walks, row: int, exits: Mapping[int, Exit], threshold: float) -> _End:
        at = walk.surprise[row]
        place = _leaves_at(walk.steps, at, exits)
        return cls(
            calls=walk.steps[place],
            calls_full=walk.steps[-1],
            is_changed=bool((at[place] > threshold) != (at[-1] > threshold)),
            is_good=bool(walk.is_good[row]),
        )


def _promise(ends: Sequence[_End], confidence: float) -> ExitPromise:
    changed = sum(end.is_changed for end in ends)
    good = [end for end in ends if end.is_good]
    return ExitPromise(
        frames=len(ends),
        changed=changed,
        bound=error_bound(changed, len(ends), confidence),
        confidence=confidence,
        calls_good=float(np.mean([end.calls for end in good])) if good else 0.0,
        calls_good_full=float(np.mean([end.calls_full for end in good])) if good else 0.0,
    )


def _leaves_at(steps: Sequence[int], surprise: Surprises, exits: Mapping[int, Exit]) -> int:
    """The column where a row leaves: its first exit, or the end."""
    for column, made in enumerate(steps[:-1]):
        if made in exits and exits[made].decides(float(surprise[column])):
            return column
    return len(steps) - 1
