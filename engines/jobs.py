"""One row on its way through the graphs, and one decision about several of them.

A row is a frame, or one of its tiles where a bundle cuts frames: its jobs then share the frame's
deadline, and each takes the depth that it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from engines.contracts import ADAPTIVE, at_most

if TYPE_CHECKING:
    from engines.contracts import Finding


@dataclass(slots=True, eq=False)
class Job:
    """One row being denoised."""

    frame_id: str
    category: str
    slot: int  # its row of state inside the backend
    deadline_ns: int  # 0 = none
    camera: str = ""
    asked: int = ADAPTIVE  # the plan it came with
    arrived_ns: int = 0
    due_ns: float = math.inf  # when its evidence must be there
    limit: int | None = None  # the deepest plan it was allowed; None = any
    plan: int = -1
    level: int = -1
    steps_left: int = 0
    steps_planned: int = 0
    steps: int = 0
    is_running: bool = False  # it has started
    is_cut: bool = False  # it leaves at this cut point, short of its plan
    looked_at: int = -1  # calls made when its evidence was last looked at
    tile: int = 0  # its place in the frame, row by row

    @property
    def request(self) -> int:
        """What the start graph is asked for."""
        return self.asked if self.limit is None else at_most(self.limit)

    @property
    def is_done(self) -> bool:
        """Whether it makes no further step."""
        return self.steps_left <= 0 or self.is_cut


@dataclass(slots=True, eq=False)
class Sheet:
    """A frame in flight: the jobs of its tiles, and what those found that are done."""

    jobs: dict[int, Job]  # tile -> job, of those under way
    found: dict[int, Finding] = field(default_factory=dict)  # tile -> finding

    def note(self, job: Job, finding: Finding) -> bool:
        """Keep the finding of a tile; whether it was the last one."""
        del self.jobs[job.tile]
        self.found[job.tile] = finding
        return not self.jobs

    @property
    def findings(self) -> list[Finding]:
        """Those of its tiles, in their order."""
        return [self.found[tile] for tile in sorted(self.found)]


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One decision: these jobs, through this graph, now; or nobody."""

    kind: Literal["drop", "start", "step", "look", "finish", "wait"]
    jobs: tuple[Job, ...] = ()
    until_ns: float = math.inf  # of "wait": when to ask again if nothing arrives
