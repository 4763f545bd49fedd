"""A seat: the place of one bundle at the reader, with its inspection loops and what it judges by.

A worker has one, and while bundles change two. A part is made for a seat when it is read, is
inspected there and judged by the thresholds that the seat had at that moment: whatever happens
meanwhile, no part sees two bundles. Each engine of the bundle has a loop, and takes the next parts
that are ready.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from engines.bundle import Bundle
from engines.contracts import BadFrame
from engines.inspector import Part
from pipeline.judging import Judge
from pipeline.wire import FrameEntry

IDLE = math.inf  # the ``due_ns`` of a loop that can do nothing before a part comes


@dataclass(slots=True, eq=False)
class Loop:
    """One inspection loop, as the reader sees it."""

    free: int = 0  # parts that it could take when it was last there
    due_ns: float = IDLE  # deadline of the first part in line at it, where it is at work
    beat_s: float = field(default_factory=time.monotonic)  # when it last made a turn; inf: at rest


@dataclass(slots=True, eq=False)
class Seat:
    """One bundle at the reader, and the parts that were read for it and not yet taken."""

    bundle: Bundle
    judge: Judge
    plan: int  # of parts that ask for none
    loops: tuple[Loop, ...] = field(default_factory=lambda: (Loop(),))
    ready: list[Part] = field(default_factory=list)  # as they came

    @property
    def room(self) -> int:
        """How many more parts may be read for it."""
        return sum(loop.free for loop in self.loops) - len(self.ready)

    def take(self, number: int) -> list[Part]:
        """The ready parts that a loop takes now.

        A part that waits in one engine's line waits for all before it, although another engine may
        be done sooner. So where there are several, a loop that is at work takes only what it would
        turn to at once; the rest is for whoever has time first, as long as there are no more than
        loops. Each part goes to whoever has most room of those that may take it: what comes
        together, as from cameras in phase, does not all go to one engine.
        """
        loops = self.loops
        mine: list[Part] = []
        left: list[Part] = []
        room = [loop.free for loop in loops]
        first_ns = [loop.due_ns for loop in loops]
        beyond = len(self.ready) - (len(loops) if len(loops) > 1 else 0)
        for place, part in enumerate(self.ready):
            due_ns = part.deadline_ns or math.inf
            takers = [
                at
                for at in range(len(loops))
                if room[at] and (place < beyond or first_ns[at] == IDLE or due_ns < first_ns[at])
            ]
            chosen = max(takers, key=lambda at: (room[at], at == number), default=None)
            if chosen is not None:
                room[chosen] -= 1
                first_ns[chosen] = min(due_ns, first_ns[chosen])
            (mine if chosen == number else left).append(part)
        self.ready[:] = left
        loops[number].free, loops[number].due_ns = room[number], first_ns[number]
        return mine

    @property
    def beat_s(self) -> float:
        """When the last of its loops made a turn: what one holds is alive while all of them are."""
        return min(loop.beat_s for loop in self.loops)

    def part(self, entry: FrameEntry) -> Part:
        """A frame as this seat's engine needs it; BadFrame where it cannot be one."""
        if entry.image.shape[:2] != self.bundle.frame_size:
            raise BadFrame(
                f"{entry.frame_id} is a model input of {entry.image.shape[:2]}, the bundle takes "
                f"{self.bundle.frame_size}; restart ingest with this bundle"
            )
        if entry.plan >= len(self.bundle.manifest.plans):
            raise BadFrame(f"{entry.frame_id} asks for plan {entry.plan}, which the bundle lacks")
        return Part(
            frame_id=entry.frame_id,
            category_id=self.bundle.category_id(entry.category),
            category=self.bundle.category_name(entry.category),
            image=entry.image,
            plan=self.plan if entry.plan < 0 else entry.plan,
            deadline_ns=entry.deadline_ns,
            camera=entry.camera,
        )
