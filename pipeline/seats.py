"""A seat: the place of one inspection loop at the reader, with its bundle and what it judges by.

A worker has one, and while bundles change two. A part is made for a seat when it is read, is
inspected there and judged by the thresholds that the seat had at that moment: whatever happens
meanwhile, no part sees two bundles.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from engines.bundle import Bundle
from engines.contracts import BadFrame
from engines.inspector import Part
from pipeline.judging import Judge
from pipeline.wire import FrameEntry


@dataclass(slots=True, eq=False)
class Seat:
    """One bundle at the reader, and the parts that were read for it and not yet taken."""

    bundle: Bundle
    judge: Judge
    plan: int  # of parts that ask for none
    ready: deque[Part] = field(default_factory=deque)

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
