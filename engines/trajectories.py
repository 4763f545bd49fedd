"""How the scores of frames go from step to step, each plan walked to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.backend import BUCKETS, start_inputs
from engines.contracts import ADAPTIVE, Float32, Int32, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.contracts import Backend, UInt8


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """Rows along one plan, and where they might have stopped; tiles of a frame lie together."""

    scores: Float32  # [N, steps + 1] after 0, 1, ... calls; NaN where there is no evidence yet
    is_good: NDArray[np.bool_]  # [N]: no synthetic anomaly
    steps_min: int = 0
    steps_unit: int = 1
    tiles: int = 1  # rows of a frame

    @property
    def steps(self) -> int:
        """Denoiser calls of the plan."""
        return int(self.scores.shape[1]) - 1

    @property
    def final(self) -> Float32:
        """Scores at its end, [N]."""
        return self.scores[:, -1]

    @property
    def cut_points(self) -> tuple[int, ...]:
        """Calls after which a row may stop, before the end, where every frame has evidence."""
        return tuple(
            made
            for made in range(self.steps_min, self.steps)
            if made % self.steps_unit == 0 and bool(np.isfinite(self.at(made)).all())
        )

    def at(self, made: int) -> Float32:
        """Scores after so many calls, [N]."""
        return self.scores[:, made]


def scores_along(
    backend: Backend,
    category: int,
    images: Sequence[UInt8],
    plan: int,
) -> Float32:
    """Scores of frames after 0, 1, ... denoiser calls of one plan, [N, steps + 1]."""
    found = []
    for batch in _batches(backend, images):
        slots = list(range(len(batch)))
        steps = int(backend.start(_rows(batch, category, plan), slots).steps_left.max())
        scores = np.empty((len(batch), steps + 1), np.float32)
        for made in range(steps + 1):
            if made > 0:
                backend.step(slots)
            scores[:, made] = backend.finish(slots).anomaly_score
        found.append(scores)
    return np.concatenate(found)


def plans_chosen(backend: Backend, category: int, images: Sequence[UInt8]) -> Int32:
    """The plan that each frame takes where the graph chooses, [N]."""
    taken = [
        backend.start(_rows(batch, category, ADAPTIVE), list(range(len(batch)))).plan.copy()
        for batch in _batches(backend, images)
    ]
    return np.concatenate(taken)


def _batches(backend: Backend, images: Sequence[UInt8]) -> Iterator[Sequence[UInt8]]:
    size = min(backend.capacity, BUCKETS[-1])
    return (images[first : first + size] for first in range(0, len(images), size))


def _rows(images: Sequence[UInt8], category: int, plan: int) -> Rows:
    return start_inputs(images, [category] * len(images), [plan] * len(images))
