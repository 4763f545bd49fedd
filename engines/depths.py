"""How deep a method can go, and how deep its frames have asked to go of late."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.bundle import Manifest

WEIGHT = 0.02  # of the newest frame: the mix is that of the last fifty


@dataclass(frozen=True, slots=True)
class Depths:
    """The plan table as far as scheduling needs it."""

    steps: tuple[int, ...]  # denoiser calls of each plan, never fewer than of the one before
    steps_min: int
    steps_unit: int
    can_cut: bool = False  # a row that stops at a cut point has a threshold there

    @classmethod
    def of(cls, manifest: Manifest, *, can_cut: bool = False) -> Depths:
        """Those of a bundle."""
        steps = tuple(len(plan.levels) for plan in manifest.plans)
        return cls(steps, manifest.steps_min, manifest.steps_unit, can_cut)

    @property
    def limits(self) -> tuple[int, ...]:
        """Plans worth naming as a limit, deepest first: of equally deep ones the last."""
        deepest_of = {steps: plan for plan, steps in enumerate(self.steps)}
        return tuple(sorted(deepest_of.values(), reverse=True))

    def steps_to_cut(self, made: int) -> float:
        """Further calls until a row that made so many may stop; 0 = here, inf = only at its end."""
        if not self.can_cut:
            return math.inf
        return max(self.steps_min - made, -made % self.steps_unit)


class DepthMix:
    """Share of frames that ask for each plan, learned from what they took.

    At first every frame is thought to take the deepest.
    """

    def __init__(self, depths: Depths) -> None:
        self._steps = depths.steps
        self._shares = [0.0] * len(depths.steps)
        self._shares[-1] = 1.0

    def note(self, plan: int, limit: int | None = None) -> None:
        """One frame took ``plan``; at its ``limit`` it may have wanted any deeper one."""
        beyond = self._shares[limit:] if plan == limit else []
        total = sum(beyond)
        self._shares = [(1 - WEIGHT) * share for share in self._shares]
        if total <= 0:
            self._shares[plan] += WEIGHT
            return
        for deeper, share in enumerate(beyond, plan):
            self._shares[deeper] += WEIGHT * share / total

    def steps_below(self, limit: int) -> float:
        """Mean denoiser calls of a frame, were no plan above ``limit`` taken."""
        shares = zip(self._shares, self._steps, strict=True)
        return sum(share * min(steps, self._steps[limit]) for share, steps in shares)

    def stepping_below(self, limit: int) -> float:
        """Share of frames that would make at least one call."""
        if self._steps[limit] == 0:
            return 0.0
        shares = zip(self._shares, self._steps, strict=True)
        return sum(share for share, steps in shares if steps > 0)
