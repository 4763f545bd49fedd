"""Which jobs take their next denoise step: pure policy over jobs, without tensors or clock.

First in, first out for now: the oldest jobs share the next batch whatever their level and depth,
because the graphs keep each row's place on the schedule in the row itself (README, *Why*).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engines.contracts import Progress


@dataclass(slots=True, eq=False)
class Job:
    """One frame being denoised."""

    frame_id: str
    category: str
    slot: int  # its row of state inside the backend
    deadline_ns: int
    plan: int = -1
    level: int = -1
    steps_left: int = 0
    steps_planned: int = 0
    steps: int = 0


def choose(jobs: Iterable[Job], batch_max: int) -> list[Job]:
    """The oldest unfinished jobs, at most ``batch_max``; jobs come in order of admission."""
    return list(islice((job for job in jobs if job.steps_left > 0), batch_max))


def begin(jobs: Sequence[Job], progress: Progress) -> None:
    """Write down what the start graph chose."""
    for row, job in enumerate(jobs):
        job.plan, job.level = int(progress.plan[row]), int(progress.level[row])
        job.steps_left = job.steps_planned = int(progress.steps_left[row])


def advance(jobs: Sequence[Job], progress: Progress) -> None:
    """Count one denoiser call for each job."""
    for row, job in enumerate(jobs):
        job.steps_left = int(progress.steps_left[row])
        job.level = int(progress.level[row])  # GLAD's is where it closes, known only now
        job.steps += 1


def finished(jobs: Iterable[Job]) -> list[Job]:
    """Jobs with no step left, oldest first."""
    return [job for job in jobs if job.steps_left <= 0]
