"""One frame on its way through the graphs, and one decision about several of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engines.contracts import ADAPTIVE, at_most


@dataclass(slots=True, eq=False)
class Job:
    """One frame being denoised."""

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

    @property
    def request(self) -> int:
        """What the start graph is asked for."""
        return self.asked if self.limit is None else at_most(self.limit)

    @property
    def is_done(self) -> bool:
        """Whether it makes no further step."""
        return self.steps_left <= 0 or self.is_cut


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One decision: these jobs, through this graph, now; or nobody."""

    kind: Literal["drop", "start", "step", "look", "finish", "wait"]
    jobs: tuple[Job, ...] = ()
    until_ns: float = math.inf  # of "wait": when to ask again if nothing arrives
