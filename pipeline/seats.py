"""A seat: the place of one bundle at the reader, with its inspection loops and what it judges by.

A worker has one, and while bundles change two. A part is made for a seat when it is read, is
inspected there and judged by the thresholds that the seat had at that moment: whatever happens
meanwhile, no part sees two bundles. Each engine of the bundle has a loop, and takes the next parts
that are ready.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from dataclasses import dataclass, field

from engines.bundle import Bundle
from engines.contracts import BadFrame
from engines.inspector import Part
from pipeline.judging import Judge
from pipeline.wire import FrameEntry


@dataclass(slots=True, eq=False)
class Loop:
    """One inspection loop, as the reader sees it."""

    free: int = 0  # parts that it could take when it was last there
    latest_ns: float = -math.inf  # deadline of the last part in line at it; -inf: it waits for some
    beat_s: float = field(default_factory=time.monotonic)  # when it last made a turn; inf: at rest


@dataclass(slots=True, eq=False)
class Seat:
    """One bundle at the reader, and the parts that were read for it and not yet taken."""

    bundle: Bundle
    judge: Judge
    plan: int  # of parts that ask for none
    loops: tuple[Loop, ...] = field(default_factory=lambda: (Loop(),))
    ready: list[Part] = field(default_factory=list)  # by deadline

    @property
    def room(self) -> int:
        """How many more parts may be read for it."""
        return sum(loop.free for loop in self.loops) - len(self.ready)

    def add(self, part: Part) -> None:
        """One more is ready."""
        insort(self.ready, part, key=_due_ns)

    def share_of(self, number: int) -> int:
        """How many of the ready parts a loop takes now, the first of them.

        A part that waits in one engine's line waits for all before it, although another engine may
        be done sooner. So where there are several, a loop that is at work takes only what it would
        turn to at once, and what is more than one part for each; the rest is for whoever has time
        first. What is taken goes to whoever has most room: parts that come together, as those of
        cameras in phase, do not all go to one engine.
        """
        loop, several = self.loops[number], len(self.loops) > 1
        at_once = 1 if loop.latest_ns == -math.inf else self._due_before(loop.latest_ns)
        beyond = len(self.ready) - len(self.loops) if several else len(self.ready)
        return min(self._by_room(number), max(at_once, beyond))

    def _due_before(self, latest_ns: float) -> int:
        return bisect_left(self.ready, latest_ns, key=_due_ns)

    def _by_room(self, number: int) -> int:
        """How many go to a loop where each goes to whoever has most room."""
        free, mine = [loop.free for loop in self.loops], 0
        for _ in self.ready:
            most = max(range(len(free)), key=lambda at: (free[at], at == number))
            if free[most] < 1:
                break
            free[most] -= 1
            mine += most == number
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


def _due_ns(part: Part) -> float:
    return part.deadline_ns or math.inf
