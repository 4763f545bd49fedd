"""How deep a method can go, and how deep its frames have asked to go of late."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.contracts import BadBundle

if TYPE_CHECKING:
    from engines.bundle import Manifest

WEIGHT = 0.02  # of the newest frame: the mix is that of the last fifty


@dataclass(frozen=True, slots=True)
class Depths:
    """The plan table as far as scheduling needs it; BadBundle where its depths do not ascend."""

    steps: tuple[int, ...]  # denoiser calls of each plan
    steps_min: int
    steps_unit: int

    def __post_init__(self) -> None:
        if list(self.steps) != sorted(self.steps):
            raise BadBundle(f"plans of {self.steps} calls do not ascend; export the bundle again")

    @classmethod
    def of(cls, manifest: Manifest) -> Depths:
        """Those of a bundle."""
        steps = tuple(len(plan.levels) for plan in manifest.plans)
        return cls(steps, manifest.steps_min, manifest.steps_unit)

    @property
    def limits(self) -> tuple[int, ...]:
        """Plans worth naming as a limit, deepest first: of equally deep ones the last."""
        deepest_of = {steps: plan for plan, steps in enumerate(self.steps)}
        return tuple(sorted(deepest_of.values(), reverse=True))

    def steps_to_cut(self, made: int) -> int:
        """Further calls until the next cut point of a row that made so many; 0 = here."""
        units = math.ceil(max(made, self.steps_min) / self.steps_unit)
        return units * self.steps_unit - made


class DepthMix:
    """Share of frames that ask for each plan, learned from what they took.

    At first every frame is thought to take the deepest.
    """

    def __init__(self, depths: Depths) -> None:
        self._steps = depths.steps
        self._shares = [0.0] * len(depths.steps)
        self._shares[-1] = 1.0
        self.share_made = 1.0  # of planned calls: the rest is spared by leaving early

    def note_made(self, made: int, planned: int) -> None:
        """One frame has left after so many of its planned calls."""
        if planned:
            self.share_made += WEIGHT * (made / planned - self.share_made)

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
